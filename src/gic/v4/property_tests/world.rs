//! A machine, the state that the test expects it to have, and the steps.

mod cpus;
mod vms;

use super::{CPUS, EVENTS, Op, Power, VMS, VPES};
use crate::gic::its::Event;
use crate::gic::testing::{Bench, DEV, ModelHw, vlpi};
use crate::gic::v4::Why::{Block, Preempt};
use crate::gic::v4::{EnterError, InterruptGroups, PendingLast, Resident, V4, V4Error, VmHandle};
use crate::gic::{Gic, GicError, ItsError, TakeOutError};
use crate::ids::EventKey;
use crate::ids::{CpuId, EventId, ItsId, Lpi, VIntid, VpeId};
use gic_model::{CommandFault, Config, Fault, Machine};
use std::collections::BTreeMap;
use std::vec::Vec;

/// The priority of every doorbell.
const DOORBELL_PRIORITY: u8 = 0xa0;
/// The offset of GITS_CREADR, and its Stalled bit.
const GITS_CREADR: u64 = 0x90;
const STALLED: u64 = 1;

/// An event: its ITS and EventID.
type Key = (u8, u8);

#[derive(Clone, Copy, Default)]
struct Owed {
    owed: bool,
    may: bool,
    enabled: bool,
    priority: u8,
}

pub struct World {
    machine: Machine,
    config: Config,
    gic: Gic<ModelHw>,
    itss: u8,
    vms: [Option<VmHandle>; VMS],
    vpes: [Option<VpeId>; VPES],
    asleep: [bool; VPES],
    /// The sleeping vPEs for which an interrupt has arrived since: their doorbells have to ring.
    called: [bool; VPES],
    resident: [Option<(Resident, usize)>; CPUS],
    out: [bool; CPUS],
    events: BTreeMap<Key, (Event, Owed)>,
    /// The number of allocations and LPIs without any VM.
    baseline: (usize, u32),
}

impl World {
    pub fn new(config: Config) -> World {
        let itss = config.its.len() as u8;
        let Bench { machine, gic } = Bench::up(config.clone());
        let keys = (0..itss).flat_map(|its| (0..EVENTS).map(move |ev| (its, ev)));
        let owed = Owed { enabled: true, priority: 0xa0, ..Owed::default() };
        let mut w = World {
            machine,
            config,
            gic,
            itss,
            vms: [None; VMS],
            vpes: [None; VPES],
            asleep: [false; VPES],
            called: [false; VPES],
            resident: [const { None }; CPUS],
            out: [false; CPUS],
            events: keys.map(|k| (k, (Event::Unmapped, owed))).collect(),
            baseline: (0, 0),
        };
        // Second levels of tables stay allocated, so they are made before memory is counted.
        w.build();
        w.demolish();
        w.baseline = w.memory();
        w.build();
        w
    }

    fn build(&mut self) {
        (0..VMS).for_each(|vm| self.create(vm));
        (0..self.itss).for_each(|its| self.gic.map_device(ItsId(its), DEV, 3).unwrap());
    }

    fn demolish(&mut self) {
        (0..self.itss).for_each(|its| self.gic.unmap_device(ItsId(its), DEV).unwrap());
        (0..VMS).for_each(|vm| self.destroy(vm));
    }

    fn memory(&self) -> (usize, u32) {
        (self.machine.allocations().len(), self.gic.lpis_in_use())
    }

    fn v4(&self) -> V4<'_, ModelHw> {
        self.gic.v4().unwrap()
    }

    fn vintid(k: Key) -> VIntid {
        vlpi(u32::from(k.0) * 32 + u32::from(k.1))
    }

    fn keys(&self) -> Vec<Key> {
        self.events.keys().copied().collect()
    }

    fn index(&self, vpe: VpeId) -> usize {
        self.vpes.iter().position(|v| *v == Some(vpe)).expect("a vPE of this test")
    }

    fn soon(&self) {
        self.machine.advance_us(20);
    }

    /// A CPU in service: this one, or the next.
    fn in_service(&self, cpu: usize) -> CpuId {
        let n = (0..CPUS).map(|n| (cpu + n) % CPUS).find(|n| !self.out[*n]).expect("a CPU in service");
        CpuId(n as u16)
    }

    fn wake(&mut self, v: usize) {
        (self.asleep[v], self.called[v]) = (false, false);
    }

    /// A device or software sends an event's interrupt. If its vPE sleeps, the doorbell has to ring.
    fn sent(&mut self, key: Key) {
        let Some((event, owed)) = self.events.get_mut(&key) else { return };
        let news = !owed.owed && !owed.may;
        owed.owed = *event != Event::Unmapped;
        let enabled = owed.enabled;
        if let Event::Virtual { vpe, .. } = *event {
            let v = self.index(vpe);
            self.called[v] |= self.asleep[v] && enabled && news;
        }
    }

    /// EL2 takes all pending interrupts on all CPUs. Every doorbell that had to ring has rung.
    fn listen(&mut self) {
        (0..CPUS).for_each(|cpu| self.host(cpu));
        for v in 0..VPES {
            assert!(!(self.called[v] && self.asleep[v]), "the doorbell of {:?} did not ring", self.vpes[v]);
            self.called[v] = false;
        }
    }

    /// An interrupt is taken. It must be owed or allowed.
    fn taken(&mut self, key: Key, who: &str) {
        let (event, owed) = self.events.get_mut(&key).expect("an event");
        assert!(owed.owed || owed.may, "{who} took {key:?} ({event:?}), which was not sent");
        (owed.owed, owed.may) = (false, false);
    }

    fn guest(&mut self, cpu: usize) {
        let Some(vpe) = self.resident[cpu].as_ref().and_then(|(_, v)| self.vpes[*v]) else { return };
        self.soon();
        let mut before = 0;
        while let Some(intid) = self.machine.guest_ack(cpu) {
            let n = intid - Lpi::FIRST;
            let key = ((n / 32) as u8, (n % 32) as u8);
            let (event, owed) = self.events[&key];
            assert_eq!(event, Event::Virtual { vpe, vintid: VIntid(intid) }, "taken by the wrong guest");
            assert!(owed.enabled, "{key:?} is disabled");
            assert!(owed.priority >= before, "{key:?} came after one that was less urgent");
            before = owed.priority;
            self.taken(key, "a guest");
        }
        for (key, (event, owed)) in &self.events {
            let mine = matches!(event, Event::Virtual { vpe: v, .. } if *v == vpe);
            assert!(!(mine && owed.enabled && owed.owed), "{key:?} is owed to {vpe} and did not come");
        }
    }

    fn host(&mut self, cpu: usize) {
        self.soon();
        let mut before = 0;
        while let Some(intid) = self.machine.host_ack(cpu) {
            let lpi = Lpi(intid);
            assert!(!self.out[cpu], "{lpi} came to CPU{cpu}, which is out");
            let priority = if let Some(vpe) = self.gic.doorbell(lpi) {
                let v = self.index(vpe);
                self.wake(v);
                DOORBELL_PRIORITY
            } else {
                let is = |e: &Event| matches!(e, Event::Physical { lpi: l, cpu: c } if *l == lpi && c.index() == cpu);
                let key = self.events.iter().find(|(_, (e, _))| is(e)).map(|(k, _)| *k);
                let key = key.unwrap_or_else(|| panic!("{lpi} on CPU{cpu} has no event"));
                self.taken(key, "EL2");
                self.events[&key].1.priority
            };
            assert!(priority >= before, "{lpi} came to CPU{cpu} after one that was less urgent");
            before = priority;
        }
        for (key, (event, owed)) in &self.events {
            let mine = matches!(event, Event::Physical { cpu: c, .. } if c.index() == cpu);
            assert!(!(mine && owed.owed), "{key:?} is owed to EL2 and did not come");
        }
    }

    fn leave(&mut self, cpu: usize, block: bool) {
        let Some((resident, v)) = self.resident[cpu].take() else { return };
        let PendingLast(pending) = self.v4().leave(resident, if block { Block } else { Preempt });
        let vpe = self.vpes[v].expect("a vPE");
        let owed =
            |e: &(Event, Owed)| matches!(e.0, Event::Virtual { vpe: w, .. } if w == vpe) && e.1.owed && e.1.enabled;
        if block {
            assert!(pending || !self.events.values().any(owed), "{vpe} blocks with an interrupt pending");
            self.asleep[v] = !pending;
        }
    }

    /// Records what an operation did to an event. After `Timeout` it may have been posted: the driver's record tells.
    fn record(&mut self, key: Key, result: Result<(), ItsError>, may: bool) {
        assert!(matches!(result, Ok(()) | Err(ItsError::Timeout)), "{key:?}: {result:?}");
        let now = self.gic.event(EventKey::new(ItsId(key.0), DEV, EventId(key.1.into()))).unwrap();
        let entry = self.events.get_mut(&key).unwrap();
        entry.0 = now;
        entry.1.may |= may;
        if now == Event::Unmapped {
            (entry.1.owed, entry.1.may) = (false, false);
        }
        if result.is_err() {
            // Give the commands time, so that later steps see their effect.
            while self.gic.drain(ItsId(key.0)) == Err(ItsError::Timeout) {}
            self.gic.drain(ItsId(key.0)).unwrap();
        }
    }

    pub fn step(&mut self, op: Op) {
        let key = |its: u8, ev: u8| (its % self.itss, ev);
        let (its, dev) = (|k: Key| ItsId(k.0), DEV);
        let ev = |k: Key| EventId(k.1.into());
        match op {
            Op::Msi(i, e) => {
                let k = key(i, e);
                self.machine.msi_at(k.0.into(), DEV.0, k.1.into());
                self.sent(k);
            }
            Op::Virtual(i, e, v) => {
                let (k, Some(vpe)) = (key(i, e), self.vpes[v as usize]) else { return };
                let old = self.events[&k].0;
                let lpi = match old {
                    Event::Virtual { .. } => return,
                    Event::Physical { lpi, .. } => Some(lpi),
                    Event::Unmapped => None,
                };
                let result = self.v4().map_event(EventKey::new(its(k), dev, ev(k)), vpe, Self::vintid(k));
                self.became_virtual(k, v.into(), lpi, result);
            }
            Op::AllDirect(v) => self.all_direct(v.into()),
            Op::Physical(i, e, c) => {
                let k = key(i, e);
                if self.events[&k].0 == Event::Unmapped {
                    let lpi = self.lpi(k);
                    let result = self.gic.map_physical(EventKey::new(its(k), dev, ev(k)), lpi, CpuId(c.into()));
                    self.became_physical(k, lpi, c, result, false);
                }
            }
            Op::MoveVirtual(i, e, v) => {
                let (k, Some(to)) = (key(i, e), self.vpes[v as usize]) else { return };
                if let Event::Virtual { vpe, .. } = self.events[&k].0 {
                    let result = self.v4().move_event(EventKey::new(its(k), dev, ev(k)), to);
                    if self.index(vpe) / 2 != v as usize / 2 {
                        assert_eq!(result, Err(ItsError::OtherVm(to)));
                        return;
                    }
                    self.record(k, result, false);
                    // Software that moves a pending interrupt to a vPE that sleeps wakes its vCPU.
                    if self.events[&k].1.owed || self.events[&k].1.may {
                        self.wake(v.into());
                    }
                }
            }
            Op::MovePhysical(i, e, c) => {
                let k = key(i, e);
                if let Event::Physical { .. } = self.events[&k].0 {
                    let result = self.gic.move_physical(EventKey::new(its(k), dev, ev(k)), CpuId(c.into()));
                    if self.out[c as usize] {
                        assert_eq!(result, Err(ItsError::CpuOffline(CpuId(c.into()))));
                        return;
                    }
                    self.record(k, result, false);
                }
            }
            Op::ToSoftware(i, e, c) => {
                let k = key(i, e);
                if let Event::Virtual { .. } = self.events[&k].0 {
                    let lpi = self.lpi(k);
                    let result = self.v4().to_software(EventKey::new(its(k), dev, ev(k)), lpi, CpuId(c.into()));
                    self.became_physical(k, lpi, c, result, true);
                }
            }
            Op::AllToSoftware(v, c) => self.all_to_software(v.into(), c),
            Op::Unmap(i, e) => {
                let k = key(i, e);
                let old = self.events[&k].0;
                let result = self.gic.unmap_event(EventKey::new(its(k), dev, ev(k))).map(|_| ());
                self.record(k, result, false);
                if let Event::Physical { lpi, .. } = old {
                    self.give_back(k, lpi);
                }
            }
            Op::Int(i, e) => {
                let k = key(i, e);
                if self.events[&k].0 != Event::Unmapped {
                    let result = self.gic.set_pending(EventKey::new(its(k), dev, ev(k)));
                    self.record(k, result, false);
                    self.sent(k);
                }
            }
            Op::Clear(i, e) => {
                let k = key(i, e);
                if self.events[&k].0 != Event::Unmapped {
                    let result = self.gic.clear_pending(EventKey::new(its(k), dev, ev(k)));
                    self.record(k, result, false);
                    let owed = &mut self.events.get_mut(&k).unwrap().1;
                    (owed.owed, owed.may) = (false, false);
                }
            }
            Op::Configure(i, e, priority, on) => {
                let k = key(i, e);
                let owed = &mut self.events.get_mut(&k).unwrap().1;
                (owed.enabled, owed.priority) = (on, priority);
                self.apply(k);
            }
            Op::InvalidateAll(v) => {
                let Some(vpe) = self.vpes[v as usize] else { return };
                let result = self.v4().invalidate_all(vpe);
                assert!(matches!(result, Ok(()) | Err(V4Error::Its(ItsError::Timeout))), "{result:?}");
            }
            Op::Enter(v, c) => self.enter(v.into(), c.into()),
            Op::Leave(c, block) => self.leave(c.into(), block),
            Op::Guest(c) => self.guest(c.into()),
            Op::Host(c) => self.host(c.into()),
            Op::Listen => self.listen(),
            Op::Replace(v) => self.replace(v.into()),
            Op::Destroy(vm) => self.try_destroy(vm.into()),
            Op::Create(vm) => {
                if self.vms[vm as usize].is_none() {
                    self.quiet();
                    self.create(vm.into());
                }
            }
            Op::Renew(vm) => self.renew(vm.into()),
            Op::RemapDevice(i) => {
                let its = i % self.itss;
                self.drop_events(|k, _| k.0 == its, false);
                self.quiet();
                self.gic.unmap_device(ItsId(its), DEV).unwrap();
                self.gic.map_device(ItsId(its), DEV, 3).unwrap();
            }
            Op::TakeOut(c, to, power) => self.take_out(c.into(), to.into(), power),
            Op::TakeBack(c) => self.take_back(c.into()),
            Op::Time(us) => self.machine.advance_us(us.into()),
            Op::Late(i, n) => {
                let fault = CommandFault::Late { us: 30_000 * u64::from(n) };
                self.machine.inject(Fault::Command { its: (i % self.itss).into(), nth: n.into(), fault });
            }
            Op::Stall(i, n) => {
                let its = usize::from(i % self.itss);
                let creadr = self.machine.read64(self.config.its[its].base + GITS_CREADR);
                // An ITS that stalls at a command again after the retry is declared dead, and in this test none may
                // die.
                if creadr & STALLED == 0 {
                    self.machine.inject(Fault::Command { its, nth: n.into(), fault: CommandFault::Stall });
                }
            }
        }
    }

    // ---- residency

    fn is_resident(&self, v: usize) -> bool {
        self.resident.iter().flatten().any(|(_, w)| *w == v)
    }

    fn enter(&mut self, v: usize, c: usize) {
        let Some(vpe) = self.vpes[v] else { return };
        match self.v4().enter(vpe, CpuId(c as u16), InterruptGroups::GROUP1) {
            Ok(mut resident) => {
                assert!(self.resident[c].is_none() && !self.out[c]);
                self.v4().before_eret(&mut resident);
                self.resident[c] = Some((resident, v));
                self.wake(v);
            }
            Err(EnterError::CpuOffline(_)) => assert!(self.out[c]),
            Err(EnterError::Elsewhere(there)) => {
                assert!(self.resident[there.index()].as_ref().is_some_and(|(_, w)| *w == v));
            }
            Err(EnterError::Occupied(w)) => {
                assert!(self.resident[c].as_ref().is_some_and(|(_, n)| self.vpes[*n] == Some(w)));
            }
            // The vCPU is awake, whether its vPE could be entered or not.
            Err(EnterError::Moving | EnterError::NotMoved { .. }) => self.wake(v),
            Err(e) => panic!("{e:?}"),
        }
    }

    // ---- changes between the guest and EL2

    /// Allocates an LPI for an event.
    fn lpi(&self, k: Key) -> Lpi {
        let lpi = self.gic.alloc_lpi().unwrap();
        self.gic.configure_lpi(lpi, self.events[&k].1.priority, true);
        lpi
    }

    fn became_physical(&mut self, k: Key, lpi: Lpi, cpu: u8, result: Result<(), ItsError>, may: bool) {
        if self.out[cpu as usize] {
            assert_eq!(result, Err(ItsError::CpuOffline(CpuId(cpu.into()))));
        } else {
            self.record(k, result, may);
        }
        self.give_back(k, lpi);
    }

    /// Frees an LPI unless its event is still mapped to it, because the ring had no room for the change.
    fn give_back(&self, k: Key, lpi: Lpi) {
        if !matches!(self.events[&k].0, Event::Physical { lpi: has, .. } if has == lpi) {
            self.gic.free_lpi(lpi);
        }
    }

    fn became_virtual(&mut self, k: Key, v: usize, lpi: Option<Lpi>, result: Result<(), ItsError>) {
        self.record(k, result, lpi.is_some());
        // The vLPI has the configuration of this VM's table now, which may enable it.
        self.apply(k);
        if let Some(lpi) = lpi {
            self.give_back(k, lpi);
            self.wake(v);
        }
    }

    fn all_to_software(&mut self, v: usize, cpu: u8) {
        let Some(vpe) = self.vpes[v] else { return };
        for its in 0..self.itss {
            let mine = |k: &Key| k.0 == its && matches!(self.events[k].0, Event::Virtual { vpe: w, .. } if w == vpe);
            let keys: Vec<Key> = self.keys().into_iter().filter(mine).collect();
            if keys.is_empty() || self.out[cpu as usize] {
                continue;
            }
            let lpis: Vec<(Key, Lpi)> = keys.iter().map(|k| (*k, self.lpi(*k))).collect();
            let mut batch = self.gic.batch(ItsId(its)).unwrap();
            for (k, lpi) in &lpis {
                let done = batch.to_software(DEV, EventId(k.1.into()), *lpi, CpuId(cpu.into()));
                assert!(matches!(done, Ok(()) | Err(ItsError::Timeout)), "{k:?}: {done:?}");
            }
            let result = batch.finish();
            for (k, lpi) in lpis {
                self.record(k, result, true);
                self.give_back(k, lpi);
            }
        }
    }

    fn all_direct(&mut self, v: usize) {
        let Some(vpe) = self.vpes[v] else { return };
        for its in 0..self.itss {
            let physical = |k: Key| match self.events[&k].0 {
                Event::Physical { lpi, .. } if k.0 == its => Some((k, lpi)),
                _ => None,
            };
            let keys: Vec<(Key, Lpi)> = self.keys().into_iter().filter_map(physical).collect();
            if keys.is_empty() {
                continue;
            }
            let mut batch = self.gic.batch(ItsId(its)).unwrap();
            // An operation without room in the queue changes nothing, and so do the following ones.
            let gathered = keys.iter().map_while(|(k, _)| {
                let done = batch.map_virtual(DEV, EventId(k.1.into()), vpe, Self::vintid(*k));
                assert!(matches!(done, Ok(()) | Err(ItsError::Timeout)), "{k:?}: {done:?}");
                done.ok()
            });
            let count = gathered.count();
            let result = batch.finish();
            keys[..count].iter().for_each(|(k, lpi)| self.became_virtual(*k, v, Some(*lpi), result));
        }
    }

    /// Writes an event's configuration byte for every VM, or that of its LPI, and invalidates it if the event is
    /// mapped.
    fn apply(&mut self, k: Key) {
        let (event, owed) = self.events[&k];
        for vm in self.vms.iter().flatten() {
            self.v4().configure(*vm, Self::vintid(k), owed.priority | u8::from(owed.enabled)).unwrap();
        }
        if let Event::Physical { lpi, .. } = event {
            self.gic.configure_lpi(lpi, owed.priority, true);
        }
        if event != Event::Unmapped {
            let result = self.gic.invalidate(EventKey::new(ItsId(k.0), DEV, EventId(k.1.into())));
            self.record(k, result, false);
        }
        if let Event::Virtual { vpe, .. } = event
            && owed.enabled
            && (owed.owed || owed.may)
        {
            // Software that enables a pending interrupt of a vPE that sleeps wakes its vCPU.
            self.wake(self.index(vpe));
        }
    }

    // ---- removal

    /// Waits until all late commands are complete, and disarms all faults.
    fn quiet(&self) {
        self.machine.heal();
        (0..self.itss).for_each(|its| self.gic.drain(ItsId(its)).unwrap());
    }

    /// Unmaps events, one by one or with their device.
    fn drop_events(&mut self, which: impl Fn(Key, Event) -> bool, unmap: bool) {
        for k in self.keys() {
            let (event, owed) = self.events.get_mut(&k).unwrap();
            if which(k, *event) {
                if let Event::Physical { lpi, .. } = *event {
                    self.gic.free_lpi(lpi);
                }
                (*event, owed.owed, owed.may) = (Event::Unmapped, false, false);
                if unmap {
                    self.gic.unmap_event(EventKey::new(ItsId(k.0), DEV, EventId(k.1.into()))).unwrap();
                }
            }
        }
    }

    /// Checks that every owed interrupt arrives and all memory is freed.
    pub fn end(mut self) {
        self.quiet();
        (0..CPUS).for_each(|c| self.take_back(c));
        for k in self.keys() {
            self.events.get_mut(&k).unwrap().1.enabled = true;
            self.apply(k);
        }
        for cpu in 0..CPUS {
            self.guest(cpu);
            self.leave(cpu, true);
        }
        self.listen();
        for v in (0..VPES).filter(|v| self.vpes[*v].is_some()).collect::<Vec<_>>() {
            self.enter(v, v % CPUS);
            assert!(self.resident[v % CPUS].is_some());
            self.guest(v % CPUS);
            self.leave(v % CPUS, true);
        }
        self.drop_events(|_, _| true, false);
        self.demolish();
        assert_eq!(self.memory(), self.baseline, "memory, LPIs");
        self.machine.assert_clean();
    }
}
