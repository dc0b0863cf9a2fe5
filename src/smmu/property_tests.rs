//! No device reaches what it may not: random sequences of operations, transactions and faults on every kind of SMMU.
//!
//! The test keeps which domain has each stream, and what each domain's stage 2 maps. These are errors: a transaction
//! that lands elsewhere than where the stage 2 of its stream's domain maps it; one that does not land although it is
//! mapped; one that was under way and lands after an operation has returned that took away what it reaches; memory that
//! is not freed; and any violation that the executable SMMU records. After an operation that fails, a transaction may
//! land where it might before or where it may after, until the operation is repeated with success.
//!
//! `DOORWARD_STEPS` is the number of steps in all (default 20,000). With `DOORWARD_FORGET_SEEDS` failing sequences are
//! not saved.

mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, FileFailurePersistence, TestRunner};
use smmu_model::{CommandFault, Config, Fault, Staleness};
use std::vec::Vec;
use world::World;

const DOMAINS: usize = 3;
const SEQUENCE: usize = 60;

/// A range of streams, by numbers of which the world makes one within the table.
#[derive(Clone, Copy, Debug)]
struct Streams(u16, Length);

#[derive(Clone, Copy, Debug)]
enum Length {
    One,
    Few(u8),
    /// The leaf of the first stream.
    Leaf,
    Many(u16),
    All,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Assign(Streams, u8),
    Block(Streams),
    /// Maps pages of a domain: the first one, and log2 of their number.
    Map(u8, u16, u8),
    Unmap(u8, u16, u8),
    /// A domain ends. Its streams are blocked, and what it had is freed.
    Destroy(u8),
    Write(u16, u16),
    /// A write that lands when the SMMU has to wait for it.
    Later(u16, u16),
    Read(u16, u16),
    Events,
    Time(u16),
    Inject(Fault),
}

fn streams() -> impl Strategy<Value = Streams> {
    let length = prop_oneof![
        4 => Just(Length::One),
        2 => (2..9u8).prop_map(Length::Few),
        2 => Just(Length::Leaf),
        2 => (2..400u16).prop_map(Length::Many),
        1 => Just(Length::All),
    ];
    (stream(), length).prop_map(|(first, length)| Streams(first, length))
}

/// Few streams, so that they are often met again, at the beginning and the end of leaves and tables.
fn stream() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0..8u16, 4 => 60..70u16, 2 => 120..140u16, 1 => any::<u16>(), 1 => 0xfff8..=u16::MAX]
}

fn op(faults: bool) -> impl Strategy<Value = Op> {
    let domain = 0..DOMAINS as u8;
    // Some pages beyond those that are ever mapped.
    let page = prop_oneof![4 => 0..8u16, 1 => 508..516u16, 1 => 0..1100u16];
    let pages = prop_oneof![4 => Just(0u8), 2 => 1..5u8, 1 => Just(9u8), 1 => Just(10u8)];
    let operations = prop_oneof![
        5 => (streams(), domain.clone()).prop_map(|(s, d)| Op::Assign(s, d)),
        2 => streams().prop_map(Op::Block),
        4 => (domain.clone(), page.clone(), pages.clone()).prop_map(|(d, p, n)| Op::Map(d, p, n)),
        2 => (domain.clone(), page.clone(), pages).prop_map(|(d, p, n)| Op::Unmap(d, p, n)),
        1 => domain.prop_map(Op::Destroy),
    ];
    let transactions = prop_oneof![
        6 => (stream(), page.clone()).prop_map(|(s, p)| Op::Write(s, p)),
        2 => (stream(), page.clone()).prop_map(|(s, p)| Op::Later(s, p)),
        1 => (stream(), page).prop_map(|(s, p)| Op::Read(s, p)),
        1 => Just(Op::Events),
        1 => (0..2000u16).prop_map(Op::Time),
    ];
    let command = prop_oneof![
        Just(CommandFault::Illegal),
        Just(CommandFault::Abort),
        (1..150_000u64).prop_map(|us| CommandFault::Late { us }),
    ];
    let fault = prop_oneof![
        6 => (1..9usize, command).prop_map(|(nth, fault)| Fault::Command { nth, fault }),
        2 => (1..150_000u64).prop_map(|us| Fault::QueueStopsFor { us }),
        2 => (0..4u64).prop_map(|after| Fault::OutOfMemory { after }),
        1 => Just(Fault::EventOverflow),
        1 => Just(Fault::EventWriteAborts),
        1 => Just(Fault::SteFetchAborts),
        1 => Just(Fault::WalkAborts),
    ];
    let weight = if faults { 6 } else { 0 };
    prop_oneof![14 => operations, 14 => transactions, weight => fault.prop_map(Op::Inject)]
}

fn machines() -> Vec<Config> {
    let short = |bits: u32, config: Config| Config { stream_bits: bits, ..config };
    vec![
        short(9, Config::server()),
        short(9, Config::server().noncoherent()),
        short(8, Config::server().left_enabled().stale(Staleness::Random(1))),
        short(8, Config::server().noncoherent().stale(Staleness::Random(2))),
        Config::server().stale(Staleness::Random(3)),
        Config::qemu(),
        Config::small(),
        Config { command_bits: 0, event_bits: 0, ..Config::small() }.left_enabled(),
        Config { stream_bits: 0, ..Config::small() }.stale(Staleness::Random(4)),
        short(19, Config::server()),
    ]
}

fn run(faults: bool, share: usize) {
    let steps = std::env::var("DOORWARD_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(20_000usize);
    // Under mutation testing a sequence that fails with one mutant says nothing about the next.
    let keep = std::env::var_os("DOORWARD_FORGET_SEEDS").is_none();
    let seeds = || Box::new(FileFailurePersistence::WithSource("proptest-regressions"));
    let machines = machines();
    let cases = steps / share / SEQUENCE / machines.len();
    for (n, config) in machines.iter().enumerate() {
        // With many streams a step takes long.
        let cases = (cases >> (config.stream_bits.saturating_sub(9) / 2)).max(1);
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
fn no_transaction_lands_outside_of_what_its_stream_may_reach() {
    run(false, 2);
}

#[test]
fn no_transaction_lands_outside_even_if_commands_fail_or_are_late() {
    run(true, 2);
}
