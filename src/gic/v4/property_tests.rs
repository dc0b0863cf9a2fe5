//! Every interrupt arrives: random sequences of verbs, MSIs and time on every kind of machine.
//!
//! For each event the test keeps whether an interrupt is *owed* (one was sent since the last one was taken, and must
//! still arrive) and whether one more *may* arrive (a change between guest and EL2 ends with an INT). These are errors:
//! an interrupt that arrives and is neither; one that is owed and does not arrive; one that arrives before another of
//! higher priority; a vPE that blocks with one owed without PendingLast; a vPE that sleeps and whose doorbell does not
//! ring; an interrupt on a CPU that is out of service; memory that is not freed; and any violation that the model
//! records.
//!
//! `DOORWARD_STEPS` is the number of steps in all (default 100,000). With `DOORWARD_FORGET_SEEDS` failing sequences are
//! not saved.

mod world;

use gic_model::{Config, Staleness};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, FileFailurePersistence, TestRunner};
use std::vec::Vec;
use world::World;

const CPUS: usize = 3;
/// Two VMs of two vPEs each.
const VMS: usize = 2;
const VPES: usize = 2 * VMS;
const EVENTS: u8 = 6;
const SEQUENCE: usize = 100;

/// What the firmware does with a redistributor whose CPU is off.
#[derive(Clone, Copy, Debug)]
enum Power {
    /// Nothing.
    On,
    /// Puts it to sleep.
    Asleep,
    /// Disables its LPIs, if that is possible, and puts it to sleep.
    LpisOff,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Msi(u8, u8),
    Virtual(u8, u8, u8),
    Physical(u8, u8, u8),
    MoveVirtual(u8, u8, u8),
    MovePhysical(u8, u8, u8),
    ToSoftware(u8, u8, u8),
    /// Maps all events of a vCPU in one batch to LPIs on a CPU.
    AllToSoftware(u8, u8),
    /// Maps all physical events in one batch to a vPE.
    AllDirect(u8),
    Unmap(u8, u8),
    Int(u8, u8),
    Clear(u8, u8),
    Configure(u8, u8, u8, bool),
    InvalidateAll(u8),
    Enter(u8, u8),
    Leave(u8, bool),
    Guest(u8),
    Host(u8),
    /// EL2 takes all pending interrupts on every CPU. Every vCPU whose doorbell rang is awake then.
    Listen,
    Replace(u8),
    Destroy(u8),
    Create(u8),
    Renew(u8),
    RemapDevice(u8),
    TakeOut(u8, u8, Power),
    TakeBack(u8),
    Time(u16),
    Late(u8, u8),
    Stall(u8, u8),
}

fn op(faults: bool) -> impl Strategy<Value = Op> {
    let (its, ev, vpe, cpu) = (0..4u8, 0..EVENTS, 0..VPES as u8, 0..CPUS as u8);
    let vm = 0..VMS as u8;
    let event = (its.clone(), ev.clone());
    // Few priorities, so that several events often have the same one.
    let priority = (0..8u8).prop_map(|p| 0x40 + 0x10 * p);
    let power = prop_oneof![Just(Power::On), Just(Power::Asleep), Just(Power::LpisOff)];
    let events = prop_oneof![
        8 => event.clone().prop_map(|(i, e)| Op::Msi(i, e)),
        4 => (event.clone(), vpe.clone()).prop_map(|((i, e), v)| Op::Virtual(i, e, v)),
        1 => (event.clone(), cpu.clone()).prop_map(|((i, e), c)| Op::Physical(i, e, c)),
        2 => (event.clone(), vpe.clone()).prop_map(|((i, e), v)| Op::MoveVirtual(i, e, v)),
        1 => (event.clone(), cpu.clone()).prop_map(|((i, e), c)| Op::MovePhysical(i, e, c)),
        2 => (event.clone(), cpu.clone()).prop_map(|((i, e), c)| Op::ToSoftware(i, e, c)),
        1 => (vpe.clone(), cpu.clone()).prop_map(|(v, c)| Op::AllToSoftware(v, c)),
        1 => vpe.clone().prop_map(Op::AllDirect),
        1 => event.clone().prop_map(|(i, e)| Op::Unmap(i, e)),
        1 => event.clone().prop_map(|(i, e)| Op::Int(i, e)),
        1 => event.clone().prop_map(|(i, e)| Op::Clear(i, e)),
        3 => (event, priority, any::<bool>()).prop_map(|((i, e), p, on)| Op::Configure(i, e, p, on)),
        1 => its.clone().prop_map(Op::RemapDevice),
    ];
    let others = prop_oneof![
        1 => vpe.clone().prop_map(Op::InvalidateAll),
        8 => (vpe.clone(), cpu.clone()).prop_map(|(v, c)| Op::Enter(v, c)),
        6 => (cpu.clone(), any::<bool>()).prop_map(|(c, block)| Op::Leave(c, block)),
        4 => cpu.clone().prop_map(Op::Guest),
        2 => cpu.clone().prop_map(Op::Host),
        4 => Just(Op::Listen),
        1 => vpe.prop_map(Op::Replace),
        1 => vm.clone().prop_map(Op::Destroy),
        2 => vm.clone().prop_map(Op::Create),
        1 => vm.prop_map(Op::Renew),
        2 => (cpu.clone(), cpu.clone(), power).prop_map(|(c, to, p)| Op::TakeOut(c, to, p)),
        2 => cpu.prop_map(Op::TakeBack),
        2 => (0..50u16).prop_map(Op::Time),
    ];
    let faults = if faults { 2 } else { 0 };
    let weird = prop_oneof![
        (its.clone(), 1..8u8).prop_map(|(i, n)| Op::Late(i, n)),
        (its, 1..8u8).prop_map(|(i, n)| Op::Stall(i, n)),
    ];
    prop_oneof![26 => events, 33 => others, faults => weird]
}

fn machines() -> Vec<Config> {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    // EnableLPIs cannot be cleared again.
    let sticky = |c: Config| c.each_cpu(|_, cpu| cpu.ces = false);
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
        sticky(Config::v4_0(CPUS).noncoherent()),
        Config::v4_1(CPUS, 1).stale(Staleness::Random(12)),
        sticky(Config::graviton3(CPUS)),
    ];
    all.extend((1..=4).map(|n| Config::its_list(CPUS, n).stale(Staleness::Random(n as u64))));
    all.iter_mut().for_each(|c| c.ds = true);
    all.extend([(0, 0), (0, 1), (1, 1), (1, 0), (2, 1), (3, 3)].map(|(common, svpet)| shared(common, svpet)));
    all
}

fn run(faults: bool, share: usize) {
    let steps = std::env::var("DOORWARD_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(100_000usize);
    // Under mutation testing a sequence that fails with one mutant says nothing about the next.
    let keep = std::env::var_os("DOORWARD_FORGET_SEEDS").is_none();
    let seeds = || Box::new(FileFailurePersistence::WithSource("proptest-regressions"));
    let machines = machines();
    let cases = (steps / share / SEQUENCE / machines.len()).max(1);
    for (n, config) in machines.iter().enumerate() {
        let mut runner = TestRunner::new(Runs {
            cases: cases as u32,
            failure_persistence: if keep { Some(seeds()) } else { None },
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
fn every_interrupt_arrives_even_if_commands_are_late_and_queues_stall() {
    run(true, 2);
}
