//! Calls of the architecture's services, and, if the seed asks for it, calls that end a life of the guest.
//!
//! A life ends by a reset, by a report of a crash, or with all vCPUs off. It is for a domU that is restarted then.

use crate::guest::Dice;
use guest_rt::{cpu, say, smccc};

/// The version, and ARCH_FEATURES.
const SERVICES: [u64; 2] = [0x8000_0000, 0x8000_0001];
/// SMCCC_ARCH_WORKAROUND_1 to 3.
const WORKAROUNDS: [u64; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

/// One act in so many ends the life of a vCPU.
const LIFE: u64 = 2_000;
const CPU_OFF: u64 = 0x8400_0002;
const SYSTEM_RESET: u64 = 0x8400_0009;
const SYSTEM_RESET2: u64 = 0x8400_0012;
const CRASH: u64 = 0x8000_0001;

fn call(dice: &mut Dice, function: u64, argument: u64) -> i64 {
    let (a2, a3) = (dice.value(), dice.value());
    if dice.one_in(2) { smccc::hvc(function, argument, a2, a3) } else { smccc::smc(function, argument, a2, a3) }
}

/// Calls one of the services. What is said to be there must work.
pub fn architecture(dice: &mut Dice) {
    let workaround = dice.of(&WORKAROUNDS);
    match dice.below(4) {
        0 => {
            let (service, argument) = (dice.of(&SERVICES), dice.value());
            call(dice, service, argument);
        }
        1 => {
            let told = call(dice, SERVICES[1], workaround);
            let done = call(dice, workaround, 0);
            if told >= 0 && done != 0 {
                say!("GUEST FAIL chaos: workaround {workaround:#x} returned {done}, ARCH_FEATURES {told}");
            }
        }
        // Linux calls a workaround at each entry from EL0.
        2 => (0..32).for_each(|_| _ = call(dice, workaround, 0)),
        _ => {
            let (upper, argument) = (dice.value() << 32, dice.value());
            call(dice, upper | workaround, argument);
        }
    }
}

/// Ends a life of the guest, or of this vCPU, now and then.
pub fn end(dice: &mut Dice) {
    if !dice.one_in(LIFE) {
        return;
    }
    match dice.below(8) {
        0..=2 => _ = smccc::hvc(CPU_OFF, 0, 0, 0),
        3 => _ = smccc::hvc(SYSTEM_RESET2, CRASH, dice.value(), 0),
        4 => _ = smccc::hvc(SYSTEM_RESET2, 0, dice.value(), 0),
        _ => _ = smccc::hvc(SYSTEM_RESET, 0, 0, 0),
    }
    say!("GUEST FAIL chaos: vCPU{} goes on after its end", cpu::this().index());
}
