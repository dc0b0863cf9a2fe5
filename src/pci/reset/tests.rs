use super::super::fake::{Fake, Resets};
use super::*;

const PAGE: Pa = Pa(0x40_1000_8000);
const MS: u64 = 1000;
/// Of QEMU's NVMe controller.
const EXPRESS_AT: u64 = 0x80;
const POWER_AT: u64 = 0x60;
const FUNCTION_LEVEL: Resets =
    Resets { express: Some(EXPRESS_AT), power: None, takes_us: 250 * MS, quiet_us: 100 * MS, answer: NONE };

/// QEMU's NVMe controller with a BAR at 0x80_0000_4000, which is reset as `resets` says, and in use.
fn machine(resets: Resets) -> (Fake, Facts) {
    let fake = Fake::default();
    fake.qemu(PAGE, "nvme");
    // No_Soft_Reset is as the reset needs it.
    let soft = if resets.power.is_some() { 0 } else { NO_SOFT_RESET };
    fake.words(PAGE, &[(POWER_AT + POWER_CONTROL, soft)]);
    fake.can_reset(PAGE, resets);
    fake.words(PAGE, &[(0x10, 0x4004), (0x14, 0x80)]);
    let mut facts = Facts::read(8, PAGE, &fake).unwrap();
    if resets.express.is_none() {
        facts.express.as_mut().unwrap().resets = false;
    }
    facts.size_bars(&fake).unwrap();
    // What a domain leaves: decoding and bus mastering, MSI-X, a read size of 4 KiB with error messages and a payload of
    // 256 bytes, which is the firmware's.
    fake.words(PAGE, &[(COMMAND, 0x0010_0007), (0x40, 0xc040_8011), (EXPRESS_AT + DEVICE_CONTROL, 0x503f)]);
    fake.take_writes();
    (fake, facts)
}

/// Steps the reset to its end, always at the time it asks for, and returns the end and the time.
fn finish(fake: &Fake, reset: &mut Reset) -> (Progress, u64) {
    for _ in 0..100_000 {
        match reset.step(fake, fake.now.get()) {
            Progress::Wait(until) => {
                assert!(until > fake.now.get());
                fake.now.set(until);
            }
            end => return (end, fake.now.get()),
        }
    }
    panic!("the reset has no end");
}

fn word(fake: &Fake, at: u64) -> u32 {
    fake.read32(PAGE.add(at))
}

#[test]
fn a_function_level_reset_waits_as_long_as_it_takes_and_puts_back_what_belongs_to_the_machine() {
    let (fake, facts) = machine(FUNCTION_LEVEL);
    let mut reset = Reset::new(&facts).unwrap();
    assert_eq!(reset.method(), Some(Method::FunctionLevel));
    let (end, time) = finish(&fake, &mut reset);
    assert_eq!(end, Progress::Done);
    assert!((250 * MS..270 * MS).contains(&time), "{time}");
    assert_eq!((fake.resets.get(), fake.early.get()), (1, 0));
    assert_eq!(word(&fake, COMMAND), 0x0010_0400);
    assert_eq!((word(&fake, 0x10), word(&fake, 0x14)), (0x4004, 0x80));
    assert_eq!(word(&fake, 0x40) >> 30, 0, "MSI-X is off");
    // The payload of 256 bytes is the firmware's; the rest is as after a reset, without error messages.
    assert_eq!(word(&fake, EXPRESS_AT + DEVICE_CONTROL) & 0xffff, 0x0020);
    // A step after the end does nothing.
    fake.take_writes();
    assert_eq!(reset.step(&fake, u64::MAX), Progress::Done);
    assert!(fake.take_writes().is_empty());
}

#[test]
fn bus_mastering_is_off_before_anything_else_and_requests_get_time_to_complete() {
    let (fake, facts) = machine(FUNCTION_LEVEL);
    let status = EXPRESS_AT + DEVICE_CONTROL;
    fake.words(PAGE, &[(status, 0x0020_503f)]);
    let mut reset = Reset::new(&facts).unwrap();
    assert_eq!(reset.step(&fake, 0), Progress::Wait(LOOK_US));
    assert_eq!(fake.take_writes().first(), Some(&(PAGE.0 + COMMAND, 2, INTERRUPT_DISABLE)));
    assert_eq!((reset.step(&fake, LOOK_US), fake.resets.get()), (Progress::Wait(2 * LOOK_US), 0));
    fake.words(PAGE, &[(status, 0x0000_503f)]);
    fake.now.set(2 * LOOK_US);
    assert_eq!(reset.step(&fake, 2 * LOOK_US), Progress::Wait(2 * LOOK_US + RESET_US));
    assert_eq!(fake.resets.get(), 1);
    // Early steps make no access.
    assert_eq!(reset.step(&fake, 3 * LOOK_US), Progress::Wait(2 * LOOK_US + RESET_US));
    assert_eq!(fake.early.get(), 0);
}

#[test]
fn requests_that_never_complete_do_not_keep_a_function_from_its_reset() {
    let (fake, facts) = machine(FUNCTION_LEVEL);
    fake.words(PAGE, &[(EXPRESS_AT + DEVICE_CONTROL, 0x0020_503f)]);
    let (end, time) = finish(&fake, &mut Reset::new(&facts).unwrap());
    assert_eq!((end, fake.resets.get()), (Progress::Done, 1));
    assert!((PENDING_US..PENDING_US + 300 * MS).contains(&time));
}

#[test]
fn a_function_without_function_level_reset_is_put_to_sleep_and_woken() {
    let (fake, facts) =
        machine(Resets { express: None, power: Some(POWER_AT), takes_us: 5 * MS, quiet_us: 10 * MS, answer: NONE });
    let mut reset = Reset::new(&facts).unwrap();
    assert_eq!(reset.method(), Some(Method::Power));
    let (end, _) = finish(&fake, &mut reset);
    assert_eq!((end, fake.resets.get(), fake.early.get()), (Progress::Done, 1, 0));
    assert_eq!((word(&fake, 0x10), word(&fake, POWER_AT + POWER_CONTROL)), (0x4004, 0));
    assert_eq!(word(&fake, EXPRESS_AT + DEVICE_CONTROL) & 0xe0, 0x20, "the payload");
}

#[test]
fn a_function_that_cannot_be_reset_is_refused_or_silenced() {
    let (fake, mut facts) = machine(FUNCTION_LEVEL);
    facts.express.as_mut().unwrap().resets = false;
    assert!(Reset::new(&facts).is_none());
    let mut reset = Reset::or_silence(&facts);
    assert_eq!(reset.method(), None);
    assert_eq!((finish(&fake, &mut reset).0, fake.resets.get()), (Progress::Done, 0));
    assert_eq!((word(&fake, COMMAND), word(&fake, 0x40) >> 30), (0x0010_0400, 0));
}

#[test]
fn a_function_that_sleeps_is_woken_first() {
    let (fake, facts) = machine(FUNCTION_LEVEL);
    fake.words(PAGE, &[(POWER_AT + POWER_CONTROL, NO_SOFT_RESET | 3)]);
    let mut reset = Reset::new(&facts).unwrap();
    assert_eq!(reset.step(&fake, 0), Progress::Wait(POWER_US));
    assert_eq!(word(&fake, POWER_AT + POWER_CONTROL) & 3, 0);
    fake.now.set(POWER_US);
    assert_eq!(finish(&fake, &mut reset).0, Progress::Done);
}

#[test]
fn a_function_that_asks_to_be_asked_again_is_waited_for_and_one_that_does_not_return_is_quarantined() {
    let slow = |takes_us, answer| machine(Resets { takes_us, answer, ..FUNCTION_LEVEL });
    for answer in [NONE, 0xffff_0001] {
        let (fake, facts) = slow(50_000 * MS, answer);
        assert_eq!(finish(&fake, &mut Reset::new(&facts).unwrap()).0, Progress::Done);
        let (fake, facts) = slow(100_000 * MS, answer);
        let (end, time) = finish(&fake, &mut Reset::new(&facts).unwrap());
        assert_eq!(end, Progress::Quarantined(Why::Silent));
        assert!((RETURN_US..RETURN_US + 200 * MS).contains(&time));
    }
    let (fake, facts) = slow(50_000 * MS, 0x1234_8086);
    let (end, time) = finish(&fake, &mut Reset::new(&facts).unwrap());
    assert_eq!(end, Progress::Quarantined(Why::Other(0x1234_8086)));
    assert!(time < 200 * MS);
}

#[test]
fn a_function_that_is_gone_or_keeps_no_bar_is_quarantined() {
    let (fake, facts) = machine(FUNCTION_LEVEL);
    fake.fix(PAGE, 0x10, 0);
    assert_eq!(finish(&fake, &mut Reset::new(&facts).unwrap()).0, Progress::Quarantined(Why::Stuck));
    let (fake, facts) = machine(FUNCTION_LEVEL);
    fake.words(PAGE, &[(ID, NONE)]);
    assert_eq!(finish(&fake, &mut Reset::new(&facts).unwrap()), (Progress::Quarantined(Why::Silent), 0));
    assert!(fake.take_writes().is_empty(), "nothing is written to what is gone");
}
