//! The power interface of the firmware, PSCI (DEN 0022).
//!
//! Functions, numbers and errors come from the crate [`smccc`]. The call itself is implemented here, because the
//! crate's 32-bit calls expect the firmware to preserve x8 to x17, which SMCCC 1.0 does not require, and because the
//! choice between SMC and HVC is made at run time.

use super::asm::asm;
use super::speculation::{Offer, Offers};
use crate::ids::{Mpidr, Pa};
use core::sync::atomic::{AtomicU8, Ordering};
use smccc::Call;
use smccc::arch::{
    self, SMCCC_ARCH_SOC_ID, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
    SocIdType,
};
pub use smccc::psci::Error as PsciError;
use smccc::psci::{self, error};

/// The instruction that calls the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Conduit {
    /// `SMC #0`.
    Smc = 1,
    /// `HVC #0`: the firmware is another hypervisor, to which this EL2 is a guest.
    Hvc = 2,
}

/// The [`Conduit`] in use, or zero while none is known.
static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// Sets how the firmware is called. Until then every call returns [`PsciError::NotSupported`].
pub fn set_conduit(conduit: Conduit) {
    CONDUIT.store(conduit as u8, Ordering::Relaxed);
}

/// The firmware, called through [`CONDUIT`].
struct Firmware;

impl Call for Firmware {
    #[allow(clippy::cast_possible_truncation, reason = "the results of a 32-bit call are w0 to w7")]
    fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
        let mut x = [0; 18];
        x[0] = function.into();
        for (to, from) in x[1..].iter_mut().zip(args) {
            *to = from.into();
        }
        call(&mut x);
        core::array::from_fn(|index| x[index] as u32)
    }

    #[allow(clippy::cast_possible_truncation, reason = "PSCI return codes are 32 bits")]
    fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
        let mut x = [0; 18];
        x[0] = function.into();
        x[1..].copy_from_slice(&args);
        call(&mut x);
        // The return code has 32 bits in 64-bit calls as well, and some firmware leaves the upper half of x0 zero.
        x[0] = i64::from(x[0] as i32).cast_unsigned();
        x
    }
}

/// Calls the firmware with `x` in x0 to x17, and replaces `x` by the values on return.
fn call(x: &mut [u64; 18]) {
    macro_rules! conduit {
        ($instruction:literal) => {
            // SAFETY: PSCI preserves x18 to x30 and all memory (DEN 0028, 2.6 and 2.7).
            unsafe {
                asm!($instruction, inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
                    inout("x4") x[4], inout("x5") x[5], inout("x6") x[6], inout("x7") x[7], inout("x8") x[8],
                    inout("x9") x[9], inout("x10") x[10], inout("x11") x[11], inout("x12") x[12],
                    inout("x13") x[13], inout("x14") x[14], inout("x15") x[15], inout("x16") x[16],
                    inout("x17") x[17], options(nostack));
            }
        };
    }
    match CONDUIT.load(Ordering::Relaxed) {
        1 => conduit!("smc #0"),
        2 => conduit!("hvc #0"),
        _ => x[0] = i64::from(error::NOT_SUPPORTED).cast_unsigned(),
    }
}

/// Returns the SoC (DEN 0028, SMCCC_ARCH_SOC_ID): JEP-106 code in bits 30:16, the manufacturer's number in bits 15:0.
/// `None` if the firmware does not support the call; each step asks whether the next one is supported.
pub fn soc_id() -> Option<u32> {
    answers_features()?;
    arch::features::<Firmware>(SMCCC_ARCH_SOC_ID).ok()?;
    arch::soc_id::<Firmware>(SocIdType::Version).ok()
}

/// `Some` if the firmware supports SMCCC 1.1, which has SMCCC_ARCH_FEATURES.
fn answers_features() -> Option<()> {
    psci::psci_features::<Firmware>(SMCCC_VERSION).ok()?;
    let version = arch::version::<Firmware>().ok()?;
    (version >= arch::Version { major: 1, minor: 1 }).then_some(())
}

/// Asks the firmware which workarounds this CPU needs (DEN 0028, SMCCC_ARCH_FEATURES). The vectors call them by SMC, so
/// a firmware that is another hypervisor offers none.
#[must_use]
pub fn workarounds() -> Offers {
    if CONDUIT.load(Ordering::Relaxed) != Conduit::Smc as u8 || answers_features().is_none() {
        return Offers::default();
    }
    Offers {
        workaround_1: offer(arch::features::<Firmware>(SMCCC_ARCH_WORKAROUND_1)),
        workaround_2: match arch::features::<Firmware>(SMCCC_ARCH_WORKAROUND_2) {
            // No CPU needs it, or it is always on.
            Err(arch::Error::NotRequired) => Offer::NotNeeded,
            answer => offer(answer),
        },
        workaround_3: offer(arch::features::<Firmware>(SMCCC_ARCH_WORKAROUND_3)),
    }
}

fn offer(answer: Result<u32, arch::Error>) -> Offer {
    match answer {
        Ok(0) => Offer::Offered,
        Ok(1) => Offer::NotNeeded,
        _ => Offer::Unknown,
    }
}

/// Switches the firmware's mitigation of speculative store bypass on or off for this CPU. Does nothing if the firmware
/// does not support it.
pub fn set_workaround_2(on: bool) {
    let _ = arch::arch_workaround_2::<Firmware>(on);
}

/// Starts the CPU `target` at `entry`, with its MMU off and `context` in x0.
pub fn cpu_on(target: Mpidr, entry: Pa, context: u64) -> Result<(), PsciError> {
    psci::cpu_on::<Firmware>(target.0, entry.0, context)
}

/// Switches this CPU off. Returns only if the firmware refuses.
pub fn cpu_off() -> PsciError {
    psci::cpu_off::<Firmware>().err().unwrap_or(PsciError::Unknown(0))
}

/// Switches the machine off. Returns only if the firmware cannot.
pub fn system_off() {
    let _ = psci::system_off::<Firmware>();
}

/// Restarts the machine. Returns only if the firmware cannot.
pub fn system_reset() {
    let _ = psci::system_reset::<Firmware>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_a_conduit_is_not_supported() {
        assert_eq!(cpu_on(Mpidr(1), Pa(0), 0), Err(PsciError::NotSupported));
        assert_eq!(cpu_off(), PsciError::NotSupported);
        assert_eq!(soc_id(), None);
        assert_eq!(workarounds(), Offers::default());
    }

    #[test]
    fn the_firmware_offers_a_workaround_only_if_it_answers_0() {
        assert_eq!([Ok(0), Ok(1), Ok(2)].map(offer), [Offer::Offered, Offer::NotNeeded, Offer::Unknown]);
        assert_eq!(offer(Err(arch::Error::NotSupported)), Offer::Unknown);
        assert_eq!(offer(Err(arch::Error::NotRequired)), Offer::Unknown);
    }
}
