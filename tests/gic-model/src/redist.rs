//! Redistributors: the RD and SGI frames, and physical LPIs (IHI 0069, 5.1, 12.10 and 12.11).
//!
//! Pending LPIs and cached configuration bytes are held here. The pending table in memory is read when EnableLPIs is
//! set and written when it is cleared (or at each change, if the machine is configured so). A cached configuration byte
//! keeps its value until an INV, INVALL, INVLPIR or INVALLR is complete.

use crate::config::Cpu;
use crate::dist::{Cell, cell, cell_write};
use crate::its::{Ite, Item};
use crate::machine::{Delivery, State};
use crate::memory::{Snoop, Use};
use crate::vpe::{Leaving, Resident};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// INTID of the first LPI.
pub(crate) const LPI: u32 = 8192;

const PROPBASER: &str = "12.11 GICR_PROPBASER";
const PENDBASER: &str = "12.11 GICR_PENDBASER";
const CTLR: &str = "12.11 GICR_CTLR";
const POWER: &str = "11.1 Power management";

/// What a CPU's redistributor has done since reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Residencies that began.
    pub residencies: u64,
    /// Reads of GICR_VPENDBASER.
    pub vpendbaser_reads: u64,
    /// Reads of GICR_VPENDBASER that found Valid = 1 and Dirty = 0. Each of them ends a polling loop.
    pub vpendbaser_settled: u64,
    /// Writes to GICR_VPENDBASER.
    pub vpendbaser_writes: u64,
}

pub(crate) struct Redist {
    pub(crate) counters: Counters,
    pub(crate) powered: bool,
    pub(crate) enable_lpis: bool,
    dpg: u32,
    rwp_until: u64,
    waker: u32,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
    pub(crate) config: BTreeMap<u32, u8>,
    pub(crate) pending: BTreeSet<u32>,
    pub(crate) busy_until: u64,
    pub(crate) busy_stuck: bool,
    /// Effects of an INVLPIR or INVALLR, which are complete when Busy clears.
    pub(crate) in_flight: Vec<Item>,
    words: HashMap<u64, u32>,
    // State of the VLPI frame; see vpe.rs.
    pub(crate) vpropbaser: u64,
    pub(crate) vpendbaser: u64,
    pub(crate) resident: Option<Resident>,
    pub(crate) leaving: Option<Leaving>,
    pub(crate) dirty_stuck: bool,
    pub(crate) virtual_interface: bool,
    /// ICH_HCR_EL2.vSGIEOICount.
    pub(crate) vsgi_eoi_ignored: bool,
    /// ICH_HCR_EL2.EOIcount.
    pub(crate) eoi_count: u8,
    pub(crate) vsgi: VsgiQuery,
}

/// Result of a query by GICR_VSGIR, for GICR_VSGIPENDR.
#[derive(Default)]
pub(crate) struct VsgiQuery {
    pub(crate) busy_until: u64,
    pub(crate) pending: u16,
}

impl Redist {
    pub(crate) fn new(cpu: &Cpu) -> Redist {
        Redist {
            counters: Counters::default(),
            powered: cpu.powered_at_reset,
            enable_lpis: false,
            dpg: 0,
            rwp_until: 0,
            waker: 0x6,
            propbaser: 0,
            pendbaser: 0,
            config: BTreeMap::new(),
            pending: BTreeSet::new(),
            busy_until: 0,
            busy_stuck: false,
            in_flight: Vec::new(),
            words: HashMap::new(),
            vpropbaser: 0,
            vpendbaser: 0,
            resident: None,
            leaving: None,
            dirty_stuck: false,
            virtual_interface: true,
            vsgi_eoi_ignored: false,
            eoi_count: 0,
            vsgi: VsgiQuery::default(),
        }
    }

    /// Number of INTID bits that the configuration table covers.
    fn id_bits(&self) -> u32 {
        (self.propbaser & 0x1f) as u32 + 1
    }
}

/// Returns whether accesses with a value of a shareability field snoop.
pub(crate) fn snoop(shareability: u64) -> Snoop {
    if shareability & 3 == 0 { Snoop::No } else { Snoop::Yes }
}

impl State {
    pub(crate) fn redist_offset(&self, at: u64) -> Option<(usize, u64)> {
        self.cfg
            .cpus
            .iter()
            .enumerate()
            .find_map(|(n, cpu)| at.checked_sub(cpu.gicr).filter(|o| *o < cpu.frames_size()).map(|o| (n, o)))
    }

    /// Sets the state that earlier software has left, according to the configuration.
    pub(crate) fn reset_redist(&mut self, rd: usize) {
        if let Some(lpis) = self.cfg.cpus[rd].lpis_at_reset {
            let r = &mut self.rds[rd];
            r.propbaser = lpis.propbaser;
            r.pendbaser = lpis.pendbaser;
            r.enable_lpis = true;
        }
        if self.cfg.cpus[rd].rvpeid {
            self.rds[rd].vpropbaser = self.vpropbaser_readback(3 << 53);
        }
        if let Some((vpropbaser, vpendbaser)) = self.cfg.cpus[rd].residency_at_reset {
            self.reset_residency(rd, vpropbaser, vpendbaser);
        }
    }

    /// Notes that the tables of LPIs that earlier software has left enabled are in this memory.
    pub(crate) fn attach_tables_at_reset(&mut self, at: u64, len: u64) {
        for rd in 0..self.rds.len() {
            if self.cfg.cpus[rd].lpis_at_reset.is_none() || !self.rds[rd].enable_lpis {
                continue;
            }
            let bits = self.rds[rd].id_bits().clamp(14, self.cfg.intid_bits);
            let config = self.rds[rd].propbaser & 0x000f_ffff_ffff_f000;
            let pending = self.rds[rd].pendbaser & 0x000f_ffff_ffff_0000;
            if (at..at + len).contains(&config) {
                self.mem.attach(config, (1 << bits) - u64::from(LPI), Use::Config);
            }
            if (at..at + len).contains(&pending) {
                self.mem.attach(pending, 1 << (bits - 3), Use::Pending(rd));
            }
        }
    }

    /// Turns the power of a redistributor on, in its reset state.
    pub(crate) fn power_on(&mut self, rd: usize) {
        if !self.rds[rd].powered {
            self.rds[rd] = Redist::new(&self.cfg.cpus[rd]);
            self.rds[rd].powered = true;
            if self.cfg.cpus[rd].rvpeid {
                self.rds[rd].vpropbaser = self.vpropbaser_readback(3 << 53);
            }
        }
    }

    /// Turns the power of a redistributor off. Nothing may be sent to it or be in progress there.
    pub(crate) fn power_off(&mut self, rd: usize) {
        let r = &self.rds[rd];
        if r.resident.is_some() || r.leaving.is_some() {
            self.flag(POWER, format!("CPU{rd} powered off while a vPE is resident on its redistributor"));
        }
        for its in 0..self.its.len() {
            let homeless: Vec<u16> = self.its[its].vpes.iter().filter(|(_, v)| v.rd == rd).map(|(id, _)| *id).collect();
            if !homeless.is_empty() {
                self.flag(POWER, format!("CPU{rd} powered off while ITS{its} has vPEs {homeless:?} mapped to it"));
            }
            let used = self.its[its]
                .devices
                .values()
                .flat_map(|d| d.events.values())
                .filter(|e| match e {
                    Ite::Physical { collection, .. } => self.its[its].collections.get(collection) == Some(&rd),
                    Ite::Virtual { .. } => false,
                })
                .count();
            if used != 0 {
                self.flag(POWER, format!("CPU{rd} powered off while ITS{its} has {used} events mapped to it"));
            }
        }
        let r = &self.rds[rd];
        if r.enable_lpis && self.cfg.cpus[rd].ces {
            self.disable_lpis(rd);
        }
        self.rds[rd].powered = false;
    }

    /// Completes the operations that are due.
    pub(crate) fn settle_redist(&mut self, rd: usize) {
        let r = &mut self.rds[rd];
        if !r.in_flight.is_empty() && !r.busy_stuck && self.now >= r.busy_until {
            for item in std::mem::take(&mut self.rds[rd].in_flight) {
                self.apply(item);
            }
        }
        self.settle_residency(rd);
    }

    /// Whether the redistributor has GICR_INVLPIR, GICR_INVALLR and GICR_SYNCR.
    fn has_inv(&self, rd: usize) -> bool {
        let c = &self.cfg.cpus[rd];
        c.direct_lpi || c.ir || c.rvpeid
    }

    // ---- registers

    pub(crate) fn redist_read(&mut self, rd: usize, offset: u64, wide: bool) -> u64 {
        // Without power only the identification registers and GICR_WAKER are there.
        if !self.rds[rd].powered && !matches!(offset & !3, 0x4 | 0x8 | 0xc | 0x14 | 0xffd0..0x1_0000) {
            return 0;
        }
        match offset >> 16 {
            0 => self.rd_read(rd, offset, wide),
            1 => {
                if !self.narrow_only("12.11 GICR, SGI frame", offset, wide) {
                    return 0;
                }
                match cell(offset & 0xffff) {
                    Cell::Plain(at) | Cell::Set(at) | Cell::Clear(at) => {
                        self.rds[rd].words.get(&at).copied().unwrap_or(0).into()
                    }
                    Cell::None => 0,
                }
            }
            2 => self.vlpi_read(rd, offset & 0xffff, wide),
            _ => 0,
        }
    }

    fn rd_read(&mut self, rd: usize, offset: u64, wide: bool) -> u64 {
        let c = &self.cfg.cpus[rd];
        let r = &self.rds[rd];
        match offset & !4 {
            0x8 => return State::half(c.typer(), offset),
            0x70 => return State::half(r.propbaser, offset),
            // PTZ is write-only.
            0x78 => return State::half(r.pendbaser & !(1 << 62), offset),
            // Write-only registers read as zero.
            0x40 | 0x48 | 0xa0 | 0xb0 => return 0,
            _ => {}
        }
        let value = match offset {
            0x0 => {
                let rwp = u64::from(self.now < r.rwp_until) << 3;
                u64::from(r.enable_lpis) | u64::from(c.ces) << 1 | u64::from(c.ir) << 2 | u64::from(r.dpg) | rwp
            }
            0x4 => self.cfg.iidr.into(),
            0x14 if self.cfg.ds => r.waker.into(),
            0xc0 => {
                if !self.has_inv(rd) {
                    self.flag("12.11 GICR_SYNCR", format!("GICR_SYNCR read on CPU{rd}, which does not implement it"));
                    return 0;
                }
                u64::from(r.busy_stuck || self.now < r.busy_until)
            }
            0xffe8 => self.arch_rev().into(),
            _ => 0,
        };
        if self.narrow_only("12.11 GICR", offset, wide) { value } else { 0 }
    }

    pub(crate) fn redist_write(&mut self, rd: usize, offset: u64, value: u64, wide: bool) {
        if !self.rds[rd].powered && offset != 0x14 {
            return self.flag(
                POWER,
                format!("{value:#x} written at offset {offset:#x} of CPU{rd}'s redistributor, which has no power"),
            );
        }
        match offset >> 16 {
            0 => self.rd_write(rd, offset, value, wide),
            1 => {
                if self.narrow_only("12.11 GICR, SGI frame", offset, wide) {
                    cell_write(&mut self.rds[rd].words, cell(offset & 0xffff), value as u32);
                }
            }
            2 => self.vlpi_write(rd, offset & 0xffff, value, wide),
            _ => self.flag("12.10 GICR", format!("write to the reserved frame of CPU{rd}")),
        }
    }

    fn rd_write(&mut self, rd: usize, offset: u64, value: u64, wide: bool) {
        match offset & !4 {
            0x70 => {
                let merged = State::merge(self.rds[rd].propbaser, offset, value, wide);
                return self.write_propbaser(rd, merged);
            }
            0x78 => {
                let merged = State::merge(self.rds[rd].pendbaser, offset, value, wide);
                return self.write_pendbaser(rd, merged);
            }
            0x40 | 0x48 | 0xa0 | 0xb0 => return self.write_direct(rd, offset, value, wide),
            _ => {}
        }
        if !self.narrow_only("12.11 GICR", offset, wide) {
            return;
        }
        match offset {
            0x0 => self.write_ctlr(rd, value as u32),
            // ProcessorSleep, which ChildrenAsleep follows at once. With two Security states GICR_WAKER is Secure.
            0x14 if self.cfg.ds => self.rds[rd].waker = if value & 2 != 0 { 0x6 } else { 0 },
            _ => {}
        }
    }

    fn write_propbaser(&mut self, rd: usize, value: u64) {
        if self.rds[rd].enable_lpis {
            return self.flag(PROPBASER, format!("GICR_PROPBASER written on CPU{rd} while EnableLPIs is 1"));
        }
        let writable = 0x1f | 7 << 7 | 3 << 10 | 0x000f_ffff_ffff_f000 | 7 << 56;
        self.rds[rd].propbaser = self.refuse_sharing(rd, value & writable);
    }

    fn write_pendbaser(&mut self, rd: usize, value: u64) {
        if self.rds[rd].enable_lpis {
            return self.flag(PENDBASER, format!("GICR_PENDBASER written on CPU{rd} while EnableLPIs is 1"));
        }
        let writable = 7 << 7 | 3 << 10 | 0x000f_ffff_ffff_0000 | 7 << 56 | 1 << 62;
        if value & 0xf000 != 0 {
            self.flag(
                PENDBASER,
                format!("GICR_PENDBASER on CPU{rd} has a table that is not 64 KiB aligned ({value:#x})"),
            );
        }
        self.rds[rd].pendbaser = self.refuse_sharing(rd, value & writable);
    }

    /// Clears the shareability in a register value if the redistributor does not snoop.
    pub(crate) fn refuse_sharing(&self, rd: usize, value: u64) -> u64 {
        if self.cfg.cpus[rd].shareable { value } else { value & !(3 << 10) }
    }

    fn write_ctlr(&mut self, rd: usize, value: u32) {
        self.rds[rd].dpg = value & 0x0700_0000;
        let enable = value & 1 != 0;
        if enable == self.rds[rd].enable_lpis {
            return;
        }
        if self.now < self.rds[rd].rwp_until {
            self.flag(CTLR, format!("GICR_CTLR.EnableLPIs changed on CPU{rd} while RWP is 1"));
        }
        if enable {
            self.enable_lpis(rd);
        } else if self.cfg.cpus[rd].ces {
            self.disable_lpis(rd);
        }
    }

    fn enable_lpis(&mut self, rd: usize) {
        let (prop, pend) = (self.rds[rd].propbaser, self.rds[rd].pendbaser);
        let bits = self.rds[rd].id_bits();
        if bits < 14 {
            self.flag(PROPBASER, format!("EnableLPIs set on CPU{rd} with {bits} INTID bits, which cover no LPI"));
        }
        if bits > self.cfg.intid_bits {
            self.flag(
                PROPBASER,
                format!("EnableLPIs set on CPU{rd} with {bits} INTID bits, more than GICD_TYPER.IDbits"),
            );
        }
        let bits = bits.clamp(14, self.cfg.intid_bits);
        let (config, config_len) = (prop & 0x000f_ffff_ffff_f000, (1u64 << bits) - u64::from(LPI));
        let (table, table_len) = (pend & 0x000f_ffff_ffff_0000, 1u64 << (bits - 3));
        if !self.mem.is_allocated(config, config_len) {
            self.flag(
                PROPBASER,
                format!("the configuration table of CPU{rd} at {config:#x} is not allocated memory throughout"),
            );
        }
        for other in 0..self.rds.len() {
            let same = self.cfg.cpus[other].group() == self.cfg.cpus[rd].group();
            let field = |v: u64| v & (0x000f_ffff_ffff_f000 | 0x1f);
            if other != rd && self.rds[other].enable_lpis {
                if same && field(self.rds[other].propbaser) != field(prop) {
                    self.flag(
                        PROPBASER,
                        format!("CPU{rd} and CPU{other} are in one CommonLPIAff group but have different configuration tables"),
                    );
                }
                if self.rds[other].pendbaser & 0x000f_ffff_ffff_0000 == table {
                    self.flag(PENDBASER, format!("CPU{rd} and CPU{other} have the same pending table at {table:#x}"));
                }
            }
        }
        let how = snoop(pend >> 10);
        let mut found = BTreeSet::new();
        if pend & 1 << 62 != 0 {
            let trouble = self.mem.device_zero(table, table_len, how);
            self.flag_memory(PENDBASER, "the pending table enabled with PTZ = 1", table, trouble);
        } else {
            let mut bytes = vec![0; table_len as usize];
            let trouble = self.mem.device_read(table, &mut bytes, how);
            if !self.flag_memory(PENDBASER, "the pending table", table, trouble) {
                found = pending_bits(&bytes);
            }
        }
        if let Some(other) = self.mem.clash(table, table_len, Use::Pending(rd)) {
            self.flag(PENDBASER, format!("the pending table of CPU{rd} at {table:#x} overlaps {other}"));
        }
        self.mem.attach(table, table_len, Use::Pending(rd));
        self.mem.attach(config, config_len, Use::Config);
        let r = &mut self.rds[rd];
        r.enable_lpis = true;
        r.config.clear();
        r.pending = found;
        if self.eager_cache() {
            for intid in self.rds[rd].pending.clone() {
                self.lpi_config(rd, intid);
            }
        }
    }

    fn disable_lpis(&mut self, rd: usize) {
        if self.rds[rd].resident.is_some() {
            self.flag(CTLR, format!("GICR_CTLR.EnableLPIs cleared on CPU{rd} while a vPE is resident there"));
        }
        let bits = self.rds[rd].id_bits().clamp(14, self.cfg.intid_bits);
        let (prop, pend) = (self.rds[rd].propbaser, self.rds[rd].pendbaser);
        let table = pend & 0x000f_ffff_ffff_0000;
        self.rds[rd].enable_lpis = false;
        self.rds[rd].rwp_until = self.now + self.cfg.timing.rwp;
        let pending = std::mem::take(&mut self.rds[rd].pending);
        let bytes = pending_bytes(&pending, bits);
        let _ = self.mem.device_write(table + 1024, &bytes[1024..], snoop(pend >> 10));
        self.mem.detach(table, Use::Pending(rd));
        self.mem.detach(prop & 0x000f_ffff_ffff_f000, Use::Config);
    }

    /// Handles a write to GICR_SETLPIR, GICR_CLRLPIR, GICR_INVLPIR or GICR_INVALLR.
    fn write_direct(&mut self, rd: usize, offset: u64, value: u64, wide: bool) {
        let (section, implemented) = match offset & !4 {
            0x40 => ("12.11 GICR_SETLPIR", self.cfg.cpus[rd].direct_lpi),
            0x48 => ("12.11 GICR_CLRLPIR", self.cfg.cpus[rd].direct_lpi),
            0xa0 => ("12.11 GICR_INVLPIR", self.has_inv(rd)),
            _ => ("12.11 GICR_INVALLR", self.has_inv(rd)),
        };
        let register = section.trim_start_matches("12.11 ");
        if !implemented {
            return self.flag(section, format!("{register} written on CPU{rd}, which does not implement it"));
        }
        if !wide {
            return self.flag(section, format!("{register} written on CPU{rd} with a 32-bit access"));
        }
        if !self.rds[rd].enable_lpis {
            return self.flag(section, format!("{register} written on CPU{rd} while EnableLPIs is 0"));
        }
        let intid = value as u32;
        let (vpe, v) = ((value >> 32) as u16, value >> 63 == 1);
        match offset & !4 {
            0x40 => self.set_lpi(rd, intid, "GICR_SETLPIR"),
            0x48 => {
                self.clear_lpi(rd, intid);
            }
            _ => {
                if self.rds[rd].busy_stuck || self.now < self.rds[rd].busy_until {
                    return self.flag(section, format!("{register} written on CPU{rd} while GICR_SYNCR.Busy is 1"));
                }
                let one = offset & !4 == 0xa0;
                let reserved = if one { 0x7fff_0000_0000_0000 } else { 0x7fff_0000_ffff_ffff };
                if value & reserved != 0 {
                    self.flag(section, format!("{register} written on CPU{rd} with RES0 bits set ({value:#x})"));
                }
                if (v || vpe != 0) && !self.cfg.cpus[rd].rvpeid {
                    return self.flag(
                        section,
                        format!("{register} written on CPU{rd}, which is not GICv4.1, with V or vPEID ({value:#x})"),
                    );
                }
                let item = if v {
                    self.direct_invalidate_virtual(section, rd, vpe, one.then_some(intid))
                } else if one {
                    if self.unfit(rd, intid).is_some() {
                        return self
                            .flag(section, format!("{register} written on CPU{rd} with {intid}, which is no LPI"));
                    }
                    self.check_config_published(section, rd, intid);
                    Some(Item::InvLpi { rd, intid })
                } else {
                    Some(Item::InvLpis { rd })
                };
                self.rds[rd].busy_until = self.now + self.cfg.timing.busy;
                self.rds[rd].in_flight.extend(item);
                self.occupied.insert(rd);
            }
        }
    }

    // ---- physical LPIs

    /// Returns the configuration byte of an LPI, from the cache or from memory.
    pub(crate) fn lpi_config(&mut self, rd: usize, intid: u32) -> u8 {
        if let Some(byte) = self.rds[rd].config.get(&intid) {
            return *byte;
        }
        let prop = self.rds[rd].propbaser;
        let at = (prop & 0x000f_ffff_ffff_f000) + u64::from(intid - LPI);
        let (byte, trouble) = self.mem.device_read8(at, snoop(prop >> 10));
        self.flag_memory("5.1.1 LPI configuration tables", "the configuration byte", at, trouble);
        self.rds[rd].config.insert(intid, byte);
        byte
    }

    /// Returns why this redistributor cannot hold this LPI, if so.
    fn unfit(&self, rd: usize, intid: u32) -> Option<&'static str> {
        let r = &self.rds[rd];
        if !r.powered {
            Some("the redistributor has no power")
        } else if !r.enable_lpis {
            Some("GICR_CTLR.EnableLPIs is 0")
        } else if intid < LPI {
            Some("not an LPI")
        } else if u64::from(intid) >> r.id_bits() != 0 {
            Some("beyond GICR_PROPBASER.IDbits")
        } else {
            None
        }
    }

    pub(crate) fn set_lpi(&mut self, rd: usize, intid: u32, source: &str) {
        if let Some(why) = self.unfit(rd, intid) {
            return self.drop_interrupt(format!("LPI {intid} for CPU{rd} from {source}"), why);
        }
        self.rds[rd].pending.insert(intid);
        if !self.eager_cache() {
            // QEMU reads the byte again for each arrival.
            self.rds[rd].config.remove(&intid);
        }
        self.lpi_config(rd, intid);
        self.show_pending(rd, intid);
    }

    pub(crate) fn clear_lpi(&mut self, rd: usize, intid: u32) -> bool {
        let was = self.rds[rd].pending.remove(&intid);
        if was {
            self.show_pending(rd, intid);
        }
        was
    }

    /// Writes the pending bit to memory on machines that do so at each change.
    fn show_pending(&mut self, rd: usize, intid: u32) {
        if self.cfg.write_through {
            let pend = self.rds[rd].pendbaser;
            let set = self.rds[rd].pending.contains(&intid);
            self.write_pending_bit(pend & 0x000f_ffff_ffff_0000, intid, set, snoop(pend >> 10));
        }
    }

    pub(crate) fn write_pending_bit(&mut self, table: u64, intid: u32, set: bool, how: Snoop) {
        let at = table + u64::from(intid / 8);
        let (byte, _) = self.mem.device_read8(at, how);
        let mask = 1 << (intid % 8);
        let _ = self.mem.device_write(at, &[if set { byte | mask } else { byte & !mask }], how);
    }

    /// Returns the LPI that would be acknowledged: the enabled one of highest priority and, among equals, lowest INTID.
    pub(crate) fn host_best(&mut self, rd: usize) -> Option<u32> {
        if !self.group1_enabled() || !self.rds[rd].powered || self.cfg.ds && self.rds[rd].waker != 0 {
            return None;
        }
        let candidates: Vec<u32> = self.rds[rd].pending.iter().copied().collect();
        candidates
            .into_iter()
            .filter_map(|intid| {
                let byte = self.lpi_config(rd, intid);
                (byte & 1 != 0).then_some((byte & 0xfc, intid))
            })
            .min()
            .map(|(_, intid)| intid)
    }

    pub(crate) fn host_ack(&mut self, cpu: usize) -> Option<u32> {
        let intid = self.host_best(cpu)?;
        self.clear_lpi(cpu, intid);
        self.deliveries.push(Delivery::Host { cpu, intid });
        Some(intid)
    }

    /// Returns the redistributor that an RDbase field names.
    pub(crate) fn target(&self, its: usize, field: u64) -> Option<usize> {
        if self.cfg.its[its].pta {
            self.cfg.cpus.iter().position(|c| c.gicr == field << 16)
        } else {
            self.cfg.cpus.iter().position(|c| u64::from(c.processor_number) == field)
        }
    }
}

/// Returns the LPIs whose bits are set in a pending table.
pub(crate) fn pending_bits(bytes: &[u8]) -> BTreeSet<u32> {
    (LPI..bytes.len() as u32 * 8).filter(|n| bytes[*n as usize / 8] & 1 << (n % 8) != 0).collect()
}

/// Returns the contents of a pending table for these LPIs.
pub(crate) fn pending_bytes(pending: &BTreeSet<u32>, bits: u32) -> Vec<u8> {
    let mut bytes = vec![0; 1 << (bits - 3)];
    for n in pending {
        if let Some(byte) = bytes.get_mut(*n as usize / 8) {
            *byte |= 1 << (n % 8);
        }
    }
    bytes
}
