//! Random acts of a guest whose SGIs are direct or not, on the executable GIC: none is lost, delivered twice, or left to a
//! vCPU that sleeps.

use super::super::testing::{Machine as Fake, REDIST};
use super::super::{LrImage, Port, SgiGroup, Trigger, Vgic, VgicConfig, lr};
use crate::gic::testing::Guest;
use crate::gic::v4::{InterruptGroups, PendingLast, Resident, SgiConfig, Why};
use crate::ids::{CpuId, Intid, Ipa, Mpidr, VcpuId};
use gic_model::Config;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use std::cell::RefCell;
use std::vec::Vec;

const VCPUS: u16 = 3;
const CPUS: u16 = 4;

/// The driver on the model, as the port of the virtual GIC.
struct Hardware {
    guest: Guest,
    kicked: RefCell<Vec<VcpuId>>,
}

impl Port for Hardware {
    fn kick(&self, vcpu: VcpuId) {
        self.kicked.borrow_mut().push(vcpu);
    }
    fn sgis_configure(&self, vcpu: VcpuId, which: u16, config: &dyn Fn(u8) -> SgiConfig) -> bool {
        self.guest.v4().configure_sgis(self.guest.vpes[vcpu.index()], which, config).is_ok()
    }
    fn sgi_send(&self, vcpu: VcpuId, sgi: u8) -> bool {
        self.guest.v4().send_sgi(self.guest.vpes[vcpu.index()], sgi).is_ok()
    }
    fn sgis_clear(&self, vcpu: VcpuId, which: u16) -> bool {
        self.guest.v4().clear_sgis(self.guest.vpes[vcpu.index()], which).is_ok()
    }
    fn sgis_pending(&self, vcpu: VcpuId) -> Option<u16> {
        self.guest.v4().pending_sgis(self.guest.vpes[vcpu.index()]).ok()
    }
    fn read_guest(&self, _: Ipa, buf: &mut [u8]) -> bool {
        buf.fill(0);
        true
    }
    fn owns_spi(&self, _: Intid) -> bool {
        false
    }
    fn spi_set_enabled(&self, _: Intid, _: bool) {}
    fn spi_set_trigger(&self, _: Intid, _: Trigger) {}
    fn spi_route(&self, _: Intid, _: VcpuId) {}
    fn spi_set_pending(&self, _: Intid, _: bool) {}
    fn spi_deactivate(&self, _: Intid) {}
    fn spi_is_pending(&self, _: Intid) -> bool {
        false
    }
    fn ppi_line(&self, _: VcpuId, _: Intid) -> bool {
        true
    }
    fn ppi_deactivate(&self, _: VcpuId, _: Intid) {}
    fn group1_enabled(&self, _: bool) {}
    fn lpis_enabled(&self, _: VcpuId, _: bool, _: u64, _: u64) {}
    fn recall(&self, _: VcpuId) {}
    fn is_settled(&self) -> bool {
        true
    }
}

struct Vcpu {
    image: LrImage,
    resident: Option<Resident>,
    asleep: bool,
    /// The SGIs that were sent, or made pending, and not taken yet.
    sent: u16,
    enabled: u16,
}

struct World {
    hardware: Hardware,
    vgic: Vgic,
    vcpus: Vec<Vcpu>,
    groups: bool,
}

#[derive(Clone, Debug)]
enum Act {
    /// A vCPU sends an SGI to another, or itself, by ICC_SGI1R_EL1 or by GICR_ISPENDR0.
    Send {
        to: u16,
        sgi: u8,
        by_register: bool,
    },
    /// A vCPU enters its guest on a CPU, unless that has another vCPU.
    Run {
        vcpu: u16,
        cpu: u16,
    },
    /// The vCPU leaves its CPU.
    Preempt {
        vcpu: u16,
    },
    /// The vCPU waits for an interrupt.
    Wait {
        vcpu: u16,
    },
    Enable {
        vcpu: u16,
        sgi: u8,
        on: bool,
    },
    Clear {
        vcpu: u16,
        sgi: u8,
    },
    Lpis {
        vcpu: u16,
        on: bool,
    },
    /// The guest disables the groups, and enables them again or not.
    Control {
        nassgi: bool,
        groups: bool,
    },
    /// The vCPU goes off and comes back.
    Off {
        vcpu: u16,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let vcpu = || 0..VCPUS;
    prop_oneof![
        6 => (vcpu(), 0..16u8, any::<bool>()).prop_map(|(to, sgi, by_register)| Act::Send { to, sgi, by_register }),
        6 => (vcpu(), 0..CPUS).prop_map(|(vcpu, cpu)| Act::Run { vcpu, cpu }),
        2 => vcpu().prop_map(|vcpu| Act::Preempt { vcpu }),
        4 => vcpu().prop_map(|vcpu| Act::Wait { vcpu }),
        2 => (vcpu(), 0..16u8, any::<bool>()).prop_map(|(vcpu, sgi, on)| Act::Enable { vcpu, sgi, on }),
        1 => (vcpu(), 0..16u8).prop_map(|(vcpu, sgi)| Act::Clear { vcpu, sgi }),
        2 => (vcpu(), any::<bool>()).prop_map(|(vcpu, on)| Act::Lpis { vcpu, on }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(nassgi, groups)| Act::Control { nassgi, groups }),
        1 => vcpu().prop_map(|vcpu| Act::Off { vcpu }),
    ]
}

impl World {
    fn new() -> World {
        let guest = Guest::new(Config::v4_1(usize::from(CPUS), 2), VCPUS);
        let vgic = Vgic::new(VgicConfig {
            vcpus: (0..VCPUS).map(|n| Mpidr(n.into())).collect(),
            spis: 32,
            id_bits: 14,
            has_lpis: true,
            list_registers: 4,
            priority_bits: 5,
        })
        .unwrap();
        vgic.offer_direct_sgis();
        let vcpu = |_| Vcpu { image: LrImage::new(4), resident: None, asleep: false, sent: 0, enabled: 0xffff };
        let vcpus = (0..VCPUS).map(vcpu).collect();
        let mut world = World { hardware: Hardware { guest, kicked: RefCell::default() }, vgic, vcpus, groups: true };
        for vcpu in 0..VCPUS {
            world.redist(vcpu, REDIST + 0x80, 0xffff_ffff);
            world.redist(vcpu, REDIST + 0x100, 0xffff);
            world.redist(vcpu, 0, 1);
        }
        world.vgic.dist_write(&world.hardware, VcpuId(0), 0, 4, 0x102);
        world
    }

    /// The vCPU that performs an act: one that is awake. If there is none, a timer wakes one.
    fn actor(&mut self) -> VcpuId {
        let n = self.vcpus.iter().position(|v| !v.asleep).unwrap_or(0);
        self.vcpus[n].asleep = false;
        VcpuId(n as u16)
    }

    fn redist(&mut self, vcpu: u16, offset: u64, value: u64) {
        let by = self.actor();
        let mut cursor = self.vgic.redist_write(&self.hardware, by, VcpuId(vcpu), offset, 4, value);
        while let Some(at) = cursor {
            cursor = self.vgic.read_tables(&self.hardware, VcpuId(vcpu), at);
        }
    }

    /// What the run loop does before an entry, the guest, and what it does after the exit.
    fn run(&mut self, n: u16, cpu: u16) {
        if self
            .vcpus
            .iter()
            .enumerate()
            .any(|(other, v)| other != usize::from(n) && v.resident.as_ref().is_some_and(|r| r.cpu() == CpuId(cpu)))
        {
            return;
        }
        self.enter(n, cpu);
        let guest = &self.hardware.guest;
        let here = self.vcpus[usize::from(n)].resident.as_ref().map(|r| usize::from(r.cpu().0));
        let v = &mut self.vcpus[usize::from(n)];
        // The guest takes what is signalled to it, from the redistributor and from list registers.
        let mut taken: Vec<u32> =
            here.map_or(Vec::new(), |cpu| core::iter::from_fn(|| guest.machine.guest_ack(cpu)).collect());
        let used = usize::from(v.image.used);
        for value in &mut v.image.lr[..used] {
            taken.push(lr::intid(*value));
            *value &= !lr::STATE;
        }
        self.vgic.sync(&self.hardware, VcpuId(n), &mut v.image);
        for intid in taken {
            let bit = 1u16 << intid;
            assert_ne!(v.sent & bit, 0, "vCPU {n} takes SGI {intid}, which was not sent");
            assert_ne!(v.enabled & bit, 0, "vCPU {n} takes SGI {intid}, which is disabled");
            assert!(self.groups);
            v.sent &= !bit;
        }
    }

    fn enter(&mut self, n: u16, cpu: u16) {
        let vcpu = VcpuId(n);
        let v4 = self.hardware.guest.v4();
        let [group0, group1] = self.vgic.groups_on();
        let groups = InterruptGroups { group0, group1 };
        let wanted = self.vgic.lpis_on(vcpu);
        let v = &mut self.vcpus[usize::from(n)];
        v.asleep = false;
        if v.resident.as_ref().is_some_and(|r| !wanted || r.groups() != groups || r.cpu() != CpuId(cpu)) {
            let _ = v4.leave(v.resident.take().unwrap(), Why::Preempt);
        }
        if wanted && v.resident.is_none() {
            v.resident = Some(v4.enter(self.hardware.guest.vpes[usize::from(n)], CpuId(cpu), groups).unwrap());
        }
        self.vgic.update_sgis(&self.hardware, vcpu, v.resident.is_some());
        self.vgic.flush(&self.hardware, vcpu, &mut v.image);
        if let Some(resident) = &mut v.resident {
            v4.before_eret(resident);
        }
    }

    /// What `switch_out` does. Returns whether the vCPU sleeps.
    fn leave(&mut self, n: u16, why: Why) -> bool {
        let v = &mut self.vcpus[usize::from(n)];
        let deaf = v.resident.is_none() && self.vgic.has_direct_sgis(VcpuId(n));
        let last = v.resident.take().map(|resident| self.hardware.guest.v4().leave(resident, why));
        !deaf && last != Some(PendingLast(true)) && !self.vgic.has_pending(VcpuId(n), Fake::OPEN)
    }

    /// Wakes those that a doorbell or a kick is for.
    fn wake(&mut self) {
        let guest = &self.hardware.guest;
        for vpe in guest.all_doorbells() {
            let n = guest.vpes.iter().position(|v| *v == vpe).unwrap();
            self.vcpus[n].asleep = false;
        }
        for vcpu in self.hardware.kicked.take() {
            self.vcpus[vcpu.index()].asleep = false;
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Send { to, sgi, by_register } => {
                self.vcpus[usize::from(to)].sent |= 1 << sgi;
                if by_register {
                    self.redist(to, REDIST + 0x200, 1 << sgi);
                } else {
                    let value = u64::from(sgi) << 24 | 1 << to;
                    let by = self.actor();
                    self.vgic.send_sgi(&self.hardware, by, value, SgiGroup::One);
                }
            }
            Act::Run { vcpu, cpu } => self.run(vcpu, cpu),
            Act::Preempt { vcpu } => _ = self.leave(vcpu, Why::Preempt),
            Act::Wait { vcpu } => {
                // A vCPU waits in its guest.
                let free = (0..CPUS)
                    .find(|cpu| self.vcpus.iter().all(|v| v.resident.as_ref().is_none_or(|r| r.cpu() != CpuId(*cpu))));
                let here = self.vcpus[usize::from(vcpu)].resident.as_ref().map(|r| r.cpu().0).or(free);
                self.run(vcpu, here.unwrap());
                self.vcpus[usize::from(vcpu)].asleep = self.leave(vcpu, Why::Block);
            }
            Act::Enable { vcpu, sgi, on } => {
                let v = &mut self.vcpus[usize::from(vcpu)];
                v.enabled = if on { v.enabled | 1 << sgi } else { v.enabled & !(1 << sgi) };
                self.redist(vcpu, REDIST + if on { 0x100 } else { 0x180 }, 1 << sgi);
            }
            Act::Clear { vcpu, sgi } => {
                self.vcpus[usize::from(vcpu)].sent &= !(1 << sgi);
                self.redist(vcpu, REDIST + 0x280, 1 << sgi);
            }
            Act::Lpis { vcpu, on } => self.redist(vcpu, 0, on.into()),
            Act::Control { nassgi, groups } => {
                let by = self.actor();
                self.vgic.dist_write(&self.hardware, by, 0, 4, 0);
                let value = if nassgi { 0x100 } else { 0 } | if groups { 2 } else { 0 };
                self.vgic.dist_write(&self.hardware, by, 0, 4, value);
                self.groups = groups;
                // The vCPUs that were in their guests have left them.
            }
            Act::Off { vcpu } => {
                let _ = self.leave(vcpu, Why::Preempt);
                self.vgic.reset_vcpu(&self.hardware, VcpuId(vcpu));
                let v = &mut self.vcpus[usize::from(vcpu)];
                (v.sent, v.asleep) = (0, false);
            }
        }
        self.wake();
        for (n, v) in self.vcpus.iter().enumerate() {
            let due = if self.groups { v.sent & v.enabled } else { 0 };
            assert!(!v.asleep || due == 0, "vCPU {n} sleeps with SGIs {due:#x}");
            let read = self.vgic.redist_read(&self.hardware, VcpuId(0), VcpuId(n as u16), REDIST + 0x200, 4);
            assert_eq!(read as u16, v.sent, "vCPU {n}: GICR_ISPENDR0");
        }
        self.hardware.guest.machine.assert_clean();
    }

    /// Everything that was sent is taken in the end.
    fn finish(&mut self) {
        self.act(&Act::Control { nassgi: true, groups: true });
        for vcpu in 0..VCPUS {
            (0..16).for_each(|sgi| self.act(&Act::Enable { vcpu, sgi, on: true }));
            self.act(&Act::Lpis { vcpu, on: true });
        }
        (0..VCPUS).for_each(|vcpu| _ = self.leave(vcpu, Why::Preempt));
        (0..VCPUS).for_each(|vcpu| self.act(&Act::Run { vcpu, cpu: vcpu }));
        // Four list registers at a time; direct SGIs need one entry.
        assert!(self.vcpus.iter().all(|v| v.sent == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]
    #[test]
    fn no_sgi_is_lost_or_repeated_however_it_changes_who_delivers_them(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::new();
        acts.iter().for_each(|act| world.act(act));
        world.finish();
    }
}
