//! Tests on an SMMU that executes commands at once: who owns streams, and what happens when they fail or the SMMU does.

use super::{AssignError, CutOffOutcome, DeviceView, Iommu};
use crate::ids::{DomId, Intid, Ipa, SmmuId, StreamId, Streams, VmId};
use crate::mm::stage2::Tlb;
use crate::mmio::Coherence;
use crate::platform;
use crate::smmu::testing::{Fake, Reach, described, streams as range};
use crate::smmu::{Command, SmmuError};
use std::boxed::Box;
use std::string::{String, ToString};
use std::vec::Vec;

const DOM1: DomId = DomId(1);
const DOM2: DomId = DomId(2);
const EVENT: Intid = Intid(40);
const GERROR: Intid = Intid(42);
/// CR0, with SMMUEN in bit 0.
const CR0: u64 = 0x20;

fn with_lines() -> platform::Smmu {
    platform::Smmu { event: Some(EVENT), gerror: Some(GERROR), ..described() }
}

fn start(on: bool) -> (Fake, &'static Iommu<Fake>) {
    let fake = Fake::new();
    let iommu = Box::leak(Box::new(Iommu::start(fake.clone(), &[with_lines()], on)));
    (fake, iommu)
}

fn view(iommu: &'static Iommu<Fake>, vmid: u16) -> DeviceView<Fake> {
    iommu.new_view(VmId(vmid), 40).unwrap()
}

/// What a stream reaches that has a view.
fn of(view: &DeviceView<Fake>) -> Reach {
    Reach::View(view.vmid().0, view.vttbr() & ((1 << 48) - 1))
}

fn streams(first: u32, last: u32) -> Streams {
    let range = range(first, last);
    Streams { smmu: SmmuId(0), first: *range.start(), last: *range.end() }
}

fn lines(iommu: &Iommu<Fake>) -> Vec<String> {
    let mut lines = Vec::new();
    iommu.for_each_line(&mut |line| lines.push(line.to_string()));
    lines
}

/// Lets transactions of a stream fail, and handles what is reported. Returns how often there may have been more.
fn fail(fake: &Fake, iommu: &Iommu<Fake>, stream: u32, times: u64) -> usize {
    (0..times).for_each(|n| fake.event([u64::from(stream) << 32 | 0x10, 0, n << 12, 0]));
    (0..).take_while(|_| iommu.handle_reports()).count()
}

#[test]
fn streams_reach_the_view_of_their_domain_and_stay_its_own_while_they_are_blocked() {
    let (fake, iommu) = start(true);
    let (one, two) = (view(iommu, 1), view(iommu, 2));
    iommu.assign(DOM1, streams(0x10, 0x1f), &one).unwrap();
    iommu.assign(DOM1, streams(0x80, 0x80), &one).unwrap();
    iommu.assign(DOM2, streams(0x81, 0x81), &two).unwrap();
    let reach = || [0xf, 0x10, 0x1f, 0x20, 0x80, 0x81].map(|stream| fake.reach(stream));
    let nothing = Reach::Nothing;
    assert_eq!(reach(), [nothing, of(&one), of(&one), nothing, of(&one), of(&two)]);
    let taken = || iommu.assign(DOM2, streams(0x1f, 0x2f), &two);
    assert_eq!(taken(), Err(AssignError::Owned(DOM1)));
    assert_eq!(reach(), [nothing, of(&one), of(&one), nothing, of(&one), of(&two)]);
    iommu.block(DOM1).unwrap();
    assert_eq!(reach(), [nothing, nothing, nothing, nothing, nothing, of(&two)]);
    assert_eq!(taken(), Err(AssignError::Owned(DOM1)));
    iommu.resume(DOM1, &one).unwrap();
    assert_eq!(reach(), [nothing, of(&one), of(&one), nothing, of(&one), of(&two)]);
    iommu.block(DOM1).unwrap();
    iommu.remove(DOM1, one);
    assert_eq!(taken(), Ok(()));
    assert_eq!(reach(), [nothing, nothing, of(&two), of(&two), nothing, of(&two)]);
    assert!(iommu.is_sound());
}

#[test]
fn streams_that_there_cannot_be_are_left_out() {
    let (fake, iommu) = start(true);
    let one = view(iommu, 1);
    iommu.assign(DOM1, streams(0xfff0, u32::MAX), &one).unwrap();
    assert_eq!([0xfff0, 0xffff].map(|stream| fake.reach(stream)), [of(&one); 2]);
    let beyond = iommu.assign(DOM2, streams(0x1_0000, 0x1_0005), &one);
    assert_eq!(beyond, Err(AssignError::Smmu(SmmuError::BadStream(StreamId(0x1_0000)))));
}

#[test]
fn an_smmu_in_bypass_translates_nothing_and_has_no_interrupts() {
    let (fake, off) = start(false);
    assert_eq!(fake.get(CR0) & 1, 0);
    assert!(!off.translates() && !off.protects_all() && off.facts(SmmuId(0)).is_none());
    assert!(!off.has_interrupt(EVENT) && !off.handle_reports());
    assert_eq!(off.assign(DOM1, streams(1, 1), &view(off, 1)), Err(AssignError::NotTranslating(SmmuId(0))));
    assert!(lines(off)[0].ends_with(": in bypass"));
    let (fake, on) = start(true);
    assert_eq!(fake.get(CR0) & 1, 1);
    assert!(on.translates() && on.protects_all() && on.facts(SmmuId(0)).is_some());
    assert!(on.has_interrupt(EVENT) && on.has_interrupt(GERROR) && !on.has_interrupt(Intid(41)));
    let elsewhere = Streams { smmu: SmmuId(1), ..streams(1, 1) };
    assert_eq!(on.assign(DOM1, elsewhere, &view(on, 1)), Err(AssignError::NotTranslating(SmmuId(1))));
    assert!(!Iommu::start(Fake::new(), &[], true).protects_all(), "there is none");
}

#[test]
fn a_stream_that_fails_too_often_is_cut_off_until_its_domain_begins_anew() {
    let (fake, iommu) = start(true);
    let one = view(iommu, 1);
    iommu.assign(DOM1, streams(0x10, 0x11), &one).unwrap();
    // A batch has 64 events; after a full one there may be more.
    assert_eq!(fail(&fake, iommu, 0x10, 63), 0);
    assert_eq!(fail(&fake, iommu, 0x10, 37), 0);
    assert_eq!([0x10, 0x11].map(|stream| fake.reach(stream)), [of(&one); 2]);
    assert_eq!(fail(&fake, iommu, 0x10, 64), 1);
    assert_eq!([0x10, 0x11].map(|stream| fake.reach(stream)), [Reach::Nothing, of(&one)]);
    assert!(lines(iommu)[0].ends_with(": 164 failed transactions, 0 errors"));
    iommu.block(DOM1).unwrap();
    iommu.resume(DOM1, &one).unwrap();
    assert_eq!(fail(&fake, iommu, 0x10, 100), 1);
    assert_eq!(fake.reach(0x10), of(&one), "its failures before are forgotten");
}

#[test]
fn a_domain_of_which_too_many_streams_are_cut_off_loses_all_and_no_other_domain_does() {
    let (fake, iommu) = start(true);
    let (one, two) = (view(iommu, 1), view(iommu, 2));
    iommu.assign(DOM1, streams(0x100, 0x17f), &one).unwrap();
    iommu.assign(DOM2, streams(0x200, 0x200), &two).unwrap();
    for stream in 0x100..0x11f {
        fail(&fake, iommu, stream, 101);
        assert_eq!([stream, 0x17f].map(|stream| fake.reach(stream)), [Reach::Nothing, of(&one)]);
    }
    fail(&fake, iommu, 0x11f, 101);
    assert_eq!([0x11f, 0x17f, 0x200].map(|stream| fake.reach(stream)), [Reach::Nothing, Reach::Nothing, of(&two)]);
}

#[test]
fn no_more_events_than_a_batch_has_are_handled_in_a_row() {
    let (fake, iommu) = start(true);
    (0..100).for_each(|n| fake.event([n << 32 | 0x10, 0, 0, 0]));
    assert!(iommu.handle_reports());
    assert!(lines(iommu)[0].ends_with(": 64 failed transactions, 0 errors"));
    assert!(!iommu.handle_reports());
    assert!(lines(iommu)[0].ends_with(": 100 failed transactions, 0 errors"));
}

#[test]
fn errors_of_the_smmu_are_counted() {
    let (fake, iommu) = start(true);
    fake.set(0x60, fake.get(0x60) ^ 1 << 4);
    assert!(!iommu.handle_reports());
    assert!(!iommu.handle_reports(), "it is acknowledged");
    assert!(lines(iommu)[0].ends_with(": 0 failed transactions, 1 errors"));
}

/// What may hang.
type Act = fn(&Iommu<Fake>, &DeviceView<Fake>);

#[test]
fn memory_is_unsound_only_when_the_smmu_has_not_confirmed_that_it_uses_it_no_more() {
    // Nothing has changed.
    let (fake, iommu) = start(true);
    let one = view(iommu, 1);
    fake.0.borrow_mut().left = Some(0);
    let error = iommu.assign(DOM1, streams(0x10, 0x10), &one);
    assert_eq!((error, iommu.is_sound()), (Err(AssignError::Smmu(SmmuError::OutOfMemory)), true));
    // A command is refused, and the streams are blocked after that.
    let (fake, iommu) = start(true);
    let one = view(iommu, 1);
    fake.0.borrow_mut().refuses = Some((5, 1));
    let error = iommu.assign(DOM1, streams(0x10, 0x10), &one);
    assert!(matches!(error, Err(AssignError::Smmu(SmmuError::Refused(..)))));
    assert_eq!((fake.reach(0x10), iommu.is_sound()), (Reach::Nothing, true));
    // The SMMU hangs.
    let hangs: [Act; 3] = [
        |iommu, _| iommu.invalidate_all(VmId(1)),
        |iommu, _| iommu.invalidate_ipa(VmId(1), Ipa(0x5000)),
        |iommu, one| _ = iommu.assign(DOM1, streams(0x10, 0x10), one),
    ];
    for act in hangs {
        let (fake, iommu) = start(true);
        // To make a view takes an invalidation, too.
        let one = view(iommu, 1);
        act(iommu, &one);
        assert!(iommu.is_sound());
        fake.0.borrow_mut().hangs = true;
        act(iommu, &one);
        assert!(!iommu.is_sound());
    }
}

#[test]
fn translations_that_are_gone_are_invalidated_on_the_smmu() {
    let (fake, iommu) = start(true);
    let commands = |act: &dyn Fn()| {
        fake.0.borrow_mut().commands.clear();
        act();
        core::mem::take(&mut fake.0.borrow_mut().commands)
    };
    let (sync, one) = (Command::sync().words(), VmId(1));
    let page = commands(&|| iommu.invalidate_ipa(one, Ipa(0x5000)));
    assert_eq!(page, [Command::tlbi_s2_ipa(one, Ipa(0x5000)).words(), sync]);
    let all = commands(&|| iommu.invalidate_all(one));
    assert_eq!(all, [Command::tlbi_s12_vmall(one).words(), sync]);
}

#[test]
fn a_view_has_no_more_address_bits_and_its_tables_no_less_coherence_than_the_smmu() {
    let (_, iommu) = start(true);
    let vtcr = |bits| iommu.new_view(VmId(1), bits).unwrap().vtcr();
    assert!(vtcr(48) == vtcr(44) && vtcr(44) != vtcr(40));
    assert_eq!(iommu.coherence(), Coherence::Coherent);
    let alone = platform::Smmu { coherent: false, ..described() };
    assert_eq!(Iommu::start(Fake::new(), &[alone], true).coherence(), Coherence::NonCoherent);
}

#[test]
fn a_cut_off_that_fails_is_reported_with_its_cause() {
    let text = |done| CutOffOutcome { what: "it is", done }.to_string();
    assert_eq!(text(Ok(())), "it is cut off until the domain is reset");
    for error in [SmmuError::OutOfMemory, SmmuError::Timeout] {
        assert_eq!(text(Err(error)), std::format!("it is not cut off: {error}"));
    }
}

#[test]
fn each_reason_why_streams_cannot_be_assigned_is_displayed() {
    let text = |error: AssignError| error.to_string();
    assert!(text(AssignError::NotTranslating(SmmuId(3))).ends_with("3 does not translate"));
    assert!(text(AssignError::Owned(DOM2)).ends_with(" has it"));
    assert_eq!(text(AssignError::Smmu(SmmuError::OutOfMemory)), SmmuError::OutOfMemory.to_string());
}
