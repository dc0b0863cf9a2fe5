//! The same guest on three executable GICs: with a vPE for each vCPU, with no vPE, and with a vPE for every other vCPU.
//! The guest must see the same interrupts in all three.

use super::*;
use crate::gic::testing::key;
use crate::gic::testing::{Bench, DEV, ITS0, ModelHw, vlpi};
use crate::gic::v4::{InterruptGroups, Why};
use crate::host::routes::{MOVE_AFTER, move_if_misplaced};
use crate::ids::{DeviceIds, Mpidr};
use crate::vgic::testing as guest;
use gic_model::{CommandFault, Config, Fault};
use std::collections::BTreeSet;

const VCPUS: u16 = 4;
const EVENTS: u32 = 8;
/// The guest address of the LPI configuration table (`guest::Machine::enable_lpis`).
const CONFIG: u64 = 0x1_0000;
const ENABLED: u8 = 0xa1;
const DISABLED: u8 = 0xa0;

struct World {
    machine: gic_model::Machine,
    gic: Gic<ModelHw>,
    guest: guest::Machine,
    paths: LpiPaths,
    routes: Routes,
    free_lpis: usize,
}

impl World {
    /// A guest whose vCPU n runs on CPU n and has a vPE if `direct(n)`.
    fn new(direct: impl Fn(u16) -> bool) -> World {
        let Bench { machine, gic } = Bench::up(Config::qemu(usize::from(VCPUS)));
        let v4 = gic.v4().unwrap();
        let vm = v4.create_vm(14).unwrap();
        let vcpus = (0..VCPUS).map(|n| (CpuId(n), direct(n).then(|| v4.add_vpe(vm, CpuId(n)).unwrap()))).collect();
        let guest = guest::Machine::with_affinities((0..VCPUS).map(|n| Mpidr(n.into())).collect());
        (0..VCPUS).for_each(|n| guest.enable_lpis(VcpuId(n), &[]));
        let routes = Routes::new(gic.facts().lpis);
        let devices = Vec::from([Vec::from([DeviceIds { first: DEV, last: DEV }])]);
        let lpis = LpiQuota::reserve(&gic, 2 * EVENTS).unwrap();
        let mut world =
            World { machine, gic, guest, paths: LpiPaths { vm: Some(vm), vcpus, devices, lpis }, routes, free_lpis: 0 };
        world.free_lpis = world.count_free_lpis();
        world
    }

    fn backend(&self) -> LpiBackend<'_, ModelHw> {
        LpiBackend {
            gic: &self.gic,
            vgic: &self.guest.vgic,
            port: &self.guest,
            domain: DomId(0),
            paths: &self.paths,
            routes: &self.routes,
            until: u64::MAX,
        }
    }

    fn count_free_lpis(&self) -> usize {
        let taken: Vec<Lpi> = core::iter::from_fn(|| self.gic.alloc_lpi()).collect();
        taken.iter().for_each(|lpi| self.gic.free_lpi(*lpi));
        taken.len()
    }

    fn set_byte(&self, event: u32, byte: u8) {
        self.guest.poke(CONFIG + u64::from(event), &[byte]);
    }

    /// MAPTI, as the virtual ITS executes it.
    fn map(&self, event: u32, vcpu: u16) -> Result<(), BackendError> {
        let backend = self.backend();
        backend.reload_config_byte_only(vlpi(event), VcpuId(vcpu));
        backend.map_event(key(ITS0, event), VcpuId(vcpu), vlpi(event))
    }

    /// What EL2 does on each CPU: takes pending interrupts and injects them.
    fn take_interrupts(&self) {
        for cpu in 0..usize::from(VCPUS) {
            while let Some(intid) = self.machine.host_ack(cpu) {
                if self.gic.doorbell(Lpi(intid)).is_some() {
                    continue;
                }
                if let Some(route) = self.routes.get(Lpi(intid)) {
                    self.guest.vgic.inject_lpi(&self.guest, route.vcpu, route.vintid);
                }
            }
        }
    }

    /// Runs each vCPU until no interrupt is pending for it. Returns the vCPU and the event of each interrupt that was
    /// taken.
    fn run(&self) -> BTreeSet<(u16, u32)> {
        let mut taken = BTreeSet::new();
        self.take_interrupts();
        for n in 0..VCPUS {
            let vpe = self.paths.vpe(VcpuId(n));
            let resident = vpe.map(|vpe| self.gic.v4().unwrap().enter(vpe, CpuId(n), InterruptGroups::GROUP1).unwrap());
            self.machine.advance_us(100);
            while let Some(vintid) = self.machine.guest_ack(usize::from(n)) {
                assert!(vpe.is_some(), "a vLPI for a vCPU without a vPE");
                taken.insert((n, vintid - Lpi::FIRST));
            }
            loop {
                let listed = self.guest.enter(VcpuId(n));
                for &(intid, _, _) in &listed {
                    self.guest.acknowledge(VcpuId(n), intid);
                    self.guest.end(VcpuId(n), intid);
                    taken.insert((n, intid - Lpi::FIRST));
                }
                self.guest.exit(VcpuId(n));
                if listed.is_empty() {
                    break;
                }
            }
            if let Some(resident) = resident {
                let _ = self.gic.v4().unwrap().leave(resident, Why::Preempt);
            }
        }
        taken
    }

    fn tear_down(&self) {
        for (_, vpe) in &self.paths.vcpus {
            if let Some(vpe) = vpe {
                self.gic.v4().unwrap().remove_vpe(*vpe).unwrap();
            }
        }
        self.gic.v4().unwrap().destroy_vm(self.paths.vm.unwrap()).unwrap();
        self.machine.assert_clean();
    }
}

fn worlds() -> [World; 3] {
    [World::new(|_| true), World::new(|_| false), World::new(|n| n % 2 == 0)]
}

#[test]
fn an_event_reaches_its_vcpu_by_either_path() {
    for world in worlds() {
        world.backend().map_device(ITS0, DEV, 3).unwrap();
        for event in 0..EVENTS {
            world.set_byte(event, ENABLED);
            world.map(event, event as u16 % VCPUS).unwrap();
        }
        let expected: BTreeSet<_> = (0..EVENTS).map(|event| (event as u16 % VCPUS, event)).collect();
        (0..EVENTS).for_each(|event| world.machine.msi(DEV.0, event));
        assert_eq!(world.run(), expected);
        assert!(world.run().is_empty(), "an edge was taken twice");
    }
}

#[test]
fn software_injection_frees_each_lpi_that_it_has_allocated() {
    let world = World::new(|_| false);
    for _ in 0..3 {
        world.backend().map_device(ITS0, DEV, 3).unwrap();
        (0..EVENTS).for_each(|event| world.map(event, 1).unwrap());
        assert_eq!(world.count_free_lpis(), world.free_lpis - EVENTS as usize);
        for event in 0..EVENTS {
            world.backend().unmap_event(key(ITS0, event), vlpi(event), VcpuId(1)).unwrap();
        }
        world.backend().unmap_device(ITS0, DEV).unwrap();
        assert_eq!(world.count_free_lpis(), world.free_lpis);
    }
    world.tear_down();
}

#[test]
fn a_move_between_a_vcpu_with_a_vpe_and_one_without_loses_no_interrupt() {
    let world = World::new(|n| n % 2 == 0);
    world.backend().map_device(ITS0, DEV, 3).unwrap();
    world.set_byte(0, ENABLED);
    world.map(0, 0).unwrap();
    for (from, to) in [(0, 1), (1, 3), (3, 2), (2, 0)] {
        // The event is pending when it is moved. The new vCPU or the old one has to take it.
        world.machine.msi(DEV.0, 0);
        if to % 2 == 1 {
            world.take_interrupts();
        }
        world.backend().move_event(key(ITS0, 0), vlpi(0), VcpuId(from), VcpuId(to)).unwrap();
        let taken = world.run();
        assert!(taken.contains(&(to, 0)) || taken.contains(&(from, 0)), "{from} to {to}: {taken:?}");
        world.machine.msi(DEV.0, 0);
        assert_eq!(world.run(), BTreeSet::from([(to, 0)]), "{from} to {to}");
    }
    world.backend().unmap_event(key(ITS0, 0), vlpi(0), VcpuId(0)).unwrap();
    world.backend().unmap_device(ITS0, DEV).unwrap();
    assert_eq!(world.count_free_lpis(), world.free_lpis);
    world.tear_down();
}

#[test]
fn a_disabled_lpi_is_taken_after_it_is_enabled_and_an_inv() {
    for world in worlds() {
        world.backend().map_device(ITS0, DEV, 3).unwrap();
        for vcpu in 0..2 {
            let event = u32::from(vcpu);
            world.set_byte(event, DISABLED);
            world.map(event, vcpu).unwrap();
            world.machine.msi(DEV.0, event);
        }
        assert!(world.run().is_empty());
        for vcpu in 0..2 {
            let event = u32::from(vcpu);
            world.set_byte(event, ENABLED);
            world.backend().reload_config(key(ITS0, event), vlpi(event), VcpuId(vcpu));
        }
        assert_eq!(world.run(), BTreeSet::from([(0, 0), (1, 1)]));
    }
}

#[test]
fn an_event_that_is_discarded_while_pending_is_not_taken() {
    for world in worlds() {
        world.backend().map_device(ITS0, DEV, 3).unwrap();
        for vcpu in 0..2 {
            let event = u32::from(vcpu);
            world.set_byte(event, ENABLED);
            world.map(event, vcpu).unwrap();
            world.machine.msi(DEV.0, event);
            world.take_interrupts();
            world.backend().unmap_event(key(ITS0, event), vlpi(event), VcpuId(vcpu)).unwrap();
        }
        assert!(world.run().is_empty());
    }
}

#[test]
fn a_parked_event_adds_at_most_one_edge_and_loses_none() {
    for world in worlds() {
        world.backend().map_device(ITS0, DEV, 3).unwrap();
        for vcpu in 0..2 {
            let event = u32::from(vcpu);
            world.set_byte(event, ENABLED);
            world.map(event, vcpu).unwrap();
            world.machine.msi(DEV.0, event);
            world.backend().park_event(key(ITS0, event), vlpi(event), VcpuId(vcpu)).unwrap();
        }
        let expected = BTreeSet::from([(0, 0), (1, 1)]);
        assert_eq!(world.run(), expected);
        (0..2).for_each(|n| world.map(n, n as u16).unwrap());
        assert!(world.run().is_empty());
        (0..2).for_each(|n| world.machine.msi(DEV.0, n));
        assert_eq!(world.run(), expected);
    }
}

/// If a command times out or the ITS stalls, the guest's event is unmapped. Its LPI is freed, or has no route and is
/// never used again.
#[test]
fn a_failing_its_leaks_at_most_one_lpi_and_uses_none_twice() {
    for nth in 1..=6 {
        for fault in [CommandFault::Late { us: 50_000_000 }, CommandFault::Hang, CommandFault::Stall] {
            let world = World::new(|n| n % 2 == 0);
            world.backend().map_device(ITS0, DEV, 3).unwrap();
            world.map(0, 0).unwrap();
            world.machine.inject(Fault::Command { its: 0, nth, fault });
            let moved = world.backend().move_event(key(ITS0, 0), vlpi(0), VcpuId(0), VcpuId(1));
            let state = world.gic.event(key(ITS0, 0));
            let held = world.free_lpis - world.count_free_lpis();
            let routed =
                (0..world.gic.facts().lpis).filter(|n| world.routes.get(Lpi(Lpi::FIRST + n)).is_some()).count();
            match state {
                Ok(Event::Physical { lpi, .. }) => {
                    assert_eq!((moved, held, routed), (Ok(()), 1, 1));
                    assert!(world.routes.get(lpi).is_some());
                }
                _ => {
                    assert!(moved.is_err(), "nth {nth}, {fault:?}: {state:?}");
                    assert_eq!(routed, 0, "nth {nth}, {fault:?}");
                    assert!(held <= 1, "nth {nth}, {fault:?}: {held} LPIs are not freed");
                }
            }
        }
    }
}

/// The same random sequence of guest actions in all three worlds. Each MSI is taken by the vCPU that the event is
/// mapped to.
#[test]
fn the_guest_sees_the_same_interrupts_with_direct_and_software_injection() {
    for seed in 1..=12u64 {
        let worlds = worlds();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        worlds.iter().for_each(|world| world.backend().map_device(ITS0, DEV, 3).unwrap());
        let mut mapped: [Option<u16>; EVENTS as usize] = [None; EVENTS as usize];
        for step in 0..120 {
            let event = next(EVENTS.into()) as u32;
            let slot = &mut mapped[event as usize];
            let vcpu = next(VCPUS.into()) as u16;
            let expected = match (*slot, next(4)) {
                (None, _) => {
                    for world in &worlds {
                        world.set_byte(event, ENABLED);
                        world.map(event, vcpu).unwrap();
                    }
                    *slot = Some(vcpu);
                    None
                }
                (Some(from), 0) => {
                    for world in &worlds {
                        let id = key(ITS0, event);
                        world.backend().move_event(id, vlpi(event), VcpuId(from), VcpuId(vcpu)).unwrap();
                        // Switching between direct and software injection may add an edge, which is taken before the
                        // next step.
                        assert!(world.run().is_subset(&BTreeSet::from([(vcpu, event)])));
                    }
                    *slot = Some(vcpu);
                    None
                }
                (Some(from), 1) => {
                    for world in &worlds {
                        world.backend().unmap_event(key(ITS0, event), vlpi(event), VcpuId(from)).unwrap();
                    }
                    *slot = None;
                    None
                }
                (Some(at), 2) => {
                    worlds.iter().for_each(|w| w.backend().set_pending(key(ITS0, event), vlpi(event), VcpuId(at)));
                    Some((at, event))
                }
                (Some(at), _) => {
                    worlds.iter().for_each(|world| world.machine.msi(DEV.0, event));
                    Some((at, event))
                }
            };
            for (which, world) in worlds.iter().enumerate() {
                let taken = world.run();
                assert_eq!(taken, expected.into_iter().collect(), "seed {seed}, step {step}, world {which}");
                world.machine.assert_clean();
            }
        }
    }
}

#[test]
fn a_physical_lpi_moves_to_the_cpu_of_its_vcpu_after_enough_misplaced_arrivals() {
    let world = World::new(|_| false);
    world.backend().map_device(ITS0, DEV, 3).unwrap();
    world.map(1, 0).unwrap();
    let Ok(Event::Physical { lpi, cpu: CpuId(0) }) = world.gic.event(key(ITS0, 1)) else { panic!("not on CPU 0") };
    let taken = |runs_on| {
        world.machine.msi(DEV.0, 1);
        let on = (0..usize::from(VCPUS)).find(|&cpu| world.machine.host_ack(cpu) == Some(lpi.0)).expect("it arrives");
        (on, move_if_misplaced(&world.gic, &world.routes, lpi, CpuId(on as u16), CpuId(runs_on)))
    };
    // An arrival on the CPU where the vCPU runs restarts the count.
    for _ in 0..5 {
        assert_eq!((0..MOVE_AFTER - 1).filter(|_| taken(2).1).count(), 0);
        assert_eq!(taken(0), (0, false));
    }
    assert_eq!((0..MOVE_AFTER).filter(|_| taken(2).1).count(), 1);
    assert_eq!(taken(2), (2, false), "it arrives on the CPU where its vCPU runs");
    world.machine.assert_clean();
}
