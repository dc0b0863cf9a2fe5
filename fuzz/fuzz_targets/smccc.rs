//! A guest's calls of firmware: each has an answer that the specifications allow, and PSCI_FEATURES and
//! SMCCC_ARCH_FEATURES name exactly the functions that are there.
//!
//! `cargo +nightly fuzz run smccc -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::arch::speculation::{Protection, Protections};
use doorward::dev::arch_calls::{self, Cpus};
use doorward::dev::psci::{self, PsciAction, status};
use doorward::run::smccc;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const PSCI: u64 = 0x8400_0000;
const SMC64: u64 = 1 << 30;
const PSCI_FEATURES: u64 = 0x8400_000a;
const ARCH_FEATURES: u64 = 0x8000_0001;
const WORKAROUNDS: [u64; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

/// Makes calls.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    while !input.0.is_empty() {
        let high = input.word() << 32;
        let function = match input.byte() % 4 {
            // A function of PSCI, or close to one.
            0 | 1 => PSCI | u64::from(input.byte() & 0x3f) | if input.bool() { SMC64 } else { 0 },
            2 => WORKAROUNDS
                .into_iter()
                .chain([0x8000_0000, ARCH_FEATURES])
                .nth(usize::from(input.byte() % 5))
                .unwrap_or(0),
            _ => input.word() & 0xffff_ffff,
        };
        let x = [high | function, input.word(), input.word(), input.word()];
        let owner = function >> 24 & 0x3f;
        let immediate = if input.byte() % 4 == 0 { input.half() } else { 0 };
        assert_eq!(smccc::is_served(immediate, x[0]), immediate == 0 && matches!(owner, 0 | 4));
        power(x, owner);
        let protection =
            |byte: u8| [Protection::NotAffected, Protection::Mitigated, Protection::Vulnerable][usize::from(byte % 3)];
        let protections = Protections {
            v2: protection(input.byte()),
            history: protection(input.byte()),
            store_bypass: protection(input.byte()),
        };
        architecture(x, Cpus { protections, ssbs: input.bool() });
    }
}

fn power(x: [u64; 4], owner: u64) {
    let answer = psci::call(x);
    let wide = x[0] & SMC64 != 0;
    let narrow = |value: u64| wide || value >> 32 == 0;
    match answer {
        PsciAction::Return(value) => {
            let value = value as i64;
            assert!((-9..=0).contains(&value) || matches!(value, 2 | 0x1_0001), "{value:#x}");
        }
        PsciAction::CpuOn { target, entry, context } => {
            assert_eq!(target.0 & !0xff_00ff_ffff, 0);
            assert!(narrow(target.0) && narrow(entry.0) && narrow(context));
        }
        PsciAction::AffinityInfo { target, level } => assert!(level <= 3 && narrow(target.0)),
        PsciAction::SystemCrash { cookie } => assert!(narrow(cookie)),
        PsciAction::CpuOff | PsciAction::Suspend | PsciAction::SystemOff | PsciAction::SystemReset => {}
    }
    let supported = answer != PsciAction::Return(status::NOT_SUPPORTED);
    assert!(!supported || owner == 4);
    if x[0] & 0xffff_ffff != PSCI_FEATURES {
        let named = psci::call([PSCI_FEATURES, x[0], 0, 0]) != PsciAction::Return(status::NOT_SUPPORTED);
        assert!(supported == named || (x[0] & 0xffff_ffff == 0x8000_0000 && named), "{:#x}", x[0]);
    }
}

fn architecture(x: [u64; 4], cpus: Cpus) {
    let call = |x| arch_calls::call(x, cpus) as i64;
    let answer = call(x);
    assert!(matches!(answer, -2..=1 | 0x1_0001), "{answer:#x}");
    for workaround in WORKAROUNDS {
        let (told, done) = (call([ARCH_FEATURES, workaround, 0, 0]), call([workaround, x[1], x[2], x[3]]));
        // Who is told that it may be called gets no error.
        assert_eq!(told >= 0, done == 0, "{workaround:#x}: told {told}, done {done}");
    }
}
