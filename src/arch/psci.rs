//! The firmware's power interface (DEN 0022), through whichever instruction reaches it.

use super::asm::asm;
use crate::ids::{Mpidr, Pa};
use core::sync::atomic::{AtomicU8, Ordering};

/// The instruction that reaches the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Conduit {
    /// `SMC #0`.
    Smc = 1,
    /// `HVC #0`: there is another hypervisor below.
    Hvc = 2,
}

const VERSION: u32 = 0x8400_0000;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0xc400_0003;
const AFFINITY_INFO: u32 = 0xc400_0004;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;

const PSCI_FEATURES: u32 = 0x8400_000a;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const SMCCC_ARCH_SOC_ID: u32 = 0x8000_0002;

/// Zero while the firmware has no PSCI that we know of.
static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// What the firmware answered instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciError {
    /// There is no PSCI here, or it lacks this function.
    NotSupported,
    /// It does not know this CPU.
    InvalidParameters,
    /// It refuses.
    Denied,
    /// That CPU is on.
    AlreadyOn,
    /// That CPU is on its way.
    OnPending,
    /// It tried and failed.
    InternalFailure,
    /// Some other answer.
    Other(i32),
}

impl core::fmt::Display for PsciError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            PsciError::NotSupported => f.write_str("the firmware has no such PSCI function"),
            PsciError::InvalidParameters => f.write_str("the firmware does not know that CPU"),
            PsciError::Denied => f.write_str("the firmware refuses"),
            PsciError::AlreadyOn => f.write_str("it is already on"),
            PsciError::OnPending => f.write_str("it is already being started"),
            PsciError::InternalFailure => f.write_str("the firmware failed"),
            PsciError::Other(code) => write!(f, "the firmware answered {code}"),
        }
    }
}

/// Says how the firmware is reached. Until then every call answers `NotSupported`.
pub fn set_conduit(conduit: Conduit) {
    CONDUIT.store(conduit as u8, Ordering::Relaxed);
}

/// An SMC32/SMC64 call with up to three arguments; `None` without a conduit. The result is x0, sign and all.
fn call(function: u32, a: u64, b: u64, c: u64) -> Option<i64> {
    let mut x0 = u64::from(function);
    macro_rules! conduit {
        ($instruction:literal) => {
            // SAFETY: PSCI keeps x18 to x30 and all memory (DEN 0028, 2.6 and 2.7); x1 to x17 are given up here.
            unsafe {
                asm!($instruction, inout("x0") x0, inout("x1") a => _, inout("x2") b => _, inout("x3") c => _,
                    out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _,
                    out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                    options(nostack));
            }
        };
    }
    match CONDUIT.load(Ordering::Relaxed) {
        1 => conduit!("smc #0"),
        2 => conduit!("hvc #0"),
        _ => return None,
    }
    Some(x0.cast_signed())
}

/// Errors are 32-bit negative numbers, in the low half whatever the calling convention.
#[allow(clippy::cast_possible_truncation, reason = "PSCI return codes are 32 bits")]
fn outcome(answer: Option<i64>) -> Result<i32, PsciError> {
    match answer.map(|x| x as i32) {
        None | Some(-1) => Err(PsciError::NotSupported),
        Some(-2 | -9) => Err(PsciError::InvalidParameters),
        Some(-3) => Err(PsciError::Denied),
        Some(-4) => Err(PsciError::AlreadyOn),
        Some(-5) => Err(PsciError::OnPending),
        Some(-6) => Err(PsciError::InternalFailure),
        Some(code) if code < 0 => Err(PsciError::Other(code)),
        Some(value) => Ok(value),
    }
}

/// Major and minor version.
pub fn version() -> Result<(u16, u16), PsciError> {
    outcome(call(VERSION, 0, 0, 0)).map(|v| ((v >> 16) as u16, (v & 0xffff) as u16))
}

/// Which SoC this is (DEN 0028, SMCCC_ARCH_SOC_ID): JEP-106 code in [30:16], the maker's number in [15:0]. `None` where
/// the firmware does not say: each step asks whether the next call exists.
pub fn soc_id() -> Option<u32> {
    outcome(call(PSCI_FEATURES, u64::from(SMCCC_VERSION), 0, 0)).ok()?;
    outcome(call(SMCCC_VERSION, 0, 0, 0)).ok().filter(|&version| version >= 0x1_0001)?;
    outcome(call(SMCCC_ARCH_FEATURES, u64::from(SMCCC_ARCH_SOC_ID), 0, 0)).ok()?;
    outcome(call(SMCCC_ARCH_SOC_ID, 0, 0, 0)).ok()?.try_into().ok()
}

/// Starts a CPU at `entry`, MMU off, with `context` in x0.
pub fn cpu_on(target: Mpidr, entry: Pa, context: u64) -> Result<(), PsciError> {
    outcome(call(CPU_ON, target.0, entry.0, context)).map(|_| ())
}

/// Whether a CPU is on; `Ok(false)` while it is off or on its way.
pub fn is_on(target: Mpidr) -> Result<bool, PsciError> {
    outcome(call(AFFINITY_INFO, target.0, 0, 0)).map(|state| state == 0)
}

/// Takes this CPU out. Returns only if the firmware refuses.
pub fn cpu_off() -> PsciError {
    outcome(call(CPU_OFF, 0, 0, 0)).err().unwrap_or(PsciError::Other(0))
}

/// Switches the machine off. Returns only if the firmware cannot.
pub fn system_off() {
    call(SYSTEM_OFF, 0, 0, 0);
}

/// Restarts the machine. Returns only if the firmware cannot.
pub fn system_reset() {
    call(SYSTEM_RESET, 0, 0, 0);
}
