//! What streams reach, whatever is assigned and blocked, and what happens when the SMMU fails.

use super::testing::{Fake, Reach, described, facts, streams, view};
use super::*;
use crate::ids::{Ipa, Pa, StreamId};
use crate::mmio::{Coherence, Hw};
use crate::platform::machine;
use crate::smmu::testing::State;
use crate::util::range::Range;
use std::vec::Vec;

fn of(n: u16) -> Reach {
    Reach::View(n, view(n).vttbr)
}

#[test]
fn after_the_start_all_streams_reach_nothing_and_cause_no_events() {
    let fake = Fake::new();
    // The firmware has left it translating, with a command error.
    fake.set(0x20, 0xd);
    fake.set(0x24, 0xd);
    fake.set(0x60, 1);
    let smmu = fake.start();
    let expected = Facts { overrides_types: false, ..facts() };
    assert_eq!(*smmu.facts(), expected);
    for stream in [0, 1, 0x3f, 0x40, 0xffff] {
        assert_eq!(fake.reach(stream), Reach::Nothing);
    }
    assert_eq!(fake.reach(0x1_0000), Reach::Invalid, "beyond the table");
    let state = fake.0.borrow();
    let at = |register, value| state.writes.iter().position(|&write| write == (register, value));
    let abort = at(0x44, 1 << 31 | 1 << 20).expect("GBPA.ABORT is set");
    let off = at(0x20, 0xc).expect("SMMUEN is cleared");
    assert!(abort < off, "in this order, or transactions would pass in between");
    assert_eq!(state.commands, [[0x04, 31], [0x30, 0], [0x46, 0]], "all is invalidated before SMMUEN is set");
    assert_eq!((state.registers[&0x20], state.registers[&0x50]), (0xd, 0x5));
    assert_eq!(state.registers[&0x28], 0b11_01_01_11_01_01, "write-back and inner shareable");
    assert_eq!(state.registers[&0x64], 1, "the error is acknowledged");
    assert_eq!(state.registers[&0x88], 1 << 16 | 6 << 6 | 16);
}

#[test]
fn an_smmu_with_too_few_registers_is_not_accessed() {
    let fake = Fake::new();
    let at = machine::Smmu { regs: Range::new(described().regs.base, 0x1_f000), ..described() };
    assert!(matches!(Smmu::start(fake.clone(), &at), Err(SmmuError::RegistersTooShort)));
    assert!(fake.0.borrow().writes.is_empty());
    // More than it needs is no reason.
    let at = machine::Smmu { regs: Range::new(at.regs.base, 0x10_0000), ..at };
    assert!(Smmu::start(fake, &at).is_ok());
}

#[test]
fn a_stream_reaches_its_view_until_it_is_blocked() {
    let fake = Fake::new();
    let smmu = fake.start();
    let before = fake.allocated();
    assert_eq!(fake.reach(0x18), Reach::Nothing);
    smmu.assign(streams(0x18, 0x18), &view(1)).unwrap();
    assert_eq!((fake.reach(0x17), fake.reach(0x18), fake.reach(0x19)), (Reach::Nothing, of(1), Reach::Nothing));
    smmu.assign(streams(0x18, 0x19), &view(2)).unwrap();
    assert_eq!((fake.reach(0x18), fake.reach(0x19), fake.reach(0x1a)), (of(2), of(2), Reach::Nothing));
    smmu.block(streams(0x18, 0x18)).unwrap();
    assert_eq!((fake.reach(0x18), fake.reach(0x19)), (Reach::Nothing, of(2)));
    assert_eq!(fake.allocated(), before + 0x1000);
    smmu.block(streams(0, 0xffff)).unwrap();
    assert_eq!(fake.reach(0x19), Reach::Nothing);
    assert_eq!(fake.allocated(), before, "a leaf in which all streams are blocked is given back");
}

#[test]
fn all_streams_of_a_root_complex_cost_one_leaf_and_few_commands() {
    let fake = Fake::new();
    let smmu = fake.start();
    let before = fake.allocated();
    // Both queues, 1024 descriptors, and the leaf that aborts.
    assert_eq!(before, 0x1000 + 0x4000 + 0x2000 + 0x1000);
    fake.0.borrow_mut().commands.clear();
    smmu.assign(streams(0, 0xffff), &view(1)).unwrap();
    assert_eq!(fake.allocated(), before + 0x1000);
    let commands = core::mem::take(&mut fake.0.borrow_mut().commands);
    assert_eq!(commands, [[0x04, 15], [1 << 32 | 0x28, 0], [0x46, 0], [0x04, 15], [0x46, 0]]);
    assert_eq!((fake.reach(0), fake.reach(0x1234), fake.reach(0xffff)), (of(1), of(1), of(1)));

    // A function leaves, and its neighbours stay.
    smmu.assign(streams(0x1234, 0x1234), &view(2)).unwrap();
    assert_eq!((fake.reach(0x1233), fake.reach(0x1234), fake.reach(0x1274)), (of(1), of(2), of(1)));
    assert_eq!(fake.allocated(), before + 0x2000);
    // Half of what is left leaves: 0x1234 goes with it, and the other half keeps its leaf.
    smmu.assign(streams(0, 0x7fff), &view(3)).unwrap();
    assert_eq!((fake.reach(0), fake.reach(0x1234), fake.reach(0x8000)), (of(3), of(3), of(1)));
    assert_eq!(fake.allocated(), before + 0x2000);
    // A range that begins and ends within leaves.
    smmu.block(streams(0x7ff0, 0x8100)).unwrap();
    assert_eq!((fake.reach(0x7fef), fake.reach(0x7ff0)), (of(3), Reach::Nothing));
    assert_eq!((fake.reach(0x8040), fake.reach(0x8100), fake.reach(0x8101)), (Reach::Nothing, Reach::Nothing, of(1)));
    smmu.block(streams(0, 0xffff)).unwrap();
    assert_eq!((fake.reach(0), fake.reach(0x8101)), (Reach::Nothing, Reach::Nothing));
    assert_eq!(fake.allocated(), before);
}

#[test]
fn a_linear_table_has_all_entries() {
    for bits in [0u32, 1, 5, 6] {
        let fake = Fake::new();
        fake.set(0x00, 0x0d44_101b & !(3 << 27));
        fake.set(0x04, 0x0273_0000 | bits);
        let smmu = fake.start();
        let last = (1u32 << bits) - 1;
        let before = fake.allocated();
        smmu.assign(streams(last, last), &view(7)).unwrap();
        assert_eq!(fake.reach(last), of(7), "{bits} bits");
        assert_eq!(last > 0, fake.reach(0) == Reach::Nothing);
        assert_eq!(smmu.assign(streams(0, last + 1), &view(7)), Err(SmmuError::BadStream(StreamId(last + 1))));
        smmu.block(streams(0, last)).unwrap();
        assert_eq!((fake.reach(last), fake.allocated()), (Reach::Nothing, before));
    }
}

#[test]
fn an_smmu_that_cannot_be_used_is_refused_with_the_reason() {
    let start = |register: u64, value: u32| {
        let fake = Fake::new();
        fake.set(register, value);
        let error = Smmu::start(fake.clone(), &described()).map(|_| ()).unwrap_err();
        assert_eq!(fake.reach(0), Reach::Nothing, "it stays set to abort");
        assert_eq!(fake.allocated(), 0);
        error
    };
    let idr0 = 0x0d44_101b;
    for value in [idr0 & !1, idr0 & !(1 << 3), idr0 | 3 << 21, 0] {
        assert_eq!(start(0x00, value), SmmuError::NoStage2, "{value:#x}");
    }
    assert_eq!(start(0x14, 0x64), SmmuError::NoStage2, "no granule of 4 KiB");
    assert_eq!(start(0x00, idr0 & !(3 << 24) | 2 << 24), SmmuError::StallsForced);
    assert_eq!(start(0x04, 0x0273_0010 | 1 << 30), SmmuError::Preset);
    assert_eq!(start(0x04, 0x0273_0010 | 1 << 29), SmmuError::Preset);
}

#[test]
fn memory_that_the_smmu_cannot_address_is_not_used() {
    let fake = Fake::new();
    fake.set(0x14, 0x70);
    fake.0.borrow_mut().next = 0x1_0000_0000;
    let error = Smmu::start(fake.clone(), &described()).map(|_| ()).unwrap_err();
    assert_eq!((error, fake.allocated()), (SmmuError::Unreachable(Pa(0x1_0000_0000)), 0));
}

#[test]
fn no_value_of_an_id_register_makes_the_driver_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..60 {
        let fake = Fake::new();
        for register in [0x00, 0x04, 0x0c, 0x14, 0x1c] {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            fake.set(register, (random >> 32) as u32);
        }
        // Half of the cases get beyond the first check.
        if random & 1 << 20 != 0 {
            fake.set(0x00, fake.get(0x00) & !(3 << 21) & !(3 << 24) | 0x9);
            fake.set(0x04, fake.get(0x04) & !(3 << 29));
            fake.set(0x14, fake.get(0x14) | 0x14);
        }
        if let Ok(smmu) = Smmu::start(fake.clone(), &described()) {
            let assigned = smmu.assign(streams(0, 0), &view(1));
            assert!(assigned.is_ok() && fake.reach(0) == of(1), "{assigned:?} with {:?}", smmu.facts());
            smmu.block(streams(0, 0)).unwrap();
        }
    }
}

/// The driver with stream 0x18 assigned to view 1, and a change to the SMMU.
fn assigned(change: impl FnOnce(&mut State)) -> (Fake, Smmu<Fake>) {
    let fake = Fake::new();
    let smmu = fake.start();
    smmu.assign(streams(0x18, 0x18), &view(1)).unwrap();
    assert_eq!(fake.reach(0x18), of(1));
    change(&mut fake.0.borrow_mut());
    (fake, smmu)
}

#[test]
fn a_refused_command_fails_its_operation_and_the_next_one_repeats_it() {
    // Two commands until the stream is blocked, three until its entry is prepared, two until it is enabled.
    for after in 0..7 {
        let (fake, smmu) = assigned(|state| state.refuses = Some((after, 1)));
        let error = smmu.assign(streams(0x18, 0x18), &view(2)).unwrap_err();
        assert!(matches!(error, SmmuError::Refused(_, Reason::Illegal)), "{error:?}");
        assert_eq!(smmu.take_errors(), Errors { command: Some(Reason::Illegal), ..Errors::default() });
        assert!(!smmu.take_errors().any());
        // Others are not affected, and the stream is not left with a mixture.
        assert!([of(1), of(2), Reach::Nothing].contains(&fake.reach(0x18)));
        fake.0.borrow_mut().commands.clear();
        smmu.assign(streams(0x40, 0x40), &view(3)).unwrap();
        assert_eq!((fake.reach(0x40), fake.reach(0x18)), (of(3), Reach::Nothing));
        // First of all the SMMU forgets what it has cached, entries before translations.
        assert_eq!(fake.0.borrow().commands[..4], [[0x04, 31], [0x46, 0], [0x30, 0], [0x46, 0]]);
        smmu.assign(streams(0x18, 0x18), &view(2)).unwrap();
        assert_eq!(fake.reach(0x18), of(2));
    }
}

#[test]
fn memory_of_a_failed_operation_is_kept_until_the_smmu_has_forgotten_it() {
    let (fake, smmu) = assigned(|state| state.refuses = Some((2, 2)));
    let before = fake.allocated();
    // The entry aborts, but the leaf cannot be taken out of use.
    let error = smmu.block(streams(0x18, 0x18)).unwrap_err();
    assert!(matches!(error, SmmuError::Refused(_, Reason::Abort)), "{error:?}");
    assert_eq!(fake.allocated(), before);
    smmu.invalidate_all(VmId(1)).unwrap();
    assert_eq!(fake.allocated(), before - 0x1000);
    assert_eq!(fake.reach(0x18), Reach::Nothing);
}

#[test]
fn an_smmu_that_hangs_is_declared_dead_in_bounded_time_and_aborts_everything() {
    let (fake, smmu) = assigned(|state| state.hangs = true);
    assert_eq!(smmu.block(streams(0x18, 0x18)), Err(SmmuError::Timeout));
    assert_eq!(fake.reach(0x18), of(1), "it has not taken the command");
    let mut rounds = 0;
    while smmu.block(streams(0x18, 0x18)) == Err(SmmuError::Timeout) {
        rounds += 1;
        assert!(rounds < 20);
    }
    assert!(rounds >= 8, "{rounds} times 100 ms is not a second");
    assert_eq!(smmu.invalidate_all(VmId(1)), Err(SmmuError::Dead));
    assert_eq!((fake.get(0x20), fake.get(0x50), fake.get(0x44)), (0, 0, 1 << 20));
    assert_eq!(fake.reach(0x18), Reach::Nothing);
    assert_eq!(smmu.assign(streams(0x18, 0x18), &view(1)), Err(SmmuError::Dead));
}

#[test]
fn an_smmu_that_was_only_late_goes_on() {
    let (fake, smmu) = assigned(|state| state.hangs = true);
    assert_eq!(smmu.block(streams(0x18, 0x18)), Err(SmmuError::Timeout));
    fake.0.borrow_mut().hangs = false;
    smmu.block(streams(0x18, 0x18)).unwrap();
    assert_eq!(fake.reach(0x18), Reach::Nothing);
    smmu.assign(streams(0x18, 0x18), &view(1)).unwrap();
    assert_eq!(fake.reach(0x18), of(1));
}

#[test]
fn an_error_that_comes_after_the_deadline_is_taken_with_the_others() {
    let (fake, smmu) = assigned(|state| state.hangs = true);
    assert_eq!(smmu.block(streams(0x18, 0x18)), Err(SmmuError::Timeout));
    let state = |change: &dyn Fn(&mut State)| change(&mut fake.0.borrow_mut());
    state(&|state| (state.hangs, state.refuses) = (false, Some((0, 1))));
    fake.resume();
    let errors = smmu.take_errors();
    assert_eq!(errors.command, Some(Reason::Illegal));
    smmu.block(streams(0x18, 0x18)).unwrap();
    assert_eq!(fake.reach(0x18), Reach::Nothing);
}

#[test]
fn an_smmu_whose_index_was_never_posted_is_declared_dead() {
    let (fake, smmu) = assigned(|state| state.hangs = true);
    // With GERROR.CMDQ_ERR and an index far from what was posted.
    let cons = fake.get(0x9c);
    fake.set(0x9c, cons ^ 0x80);
    fake.set(0x60, 1);
    assert_eq!(smmu.invalidate_all(VmId(1)), Err(SmmuError::Dead));
    assert_eq!(fake.reach(0x18), Reach::Nothing);
}

#[test]
fn registers_that_do_not_follow_are_reported_in_bounded_time() {
    let (gbpa, cr0, irq_ctrl) = (0x44, 0x20, 0x50);
    // What CR0 and IRQ_CTRL are at first, and their acknowledgements: the firmware has left some bits set.
    let cases = [
        (gbpa, 0, 0, SmmuError::GbpaTimeout),
        (cr0, 0xd, 0, SmmuError::DisableTimeout),
        (cr0, 0xc, 0, SmmuError::DisableTimeout),
        (irq_ctrl, 0, 5, SmmuError::IrqTimeout),
        (cr0, 0, 0, SmmuError::EnableTimeout),
        (irq_ctrl, 0, 0, SmmuError::IrqTimeout),
    ];
    for (register, cr0_at_first, irq_ctrl_at_first, expected) in cases {
        let fake = Fake::new();
        (cr0..=cr0 + 4).step_by(4).for_each(|at| fake.set(at, cr0_at_first));
        (irq_ctrl..=irq_ctrl + 4).step_by(4).for_each(|at| fake.set(at, irq_ctrl_at_first));
        fake.0.borrow_mut().stuck = Some(register);
        let start = fake.now_us();
        let error = Smmu::start(fake.clone(), &described()).map(|_| ()).unwrap_err();
        assert_eq!((error, fake.allocated()), (expected, 0), "{register:#x}");
        assert!(fake.now_us() - start < 2 * LIMIT_US);
    }
}

#[test]
fn an_smmu_that_does_not_keep_abort_is_not_used() {
    let fake = Fake::new();
    fake.0.borrow_mut().passes = true;
    let error = Smmu::start(fake.clone(), &described()).map(|_| ()).unwrap_err();
    assert_eq!((error, fake.allocated()), (SmmuError::AbortStuck, 0));
}

#[test]
fn without_memory_nothing_changes() {
    for left in 0..4 {
        let fake = Fake::new();
        fake.0.borrow_mut().left = Some(left);
        let error = Smmu::start(fake.clone(), &described()).map(|_| ()).unwrap_err();
        assert_eq!((error, fake.allocated()), (SmmuError::OutOfMemory, 0));
    }
    let fake = Fake::new();
    let smmu = fake.start();
    smmu.assign(streams(0, 0xffff), &view(1)).unwrap();
    let before = fake.allocated();
    for left in 0..3 {
        fake.0.borrow_mut().left = Some(left);
        assert_eq!(smmu.assign(streams(0x30, 0x90), &view(2)), Err(SmmuError::OutOfMemory));
        assert_eq!((fake.reach(0x30), fake.reach(0x60), fake.allocated()), (of(1), of(1), before));
    }
    fake.0.borrow_mut().left = Some(0);
    assert_eq!(smmu.block(streams(0x30, 0x30)), Err(SmmuError::OutOfMemory));
    // What was assigned as a whole is blocked as a whole without memory.
    smmu.block(streams(0, 0xffff)).unwrap();
    assert_eq!(fake.reach(0x30), Reach::Nothing);
}

#[test]
fn translations_are_invalidated_by_range_where_the_smmu_can() {
    let fake = Fake::new();
    let smmu = fake.start();
    fake.0.borrow_mut().commands.clear();
    smmu.invalidate(VmId(2), Ipa(0x4000_0000), 0x20_0000).unwrap();
    smmu.invalidate_all(VmId(2)).unwrap();
    let commands: Vec<_> = core::mem::take(&mut fake.0.borrow_mut().commands);
    assert_eq!(commands, [[0x2_0090_002a, 0x4000_0400], [0x46, 0], [0x2_0000_0028, 0], [0x46, 0]]);
}

#[test]
fn queues_of_one_entry_carry_any_number_of_commands() {
    let fake = Fake::new();
    fake.set(0x00, 0x0d44_101b);
    fake.set(0x04, 0x10);
    fake.set(0x0c, 0);
    let smmu = fake.start();
    smmu.assign(streams(0x33, 0x1111), &view(1)).unwrap();
    assert_eq!((fake.reach(0x32), fake.reach(0x33), fake.reach(0x1111)), (Reach::Nothing, of(1), of(1)));
    smmu.invalidate(VmId(1), Ipa(0), 64 << 12).unwrap();
    fake.event([0x18 << 32 | 0x10, 0, 0x1000, 0]);
    fake.event([0x18 << 32 | 0x10, 0, 0x2000, 0]);
    assert_eq!(smmu.next_event(), Some(Event::Lost));
    assert!(matches!(smmu.next_event(), Some(Event::Stream { stream: StreamId(0x18), .. })));
    assert_eq!(smmu.next_event(), None);
}

#[test]
fn events_are_taken_in_order_and_lost_ones_are_reported() {
    let fake = Fake::new();
    let smmu = fake.start();
    assert_eq!(smmu.next_event(), None);
    for round in 0..3u64 {
        for n in 0..514 {
            fake.event([n << 32 | 0x10, 1 << 35, round << 12, 0]);
        }
        assert_eq!(smmu.next_event(), Some(Event::Lost));
        let event = |n| {
            let access = Some(Access { address: Ipa(round << 12), write: false });
            Event::Stream { stream: StreamId(n), kind: EventKind::Translation, access, crowded: n < 512 }
        };
        (0..512).for_each(|n| assert_eq!(smmu.next_event(), Some(event(n))));
        fake.event([600 << 32 | 0x10, 1 << 35, round << 12, 0]);
        assert_eq!(smmu.next_event(), Some(event(600)));
        assert_eq!(smmu.next_event(), None);
    }
    fake.set(0x60, fake.get(0x60) ^ (1 << 2 | 1 << 8 | 1 << 4));
    assert_eq!(smmu.take_errors(), Errors { command: None, events_lost: true, failure: true, other: 1 << 4 });
    assert_eq!(smmu.next_event(), Some(Event::Lost));
    assert_eq!(smmu.next_event(), None);
    assert!(!smmu.take_errors().any());
}

/// The streams of the events that are taken; `None` for one that is lost.
fn taken(smmu: &Smmu<Fake>) -> Vec<Option<u32>> {
    let stream = |event| match event {
        Event::Stream { stream, .. } => Some(stream.0),
        Event::Lost => None,
    };
    core::iter::from_fn(|| smmu.next_event()).map(stream).collect()
}

#[test]
fn a_record_that_was_not_written_is_not_taken_for_the_one_that_was_in_its_slot_before() {
    let fake = Fake::new();
    let smmu = fake.start();
    // Once around the ring.
    for n in 0..512 {
        fake.event([n << 32 | 0x10, 0, 0, 0]);
        assert_eq!(taken(&smmu), [Some(n as u32)]);
    }
    fake.event([600 << 32 | 0x10, 0, 0, 0]);
    // The write of the next record is aborted after EVENTQ_PROD has passed it.
    fake.set(0x1_00a8, fake.get(0x1_00a8) + 1);
    fake.set(0x60, fake.get(0x60) ^ 1 << 2);
    assert!(smmu.take_errors().events_lost);
    assert_eq!(taken(&smmu), [None, Some(600), None]);
}

#[test]
fn without_snooping_no_event_is_taken_from_a_queue_that_could_not_be_written() {
    let fake = Fake::new();
    let at = machine::Smmu { coherent: false, ..described() };
    let smmu = Smmu::start(fake.clone(), &at).unwrap();
    fake.event([5 << 32 | 0x10, 0, 0, 0]);
    assert_eq!(taken(&smmu), [Some(5)]);
    fake.event([6 << 32 | 0x10, 0, 0, 0]);
    fake.set(0x60, fake.get(0x60) ^ 1 << 2);
    assert!(smmu.take_errors().events_lost);
    assert_eq!(taken(&smmu), [None]);
}

#[test]
fn what_an_smmu_has_beyond_stage_2_is_kept_from_devices() {
    let fake = Fake::new();
    // BTM, HYP, ATS, MSI.
    fake.set(0x00, fake.get(0x00) | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 13);
    // Addresses for messages, as the firmware left them.
    for register in [0x68, 0xb0] {
        fake.set(register, 0x808_0040);
    }
    let smmu = fake.start();
    assert!(smmu.facts().ats && smmu.facts().broadcast);
    assert_eq!(fake.get(0x20), 0x1d, "ATSCHK: translated addresses do not pass unchecked");
    assert_eq!(fake.get(0x2c), 0x6, "PTM: the CPUs' TLB maintenance has no effect; RECINVSID");
    assert_eq!((fake.get(0x68), fake.get(0xb0)), (0, 0), "interrupts are wired");
    assert_eq!(fake.0.borrow().commands, [[0x04, 31], [0x20, 0], [0x30, 0], [0x46, 0]]);
}

#[test]
fn the_firmware_decides_whether_the_smmu_snoops() {
    let fake = Fake::new();
    let at = crate::platform::machine::Smmu { coherent: false, ..described() };
    let smmu = Smmu::start(fake.clone(), &at).unwrap();
    assert_eq!(smmu.facts().coherence, Coherence::NonCoherent);
    assert_eq!(fake.get(0x28), 0b10_00_00_10_00_00, "not cacheable, outer shareable");
}
