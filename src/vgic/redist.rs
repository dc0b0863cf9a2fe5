//! The registers of a redistributor (IHI 0069, 12.10 and 12.11).
//!
//! A redistributor has two frames of 64 KiB, as in a GICv3 without virtual LPIs. GICR_CTLR.CES is 1: the guest can
//! disable LPIs again. Direct invalidation (GICR_INVLPIR, GICR_INVALLR, GICR_SYNCR) is not advertised.
//!
//! PPIs signal by level and GICR_ICFGR1 is read-only, which the architecture allows: the PPIs of a guest are those of
//! its timers, which are level-sensitive.

use super::direct_sgis::SGIS;
use super::dist::{IIDR, PIDR2, config_field, read_fields, write_fields};
use super::lpi_tables::TableCursor;
use super::port::Port;
use super::regs::{BitReg, IrqReg, PENDBASER_PTZ, RedistReg, SPI_FIRST, decode_redist};
use super::state::Vgic;
use super::vcpu::{Vcpu, Work};
use super::vcpu_set::VcpuSet;
use crate::ids::{Intid, VcpuId};
use crate::util::bits::{set_bits, to_bits};
use core::sync::atomic::Ordering;

const CTLR_ENABLE_LPIS: u32 = 1 << 0;
const CTLR_CES: u32 = 1 << 1;

const TYPER_PLPIS: u64 = 1 << 0;
const TYPER_LAST: u64 = 1 << 4;
const TYPER_NUMBER_SHIFT: u32 = 8;
const TYPER_AFFINITY_SHIFT: u32 = 32;

const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

const PROPBASER_MASK: u64 = 7 << 56 | 0x000f_ffff_ffff_f000 | 3 << 10 | 7 << 7 | 0x1f;
const PENDBASER_MASK: u64 = 7 << 56 | 0x000f_ffff_ffff_0000 | 3 << 10 | 7 << 7;
const SHARE_SHIFT: u32 = 10;
const INNER_SHIFT: u32 = 7;

/// The value of a table register after a write. The memory attributes become those that EL2 uses, because EL2 reads the
/// tables through its own cacheable, inner-shareable mapping.
fn sanitise(value: u64) -> u64 {
    let share = (value >> SHARE_SHIFT) & 3;
    let share = if share >= 2 { 1 } else { share };
    let inner = (value >> INNER_SHIFT) & 7;
    let inner = if inner < 2 { 3 } else { inner };
    let cleared = value & !(3 << SHARE_SHIFT | 7 << INNER_SHIFT | 7 << 56);
    cleared | share << SHARE_SHIFT | inner << INNER_SHIFT
}

impl Vgic {
    fn redist_typer(&self, frame: VcpuId, cpu: &Vcpu) -> u64 {
        let mut typer = u64::from(cpu.affinity.packed()) << TYPER_AFFINITY_SHIFT;
        typer |= u64::from(frame.0) << TYPER_NUMBER_SHIFT;
        if self.lpis.exist() {
            typer |= TYPER_PLPIS;
        }
        if frame.index() >= self.vcpus.len().saturating_sub(1) {
            typer |= TYPER_LAST;
        }
        typer
    }

    /// Handles a read of vCPU `from`: `size` bytes at `offset` of the redistributor of vCPU `frame`.
    #[must_use]
    pub fn redist_read(&self, port: &dyn Port, from: VcpuId, frame: VcpuId, offset: u64, size: u8) -> u64 {
        let Some(cpu) = self.vcpu(frame) else { return 0 };
        match decode_redist(offset, size) {
            RedistReg::Ctlr if !self.lpis.exist() => 0,
            RedistReg::Ctlr => u64::from(CTLR_CES | u32::from(cpu.state.lock().lpis_on)),
            RedistReg::Iidr => IIDR,
            RedistReg::Typer(part) => part.read(self.redist_typer(frame, cpu)),
            RedistReg::Waker => {
                let asleep = WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP;
                u64::from(if cpu.state.lock().asleep { asleep } else { 0 })
            }
            RedistReg::Propbaser(part) => part.read(cpu.state.lock().propbaser),
            RedistReg::Pendbaser(part) => part.read(cpu.state.lock().pendbaser & !PENDBASER_PTZ),
            RedistReg::Pidr2 => PIDR2,
            RedistReg::Irq(IrqReg::Bits(register, _)) => {
                let may_be_listed = !matches!(register, BitReg::Group | BitReg::SetEnable | BitReg::ClearEnable);
                if may_be_listed && from != frame && cpu.state.lock().any_listed() {
                    self.recall_one(port, frame);
                }
                let pending = matches!(register, BitReg::SetPending | BitReg::ClearPending);
                if pending && from == frame {
                    self.drop_fallen_ppis(port, frame);
                }
                let state = cpu.state.lock();
                let direct = match register {
                    BitReg::SetPending | BitReg::ClearPending => self.direct_pending(port, frame, cpu),
                    _ => 0,
                };
                let software = read_fields(0, 32, 1, |i| state.irq(i).is_some_and(|irq| irq.read(register)).into());
                // One that is active is pending, too, while its line is high.
                let high = |ppi: &u32| port.ppi_line(frame, Intid(*ppi));
                let lines = if pending && from == frame { to_bits(set_bits(state.held()).filter(high)) } else { 0 };
                software | u64::from(direct | lines)
            }
            RedistReg::Irq(IrqReg::Priority(first, count)) => {
                let state = cpu.state.lock();
                read_fields(first, count, 8, |i| state.irq(i).map_or(0, |irq| irq.priority.into()))
            }
            RedistReg::Irq(IrqReg::Config(first)) => {
                let state = cpu.state.lock();
                read_fields(first, 16, 2, |i| state.irq(i).map_or(0, config_field))
            }
            RedistReg::None => 0,
        }
    }

    /// Handles a write of vCPU `from`: `size` bytes at `offset` of the redistributor of vCPU `frame`. If it sets
    /// GICR_CTLR.EnableLPIs, returns the cursor for [`read_tables`](Vgic::read_tables), with whose end it takes effect.
    pub fn redist_write(
        &self,
        port: &dyn Port,
        from: VcpuId,
        frame: VcpuId,
        offset: u64,
        size: u8,
        value: u64,
    ) -> Option<TableCursor> {
        let cpu = self.vcpu(frame)?;
        match decode_redist(offset, size) {
            RedistReg::Ctlr => return self.write_redist_ctlr(port, from, frame, value as u32),
            RedistReg::Waker => cpu.state.lock().asleep = value as u32 & WAKER_PROCESSOR_SLEEP != 0,
            RedistReg::Propbaser(part) => {
                let mut state = cpu.state.lock();
                if self.lpis.exist() && !state.lpis_on {
                    state.propbaser = sanitise(part.write(state.propbaser, value) & PROPBASER_MASK);
                }
            }
            RedistReg::Pendbaser(part) => {
                let mut state = cpu.state.lock();
                if self.lpis.exist() && !state.lpis_on {
                    let new = part.write(state.pendbaser, value) & (PENDBASER_MASK | PENDBASER_PTZ);
                    state.pendbaser = sanitise(new);
                }
            }
            RedistReg::Irq(IrqReg::Bits(register, _)) => {
                self.write_private_bits(port, from, frame, register, value as u32);
            }
            RedistReg::Irq(IrqReg::Priority(first, count)) => {
                let mut state = cpu.state.lock();
                let mut written = 0u32;
                write_fields(first, count, 8, value, |intid, field| {
                    if let Some(irq) = state.irq_mut(intid) {
                        irq.priority = field as u8 & self.priority_mask;
                        written |= 1u32.wrapping_shl(intid);
                    }
                });
                self.configure_sgis(port, frame, cpu, &mut state, written);
            }
            RedistReg::Irq(IrqReg::Config(_))
            | RedistReg::Iidr
            | RedistReg::Typer(_)
            | RedistReg::Pidr2
            | RedistReg::None => {}
        }
        None
    }

    fn recall_one(&self, port: &dyn Port, vcpu: VcpuId) {
        let mut set = VcpuSet::new();
        set.insert(vcpu);
        self.recall(port, &set);
    }

    fn write_private_bits(&self, port: &dyn Port, from: VcpuId, frame: VcpuId, register: BitReg, value: u32) {
        let Some(cpu) = self.vcpu(frame) else { return };
        let (mut to_deactivate, mut listed, mut queued) = (0u32, false, false);
        let mut value = value;
        {
            let mut state = cpu.state.lock();
            match register {
                BitReg::SetPending => {
                    for sgi in set_bits(value & SGIS) {
                        if self.send_direct(port, frame, cpu, &mut state, sgi as u8) {
                            value &= !1u32.wrapping_shl(sgi);
                        }
                    }
                }
                BitReg::ClearPending => self.clear_direct(port, frame, cpu, value),
                BitReg::SetActive if self.sgis_are_never_active() => value &= !SGIS,
                _ => {}
            }
            let mut changed = 0u32;
            for intid in 0..SPI_FIRST {
                let mask = 1u32.wrapping_shl(intid);
                let Some(irq) = state.irq_mut(intid) else { continue };
                let change = irq.write(register, value & mask != 0);
                if change.deactivate {
                    to_deactivate |= mask;
                }
                if change.changed {
                    listed |= irq.is_listed();
                    queued |= irq.is_queued();
                    changed |= mask;
                    state.requeue(intid);
                }
            }
            if matches!(register, BitReg::Group | BitReg::SetEnable | BitReg::ClearEnable) {
                self.configure_sgis(port, frame, cpu, &mut state, changed);
                // A doorbell need not ring for an SGI that was pending before.
                queued |= changed & SGIS != 0 && cpu.direct_sgis.load(Ordering::SeqCst);
            }
        }
        if queued {
            self.notify_one(port, Some(from), frame, Work::PRIVATE);
        }
        if listed && from != frame {
            self.recall_one(port, frame);
        }
        for intid in set_bits(to_deactivate) {
            port.ppi_deactivate(frame, Intid(intid));
        }
    }

    fn write_redist_ctlr(&self, port: &dyn Port, from: VcpuId, frame: VcpuId, value: u32) -> Option<TableCursor> {
        let cpu = self.vcpu(frame)?;
        if !self.lpis.exist() {
            return None;
        }
        let on = value & CTLR_ENABLE_LPIS != 0;
        let (pendbaser, propbaser) = {
            let mut state = cpu.state.lock();
            if state.lpis_on == on {
                return None;
            }
            state.lpis_on = on;
            if !on {
                cpu.lpis_on.store(false, Ordering::SeqCst);
            }
            let tables = (state.pendbaser, state.propbaser);
            // PTZ is valid once: at the next enable, the table may have bits set.
            state.pendbaser &= !PENDBASER_PTZ;
            tables
        };
        if on {
            self.propbaser.store(propbaser, Ordering::SeqCst);
            return Some(Vgic::begin_tables(pendbaser));
        }
        if from != frame {
            self.recall_one(port, frame);
        }
        port.lpis_enabled(frame, false, pendbaser, propbaser);
        None
    }

    /// Whether LPIs are enabled on this vCPU: GICR_CTLR.EnableLPIs is set and its tables have been read.
    #[must_use]
    pub fn lpis_on(&self, vcpu: VcpuId) -> bool {
        self.vcpu(vcpu).is_some_and(|cpu| cpu.lpis_on.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::super::SgiGroup;
    use super::super::testing::{Asked, BOOT, Machine, sgi1r};
    use super::*;
    use crate::ids::Mpidr;

    const ONE: VcpuId = VcpuId(1);

    #[test]
    fn gicr_typer_has_affinity_number_and_last_and_no_virtual_lpis() {
        let machine = Machine::with_affinities(std::vec![Mpidr(0), Mpidr(0x1_0002_0304)]);
        let typer = |v| machine.vgic.redist_read(&machine, BOOT, v, 8, 8);
        assert_eq!(typer(BOOT), 1);
        assert_eq!(typer(ONE), 0x0102_0304_0000_0111);
        assert_eq!(machine.redist_read(ONE, 0xc), 0x0102_0304);
        assert_eq!(machine.redist_read(BOOT, 0xffe8), 0x3b);
        assert_eq!(typer(VcpuId(2)), 0);
    }

    #[test]
    fn a_redistributor_wakes_at_once() {
        let machine = Machine::blank(std::vec![Mpidr(0)]);
        assert_eq!(machine.redist_read(BOOT, 0x14), 6);
        machine.redist_write(BOOT, 0x14, 0);
        assert_eq!(machine.redist_read(BOOT, 0x14), 0);
        machine.redist_write(BOOT, 0x14, 2);
        assert_eq!(machine.redist_read(BOOT, 0x14), 6);
    }

    #[test]
    fn sgis_are_edge_triggered_and_ppis_level_sensitive_whatever_is_written() {
        let machine = Machine::new(1);
        for (offset, value) in [(0x1_0c00, 0xaaaa_aaaa), (0x1_0c04, 0)] {
            machine.redist_write(BOOT, offset, 0x5555_5555 ^ value);
            assert_eq!(machine.redist_read(BOOT, offset), value);
        }
    }

    #[test]
    fn table_registers_are_read_only_while_lpis_are_enabled() {
        let machine = Machine::new(1);
        let write = |offset, value| _ = machine.vgic.redist_write(&machine, BOOT, BOOT, offset, 8, value);
        let read = |offset| machine.vgic.redist_read(&machine, BOOT, BOOT, offset, 8);
        // Inner-shareable, RaWaWb, as Linux writes them.
        write(0x70, 0x1234_5000 | 7 << 7 | 1 << 10 | 13);
        write(0x78, 0x1_2345_0000 | 7 << 7 | 1 << 10 | 1 << 62);
        assert_eq!(read(0x70), 0x1234_5000 | 7 << 7 | 1 << 10 | 13);
        assert_eq!(read(0x78), 0x1_2345_0000 | 7 << 7 | 1 << 10, "PTZ reads as zero");
        machine.redist_write(BOOT, 0, 1);
        write(0x70, 0);
        write(0x78, 0);
        assert_eq!(read(0x70) & 0xffff_f000, 0x1234_5000);
        assert_eq!(read(0x78) & 0x1_ffff_0000, 0x1_2345_0000);
        assert_eq!(machine.redist_read(BOOT, 0), 3, "EnableLPIs and CES");
        machine.redist_write(BOOT, 0, 0);
        write(0x70, 13);
        assert_eq!(read(0x70) & 0xffff_f01f, 13);
    }

    #[test]
    fn table_registers_can_be_written_in_halves() {
        let machine = Machine::new(1);
        machine.redist_write(BOOT, 0x7c, 0x12);
        machine.redist_write(BOOT, 0x78, 0x3456_0000);
        assert_eq!(machine.vgic.redist_read(&machine, BOOT, BOOT, 0x78, 8), 0x12_3456_0000 | 3 << 7);
        assert_eq!(machine.redist_read(BOOT, 0x7c), 0x12);
    }

    #[test]
    fn memory_attributes_read_back_as_those_that_are_used() {
        assert_eq!(sanitise(2 << 10 | 7 << 7), 1 << 10 | 7 << 7, "outer shareable is inner");
        assert_eq!(sanitise(1 << 10 | 1 << 7), 1 << 10 | 3 << 7, "non-cacheable is cacheable");
        assert_eq!(sanitise(5 << 56 | 3 << 7), 3 << 7, "outer cacheability is as inner");
        assert_eq!(sanitise(3 << 10 | 3 << 7), 1 << 10 | 3 << 7, "a reserved shareability too");
    }

    #[test]
    fn a_vcpu_reads_and_changes_the_private_interrupts_of_another() {
        let machine = Machine::new(2);
        machine.vgic.send_sgi(&machine, BOOT, sgi1r(4, Mpidr(1)), SgiGroup::One);
        machine.enter(ONE);
        machine.acknowledge(ONE, 4);
        machine.forget();
        assert_eq!(machine.vgic.redist_read(&machine, BOOT, ONE, 0x1_0300, 4), 1 << 4);
        assert_eq!(machine.kicked(), [ONE]);
        machine.enter(ONE);
        machine.vgic.redist_write(&machine, BOOT, ONE, 0x1_0380, 4, 1 << 4);
        assert!(machine.enter(ONE).is_empty());
    }

    #[test]
    fn a_vcpu_accesses_its_own_private_interrupts_without_a_recall() {
        let machine = Machine::new(1);
        machine.redist_write(BOOT, 0x1_0200, 1 << 3);
        machine.enter(BOOT);
        machine.exit(BOOT);
        machine.forget();
        assert_eq!(machine.redist_read(BOOT, 0x1_0200), 1 << 3);
        machine.redist_write(BOOT, 0x1_0280, 1 << 3);
        assert!(machine.kicked().is_empty());
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn clearing_a_held_timer_interrupt_deactivates_the_physical_one() {
        let machine = Machine::new(1);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.redist_write(BOOT, 0x1_0280, 1 << 27);
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(0, 27)]);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.enter(BOOT);
        machine.acknowledge(BOOT, 27);
        machine.exit(BOOT);
        machine.redist_write(BOOT, 0x1_0380, 1 << 27);
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(0, 27)]);
    }

    #[test]
    fn a_disabled_timer_interrupt_waits_while_its_physical_interrupt_is_active() {
        let machine = Machine::new(1);
        machine.redist_write(BOOT, 0x1_0180, 1 << 27);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.vgic.held_ppis(BOOT), 1 << 27);
        machine.redist_write(BOOT, 0x1_0100, 1 << 27);
        assert_eq!(machine.enter(BOOT), [(27, 1, 0)]);
    }
}
