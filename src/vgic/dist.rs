//! The registers of the distributor (IHI 0069, 12.9).

use super::irq::{Irq, Trigger};
use super::port::Port;
use super::regs::{
    BitReg, DistReg, ENABLE_GROUP0, ENABLE_GROUP1, IrqReg, NASSGI_REQ, Part, SPI_END, SPI_FIRST, decode_dist,
};
use super::spi::{NO_VCPU, some_vcpu};
use super::state::Vgic;
use super::vcpu::Work;
use super::vcpu_set::VcpuSet;
use crate::ids::{Intid, Mpidr, VcpuId};
use crate::util::bits::{set_bits, to_bits};
use core::sync::atomic::Ordering;

const ENABLES: u32 = ENABLE_GROUP0 | ENABLE_GROUP1;
/// GICD_CTLR.ARE and GICD_CTLR.DS, which are always 1.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;

/// GICD_TYPER2.nASSGIcap: the guest can set nASSGIreq.
const TYPER2_NASSGI_CAP: u64 = 1 << 8;

const TYPER_LPIS: u32 = 1 << 17;
const TYPER_A3V: u32 = 1 << 24;
const TYPER_NO_1_OF_N: u32 = 1 << 25;
const TYPER_RSS: u32 = 1 << 26;
const TYPER_IDBITS_SHIFT: u32 = 19;

/// GICD_IIDR and GICR_IIDR: product `D` of implementer Arm. An implementer of zero is reported by some real parts and
/// would match their errata.
pub(super) const IIDR: u64 = 0x4400_043b;
/// GICD_PIDR2 and GICR_PIDR2: ArchRev 3, a GICv3.
pub(super) const PIDR2: u64 = 0x3b;

/// Aff3 and Aff2 to Aff0; Interrupt_Routing_Mode reads as zero (No1N).
const ROUTE_MASK: u64 = 0xff_00ff_ffff;

impl Vgic {
    fn typer(&self) -> u64 {
        let spis = self.dist.lock().count();
        let lines = spis.div_ceil(32);
        let id_bits = if self.lpis.exist() { u32::from(self.lpis.id_bits()) } else { 10 };
        let mut typer = lines | TYPER_A3V | TYPER_NO_1_OF_N;
        typer |= id_bits.saturating_sub(1) << TYPER_IDBITS_SHIFT;
        if self.lpis.exist() {
            typer |= TYPER_LPIS;
        }
        if self.vcpus.iter().any(|cpu| cpu.affinity.aff(0) > 15) {
            typer |= TYPER_RSS;
        }
        u64::from(typer)
    }

    /// Handles a guest's read of `size` bytes at `offset` of the distributor's frame.
    #[must_use]
    pub fn dist_read(&self, port: &dyn Port, from: VcpuId, offset: u64, size: u8) -> u64 {
        match decode_dist(offset, size) {
            DistReg::Ctlr => u64::from(self.ctlr.load(Ordering::SeqCst) | CTLR_FIXED),
            DistReg::Typer => self.typer(),
            DistReg::Iidr => IIDR,
            DistReg::Typer2 if self.direct_sgis.load(Ordering::SeqCst) => TYPER2_NASSGI_CAP,
            DistReg::Typer2 => 0,
            DistReg::Pidr2 => PIDR2,
            DistReg::Irq(IrqReg::Bits(register, first)) => self.read_spi_bits(port, from, register, first),
            DistReg::Irq(IrqReg::Priority(first, count)) => {
                let dist = self.dist.lock();
                read_fields(first, count, 8, |intid| dist.irq(intid).map_or(0, |irq| irq.priority.into()))
            }
            DistReg::Irq(IrqReg::Config(first)) => {
                let dist = self.dist.lock();
                read_fields(first, 16, 2, |intid| dist.irq(intid).map_or(0, config_field))
            }
            DistReg::Route(intid, part) => part.read(self.dist.lock().spi(intid).map_or(0, |spi| spi.route)),
            DistReg::None => 0,
        }
    }

    /// Handles a guest's write of `size` bytes at `offset` of the distributor's frame.
    pub fn dist_write(&self, port: &dyn Port, from: VcpuId, offset: u64, size: u8, value: u64) {
        match decode_dist(offset, size) {
            DistReg::Ctlr => self.write_ctlr(port, from, value as u32),
            DistReg::Irq(IrqReg::Bits(register, first)) => {
                self.write_spi_bits(port, from, register, first, value as u32);
            }
            DistReg::Irq(IrqReg::Priority(first, count)) => {
                let mut dist = self.dist.lock();
                write_fields(first, count, 8, value, |intid, field| {
                    if let Some(irq) = dist.irq_mut(intid) {
                        irq.priority = field as u8 & self.priority_mask;
                    }
                });
            }
            DistReg::Irq(IrqReg::Config(first)) => self.write_config(port, from, first, value),
            DistReg::Route(intid, part) => self.write_route(port, from, intid, part, value),
            DistReg::Typer | DistReg::Typer2 | DistReg::Iidr | DistReg::Pidr2 | DistReg::None => {}
        }
    }

    fn write_ctlr(&self, port: &dyn Port, from: VcpuId, value: u32) {
        if value & ENABLES & !self.ctlr.load(Ordering::SeqCst) != 0 {
            (SPI_FIRST..SPI_END).step_by(32).for_each(|first| self.drop_fallen_spis(port, first, u32::MAX));
        }
        let (old, new) = {
            let _dist = self.dist.lock();
            let old = self.ctlr.load(Ordering::SeqCst);
            // While a group is enabled, nASSGIreq does not change.
            let settable = if self.direct_sgis.load(Ordering::SeqCst) { NASSGI_REQ } else { old & NASSGI_REQ };
            let nassgi = if old & ENABLES == 0 { value & settable } else { old & NASSGI_REQ };
            let new = value & ENABLES | nassgi;
            self.ctlr.store(new, Ordering::SeqCst);
            (old, new)
        };
        if (old ^ new) & NASSGI_REQ != 0 {
            self.nassgi_changed(port, from);
        }
        let (old, new) = (old & ENABLES, new & ENABLES);
        if old == new {
            return;
        }
        let mut others = VcpuSet::first(self.vcpus.len());
        if new & !old != 0 {
            self.notify(port, Some(from), &others, Work::all());
        }
        if old & !new != 0 {
            others.remove(from);
            self.recall(port, &others);
        }
        if (old ^ new) & ENABLE_GROUP1 != 0 {
            mirror(|| self.group1_on(), |on| port.group1_enabled(on));
        }
    }

    fn read_spi_bits(&self, port: &dyn Port, from: VcpuId, register: BitReg, first: u32) -> u64 {
        if !matches!(register, BitReg::Group | BitReg::SetEnable | BitReg::ClearEnable) {
            let mut listed_on = self.dist.lock().listed_at(first);
            listed_on.remove(from);
            self.recall(port, &listed_on);
        }
        let pending = matches!(register, BitReg::SetPending | BitReg::ClearPending);
        if pending {
            self.drop_fallen_spis(port, first, u32::MAX);
        }
        let dist = self.dist.lock();
        let software = read_fields(first, 32, 1, |intid| dist.irq(intid).is_some_and(|irq| irq.read(register)).into());
        let exists = |intid: u32| pending && dist.irq(intid).is_some() && port.owns_spi(Intid(intid));
        let owned = read_fields(first, 32, 1, |intid| exists(intid).into()) as u32;
        drop(dist);
        // One that is disabled, or active, has not been acknowledged by EL2.
        let physical = intids(first, owned).filter(|intid| port.spi_is_pending(*intid));
        software | u64::from(to_bits(physical.map(|intid| intid.0.wrapping_sub(first))))
    }

    fn write_spi_bits(&self, port: &dyn Port, from: VcpuId, register: BitReg, first: u32, value: u32) {
        if register == BitReg::SetEnable {
            self.drop_fallen_spis(port, first, value);
        }
        let mut notified = VcpuSet::new();
        let mut listed_on = VcpuSet::new();
        let (mut changed, mut to_deactivate) = (0u32, 0u32);
        {
            let mut dist = self.dist.lock();
            for bit in 0..32u32 {
                let mask = 1u32.wrapping_shl(bit);
                let intid = first.wrapping_add(bit);
                let Some(irq) = dist.irq_mut(intid) else { continue };
                let change = irq.write(register, value & mask != 0);
                if change.deactivate {
                    to_deactivate |= mask;
                }
                if !change.changed {
                    continue;
                }
                changed |= mask;
                if irq.is_listed() {
                    dist.home(intid).into_iter().for_each(|home| listed_on.insert(home));
                } else {
                    dist.place(intid).into_iter().for_each(|home| notified.insert(home));
                }
            }
        }
        listed_on.remove(from);
        self.notify(port, Some(from), &notified, Work::SPI);
        self.recall(port, &listed_on);

        for intid in intids(first, to_deactivate) {
            port.spi_deactivate(intid);
        }
        match register {
            BitReg::SetEnable | BitReg::ClearEnable => {
                for intid in intids(first, changed).filter(|i| port.owns_spi(*i)) {
                    mirror(
                        || self.dist.lock().irq(intid.0).is_some_and(Irq::is_enabled),
                        |on| port.spi_set_enabled(intid, on),
                    );
                }
            }
            // A write makes an SPI pending in software only; one that is cleared may be pending in hardware.
            BitReg::ClearPending => {
                let exists = |i: &Intid| self.dist.lock().irq(i.0).is_some();
                for intid in intids(first, value).filter(exists).filter(|i| port.owns_spi(*i)) {
                    port.spi_set_pending(intid, false);
                }
            }
            _ => {}
        }
    }

    fn write_config(&self, port: &dyn Port, from: VcpuId, first: u32, value: u64) {
        let mut changed = 0u32;
        let mut notified = VcpuSet::new();
        {
            let mut dist = self.dist.lock();
            write_fields(first, 16, 2, value, |intid, field| {
                let trigger = if field & 2 != 0 { Trigger::Edge } else { Trigger::Level };
                if dist.irq_mut(intid).is_some_and(|irq| irq.set_trigger(trigger)) {
                    changed |= 1u32.wrapping_shl(intid.wrapping_sub(first));
                    dist.place(intid).into_iter().for_each(|home| notified.insert(home));
                }
            });
        }
        self.notify(port, Some(from), &notified, Work::SPI);
        for intid in intids(first, changed).filter(|i| port.owns_spi(*i)) {
            mirror(
                || self.dist.lock().irq(intid.0).map_or(Trigger::Level, Irq::trigger),
                |trigger| port.spi_set_trigger(intid, trigger),
            );
        }
    }

    fn write_route(&self, port: &dyn Port, from: VcpuId, intid: u32, part: Part, value: u64) {
        if !(SPI_FIRST..SPI_END).contains(&intid) {
            return;
        }
        let mut listed_on = VcpuSet::new();
        let mut notified = VcpuSet::new();
        {
            let mut dist = self.dist.lock();
            let Some(spi) = dist.spi_mut(intid) else { return };
            let route = part.write(spi.route, value) & ROUTE_MASK;
            if route == spi.route {
                return;
            }
            spi.route = route;
            spi.target = self.vcpu_by_affinity(Mpidr(route)).map_or(NO_VCPU, |v| v.0);
            if spi.irq.is_listed() {
                // If it is still pending there, that vCPU's sync moves it to the queue of the new one.
                some_vcpu(spi.home).into_iter().for_each(|home| listed_on.insert(home));
            }
            dist.place(intid).into_iter().for_each(|home| notified.insert(home));
        }
        listed_on.remove(from);
        self.notify(port, Some(from), &notified, Work::SPI);
        self.recall(port, &listed_on);
        if port.owns_spi(Intid(intid)) {
            mirror(
                || self.dist.lock().target(intid),
                |target| target.into_iter().for_each(|vcpu| port.spi_route(Intid(intid), vcpu)),
            );
        }
    }
}

/// Makes the hardware follow a state that other vCPUs may change meanwhile: applies it until it has not changed since
/// it was read, so that the last one to apply it has read the last state.
fn mirror<T: Copy + PartialEq>(state: impl Fn() -> T, act: impl Fn(T)) {
    // Each further round takes another write of the guest. A guest that goes on longer may leave the two states
    // different.
    for _ in 0..8 {
        let now = state();
        act(now);
        if state() == now {
            return;
        }
    }
}

/// The INTIDs of the bits in `mask`, of which bit 0 is `first`.
pub(super) fn intids(first: u32, mask: u32) -> impl Iterator<Item = Intid> {
    set_bits(mask).map(move |bit| Intid(first.wrapping_add(bit)))
}

/// The two bits of an interrupt in ICFGR.
pub(super) fn config_field(irq: &Irq) -> u32 {
    match irq.trigger() {
        Trigger::Level => 0,
        Trigger::Edge => 2,
    }
}

/// Combines `count` fields of `width` bits, one for each interrupt from `first` on; the first is the lowest.
pub(super) fn read_fields(first: u32, count: u32, width: u32, field: impl Fn(u32) -> u32) -> u64 {
    (0..count)
        .fold(0u64, |value, at| value | u64::from(field(first.wrapping_add(at))).wrapping_shl(at.wrapping_mul(width)))
}

/// Splits `value` into `count` fields of `width` bits, one for each interrupt from `first` on.
pub(super) fn write_fields(first: u32, count: u32, width: u32, value: u64, mut each: impl FnMut(u32, u32)) {
    let mask = 1u32.wrapping_shl(width).wrapping_sub(1);
    for at in 0..count {
        each(first.wrapping_add(at), value.wrapping_shr(at.wrapping_mul(width)) as u32 & mask);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Signal;
    use super::super::testing::{Asked, BOOT, Machine};
    use super::*;

    const ONE: VcpuId = VcpuId(1);

    fn owning(intids: &[u32]) -> Machine {
        let mut machine = Machine::new(2);
        machine.owned = intids.to_vec();
        machine
    }

    #[test]
    fn the_distributor_is_a_gicv3_with_one_security_state() {
        let machine = Machine::blank(std::vec![Mpidr(0), Mpidr(1)]);
        assert_eq!(machine.dist_read(0), 0x50);
        // ITLinesNumber 2 (96 INTIDs), LPIS, 14 bits of INTID, A3V, No1N.
        assert_eq!(machine.dist_read(4), 2 | 1 << 17 | 13 << 19 | 1 << 24 | 1 << 25);
        assert_eq!(machine.dist_read(0xffe8), 0x3b);
        assert_eq!(machine.dist_read(0xc), 0, "no GICD_TYPER2");
    }

    #[test]
    fn a_range_selector_is_advertised_where_an_affinity_needs_it() {
        let machine = Machine::with_affinities(std::vec![Mpidr(0), Mpidr(16)]);
        assert_ne!(machine.dist_read(4) & 1 << 26, 0);
    }

    #[test]
    fn only_the_group_enables_of_the_control_register_can_be_written() {
        let machine = Machine::new(1);
        machine.dist_write(0, 0xffff_ffff);
        assert_eq!(machine.dist_read(0), 0x53);
        machine.dist_write(0, 0);
        assert_eq!(machine.dist_read(0), 0x50);
    }

    #[test]
    fn the_domain_is_told_when_group_1_is_enabled_or_disabled() {
        let machine = Machine::new(1);
        machine.dist_write(0, 2);
        assert!(machine.asked().is_empty());
        machine.dist_write(0, 1);
        machine.dist_write(0, 3);
        assert_eq!(machine.asked(), [Asked::Group1(false), Asked::Group1(true)]);
    }

    #[test]
    fn disabling_a_group_takes_its_interrupts_out_of_list_registers() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Level(true));
        assert_eq!(machine.enter(ONE).len(), 1);
        machine.dist_write(0, 0);
        assert_eq!(machine.kicked(), [ONE, ONE], "once for the interrupt and once to recall it");
        assert!(machine.enter(ONE).is_empty());
    }

    #[test]
    fn set_and_clear_registers_change_single_bits() {
        let machine = Machine::new(1);
        for (set, clear) in [(0x104, 0x184), (0x204, 0x284), (0x304, 0x384)] {
            machine.dist_write(set, 0xf0);
            machine.dist_write(clear, 0x30);
            assert_eq!((machine.dist_read(set), machine.dist_read(clear)), (0xc0, 0xc0));
        }
        machine.dist_write(0x84, 0x1234_5678);
        assert_eq!(machine.dist_read(0x84), 0x1234_5678);
    }

    #[test]
    fn interrupts_that_do_not_exist_read_as_zero() {
        let machine = Machine::new(1);
        for offset in [0x80, 0x100, 0x10c, 0x200, 0x400, 0x460, 0xc00, 0xc18, 0x6300, 0x7fd8] {
            machine.dist_write(offset, 0xffff_ffff);
            assert_eq!(machine.dist_read(offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn priorities_are_bytes() {
        let machine = Machine::new(1);
        machine.dist_write(0x420, 0x8040_20ff);
        machine.vgic.dist_write(&machine, BOOT, 0x421, 1, 0x77);
        assert_eq!(machine.dist_read(0x420), 0x8040_70f8);
        assert_eq!(machine.vgic.dist_read(&machine, BOOT, 0x423, 1), 0x80);
    }

    #[test]
    fn triggers_are_the_upper_of_two_bits() {
        let machine = Machine::new(1);
        machine.dist_write(0xc08, 0x0000_000f);
        assert_eq!(machine.dist_read(0xc08), 0xa);
        assert_eq!((machine.view(33).trigger, machine.view(34).trigger), (Trigger::Edge, Trigger::Level));
    }

    #[test]
    fn a_route_has_four_levels_of_affinity_and_no_routing_mode() {
        let machine = Machine::new(1);
        machine.vgic.dist_write(&machine, BOOT, 0x6100, 8, u64::MAX);
        assert_eq!(machine.vgic.dist_read(&machine, BOOT, 0x6100, 8), 0xff_00ff_ffff);
        machine.dist_write(0x6104, 0);
        assert_eq!(machine.vgic.dist_read(&machine, BOOT, 0x6100, 8), 0xff_ffff);
        assert_eq!(machine.view(32).target, None);
    }

    #[test]
    fn the_physical_spi_follows_the_virtual_one() {
        let machine = owning(&[40]);
        machine.dist_write(0x104, 0xffff_ffff);
        assert_eq!(machine.asked(), [Asked::Enabled(40, true)]);
        machine.dist_write(0x104, 1 << 8);
        assert!(machine.asked().is_empty(), "already enabled");
        machine.dist_write(0xc08, 0xffff_ffff);
        machine.vgic.dist_write(&machine, BOOT, 0x6000 + 40 * 8, 8, 1);
        machine.dist_write(0x284, 0xffff_ffff);
        machine.dist_write(0x184, 0xffff_ffff);
        let expected = [
            Asked::Trigger(40, Trigger::Edge),
            Asked::Route(40, 1),
            Asked::Pending(40, false),
            Asked::Enabled(40, false),
        ];
        assert_eq!(machine.asked(), expected);
    }

    #[test]
    fn clearing_the_pending_state_of_a_held_interrupt_deactivates_the_physical_one() {
        let machine = owning(&[40]);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        machine.dist_write(0x284, 1 << 8);
        assert_eq!(machine.asked(), [Asked::Deactivate(40), Asked::Pending(40, false)]);
        assert!(!machine.view(40).held);
    }

    #[test]
    fn pending_and_active_states_in_another_vcpus_list_registers_are_read_after_a_recall() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.make_edge(40);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.enter(ONE);
        machine.acknowledge(ONE, 40);
        machine.forget();
        assert_eq!(machine.dist_read(0x304), 1 << 8, "acknowledged, according to that vCPU's list register");
        assert_eq!(machine.kicked(), [ONE]);
        assert_eq!(machine.dist_read(0x204), 0);
    }

    #[test]
    fn reading_enable_bits_recalls_no_vcpu() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Level(true));
        machine.enter(ONE);
        machine.forget();
        assert_eq!(machine.dist_read(0x104), 1 << 8);
        assert!(machine.kicked().is_empty());
    }

    #[test]
    fn a_register_access_does_not_wait_for_the_vcpu_that_it_recalls() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Level(true));
        machine.enter(ONE);
        machine.obey_kicks.set(false);
        assert_eq!(machine.dist_read(0x204), 1 << 8);
        assert!(!machine.is_settled());
    }

    #[test]
    fn disabling_an_interrupt_takes_it_out_of_another_vcpus_list_registers() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.make_edge(40);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.enter(ONE);
        machine.dist_write(0x184, 1 << 8);
        assert!(machine.enter(ONE).is_empty());
        assert!(machine.view(40).pending, "and it stays pending");
    }

    #[test]
    fn clearing_a_pending_state_takes_effect_in_another_vcpus_list_registers() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.make_edge(40);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.enter(ONE);
        machine.dist_write(0x284, 1 << 8);
        assert!(machine.enter(ONE).is_empty());
        assert!(!machine.view(40).pending);
    }

    #[test]
    fn the_physical_state_is_set_again_if_another_vcpu_changes_the_virtual_one_meanwhile() {
        use std::cell::{Cell, RefCell};
        let (state, acts) = (Cell::new(true), RefCell::new(std::vec::Vec::new()));
        mirror(
            || state.get(),
            |on| {
                acts.borrow_mut().push(on);
                state.set(false);
            },
        );
        assert_eq!(acts.take(), [true, false]);
    }
}
