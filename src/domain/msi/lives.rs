//! The lives of a domain that has devices: how it begins anew, and what is left of it when it is taken down.
//!
//! Virtual ITSs, virtual GIC and driver are the real ones, on the executable GIC. The steps are those of
//! `domain/restart.rs` and `control/teardown.rs`.

use super::*;
use crate::gic::testing::{Bench, ModelHw, vlpi};
use crate::gic::v4::{InterruptGroups, Resident, Why};
use crate::gic::{DeviceQuota, MIN_EVENT_BITS};
use crate::ids::{DeviceIds, EventId, Mpidr};
use crate::mm::counting::{allocations, held, outside};
use crate::util::progress::Progress;
use crate::vgic::testing as guest;
use crate::vits::fake::encode::{self, Words};
use crate::vits::fake::{CBASER, CTLR, CWRITER};
use crate::vits::{OnError, Quota, Vits, VitsConfig};
use alloc::vec::Vec;
use gic_model::{CommandFault, Config, Fault, Machine, Staleness};
use std::collections::BTreeSet;

const VCPUS: u16 = 2;
const EVENTS: u32 = 6;
const DEVICE: DeviceId = DeviceId(0x410);
const IDS: DeviceIds = DeviceIds { first: DeviceId(0x400), last: DeviceId(0x43f) };
const QUOTA: Quota =
    Quota { devices: 4, events: 32, itt_entries: 128, min_event_bits: MIN_EVENT_BITS, device_event_bits: 5 };
/// Guest addresses: of the LPI configuration table, and of the command queue of the first virtual ITS.
const CONFIG: u64 = 0x1_0000;
const QUEUES: u64 = 0x20_0000;
const QUEUE_BYTES: u64 = 0x1000;
const ENABLED: u8 = 0xa1;
const DISABLED: u8 = 0xa0;

/// The machine that domains share.
struct Host {
    machine: Machine,
    gic: Gic<ModelHw>,
    routes: Routes,
}

/// A domain and its guest.
struct Dom<'a> {
    host: &'a Host,
    id: DomId,
    guest: guest::Machine,
    paths: LpiPaths,
    itss: Vec<Vits>,
}

fn hosts() -> impl Iterator<Item = Host> {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    let all = [
        Config::qemu(3),
        proxy(Config::v4_0(3)).stale(Staleness::Random(1)),
        Config::v4_1(3, 1).stale(Staleness::Random(2)),
        Config::v4_1(3, 2),
        Config::its_list(3, 2).stale(Staleness::Random(3)),
        Config::its_list(3, 3),
    ];
    all.into_iter().map(|config| {
        let Bench { machine, gic } = Bench::up(config);
        let routes = Routes::new(gic.facts().lpis);
        Host { machine, gic, routes }
    })
}

impl Host {
    fn its_ids(&self) -> Vec<ItsId> {
        self.gic.facts().itss().map(|its| its.id).collect()
    }

    /// Frames, LPIs and reserved LPIs.
    fn in_use(&self) -> (usize, u32, u32) {
        (self.machine.allocations().len(), self.gic.lpis_in_use(), self.gic.unreserved_lpis())
    }

    /// Builds a domain. vCPU n is placed on CPU n and has a vPE if `direct(n)`.
    fn build(&self, id: DomId, ids: DeviceIds, direct: impl Fn(u16) -> bool) -> Dom<'_> {
        let itss = self.its_ids();
        for &its in &itss {
            let quota = DeviceQuota { devices: QUOTA.devices, events: QUOTA.itt_entries };
            self.gic.reserve_devices(its, id, &[ids], quota).unwrap();
        }
        let v4 = self.gic.v4().unwrap();
        let vm = v4.create_vm(14).unwrap();
        let vcpus = (0..VCPUS).map(|n| (CpuId(n), direct(n).then(|| v4.add_vpe(vm, CpuId(n)).unwrap()))).collect();
        let lpis = LpiQuota::reserve(&self.gic, itss.len() as u32 * QUOTA.events).unwrap();
        let devices = itss.iter().map(|_| Vec::from([ids])).collect();
        let config = |&its: &ItsId| VitsConfig {
            domain: id,
            its,
            device_bits: 11,
            event_bits: 16,
            collection_bits: 3,
            id_bits: 14,
            quota: QUOTA,
            on_error: OnError::Skip,
        };
        let vits = itss.iter().map(|its| Vits::new(config(its)).unwrap()).collect();
        let guest = guest::Machine::with_affinities((0..VCPUS).map(|n| Mpidr(n.into())).collect());
        Dom { host: self, id, guest, paths: LpiPaths { vm: Some(vm), vcpus, devices, lpis }, itss: vits }
    }
}

/// The LPI of an event of an ITS.
fn intid(its: usize, event: u32) -> u32 {
    its as u32 * 16 + event
}

impl Dom<'_> {
    fn backend(&self) -> LpiBackend<'_, ModelHw> {
        LpiBackend {
            gic: &self.host.gic,
            vgic: &self.guest.vgic,
            port: &self.guest,
            domain: self.id,
            paths: &self.paths,
            routes: &self.host.routes,
            until: u64::MAX,
        }
    }

    /// Puts commands into the queue of a virtual ITS, from its beginning. The store executes one of them.
    fn post(&self, its: usize, from: u64, commands: &[Words]) -> u64 {
        let bytes: Vec<u8> = commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        self.guest.poke(QUEUES + its as u64 * QUEUE_BYTES + from, &bytes);
        let to = from + bytes.len() as u64;
        let _ = self.itss[its].write(&self.backend(), CWRITER, 8, to);
        to
    }

    fn finish(&self) {
        for vits in &self.itss {
            while vits.run(&self.backend(), 8) == Progress::More {}
        }
    }

    /// The guest boots, and maps its events: event n of each ITS is for vCPU n, in turn. Those in `enabled` are enabled.
    /// Returns the end of the commands in each queue.
    fn boot(&self, enabled: impl Fn(u32) -> bool) -> u64 {
        for lpi in 0..self.itss.len() as u32 * 16 {
            self.guest.poke(CONFIG + u64::from(lpi), &[if enabled(lpi % 16) { ENABLED } else { DISABLED }]);
        }
        (0..VCPUS).for_each(|n| self.guest.enable_lpis(VcpuId(n), &[]));
        let mut end = 0;
        for its in 0..self.itss.len() {
            let backend = self.backend();
            let _ = self.itss[its].write(&backend, CBASER, 8, 1 << 63 | (QUEUES + its as u64 * QUEUE_BYTES));
            let _ = self.itss[its].write(&backend, CTLR, 4, 1);
            let mut commands = Vec::from([encode::mapd(DEVICE.0, 5)]);
            commands.extend((0..VCPUS).map(|n| encode::mapc(n, n.into())));
            let lpi = |event| crate::ids::Lpi::FIRST + intid(its, event);
            commands.extend((0..EVENTS).map(|n| encode::mapti(DEVICE.0, n, lpi(n), n as u16 % VCPUS)));
            end = self.post(its, 0, &commands);
        }
        self.finish();
        end
    }

    fn msi(&self, its: usize, event: u32) {
        outside(|| self.host.machine.msi_at(its, DEVICE.0, event));
    }

    /// EL2 takes the pending interrupts of all CPUs. Returns the vPEs whose doorbells rang.
    fn take_interrupts(&self) -> Vec<VpeId> {
        let mut rang = Vec::new();
        for cpu in 0..outside(|| self.host.machine.config().cpus.len()) {
            while let Some(lpi) = outside(|| self.host.machine.host_ack(cpu)).map(Lpi) {
                if let Some(vpe) = self.host.gic.doorbell(lpi) {
                    rang.push(vpe);
                } else if let Some(route) = self.host.routes.get(lpi) {
                    assert_eq!(route.domain, self.id);
                    self.guest.vgic.inject_lpi(&self.guest, route.vcpu, route.vintid);
                }
            }
        }
        rang
    }

    fn enter(&self, vcpu: u16, cpu: u16) -> Option<Resident> {
        let vpe = self.paths.vpe(VcpuId(vcpu))?;
        let resident = self.host.gic.v4().unwrap().enter(vpe, CpuId(cpu), InterruptGroups::GROUP1).unwrap();
        outside(|| self.host.machine.advance_us(100));
        Some(resident)
    }

    fn leave(&self, resident: Option<Resident>, why: Why) {
        if let Some(resident) = resident {
            let _ = self.host.gic.v4().unwrap().leave(resident, why);
        }
    }

    /// Runs each vCPU on its CPU. Returns the vCPU and the LPI, counted from 0, of each interrupt that it takes.
    fn run(&self) -> BTreeSet<(u16, u32)> {
        let mut taken = BTreeSet::new();
        let _ = self.take_interrupts();
        for n in 0..VCPUS {
            let resident = self.enter(n, n);
            while let Some(lpi) = resident.as_ref().and_then(|_| self.host.machine.guest_ack(n.into())) {
                taken.insert((n, lpi - Lpi::FIRST));
            }
            loop {
                let listed = self.guest.enter(VcpuId(n));
                for &(lpi, _, _) in &listed {
                    self.guest.acknowledge(VcpuId(n), lpi);
                    self.guest.end(VcpuId(n), lpi);
                    taken.insert((n, lpi - Lpi::FIRST));
                }
                self.guest.exit(VcpuId(n));
                if listed.is_empty() {
                    break;
                }
            }
            self.leave(resident, Why::Preempt);
        }
        taken
    }

    /// As many ends of a life as there are: the guest's ITSs have commands left, an interrupt is pending for each vCPU, a
    /// doorbell has rung that EL2 has not taken, and EL2 has injected what no vCPU has taken.
    fn end_in_the_middle(&self, end: u64) {
        let resident = self.enter(0, 2);
        self.leave(resident, Why::Block);
        for its in 0..self.itss.len() {
            (0..EVENTS / 2).for_each(|n| self.msi(its, n));
        }
        if self.paths.vpe(VcpuId(1)).is_none() {
            let _ = self.take_interrupts();
        }
        for its in 0..self.itss.len() {
            (EVENTS / 2..EVENTS).for_each(|n| self.msi(its, n));
            let more: Vec<_> = (0..EVENTS).map(|n| encode::movi(DEVICE.0, n, (n as u16 + 1) % VCPUS)).collect();
            self.post(its, end, &more);
        }
    }

    fn reset_itss(&self) {
        for vits in &self.itss {
            let _ = vits.reset();
        }
        self.finish();
    }

    fn restart(&self) -> Result<(), NotRenewed> {
        self.reset_itss();
        self.paths.renew_vm(&self.host.gic, self.id)?;
        let mut vcpu = VcpuId(0);
        while self.paths.renew_vpe(&self.host.gic, vcpu)? == Renewed::Done {
            vcpu.0 += 1;
        }
        assert_eq!(vcpu, VcpuId(VCPUS));
        Ok(())
    }

    /// The steps of a teardown that concern the physical GIC.
    fn tear_down(&self) {
        self.reset_itss();
        self.release(10).unwrap();
    }

    /// Gives back what it has of the physical GIC, in so many steps at most.
    fn release(&self, steps: usize) -> Result<(), ()> {
        (0..steps).any(|_| self.paths.release(&self.host.gic, self.id)).then_some(()).ok_or(())
    }
}

fn on_every_host(test: impl Fn(&Host, &dyn Fn(u16) -> bool)) {
    for host in hosts() {
        test(&host, &|_| true);
        test(&host, &|_| false);
        test(&host, &|n| n == 0);
        host.machine.assert_clean();
    }
}

#[test]
fn a_guest_that_begins_anew_takes_the_interrupts_of_its_new_life_and_no_other() {
    on_every_host(|host, direct| {
        let dom = host.build(DomId(1), IDS, direct);
        let last = host.its_ids().len() - 1;
        for life in 0..3 {
            // Half of the events are enabled, in each life another half.
            let end = dom.boot(|event| event % 2 == life % 2);
            assert!(dom.run().is_empty(), "life {life}: an interrupt of the former life");
            dom.end_in_the_middle(end);
            // The hardware need not forget what was pending.
            (0..=last).for_each(|its| host.machine.inject(Fault::DiscardKeepsPending { its }));
            let before = host.machine.allocations().len();
            assert_eq!(allocations(|| dom.restart().unwrap()), 0);
            host.machine.heal();
            assert_eq!(host.machine.allocations().len(), before);
            dom.guest.restart();
            dom.guest.boot();
        }
        dom.boot(|_| true);
        assert!(dom.run().is_empty());
        for its in 0..=last {
            (0..EVENTS).for_each(|n| dom.msi(its, n));
        }
        let all = (0..=last).flat_map(|its| (0..EVENTS).map(move |n| (n as u16 % VCPUS, intid(its, n))));
        assert_eq!(dom.run(), all.collect());
        // A vCPU that sleeps is woken.
        if let Some(vpe) = dom.paths.vpe(VcpuId(0)) {
            let resident = dom.enter(0, 1);
            dom.leave(resident, Why::Block);
            dom.msi(last, 0);
            assert_eq!(dom.take_interrupts(), [vpe]);
        }
        dom.tear_down();
    });
}

#[test]
fn a_domain_that_ends_in_the_middle_of_anything_gives_all_back() {
    on_every_host(|host, direct| {
        let life = || {
            let dom = host.build(DomId(1), IDS, direct);
            let end = dom.boot(|_| true);
            dom.end_in_the_middle(end);
            // A vCPU is still in its guest, on another CPU.
            let resident = dom.enter(0, 1);
            dom.reset_itss();
            if resident.is_some() {
                assert_eq!(dom.release(10), Err(()));
            }
            dom.leave(resident, Why::Preempt);
            dom.release(10).unwrap();
        };
        // Second levels of tables, and room in lists, stay.
        life();
        let before = host.in_use();
        assert_eq!(held(|| (0..3).for_each(|_| life())), 0);
        assert_eq!(host.in_use(), before);
        // What is pending for LPIs that are free now is nobody's.
        let dom = host.build(DomId(2), IDS, direct);
        dom.boot(|_| true);
        assert!(dom.run().is_empty());
        dom.tear_down();
        assert_eq!(host.in_use(), before);
    });
}

#[test]
fn a_domain_whose_its_does_not_answer_is_not_restarted_and_its_end_disturbs_no_other() {
    let (late, never) = (CommandFault::Late { us: 600_000 }, CommandFault::Hang);
    for index in 0..6 {
        for (nth, fault) in [(1, never), (9, late), (16, late), (20, never)] {
            let host = hosts().nth(index).unwrap();
            let other = IDS.first.0 + 0x100;
            let ids = DeviceIds { first: DeviceId(other), last: DeviceId(other) };
            let dom = host.build(DomId(1), IDS, |_| true);
            let neighbour = host.build(DomId(2), ids, |_| true);
            dom.boot(|_| true);
            host.machine.inject(Fault::Command { its: 0, nth, fault });
            let restarted = dom.restart();
            if restarted.is_ok() {
                // There were fewer commands.
                assert!(nth > 9);
                host.machine.heal();
            }
            dom.release(10).unwrap();
            assert!(host.gic.check_devices(dom.id).is_ok(), "it has no devices any more");
            host.machine.heal();
            host.machine.advance_us(1_000_000);
            let _ = host.gic.drain(ItsId(0));
            if host.gic.counters().dead_itss.get() == 0 {
                let key = EventKey::new(ItsId(0), DeviceId(other), EventId(0));
                neighbour.backend().map_device(ItsId(0), DeviceId(other), 5).unwrap();
                neighbour.guest.poke(CONFIG, &[ENABLED]);
                neighbour.backend().reload_config_byte_only(vlpi(0), VcpuId(0));
                neighbour.backend().map_event(key, VcpuId(0), vlpi(0)).unwrap();
            }
            host.machine.assert_clean();
        }
    }
}

#[test]
fn a_domain_that_takes_all_its_lpis_leaves_those_of_others() {
    for host in hosts() {
        let lpis = host.gic.unreserved_lpis();
        let count = host.its_ids().len() as u32 * QUOTA.events;
        let dom = host.build(DomId(1), IDS, |_| false);
        assert_eq!(host.gic.unreserved_lpis(), lpis - count);
        assert!(LpiQuota::reserve(&host.gic, lpis - count + 1).is_none());
        let rest = LpiQuota::reserve(&host.gic, lpis - count).unwrap();
        let key = |n| EventKey::new(ItsId(0), DEVICE, EventId(n));
        dom.boot(|_| true);
        let used = count - dom.paths.lpis.left();
        assert_eq!(used, host.its_ids().len() as u32 * EVENTS);
        // It has no more than were reserved for it, and another still has all of its own.
        let all: Vec<Lpi> = core::iter::from_fn(|| dom.paths.lpis.alloc(&host.gic)).collect();
        assert_eq!(all.len() as u32, count - used);
        assert_eq!(dom.backend().map_event(key(EVENTS), VcpuId(0), vlpi(40)), Err(BackendError::NoLpi));
        let others: Vec<Lpi> = core::iter::from_fn(|| rest.alloc(&host.gic)).collect();
        assert_eq!(others.len() as u32, lpis - count);
        assert_eq!(
            host.gic.v4().unwrap().add_vpe(dom.paths.vm.unwrap(), CpuId(0)),
            Err(crate::gic::v4::V4Error::NoLpi)
        );
        all.into_iter().for_each(|lpi| dom.paths.lpis.free(&host.gic, lpi));
        dom.tear_down();
        assert_eq!(host.gic.unreserved_lpis(), count);
        host.machine.assert_clean();
    }
}
