//! The rate limit on the executable GIC. A tick of the counter is a microsecond of the GIC's time.

use super::*;
use crate::gic::testing::{Bench, DEV, Guest, ITS0, ModelHw};
use crate::gic::v4::Why;
use crate::host::routes::Route;
use crate::ids::EventKey;
use crate::ids::{CpuId, DomId, EventId, VIntid, VcpuId};
use gic_model::{CommandFault, Config, Fault, Machine, Staleness};

const HZ: u64 = 1_000_000;
const RATE: u32 = 1000;
const CPU: CpuId = CpuId(0);
const EVENTS: u32 = 4;
const SECOND: u64 = HZ;

fn rate() -> Rate {
    Rate::new(RATE, HZ)
}

/// EL2 on one CPU, which takes the interrupts of one vCPU.
struct El2<'a> {
    machine: &'a Machine,
    gic: &'a Gic<ModelHw>,
    routes: Routes,
    limits: RateLimits,
    meter: Meter,
    unmask_at: Option<u64>,
    /// The number of LPIs and doorbells taken.
    taken: u64,
}

impl<'a> El2<'a> {
    fn new(machine: &'a Machine, gic: &'a Gic<ModelHw>) -> El2<'a> {
        let lpis = gic.facts().lpis;
        let (routes, limits) = (Routes::new(lpis), RateLimits::new(lpis, rate()));
        El2 { machine, gic, routes, limits, meter: Meter::default(), unmask_at: None, taken: 0 }
    }

    /// Handles the timer if it is due, and takes all pending interrupts. Calls `each` with each of them.
    fn take(&mut self, mut each: impl FnMut(Lpi)) {
        if self.unmask_at.is_some_and(|at| self.machine.now_us() >= at) {
            let due = |_| Some(self.meter.unmask_at(&self.limits.rate));
            self.unmask_at = self.limits.unmask_due(self.gic, &self.routes, self.machine.now_us(), due).0;
            self.machine.advance_us(5);
        }
        while let Some(intid) = self.machine.host_ack(CPU.index()) {
            self.taken += 1;
            let now = self.machine.now_us();
            if let Some(at) = self.limits.charge(self.gic, &self.routes, Lpi(intid), &self.meter, now) {
                self.unmask_at = Some(self.unmask_at.map_or(at, |earlier| earlier.min(at)));
            }
            each(Lpi(intid));
        }
    }

    /// Asserts that the number of interrupts taken since `since` is at most the bound that the module documentation
    /// states, and at least nine tenths of the rate. `sources` is the number of LPIs and doorbells.
    fn assert_rate(&self, since: u64, sources: u64) {
        let paid = (self.machine.now_us() - since) * u64::from(RATE) / SECOND;
        let most = self.limits.rate.burst() + paid + sources;
        assert!(self.taken <= most, "{} taken, {most} allowed", self.taken);
        assert!(self.taken >= paid * 9 / 10, "{} taken, {paid} paid for", self.taken);
    }
}

fn machines() -> Vec<Config> {
    vec![
        Config::gicv3(2),
        Config::qemu(2),
        Config::v4_0(2).each_cpu(|_, cpu| cpu.direct_lpi = false).stale(Staleness::Random(3)),
        Config::v4_0(2),
        Config::its_list(2, 2),
        Config::v4_1(2, 2),
    ]
}

#[test]
fn el2_takes_software_injected_lpis_of_a_flooding_device_at_the_rate_and_loses_no_edge() {
    for config in machines() {
        let Bench { machine, gic } = Bench::up(config);
        gic.map_device(ITS0, DEV, 4).unwrap();
        let mut el2 = El2::new(&machine, &gic);
        for event in 0..EVENTS {
            let lpi = gic.alloc_lpi().unwrap();
            gic.configure_lpi(lpi, PRIORITY, true);
            let (vcpu, vintid) = (VcpuId(0), VIntid(Lpi::FIRST + event));
            let (device, event) = (DEV, EventId(event));
            el2.routes.set(lpi, Route { domain: DomId(1), vcpu, vintid, event: EventKey::new(ITS0, device, event) });
            gic.map_physical(EventKey::new(ITS0, device, event), lpi, CPU).unwrap();
        }
        let start = machine.now_us();
        let mut pending = [false; EVENTS as usize];
        let take = |el2: &mut El2<'_>, pending: &mut [bool]| {
            let mut got = Vec::new();
            el2.take(|lpi| got.push(lpi));
            for lpi in got {
                pending[el2.routes.get(lpi).unwrap().event.event.0 as usize] = false;
            }
        };
        let mut sent = 0u32;
        while machine.now_us() < start + SECOND {
            // MSIs come at ten times the rate.
            machine.msi(DEV.0, sent * 7 % EVENTS);
            pending[(sent * 7 % EVENTS) as usize] = true;
            sent += 1;
            machine.advance_us(100);
            take(&mut el2, &mut pending);
        }
        assert!(sent > 9 * RATE, "{sent} MSIs are too few");
        el2.assert_rate(start, EVENTS.into());
        // LPIs that were masked at the end arrive after they are unmasked. After that, a single MSI arrives without
        // delay.
        while let Some(at) = el2.unmask_at {
            machine.advance_us(at.saturating_sub(machine.now_us()) + 1);
            take(&mut el2, &mut pending);
        }
        assert_eq!(pending, [false; EVENTS as usize]);
        machine.advance_us(SECOND);
        for event in 0..EVENTS {
            machine.msi(DEV.0, event);
            machine.advance_us(100);
            let before = el2.taken;
            take(&mut el2, &mut pending);
            assert_eq!(el2.taken, before + 1);
        }
        machine.assert_clean();
    }
}

#[test]
fn el2_takes_doorbells_of_a_vcpu_that_blocks_after_each_wake_up_at_the_rate_and_loses_none() {
    for config in machines().into_iter().skip(1) {
        let g = Guest::new(config, 1);
        let v41 = g.gic.facts().v41;
        (0..EVENTS).for_each(|event| g.map(ITS0, event, 0));
        let mut el2 = El2::new(&g.machine, &g.gic);
        let sleep = |g: &Guest| {
            let resident = g.enter(0, CPU.0);
            let taken = g.guest(CPU.index()).len();
            (taken, g.leave(resident, Why::Block))
        };
        let (_, found) = sleep(&g);
        assert!(!found);
        let start = g.machine.now_us();
        let (mut sent, mut wakes) = (0u32, 0u64);
        while g.machine.now_us() < start + SECOND {
            g.msi(ITS0, sent % EVENTS);
            sent += 1;
            g.machine.advance_us(100);
            let mut rung = false;
            el2.take(|lpi| rung |= g.gic.peek_doorbell(lpi).is_some());
            if rung {
                wakes += 1;
                assert!(sleep(&g).0 > 0, "a doorbell without a pending vLPI");
            }
        }
        if v41 {
            // On GICv4.1 the hardware sends one doorbell for each time the vCPU blocks.
            assert!(el2.taken <= wakes + 1, "{} doorbells, blocked {wakes} times", el2.taken);
        } else {
            el2.assert_rate(start, 1);
        }
        // The last MSI causes a doorbell, perhaps a late one.
        g.msi(ITS0, 0);
        g.machine.advance_us(100);
        let mut rung = false;
        el2.take(|_| rung = true);
        while let Some(at) = el2.unmask_at {
            g.machine.advance_us(at.saturating_sub(g.machine.now_us()) + 1);
            el2.take(|_| rung = true);
        }
        assert!(rung);
        assert!(sleep(&g).0 > 0);
        g.machine.assert_clean();
        g.take_down();
    }
}

#[test]
fn a_masked_lpi_that_no_longer_has_a_vcpu_is_forgotten() {
    let Bench { gic, .. } = Bench::up(Config::qemu(1));
    let (routes, limits) = (Routes::new(gic.facts().lpis), RateLimits::new(gic.facts().lpis, rate()));
    let lpi = gic.alloc_lpi().unwrap();
    let meter = Meter::default();
    let over = (0..100).filter_map(|_| limits.charge(&gic, &routes, lpi, &meter, 0)).count();
    assert_eq!(over, 0, "an LPI without a route is not masked");
    let route =
        Route { domain: DomId(1), vcpu: VcpuId(0), vintid: VIntid(8192), event: EventKey::new(ITS0, DEV, EventId(0)) };
    routes.set(lpi, route);
    assert_eq!(routes.get(lpi), Some(route));
    assert!(limits.charge(&gic, &routes, lpi, &meter, 0).is_some());
    assert_eq!(limits.unmask_due(&gic, &routes, u64::MAX, |_| None), (None, 0));
    assert_eq!(limits.unmask_due(&gic, &routes, u64::MAX, |_| Some(0)), (None, 0), "it was forgotten");
}

#[test]
fn unmasking_is_tried_again_if_the_hardware_has_not_confirmed_it() {
    let Bench { machine, gic } = Bench::up(Config::gicv3(1));
    gic.map_device(ITS0, DEV, 1).unwrap();
    let mut el2 = El2::new(&machine, &gic);
    let lpi = gic.alloc_lpi().unwrap();
    gic.configure_lpi(lpi, PRIORITY, true);
    let (vcpu, vintid, event) = (VcpuId(0), VIntid(8192), EventKey::new(ITS0, DEV, EventId(0)));
    el2.routes.set(lpi, Route { domain: DomId(1), vcpu, vintid, event });
    gic.map_physical(event, lpi, CPU).unwrap();
    while el2.unmask_at.is_none() {
        machine.msi(DEV.0, 0);
        machine.advance_us(5);
        el2.take(|_| {});
    }
    machine.msi(DEV.0, 0);
    machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 150_000 } });
    let unmask_due = |now| el2.limits.unmask_due(&gic, &el2.routes, now, |_| Some(0));
    assert_eq!(unmask_due(1), (Some(1 + 16_000), 0));
    machine.advance_us(200_000);
    assert_eq!(unmask_due(2), (None, 1));
    machine.advance_us(5);
    assert_eq!(machine.host_ack(CPU.index()), Some(lpi.0));
}
