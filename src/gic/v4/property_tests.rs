//! Every interrupt arrives: random sequences of verbs, MSIs and time on every kind of machine.
//!
//! An oracle keeps, for each event, whether an interrupt is *owed* (it was sent since it was last taken and must still
//! come) and whether one more *may* come (a swap between guest and EL2 ends with an INT). A guest or EL2 that takes an
//! interrupt which is neither is an error, as is one that is owed and does not come, a vPE that blocks with one owed
//! and is not told, a vPE that sleeps and whose doorbell does not ring, and any violation that the model records.
//!
//! `DOORWARD_STEPS` says how many steps in all (default 100,000).

use super::Why::{Block, Preempt};
use super::*;
use crate::gic::its::Event;
use crate::gic::testing::{Bench, DEV, ModelHw, vlpi};
use gic_model::{CommandFault, Config, Fault, Machine, Staleness};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, FileFailurePersistence, TestRunner};
use std::collections::BTreeMap;
use std::vec::Vec;

const CPUS: usize = 3;
const VPES: usize = 4;
const EVENTS: u8 = 6;
const SEQUENCE: usize = 100;

#[derive(Clone, Copy, Debug)]
enum Op {
    Msi(u8, u8),
    Virtual(u8, u8, u8),
    Physical(u8, u8, u8),
    MoveVirtual(u8, u8, u8),
    MovePhysical(u8, u8, u8),
    ToSoftware(u8, u8, u8),
    Unmap(u8, u8),
    Int(u8, u8),
    Clear(u8, u8),
    Configure(u8, u8, bool),
    InvalidateAll(u8),
    Enter(u8, u8),
    Leave(u8, bool),
    Guest(u8),
    Host(u8),
    Replace(u8),
    RemapDevice(u8),
    Time(u16),
    Late(u8, u8),
    Stall(u8, u8),
}

fn op(faults: bool) -> impl Strategy<Value = Op> {
    let (its, ev, vpe, cpu) = (0..4u8, 0..EVENTS, 0..VPES as u8, 0..CPUS as u8);
    let event = (its.clone(), ev.clone());
    let usual = prop_oneof![
        8 => event.clone().prop_map(|(i, e)| Op::Msi(i, e)),
        4 => (event.clone(), vpe.clone()).prop_map(|((i, e), v)| Op::Virtual(i, e, v)),
        1 => (event.clone(), cpu.clone()).prop_map(|((i, e), c)| Op::Physical(i, e, c)),
        2 => (event.clone(), vpe.clone()).prop_map(|((i, e), v)| Op::MoveVirtual(i, e, v)),
        1 => (event.clone(), cpu.clone()).prop_map(|((i, e), c)| Op::MovePhysical(i, e, c)),
        2 => (event.clone(), cpu.clone()).prop_map(|((i, e), c)| Op::ToSoftware(i, e, c)),
        1 => event.clone().prop_map(|(i, e)| Op::Unmap(i, e)),
        1 => event.clone().prop_map(|(i, e)| Op::Int(i, e)),
        1 => event.clone().prop_map(|(i, e)| Op::Clear(i, e)),
        2 => (event.clone(), any::<bool>()).prop_map(|((i, e), on)| Op::Configure(i, e, on)),
        1 => vpe.clone().prop_map(Op::InvalidateAll),
        8 => (vpe.clone(), cpu.clone()).prop_map(|(v, c)| Op::Enter(v, c)),
        6 => (cpu.clone(), any::<bool>()).prop_map(|(c, block)| Op::Leave(c, block)),
        4 => cpu.clone().prop_map(Op::Guest),
        2 => cpu.prop_map(Op::Host),
        1 => vpe.prop_map(Op::Replace),
        1 => its.clone().prop_map(Op::RemapDevice),
        2 => (0..50u16).prop_map(Op::Time),
    ];
    let faults = if faults { 2 } else { 0 };
    let weird = prop_oneof![
        (its.clone(), 1..8u8).prop_map(|(i, n)| Op::Late(i, n)),
        (its, 1..8u8).prop_map(|(i, n)| Op::Stall(i, n)),
    ];
    prop_oneof![50 => usual, faults => weird]
}

#[derive(Clone, Copy, Default)]
struct Owed {
    owed: bool,
    may: bool,
    enabled: bool,
}

struct World {
    machine: Machine,
    gic: Gic<ModelHw>,
    itss: u8,
    vms: [VmHandle; 2],
    vpes: [VpeId; VPES],
    asleep: [bool; VPES],
    resident: [Option<(Resident, usize)>; CPUS],
    events: BTreeMap<(u8, u8), (Event, Owed)>,
    baseline: (usize, u32),
}

impl World {
    fn new(config: Config) -> World {
        let itss = config.its.len() as u8;
        let Bench { machine, gic } = Bench::up(config);
        let v4 = gic.v4().unwrap();
        let build = || {
            let vms = [v4.create_vm(14).unwrap(), v4.create_vm(14).unwrap()];
            let vpes = core::array::from_fn(|n| v4.add_vpe(vms[n / 2], CpuId((n % CPUS) as u16)).unwrap());
            (0..itss).for_each(|its| gic.map_device(ItsId(its), DEV, 3).unwrap());
            (vms, vpes)
        };
        // Second levels stay once they are made: make them before memory is counted.
        let (vms, vpes) = build();
        Self::demolish(&gic, itss, vms, vpes);
        let baseline = (machine.allocations().len(), gic.lpis_in_use());
        let (vms, vpes) = build();
        let keys = (0..itss).flat_map(|its| (0..EVENTS).map(move |ev| (its, ev)));
        let events = keys.map(|k| (k, (Event::Unmapped, Owed { enabled: true, ..Owed::default() }))).collect();
        let w = World {
            machine,
            itss,
            vms,
            vpes,
            asleep: [false; VPES],
            resident: [None, None, None],
            events,
            baseline,
            gic,
        };
        for (its, ev) in w.events.keys() {
            w.vms.iter().for_each(|vm| w.v4().configure(*vm, Self::vintid(*its, *ev), 0xa1).unwrap());
        }
        w
    }

    fn demolish(gic: &Gic<ModelHw>, itss: u8, vms: [VmHandle; 2], vpes: [VpeId; VPES]) {
        (0..itss).for_each(|its| gic.unmap_device(ItsId(its), DEV).unwrap());
        vpes.iter().for_each(|v| gic.v4().unwrap().remove_vpe(*v).unwrap());
        vms.iter().for_each(|vm| gic.v4().unwrap().destroy_vm(*vm).unwrap());
    }

    fn v4(&self) -> V4<'_, ModelHw> {
        self.gic.v4().unwrap()
    }

    fn vintid(its: u8, ev: u8) -> VIntid {
        vlpi(u32::from(its) * 32 + u32::from(ev))
    }

    fn index(&self, vpe: VpeId) -> usize {
        self.vpes.iter().position(|v| *v == vpe).expect("one of ours")
    }

    fn soon(&self) {
        self.machine.advance_us(20);
    }

    /// Someone (a device or software) sends an event's interrupt; one that sleeps must hear of it.
    fn sent(&mut self, key: (u8, u8)) {
        let Some((event, owed)) = self.events.get_mut(&key) else { return };
        let news = !owed.owed && !owed.may;
        owed.owed = *event != Event::Unmapped;
        let enabled = owed.enabled;
        if let Event::Virtual { vpe, .. } = *event {
            let v = self.index(vpe);
            if self.asleep[v] && enabled && news {
                self.soon();
                (0..CPUS).for_each(|cpu| self.host(cpu));
                assert!(!self.asleep[v], "the doorbell of {vpe} did not ring for {key:?}");
            }
        }
    }

    /// Something is taken; it must be owed, or at least allowed.
    fn taken(&mut self, key: (u8, u8), who: &str) {
        let (event, owed) = self.events.get_mut(&key).expect("an event");
        assert!(owed.owed || owed.may, "{who} took {key:?} ({event:?}), which nobody sent");
        (owed.owed, owed.may) = (false, false);
    }

    fn guest(&mut self, cpu: usize) {
        let Some(vpe) = self.resident[cpu].as_ref().map(|(_, v)| self.vpes[*v]) else { return };
        self.soon();
        while let Some(intid) = self.machine.guest_ack(cpu) {
            let n = intid - Lpi::FIRST;
            let key = ((n / 32) as u8, (n % 32) as u8);
            let event = self.events[&key].0;
            assert_eq!(event, Event::Virtual { vpe, vintid: VIntid(intid) }, "taken by the wrong guest");
            assert!(self.events[&key].1.enabled, "{key:?} is disabled");
            self.taken(key, "a guest");
        }
        for (key, (event, owed)) in &self.events {
            let mine = matches!(event, Event::Virtual { vpe: v, .. } if *v == vpe);
            assert!(!(mine && owed.enabled && owed.owed), "{key:?} is owed to {vpe} and did not come");
        }
    }

    fn host(&mut self, cpu: usize) {
        self.soon();
        while let Some(intid) = self.machine.host_ack(cpu) {
            if let Some(vpe) = self.gic.doorbell(Lpi(intid)) {
                let v = self.index(vpe);
                self.asleep[v] = false;
                continue;
            }
            let lpi = Lpi(intid);
            let is = |e: &Event| matches!(e, Event::Physical { lpi: l, cpu: c } if *l == lpi && c.index() == cpu);
            let key = self.events.iter().find(|(_, (e, _))| is(e)).map(|(k, _)| *k);
            self.taken(key.unwrap_or_else(|| panic!("{lpi} on CPU{cpu} is nobody's")), "EL2");
        }
        for (key, (event, owed)) in &self.events {
            let mine = matches!(event, Event::Physical { cpu: c, .. } if c.index() == cpu);
            assert!(!(mine && owed.owed), "{key:?} is owed to EL2 and did not come");
        }
    }

    fn leave(&mut self, cpu: usize, block: bool) {
        let Some((resident, v)) = self.resident[cpu].take() else { return };
        let PendingLast(pending) = self.v4().leave(resident, if block { Block } else { Preempt });
        let vpe = self.vpes[v];
        let owed =
            |e: &(Event, Owed)| matches!(e.0, Event::Virtual { vpe: w, .. } if w == vpe) && e.1.owed && e.1.enabled;
        if block {
            assert!(pending || !self.events.values().any(owed), "{vpe} blocks with an interrupt pending");
            self.asleep[v] = !pending;
        }
    }

    /// What an operation did to an event, if it did it. `Timeout` says that it was posted: the driver knows.
    fn settle(&mut self, key: (u8, u8), result: Result<(), ItsError>, may: bool) {
        assert!(matches!(result, Ok(()) | Err(ItsError::Timeout)), "{key:?}: {result:?}");
        let now = self.gic.event(ItsId(key.0), DEV, EventId(key.1.into())).unwrap();
        let entry = self.events.get_mut(&key).unwrap();
        entry.0 = now;
        entry.1.may |= may;
        if now == Event::Unmapped {
            (entry.1.owed, entry.1.may) = (false, false);
        }
        if result.is_err() {
            // So that what comes next meets it.
            while self.gic.drain(ItsId(key.0)) == Err(ItsError::Timeout) {}
            self.gic.drain(ItsId(key.0)).unwrap();
        }
    }

    fn step(&mut self, op: Op) {
        let key = |its: u8, ev: u8| (its % self.itss, ev);
        let (its, dev) = (|k: (u8, u8)| ItsId(k.0), DEV);
        let ev = |k: (u8, u8)| EventId(k.1.into());
        match op {
            Op::Msi(i, e) => {
                let k = key(i, e);
                self.machine.msi_at(k.0.into(), DEV.0, k.1.into());
                self.sent(k);
            }
            Op::Virtual(i, e, v) => {
                let (k, vpe) = (key(i, e), self.vpes[v as usize]);
                let old = self.events[&k].0;
                let lpi = match old {
                    Event::Virtual { .. } => return,
                    Event::Physical { lpi, .. } => Some(lpi),
                    Event::Unmapped => None,
                };
                let result = self.v4().map_event(its(k), dev, ev(k), vpe, Self::vintid(k.0, k.1));
                // A vLPI that was disabled under its old VM is enabled as the table of this one says.
                self.settle(k, result, lpi.is_some());
                self.apply(k, self.events[&k].1.enabled);
                if let Some(lpi) = lpi {
                    self.gic.free_lpi(lpi);
                    self.asleep[v as usize] = false;
                }
            }
            Op::Physical(i, e, c) => {
                let k = key(i, e);
                if self.events[&k].0 == Event::Unmapped {
                    let lpi = self.lpi();
                    let result = self.gic.map_physical(its(k), dev, ev(k), lpi, CpuId(c.into()));
                    self.settle(k, result, false);
                }
            }
            Op::MoveVirtual(i, e, v) => {
                let (k, to) = (key(i, e), self.vpes[v as usize]);
                if let Event::Virtual { vpe, .. } = self.events[&k].0 {
                    let result = self.v4().move_event(its(k), dev, ev(k), to);
                    if self.index(vpe) / 2 != v as usize / 2 {
                        assert_eq!(result, Err(ItsError::OtherVm(to)));
                        return;
                    }
                    self.settle(k, result, false);
                    // Whoever moves a pending interrupt to one that sleeps wakes it.
                    self.asleep[v as usize] &= !self.events[&k].1.owed && !self.events[&k].1.may;
                }
            }
            Op::MovePhysical(i, e, c) => {
                let k = key(i, e);
                if let Event::Physical { .. } = self.events[&k].0 {
                    let result = self.gic.move_physical(its(k), dev, ev(k), CpuId(c.into()));
                    self.settle(k, result, false);
                }
            }
            Op::ToSoftware(i, e, c) => {
                let k = key(i, e);
                if let Event::Virtual { .. } = self.events[&k].0 {
                    let lpi = self.lpi();
                    let result = self.v4().to_software(its(k), dev, ev(k), lpi, CpuId(c.into()));
                    self.settle(k, result, true);
                }
            }
            Op::Unmap(i, e) => {
                let k = key(i, e);
                let old = self.events[&k].0;
                let result = self.gic.unmap_event(its(k), dev, ev(k)).map(|_| ());
                self.settle(k, result, false);
                if let Event::Physical { lpi, .. } = old {
                    self.gic.free_lpi(lpi);
                }
            }
            Op::Int(i, e) => {
                let k = key(i, e);
                if self.events[&k].0 != Event::Unmapped {
                    let result = self.gic.set_pending(its(k), dev, ev(k));
                    self.settle(k, result, false);
                    self.sent(k);
                }
            }
            Op::Clear(i, e) => {
                let k = key(i, e);
                if self.events[&k].0 != Event::Unmapped {
                    let result = self.gic.clear_pending(its(k), dev, ev(k));
                    self.settle(k, result, false);
                    let owed = &mut self.events.get_mut(&k).unwrap().1;
                    (owed.owed, owed.may) = (false, false);
                }
            }
            Op::Configure(i, e, on) => {
                let k = key(i, e);
                self.events.get_mut(&k).unwrap().1.enabled = on;
                self.apply(k, on);
            }
            Op::InvalidateAll(v) => {
                let result = self.v4().invalidate_all(self.vpes[v as usize]);
                assert!(matches!(result, Ok(()) | Err(V4Error::Its(ItsError::Timeout))), "{result:?}");
            }
            Op::Enter(v, c) => {
                let (v, c) = (v as usize, c as usize);
                match self.v4().enter(self.vpes[v], CpuId(c as u16)) {
                    Ok(resident) => {
                        assert!(self.resident[c].is_none());
                        self.v4().before_eret(&resident);
                        self.resident[c] = Some((resident, v));
                        self.asleep[v] = false;
                    }
                    Err(EnterError::Elsewhere(there)) => {
                        assert!(self.resident[there.index()].as_ref().is_some_and(|(_, w)| *w == v));
                    }
                    Err(EnterError::Occupied(w)) => {
                        assert!(self.resident[c].as_ref().is_some_and(|(_, n)| self.vpes[*n] == w));
                    }
                    // One that is to run is awake, if it runs or not.
                    Err(EnterError::Moving | EnterError::NotMoved { .. }) => self.asleep[v] = false,
                    Err(e) => panic!("{e:?}"),
                }
            }
            Op::Leave(c, block) => self.leave(c.into(), block),
            Op::Guest(c) => self.guest(c.into()),
            Op::Host(c) => self.host(c.into()),
            Op::Replace(v) => self.replace(v.into()),
            Op::RemapDevice(i) => {
                let its = i % self.itss;
                self.drop_events(|k, _| k.0 == its, false);
                self.quiet();
                self.gic.unmap_device(ItsId(its), DEV).unwrap();
                self.gic.map_device(ItsId(its), DEV, 3).unwrap();
            }
            Op::Time(us) => self.machine.advance_us(us.into()),
            Op::Late(i, n) => {
                let fault = CommandFault::Late { us: 30_000 * u64::from(n) };
                self.machine.inject(Fault::Command { its: (i % self.itss).into(), nth: n.into(), fault });
            }
            Op::Stall(i, n) => {
                let fault = CommandFault::Stall;
                self.machine.inject(Fault::Command { its: (i % self.itss).into(), nth: n.into(), fault });
            }
        }
    }

    fn lpi(&self) -> Lpi {
        let lpi = self.gic.alloc_lpi().unwrap();
        self.gic.configure_lpi(lpi, 0x80, true);
        lpi
    }

    /// Takes a vPE away and makes a new one in its place.
    fn replace(&mut self, v: usize) {
        let vpe = self.vpes[v];
        if self.resident.iter().flatten().any(|(_, w)| *w == v) {
            assert!(matches!(self.v4().remove_vpe(vpe), Err(V4Error::Resident(_))));
            return;
        }
        self.quiet();
        if self.events.values().any(|(e, _)| matches!(e, Event::Virtual { vpe: w, .. } if *w == vpe)) {
            assert_eq!(self.v4().remove_vpe(vpe), Err(V4Error::HasEvents));
            self.drop_events(|_, e| matches!(e, Event::Virtual { vpe: w, .. } if w == vpe), true);
        }
        // A doorbell that rang for it is nobody's any more, or its successor's.
        (0..CPUS).for_each(|cpu| self.host(cpu));
        self.v4().remove_vpe(vpe).unwrap();
        self.vpes[v] = self.v4().add_vpe(self.vms[v / 2], CpuId((v % CPUS) as u16)).unwrap();
        self.asleep[v] = false;
    }

    /// Whatever is late has happened, and no fault is armed.
    fn quiet(&self) {
        self.machine.heal();
        (0..self.itss).for_each(|its| self.gic.drain(ItsId(its)).unwrap());
    }

    /// Events go, by themselves or with their device.
    fn drop_events(&mut self, which: impl Fn((u8, u8), Event) -> bool, unmap: bool) {
        for k in self.events.keys().copied().collect::<Vec<_>>() {
            let (event, owed) = self.events.get_mut(&k).unwrap();
            if which(k, *event) {
                if let Event::Physical { lpi, .. } = *event {
                    self.gic.free_lpi(lpi);
                }
                (*event, owed.owed, owed.may) = (Event::Unmapped, false, false);
                if unmap {
                    self.gic.unmap_event(ItsId(k.0), DEV, EventId(k.1.into())).unwrap();
                }
            }
        }
    }

    /// Writes an event's byte for both VMs; the hardware is told if the event is virtual.
    fn apply(&mut self, k: (u8, u8), on: bool) {
        self.vms.iter().for_each(|vm| self.v4().configure(*vm, Self::vintid(k.0, k.1), 0xa0 | u8::from(on)).unwrap());
        if let Event::Virtual { vpe, .. } = self.events[&k].0 {
            let result = self.gic.invalidate(ItsId(k.0), DEV, EventId(k.1.into()));
            self.settle(k, result, false);
            let (v, owed) = (self.index(vpe), self.events[&k].1);
            // Whoever enables a pending interrupt of one that sleeps wakes it.
            self.asleep[v] &= !(on && (owed.owed || owed.may));
        }
    }

    /// Everything that is owed comes, and all memory goes back.
    fn end(mut self) {
        self.quiet();
        for k in self.events.keys().copied().collect::<Vec<_>>() {
            self.events.get_mut(&k).unwrap().1.enabled = true;
            self.apply(k, true);
        }
        for cpu in 0..CPUS {
            self.guest(cpu);
            self.leave(cpu, true);
            self.host(cpu);
        }
        for v in 0..VPES {
            self.step(Op::Enter(v as u8, (v % CPUS) as u8));
            assert!(self.resident[v % CPUS].is_some());
            self.guest(v % CPUS);
            self.leave(v % CPUS, true);
        }
        self.drop_events(|_, _| true, false);
        Self::demolish(&self.gic, self.itss, self.vms, self.vpes);
        assert_eq!((self.machine.allocations().len(), self.gic.lpis_in_use()), self.baseline, "memory, LPIs");
        self.machine.assert_clean();
    }
}

fn machines() -> Vec<Config> {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    let spread = |n: usize| ((n as u32 & 1) << 24) | ((n as u32) << 8);
    let shared = |common, svpet| {
        Config::v4_1(CPUS, 2)
            .each_cpu(|n, cpu| (cpu.affinity, cpu.common_lpi_aff) = (spread(n), common))
            .each_its(|n, its| (its.mpidr, its.svpet) = (spread(n), svpet))
    };
    let mut all = vec![
        Config::qemu(CPUS),
        Config::v4_0(CPUS),
        proxy(Config::v4_0(CPUS)).stale(Staleness::Random(11)),
        Config::v4_0(CPUS).noncoherent(),
        Config::v4_1(CPUS, 1).stale(Staleness::Random(12)),
        Config::graviton3(CPUS),
    ];
    all.extend((1..=4).map(|n| Config::its_list(CPUS, n).stale(Staleness::Random(n as u64))));
    all.extend([(0, 0), (0, 1), (1, 1), (1, 0), (2, 1), (3, 3)].map(|(common, svpet)| shared(common, svpet)));
    all
}

fn run(faults: bool, share: usize) {
    let steps = std::env::var("DOORWARD_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(100_000usize);
    let machines = machines();
    let cases = (steps / share / SEQUENCE / machines.len()).max(1);
    for (n, config) in machines.iter().enumerate() {
        let mut runner = TestRunner::new(Runs {
            cases: cases as u32,
            failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
            source_file: Some(file!()),
            ..Runs::default()
        });
        let ops = prop::collection::vec(op(faults), SEQUENCE / 2..SEQUENCE * 3 / 2);
        let result = runner.run(&ops, |ops| {
            let mut world = World::new(config.clone());
            ops.iter().for_each(|op| world.step(*op));
            world.end();
            Ok(())
        });
        assert!(result.is_ok(), "machine {n}: {}", result.unwrap_err());
    }
}

#[test]
fn every_interrupt_arrives_whatever_happens_in_between() {
    run(false, 2);
}

#[test]
fn every_interrupt_arrives_though_commands_are_late_and_queues_stall() {
    run(true, 2);
}
