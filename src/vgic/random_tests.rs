//! A domain that does anything in any order, controlled by a string of bytes: random here, chosen by the fuzzer in the
//! fuzz target `vgic_mmio`.
//!
//! Three vCPUs enter, acknowledge, end, leave, sleep, power off, send SGIs and write any register. Devices signal,
//! physical interrupts arrive, LPIs become pending and move. vCPUs sometimes handle a kick late. The test keeps the
//! state of the physical interrupts itself and checks that
//!
//! * no interrupt is in two list registers, and no SPI is listed on two vCPUs;
//! * the physical interrupt that a list register is linked to is active and has the same number, and such a list
//!   register is never both pending and active;
//! * only active physical interrupts are deactivated, and none stays active at the end;
//! * a vCPU that was not kicked and gets no maintenance interrupt misses no interrupt, in its guest or asleep;
//! * once all interrupts are enabled and handled, none is pending or active.
//!
//! This file uses only the public interface of the virtual GIC, so that the fuzz target can include it.

use super::ids::{Intid, Ipa, Mpidr, VIntid, VcpuId};
use super::{LrImage, Owner, Port, SgiGroup, Signal, TableCursor, Trigger, Vgic, VgicConfig};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::vec::Vec;

const VCPUS: u16 = 3;
const SPIS: core::ops::Range<u32> = 32..96;
/// SPIs that the domain owns.
const OWNED: core::ops::Range<u32> = 40..48;
const TIMER: u32 = 27;
const LPIS: core::ops::Range<u32> = 8192..8200;
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const STATE: u64 = PENDING | ACTIVE;
const HW: u64 = 1 << 61;
const EOI: u64 = 1 << 41;
const LRENPIE: u64 = 1 << 2;
const NPIE: u64 = 1 << 3;
/// ICH_VMCR_EL2 with both groups enabled and no priority masked.
const OPEN: u64 = 0xff00_0003;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    El2,
    Guest,
    Asleep,
}

struct Cpu {
    image: RefCell<LrImage>,
    at: Cell<At>,
    kicked: Cell<bool>,
    timer_active: Cell<bool>,
}

struct World<'a> {
    vgic: Vgic,
    cpus: Vec<Cpu>,
    spi_active: RefCell<BTreeSet<u32>>,
    input: RefCell<&'a [u8]>,
}

impl World<'_> {
    fn byte(&self) -> u8 {
        let mut input = self.input.borrow_mut();
        let Some((first, rest)) = input.split_first() else { return 0 };
        *input = rest;
        *first
    }

    fn word(&self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    fn vcpu(&self) -> VcpuId {
        VcpuId(u16::from(self.byte()) % VCPUS)
    }

    /// A vCPU that is at EL2 because of a trap.
    fn trapped(&self) -> VcpuId {
        let vcpu = self.vcpu();
        self.leave(vcpu);
        vcpu
    }

    fn cpu(&self, vcpu: VcpuId) -> &Cpu {
        &self.cpus[vcpu.index()]
    }

    fn leave(&self, vcpu: VcpuId) {
        let cpu = self.cpu(vcpu);
        if cpu.at.replace(At::El2) == At::Guest {
            let mut image = cpu.image.borrow_mut();
            self.vgic.sync(self, vcpu, &mut image);
        }
    }

    fn enter(&self, vcpu: VcpuId) {
        self.leave(vcpu);
        let cpu = self.cpu(vcpu);
        cpu.at.set(At::Guest);
        cpu.kicked.set(false);
        self.vgic.flush(self, vcpu, &mut cpu.image.borrow_mut());
        self.check(vcpu);
    }

    fn used(image: &LrImage) -> &[u64] {
        &image.lr[..image.used.into()]
    }

    fn check(&self, vcpu: VcpuId) {
        let image = self.cpu(vcpu).image.borrow();
        let values = Self::used(&image);
        assert!(values.len() <= 4);
        assert!(image.lr[values.len()..].iter().all(|value| *value == 0));
        let numbers: BTreeSet<u32> = values.iter().map(|v| *v as u32).collect();
        assert_eq!(numbers.len(), values.len(), "an interrupt is in two list registers");
        for other in (0..VCPUS).map(VcpuId).filter(|v| *v != vcpu && self.cpu(*v).at.get() == At::Guest) {
            let theirs = self.cpu(other).image.borrow();
            for value in Self::used(&theirs).iter().filter(|v| **v & STATE != 0) {
                let intid = *value as u32;
                assert!(!SPIS.contains(&intid) || !numbers.contains(&intid), "SPI {intid} is listed on two vCPUs");
            }
        }
        for value in values {
            let intid = *value as u32;
            assert_ne!(value & STATE, 0);
            assert_eq!((value >> 48) & 7, 0, "priorities have five bits");
            if value & HW != 0 {
                assert_ne!(value & STATE, STATE, "a linked list register is pending and active");
                assert_eq!((value >> 32) & 0x1fff, u64::from(intid));
                assert!(self.physically_active(vcpu, intid), "linked to {intid}, which is not active");
            }
        }
        if image.hcr & NPIE != 0 {
            assert!(values.iter().any(|v| v & STATE == PENDING), "NPIE would raise a maintenance interrupt at once");
        }
    }

    fn physically_active(&self, vcpu: VcpuId, intid: u32) -> bool {
        if intid < 32 { self.cpu(vcpu).timer_active.get() } else { self.spi_active.borrow().contains(&intid) }
    }

    fn deactivate(&self, vcpu: VcpuId, intid: u32) {
        let was_active = if intid < 32 {
            assert_eq!(intid, TIMER);
            self.cpu(vcpu).timer_active.replace(false)
        } else {
            self.spi_active.borrow_mut().remove(&intid)
        };
        assert!(was_active, "deactivation of {intid}, which is not active");
    }

    /// The guest acknowledges or ends one of its listed interrupts.
    fn step(&self, vcpu: VcpuId, slot: usize, end: bool) {
        let cpu = self.cpu(vcpu);
        let mut image = cpu.image.borrow_mut();
        let used = usize::from(image.used);
        if cpu.at.get() != At::Guest || used == 0 {
            return;
        }
        let value = &mut image.lr[slot % used];
        let old = *value;
        if !end && old & STATE == PENDING {
            *value = old & !PENDING | ACTIVE;
        }
        if end && old & ACTIVE != 0 {
            *value = old & !ACTIVE;
            if old & HW != 0 {
                self.deactivate(vcpu, old as u32);
            }
        }
    }

    fn wants_maintenance(image: &LrImage) -> bool {
        let values = Self::used(image);
        (image.hcr & NPIE != 0 && !values.iter().any(|v| v & STATE == PENDING))
            || values.iter().any(|v| v & (STATE | HW | EOI) == EOI)
    }

    /// The guest handles all listed interrupts. Returns whether no maintenance interrupt makes it exit.
    fn handle_all(&self, vcpu: VcpuId) -> bool {
        for _ in 0..2 {
            for slot in 0..16 {
                for end in [false, true] {
                    self.step(vcpu, slot, end);
                    if Self::wants_maintenance(&self.cpu(vcpu).image.borrow()) {
                        return false;
                    }
                }
            }
        }
        self.cpu(vcpu).image.borrow().hcr & LRENPIE == 0
    }

    /// Checks that a vCPU that was not kicked has missed no interrupt.
    fn check_nothing_missed(&self, vcpu: VcpuId) {
        let cpu = self.cpu(vcpu);
        match cpu.at.get() {
            At::El2 => {}
            At::Guest => {
                if self.handle_all(vcpu) && !cpu.kicked.get() {
                    // The sync may move interrupts to other vCPUs; one that is left for this vCPU has been missed.
                    let mut image = cpu.image.borrow_mut();
                    cpu.at.set(At::El2);
                    self.vgic.sync(self, vcpu, &mut image);
                    assert!(
                        cpu.kicked.get() || !self.vgic.has_pending(vcpu, OPEN),
                        "{vcpu} missed an interrupt in its guest"
                    );
                }
            }
            At::Asleep => {
                assert!(
                    cpu.kicked.get() || !self.vgic.has_pending(vcpu, OPEN),
                    "{vcpu} sleeps with an interrupt pending"
                );
            }
        }
    }

    fn write_distributor(&self, from: VcpuId) {
        let pick = self.byte();
        let (offset, size) = match pick % 8 {
            0 => (0, 4),
            1 => (0x80 + u64::from(pick >> 3) % 3 * 4, 4),
            2..=4 => {
                let bank = [0x100, 0x180, 0x200, 0x280, 0x300, 0x380][usize::from(self.byte()) % 6];
                (bank + 4 + u64::from(pick >> 7) * 4, 4)
            }
            5 => (0x420 + u64::from(self.byte()) % 64, 1),
            6 => (0x6100 + u64::from(self.byte()) % 64 * 8, 8),
            _ => (u64::from(self.word() & 0xffff), [1, 2, 4, 8][usize::from(self.byte()) % 4]),
        };
        let value = if pick % 8 == 6 { u64::from(self.byte() % 4) } else { u64::from(self.word()) };
        self.vgic.dist_write(self, from, offset, size, value);
        let _ = self.vgic.dist_read(self, from, offset, size);
    }

    fn write_redistributor(&self, from: VcpuId) {
        let (frame, pick) = (self.vcpu(), self.byte());
        let (offset, size) = match pick % 8 {
            0 => (0, 4),
            1 => ([0x70, 0x78][usize::from(pick >> 7)], 8),
            2..=4 => {
                let banks = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380];
                (0x1_0000 + banks[usize::from(self.byte()) % 7], 4)
            }
            5 => (0x1_0400 + u64::from(self.byte() % 32), 1),
            _ => (u64::from(self.word() & 0x3_ffff), [1, 2, 4, 8][usize::from(self.byte()) % 4]),
        };
        let value = u64::from(self.word()) | u64::from(self.byte()) << 56;
        let cursor = self.vgic.redist_write(self, from, frame, offset, size, value);
        self.read_tables(frame, cursor);
        let _ = self.vgic.redist_read(self, from, frame, offset, size);
    }

    fn read_tables(&self, frame: VcpuId, mut cursor: Option<TableCursor>) {
        while let Some(at) = cursor {
            cursor = self.vgic.read_tables(self, frame, at);
        }
    }

    fn lpi(&self, from: VcpuId) {
        let (pick, vcpu) = (self.byte(), self.vcpu());
        let vintid = VIntid(LPIS.start + u32::from(self.byte() % 9));
        match pick % 8 {
            0..=2 => drop(self.vgic.inject_lpi(self, vcpu, vintid)),
            3 => drop(self.vgic.clear_lpi(self, vcpu, vintid)),
            4 => self.vgic.move_lpi(self, from, vcpu, vintid),
            5 => drop(self.vgic.move_all_lpis(self, from, vcpu, 0)),
            6 => self.vgic.set_lpi_config(self, vintid, pick | 0x80),
            _ => {
                let owner = if pick & 8 == 0 { Owner::Soft } else { Owner::Direct };
                let _ = self.vgic.set_lpi_owner(self, vcpu, vintid, owner);
            }
        }
    }

    fn act(&self) {
        match self.byte() % 16 {
            0 | 1 => self.write_distributor(self.trapped()),
            2 => self.write_redistributor(self.trapped()),
            3 | 4 => self.enter(self.vcpu()),
            5 | 6 => {
                let slot = self.byte();
                self.step(self.vcpu(), usize::from(slot >> 1), slot & 1 != 0);
            }
            7 => self.leave(self.vcpu()),
            8 => {
                let signal = [Signal::Edge, Signal::Level(true), Signal::Level(false)][usize::from(self.byte()) % 3];
                let intid = 28 + u32::from(self.byte()) % 72;
                if !OWNED.contains(&intid) {
                    self.vgic.inject_spi(self, Intid(intid), signal);
                }
            }
            9 => {
                let intid = OWNED.start + u32::from(self.byte()) % 8;
                if self.spi_active.borrow_mut().insert(intid) {
                    assert!(self.vgic.inject_hw_spi(self, Intid(intid)));
                }
            }
            10 => {
                let vcpu = self.trapped();
                if !self.cpu(vcpu).timer_active.replace(true) {
                    assert!(self.vgic.inject_hw_ppi(self, vcpu, Intid(TIMER)));
                }
            }
            11 => {
                let group = if self.byte() & 1 == 0 { SgiGroup::One } else { SgiGroup::Zero };
                let value = u64::from(self.word()) | u64::from(self.byte() & 0x11) << 40;
                self.vgic.send_sgi(self, self.trapped(), value & 0x1100_0f00_0007, group);
            }
            12 => self.lpi(self.trapped()),
            13 => {
                let vcpu = self.trapped();
                self.vgic.set_ppi_level(self, vcpu, Intid(30), self.byte() & 1 != 0);
            }
            14 => {
                let vcpu = self.trapped();
                match self.byte() % 4 {
                    0 => self.vgic.reset_vcpu(self, vcpu),
                    1 => self.vgic.deactivate(self, vcpu, Intid(u32::from(self.byte() % 96))),
                    _ => {
                        self.cpu(vcpu).kicked.set(false);
                        self.cpu(vcpu).at.set(At::Asleep);
                        if self.vgic.has_pending(vcpu, OPEN) {
                            self.cpu(vcpu).at.set(At::El2);
                        }
                    }
                }
            }
            _ => self.check_nothing_missed(self.vcpu()),
        }
    }

    /// Enables all interrupts and runs the vCPUs until no interrupt is listed.
    fn drain(&self) {
        let boot = VcpuId(0);
        (0..VCPUS).for_each(|v| self.leave(VcpuId(v)));
        self.vgic.dist_write(self, boot, 0, 4, 3);
        for intid in SPIS {
            self.vgic.inject_spi(self, Intid(intid), Signal::Level(false));
            self.vgic.dist_write(self, boot, 0x6000 + u64::from(intid) * 8, 8, 9);
            self.vgic.dist_write(self, boot, 0x6000 + u64::from(intid) * 8, 8, u64::from(intid % 3));
        }
        for word in 1..3 {
            self.vgic.dist_write(self, boot, 0x100 + word * 4, 4, 0xffff_ffff);
        }
        for vcpu in (0..VCPUS).map(VcpuId) {
            self.vgic.set_ppi_level(self, vcpu, Intid(30), false);
            self.vgic.redist_write(self, vcpu, vcpu, 0x1_0100, 4, 0xffff_ffff);
            let cursor = self.vgic.redist_write(self, vcpu, vcpu, 0, 4, 1);
            self.read_tables(vcpu, cursor);
        }
        for vintid in LPIS {
            self.vgic.set_lpi_config(self, VIntid(vintid), 0xa1);
            let _ = self.vgic.set_lpi_owner(self, boot, VIntid(vintid), Owner::Soft);
        }
        for round in 0.. {
            assert!(round < 1000, "interrupts do not come to an end");
            let mut quiet = true;
            for vcpu in (0..VCPUS).map(VcpuId) {
                self.enter(vcpu);
                quiet &= self.cpu(vcpu).image.borrow().used == 0;
                let _ = self.handle_all(vcpu);
                self.leave(vcpu);
            }
            if quiet {
                break;
            }
        }
        for vcpu in (0..VCPUS).map(VcpuId) {
            assert!(!self.vgic.has_pending(vcpu, OPEN));
            assert!(!self.cpu(vcpu).timer_active.get(), "the timer PPI of {vcpu} stays active");
            assert_eq!(self.vgic.held_ppis(vcpu), 0);
            for vintid in LPIS {
                assert!(!self.vgic.is_lpi_pending(vcpu, VIntid(vintid)));
            }
        }
        for intid in SPIS {
            let view = self.vgic.irq_state(boot, Intid(intid)).expect("it exists");
            assert!(!view.pending && !view.active && !view.held && !view.listed, "{intid}: {view:?}");
        }
        assert!(self.spi_active.borrow().is_empty(), "SPIs that stay active: {:?}", self.spi_active.borrow());
    }
}

impl Port for World<'_> {
    fn kick(&self, vcpu: VcpuId) {
        let cpu = self.cpu(vcpu);
        cpu.kicked.set(true);
        if cpu.at.get() == At::Guest && self.byte() & 1 == 0 {
            self.leave(vcpu);
        }
    }
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        // A few LPIs are enabled and a few are pending. With thousands, draining them would take too long.
        buf.fill(0);
        if let Some(first) = buf.first_mut() {
            *first = 0xa5;
        }
        ipa.0 & 1 << 51 == 0
    }
    fn owns_spi(&self, intid: Intid) -> bool {
        OWNED.contains(&intid.0)
    }
    fn spi_set_enabled(&self, intid: Intid, _: bool) {
        assert!(self.owns_spi(intid));
    }
    fn spi_set_trigger(&self, intid: Intid, _: Trigger) {
        assert!(self.owns_spi(intid));
    }
    fn spi_route(&self, intid: Intid, vcpu: VcpuId) {
        assert!(self.owns_spi(intid) && vcpu.0 < VCPUS);
    }
    fn spi_set_pending(&self, intid: Intid, _: bool) {
        assert!(self.owns_spi(intid));
    }
    /// When the input is at its end, all lines are high.
    fn spi_is_pending(&self, intid: Intid) -> bool {
        assert!(self.owns_spi(intid));
        self.byte() & 1 == 0
    }
    fn ppi_line(&self, _: VcpuId, intid: Intid) -> bool {
        assert_eq!(intid.0, TIMER);
        self.byte() & 1 == 0
    }
    fn spi_deactivate(&self, intid: Intid) {
        self.deactivate(VcpuId(0), intid.0);
    }
    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid) {
        self.deactivate(vcpu, intid.0);
    }
    fn group1_enabled(&self, _: bool) {}
    fn lpis_enabled(&self, vcpu: VcpuId, on: bool, _: u64, _: u64) {
        assert_eq!(self.vgic.lpis_on(vcpu), on);
    }
    fn recall(&self, vcpu: VcpuId) {
        self.kick(vcpu);
    }
    fn is_settled(&self) -> bool {
        true
    }
}

/// Runs a domain as the bytes say, then checks that all interrupts come to an end.
pub fn run(bytes: &[u8]) {
    let config = VgicConfig {
        vcpus: (0..VCPUS.into()).map(Mpidr).collect(),
        spis: SPIS.len() as u32,
        id_bits: 14,
        has_lpis: true,
        list_registers: 4,
        priority_bits: 5,
    };
    let cpu = |_| Cpu {
        image: RefCell::new(LrImage::new(4)),
        at: Cell::new(At::El2),
        kicked: Cell::new(false),
        timer_active: Cell::new(false),
    };
    let world = World {
        vgic: Vgic::new(config).expect("the configuration is sound"),
        cpus: (0..VCPUS).map(cpu).collect(),
        spi_active: RefCell::default(),
        input: RefCell::new(bytes),
    };
    let boot = VcpuId(0);
    world.vgic.dist_write(&world, boot, 0, 4, 3);
    for word in 1..3 {
        world.vgic.dist_write(&world, boot, 0x80 + word * 4, 4, 0xffff_ffff);
        world.vgic.dist_write(&world, boot, 0x100 + word * 4, 4, 0xffff_ffff);
    }
    for vcpu in (0..VCPUS).map(VcpuId) {
        world.vgic.redist_write(&world, vcpu, vcpu, 0x1_0080, 4, 0xffff_ffff);
        world.vgic.redist_write(&world, vcpu, vcpu, 0x1_0100, 4, 0xffff_ffff);
        world.vgic.redist_write(&world, vcpu, vcpu, 0x70, 8, 0x1_0000 | 13);
        world.vgic.redist_write(&world, vcpu, vcpu, 0x78, 8, 1 << 62);
        let cursor = world.vgic.redist_write(&world, vcpu, vcpu, 0, 4, 1);
        world.read_tables(vcpu, cursor);
    }
    while !world.input.borrow().is_empty() {
        world.act();
    }
    (0..VCPUS).for_each(|v| world.check_nothing_missed(VcpuId(v)));
    world.drain();
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    #[test]
    fn no_interrupt_is_lost_duplicated_or_left_active_whatever_a_domain_does() {
        for seed in 1..=200u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bytes: Vec<u8> = (0..3000)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 32) as u8
                })
                .collect();
            if let Err(panic) = std::panic::catch_unwind(|| super::run(&bytes)) {
                std::eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
