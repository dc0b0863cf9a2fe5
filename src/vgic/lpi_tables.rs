//! The LPI tables in a guest's memory: configuration and pending state.
//!
//! IHI 0069, 5.1.1 and 5.1.2. All redistributors of a domain share one configuration table (CommonLPIAff = 0). It is
//! read when LPIs are enabled and when the guest invalidates an LPI's configuration; in between, the copy in EL2 is
//! used. Addresses and sizes come from the guest: reads go through the port, which checks that they are in the domain's
//! memory, and stop at the number of LPIs of the domain.
//!
//! The tables are read in steps, because a table may hold thousands of changes. The vCPU that has set EnableLPIs does not
//! enter its guest before the last step, with which LPIs are enabled.
//!
//! When EnableLPIs changes from 1 to 0, the pending state stays in EL2 and is not written to the guest's table. When it
//! changes from 0 to 1, what the table holds becomes pending in addition; with GICR_PENDBASER.PTZ, nothing is pending.

use super::lpi::STEP_WORDS;
use super::port::Port;
use super::regs::PENDBASER_PTZ;
use super::state::Vgic;
use super::vcpu::Work;
use crate::ids::{Ipa, Lpi, VIntid, VcpuId};
use core::sync::atomic::Ordering;

/// Offset of the first LPI's byte in a pending table: INTID / 8.
const PENDING_TABLE_SKIP: u64 = Lpi::FIRST as u64 / 8;
/// Address in GICR_PROPBASER: bits 51 to 12.
const PROPBASER_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Address in GICR_PENDBASER: bits 51 to 16.
const PENDBASER_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// GICR_PROPBASER.IDbits: bits of an INTID, less one.
const PROPBASER_IDBITS: u64 = 0x1f;
/// Number of bytes of the guest's memory that are read at once.
const CHUNK: usize = 256;
/// How many times a vCPU is looked at in one step because of a changed configuration byte, if all bytes have changed.
const STEP_LOOKS: usize = 8192;
/// What a changed byte costs apart from that, in looks.
const BYTE_LOOKS: usize = 16;

/// How far a redistributor has read its LPI tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableCursor {
    /// GICR_PENDBASER when LPIs were enabled.
    pendbaser: u64,
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The configuration table, from this LPI on.
    Configuration(VIntid),
    /// The pending table, from this word on.
    Pending(u32),
}

impl Vgic {
    /// Number of LPIs that are covered by the guest's configuration table.
    fn covered(&self) -> u32 {
        let bits = (self.propbaser() & PROPBASER_IDBITS).saturating_add(1) as u32;
        let limit = if bits >= 32 { u32::MAX } else { 1u32.wrapping_shl(bits) };
        limit.saturating_sub(Lpi::FIRST).min(self.lpis.count())
    }

    fn config_address(&self, index: u32) -> Ipa {
        Ipa((self.propbaser() & PROPBASER_ADDRESS).saturating_add(u64::from(index)))
    }

    /// Reads the configuration byte of one LPI from the guest's table, applies it and returns it. Returns `None` if the
    /// table has none or is not in the domain's memory; nothing changes then.
    pub fn reload_lpi_config(&self, port: &dyn Port, vintid: VIntid) -> Option<u8> {
        let index = self.lpis.index(vintid).filter(|index| *index < self.covered())?;
        let mut byte = [0u8];
        if !port.read_guest(self.config_address(index), &mut byte) {
            return None;
        }
        let [byte] = byte;
        self.set_lpi_config(port, vintid, byte);
        Some(byte)
    }

    /// Reads and applies the configuration bytes of at most `max` LPIs from `from` on, and calls `changed` for each
    /// that is different now. Returns the LPI from which to go on, or `None` when all are read or the table is not in
    /// the domain's memory.
    pub fn reload_lpi_configs(
        &self,
        port: &dyn Port,
        from: VIntid,
        max: usize,
        changed: &mut dyn FnMut(VIntid, u8),
    ) -> Option<VIntid> {
        let mut index = from.0.saturating_sub(Lpi::FIRST);
        let covered = self.covered();
        let end = covered.min(index.saturating_add(u32::try_from(max).unwrap_or(u32::MAX)));
        let mut buffer = [0u8; CHUNK];
        while index < end {
            let length = (end.saturating_sub(index) as usize).min(CHUNK);
            let bytes = buffer.get_mut(..length).unwrap_or_default();
            if !port.read_guest(self.config_address(index), bytes) {
                return None;
            }
            for byte in bytes.iter() {
                if self.lpis.config(index) != *byte {
                    let vintid = VIntid(index.saturating_add(Lpi::FIRST));
                    self.set_lpi_config(port, vintid, *byte);
                    changed(vintid, *byte);
                }
                index = index.saturating_add(1);
            }
        }
        (index < covered).then_some(VIntid(index.saturating_add(Lpi::FIRST)))
    }

    /// Begins to read the tables, after EnableLPIs of a vCPU has changed from 0 to 1.
    pub(super) fn begin_tables(pendbaser: u64) -> TableCursor {
        TableCursor { pendbaser, part: Part::Configuration(VIntid(Lpi::FIRST)) }
    }

    /// Reads a part of the LPI tables of a vCPU, from `cursor` on. Returns the cursor for the next call, or `None` when
    /// all is read and LPIs are enabled. Stops if EnableLPIs is cleared meanwhile.
    #[must_use]
    pub fn read_tables(&self, port: &dyn Port, vcpu: VcpuId, cursor: TableCursor) -> Option<TableCursor> {
        let cpu = self.vcpu(vcpu)?;
        if !cpu.state.lock().lpis_on {
            return None;
        }
        let next = match cursor.part {
            Part::Configuration(from) => {
                let max = STEP_LOOKS.checked_div(self.vcpus.len().saturating_add(BYTE_LOOKS)).unwrap_or(1);
                let next = self.reload_lpi_configs(port, from, max.max(1), &mut |_, _| {});
                Some(next.map_or(Part::Pending(0), Part::Configuration))
            }
            Part::Pending(_) if cursor.pendbaser & PENDBASER_PTZ != 0 => {
                let _state = cpu.state.lock();
                (0..cpu.lpis.words()).for_each(|word| {
                    let _ = cpu.lpis.take_word(word);
                });
                None
            }
            Part::Pending(word) => self.load_pending_table(port, vcpu, word).map(Part::Pending),
        };
        if let Some(part) = next {
            return Some(TableCursor { part, ..cursor });
        }
        {
            // Under the lock, so that this does not undo a write of 0.
            let state = cpu.state.lock();
            cpu.lpis_on.store(state.lpis_on, Ordering::SeqCst);
        }
        self.notify_one(port, None, vcpu, Work::LPI);
        port.lpis_enabled(vcpu, true, cursor.pendbaser, self.propbaser());
        None
    }

    /// Makes the LPIs pending that the guest's pending table holds: a bounded number of words, from `cursor` on.
    /// Returns the cursor for the next call, or `None` at the end. LPIs that the hardware delivers stay in the set
    /// until [`take_direct_pending`](Vgic::take_direct_pending) removes them.
    fn load_pending_table(&self, port: &dyn Port, vcpu: VcpuId, cursor: u32) -> Option<u32> {
        let cpu = self.vcpu(vcpu)?;
        let table = cpu.state.lock().pendbaser & PENDBASER_ADDRESS;
        let covered = self.covered();
        let mut word = cursor;
        let end = cursor.saturating_add(STEP_WORDS).min(covered.div_ceil(64));
        let mut buffer = [0u8; CHUNK];
        while word < end {
            let words = end.saturating_sub(word).min((CHUNK / 8) as u32);
            let bytes = buffer.get_mut(..(words as usize).saturating_mul(8)).unwrap_or_default();
            let offset = PENDING_TABLE_SKIP.saturating_add(u64::from(word).saturating_mul(8));
            if !port.read_guest(Ipa(table.saturating_add(offset)), bytes) {
                return None;
            }
            for bytes in bytes.as_chunks::<8>().0 {
                let value = u64::from_le_bytes(*bytes) & valid_bits(word, covered);
                if value != 0 {
                    let _ = cpu.lpis.insert_word(word, value);
                }
                word = word.saturating_add(1);
            }
        }
        self.notify_one(port, None, vcpu, Work::LPI);
        (word < covered.div_ceil(64)).then_some(word)
    }
}

/// A mask of those LPIs of a word of the pending table that are below `covered`.
fn valid_bits(word: u32, covered: u32) -> u64 {
    let left = covered.saturating_sub(word.saturating_mul(64));
    if left >= 64 { u64::MAX } else { 1u64.wrapping_shl(left).wrapping_sub(1) }
}

#[cfg(test)]
mod tests {
    use super::super::Owner;
    use super::super::testing::{Asked, BOOT, Machine};
    use super::*;
    use std::vec::Vec;

    const ONE: VcpuId = VcpuId(1);
    const CONFIG: u64 = 0x1_0000;
    const PENDING: u64 = 0x2_0000;

    fn enable_lpis_with_table(machine: &Machine, vcpu: VcpuId) {
        let _ = machine.vgic.redist_write(machine, vcpu, vcpu, 0x70, 8, CONFIG | 13);
        let _ = machine.vgic.redist_write(machine, vcpu, vcpu, 0x78, 8, PENDING);
        machine.redist_write(vcpu, 0, 1);
    }

    fn pend(machine: &Machine, vcpu: VcpuId, vintid: u32) -> bool {
        machine.vgic.inject_lpi(machine, vcpu, VIntid(vintid))
    }

    #[test]
    fn configuration_is_read_when_lpis_are_enabled() {
        let machine = Machine::new(1);
        machine.poke(CONFIG, &[0xa3, 0x42]);
        machine.poke(CONFIG + 8191, &[0xff]);
        enable_lpis_with_table(&machine, BOOT);
        assert_eq!(machine.vgic.lpi_config(VIntid(8192)), 0xa3);
        assert_eq!(machine.vgic.lpi_config(VIntid(8193)), 0x42);
        assert_eq!(machine.vgic.lpi_config(VIntid(16383)), 0xff);
        assert_eq!(machine.vgic.lpi_config(VIntid(16384)), 0);
    }

    /// The number of steps in which a vCPU's tables are read, the most changed bytes in one step, and whether LPIs were
    /// delivered before the end.
    fn read_in_steps(vcpus: u64) -> (usize, usize, bool) {
        let machine = Machine::new(vcpus);
        machine.poke(CONFIG, &[0xa1; 8192]);
        machine.poke(PENDING + 1024, &[0xff; 1024]);
        let _ = machine.vgic.redist_write(&machine, BOOT, BOOT, 0x70, 8, CONFIG | 13);
        let _ = machine.vgic.redist_write(&machine, BOOT, BOOT, 0x78, 8, PENDING);
        let mut cursor = machine.vgic.redist_write(&machine, BOOT, BOOT, 0, 4, 1);
        assert_eq!(machine.redist_read(BOOT, 0), 3, "the register reads as written");
        let changed = || (8192..16384).filter(|&v| machine.vgic.lpi_config(VIntid(v)) == 0xa1).count();
        let (mut steps, mut most, mut early) = (0, 0, false);
        while let Some(at) = cursor {
            early |= machine.vgic.lpis_on(BOOT) || pend(&machine, BOOT, 9000);
            let before = changed();
            cursor = machine.vgic.read_tables(&machine, BOOT, at);
            most = most.max(changed() - before);
            steps += 1;
        }
        assert!(machine.vgic.lpis_on(BOOT));
        assert_eq!((changed(), machine.vgic.pending_lpis(BOOT)), (8192, 8192));
        (steps, most, early)
    }

    #[test]
    fn tables_are_read_in_steps_that_are_shorter_the_more_vcpus_there_are_and_then_take_effect() {
        assert_eq!(read_in_steps(1), (19, 481, false));
        assert_eq!(read_in_steps(16), (33, 256, false));
    }

    #[test]
    fn reading_the_tables_ends_when_lpis_are_disabled_meanwhile() {
        let machine = Machine::new(2);
        let cursor = machine.vgic.redist_write(&machine, BOOT, BOOT, 0, 4, 1).unwrap();
        let cursor = machine.vgic.read_tables(&machine, BOOT, cursor).unwrap();
        assert_eq!(machine.vgic.redist_write(&machine, ONE, BOOT, 0, 4, 0), None);
        assert_eq!(machine.vgic.read_tables(&machine, BOOT, cursor), None);
        assert!(!machine.vgic.lpis_on(BOOT));
    }

    #[test]
    fn a_changed_configuration_takes_effect_when_it_is_reloaded() {
        let machine = Machine::new(1);
        enable_lpis_with_table(&machine, BOOT);
        assert!(pend(&machine, BOOT, 8200));
        machine.poke(CONFIG + 8, &[0xa1]);
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.vgic.reload_lpi_config(&machine, VIntid(8200)), Some(0xa1));
        assert_eq!(machine.enter(BOOT), [(8200, 1, 0xa0)]);
    }

    #[test]
    fn all_configuration_bytes_are_read_in_steps_and_changes_are_reported() {
        let machine = Machine::new(1);
        enable_lpis_with_table(&machine, BOOT);
        machine.poke(CONFIG + 5, &[1]);
        machine.poke(CONFIG + 3000, &[0x81]);
        let mut reported = Vec::new();
        let (mut at, mut steps) = (Some(VIntid(8192)), 0);
        while let Some(from) = at {
            at = machine.vgic.reload_lpi_configs(&machine, from, 1000, &mut |v, b| reported.push((v.0, b)));
            steps += 1;
        }
        assert_eq!(reported, [(8197, 1), (11192, 0x81)]);
        assert_eq!(steps, 9);
    }

    #[test]
    fn lpis_beyond_a_small_table_have_no_configuration() {
        let machine = Machine::new(1);
        machine.poke(CONFIG, &[0xa1; 8]);
        machine.vgic.redist_write(&machine, BOOT, BOOT, 0x70, 8, CONFIG | 12);
        machine.redist_write(BOOT, 0, 1);
        assert_eq!(machine.vgic.lpi_config(VIntid(8192)), 0, "INTIDs of 13 bits contain no LPI");
        assert_eq!(machine.vgic.reload_lpi_config(&machine, VIntid(8192)), None);
    }

    #[test]
    fn a_table_for_more_intids_than_the_guest_has_is_read_up_to_its_last_lpi() {
        let machine = Machine::new(1);
        machine.poke(CONFIG + 8192, &[0xa1]);
        machine.vgic.redist_write(&machine, BOOT, BOOT, 0x70, 8, CONFIG | 31);
        machine.redist_write(BOOT, 0, 1);
        assert_eq!(machine.vgic.reload_lpi_config(&machine, VIntid(16384)), None);
        assert_eq!(machine.vgic.reload_lpi_config(&machine, VIntid(u32::MAX)), None);
    }

    #[test]
    fn a_table_outside_the_domains_memory_changes_nothing() {
        let machine = Machine::new(1);
        machine.vgic.redist_write(&machine, BOOT, BOOT, 0x70, 8, 1 << 41 | 13);
        machine.vgic.redist_write(&machine, BOOT, BOOT, 0x78, 8, 1 << 41);
        machine.redist_write(BOOT, 0, 1);
        assert!(machine.vgic.lpis_on(BOOT));
        assert_eq!(machine.vgic.reload_lpi_config(&machine, VIntid(8192)), None);
        assert_eq!(machine.vgic.pending_lpis(BOOT), 0);
    }

    #[test]
    fn the_lpis_in_the_guests_pending_table_are_pending_unless_ptz_is_set() {
        let machine = Machine::new(2);
        machine.poke(CONFIG, &[0xa1; 64]);
        machine.poke(PENDING + 1024, &[0b101]);
        machine.poke(PENDING + 2047, &[0x80]);
        machine.poke(PENDING + 1000, &[0xff]); // below 8192: not LPIs
        enable_lpis_with_table(&machine, BOOT);
        assert_eq!(machine.vgic.pending_lpis(BOOT), 3);
        assert_eq!(machine.enter(BOOT), [(8192, 1, 0xa0), (8194, 1, 0xa0)]);
        machine.enable_lpis(ONE, &[]);
        assert_eq!(machine.vgic.pending_lpis(ONE), 0);
    }

    #[test]
    fn pending_lpis_survive_a_disable_unless_ptz_is_set_at_the_next_enable() {
        let machine = Machine::new(1);
        machine.poke(CONFIG, &[0xa1]);
        machine.enable_lpis(BOOT, &[]);
        assert!(pend(&machine, BOOT, 8192));
        machine.redist_write(BOOT, 0, 0);
        assert!(machine.enter(BOOT).is_empty());
        assert!(!pend(&machine, BOOT, 8193));
        assert_eq!(machine.vgic.pending_lpis(BOOT), 1);
        machine.redist_write(BOOT, 0, 1);
        assert_eq!(machine.enter(BOOT), [(8192, 1, 0xa0)]);
        machine.exit(BOOT);
        machine.redist_write(BOOT, 0, 0);
        machine.enable_lpis(BOOT, &[]);
        assert_eq!(machine.vgic.pending_lpis(BOOT), 0);
    }

    #[test]
    fn pending_lpis_survive_a_disable_even_if_the_table_cannot_be_read() {
        let machine = Machine::new(1);
        machine.poke(CONFIG, &[0xa1]);
        machine.enable_lpis(BOOT, &[]);
        assert!(pend(&machine, BOOT, 8192));
        machine.redist_write(BOOT, 0, 0);
        assert!(machine.enter(BOOT).is_empty());
        machine.exit(BOOT);
        machine.vgic.redist_write(&machine, BOOT, BOOT, 0x78, 8, 1 << 41);
        machine.redist_write(BOOT, 0, 1);
        assert_eq!(machine.enter(BOOT), [(8192, 1, 0xa0)]);
    }

    #[test]
    fn enabling_lpis_tells_the_domain_where_the_tables_are() {
        let machine = Machine::new(2);
        enable_lpis_with_table(&machine, ONE);
        // Written as non-cacheable and non-shareable; reads as the attributes that EL2 uses.
        let (pendbaser, propbaser) = (PENDING | 3 << 7, CONFIG | 3 << 7 | 13);
        assert_eq!(machine.asked(), [Asked::Lpis(1, true, pendbaser, propbaser)]);
        machine.redist_write(ONE, 0, 1);
        assert!(machine.asked().is_empty());
        machine.redist_write(ONE, 0, 0);
        assert_eq!(machine.asked(), [Asked::Lpis(1, false, pendbaser, propbaser)]);
    }

    #[test]
    fn lpis_in_the_pending_table_that_the_hardware_delivers_are_taken_once_each_or_dropped() {
        let machine = Machine::new(1);
        machine.poke(CONFIG, &[0xa1; 64]);
        machine.poke(PENDING + 1024, &[0b10111]);
        for vintid in [8192, 8194, 8196] {
            let _ = machine.vgic.set_lpi_owner(&machine, BOOT, VIntid(vintid), Owner::Direct);
        }
        enable_lpis_with_table(&machine, BOOT);
        assert_eq!(machine.enter(BOOT), [(8193, 1, 0xa0)]);
        machine.exit(BOOT);
        let take = |vintid| machine.vgic.take_direct_pending(BOOT, VIntid(vintid));
        assert_eq!([8191, 8192, 8193, 8194, 8195].map(take), [false, true, false, true, false]);
        assert!(!take(8192) && !take(8194), "each is taken once");
        assert!(machine.vgic.has_direct_pending(BOOT));
        machine.vgic.drop_direct_pending(BOOT);
        assert!(!machine.vgic.has_direct_pending(BOOT) && !take(8196));
        assert_eq!(machine.vgic.pending_lpis(BOOT), 1, "8193 stays");
    }
}
