//! SMCCC calls to the hypervisor, or to firmware if there is none.

use core::arch::asm;

/// PSCI CPU_ON, 64-bit.
pub const CPU_ON: u64 = 0xc400_0003;
const SYSTEM_OFF: u64 = 0x8400_0008;

/// Makes a call by HVC; returns X0.
pub fn hvc(function: u64, a1: u64, a2: u64, a3: u64) -> i64 {
    let mut x0 = function;
    // SAFETY: the calling convention keeps all but X0 to X3; CPU_ON is given a stack of its own.
    unsafe { asm!("hvc #0", inout("x0") x0, inout("x1") a1 => _, inout("x2") a2 => _, inout("x3") a3 => _) };
    x0 as i64
}

/// Makes a call by SMC; returns X0.
pub fn smc(function: u64, a1: u64, a2: u64, a3: u64) -> i64 {
    let mut x0 = function;
    // SAFETY: as `hvc`.
    unsafe { asm!("smc #0", inout("x0") x0, inout("x1") a1 => _, inout("x2") a2 => _, inout("x3") a3 => _) };
    x0 as i64
}

/// Powers the machine (or domain) off.
pub fn off() -> ! {
    hvc(SYSTEM_OFF, 0, 0, 0);
    loop {
        crate::cpu::mask();
        crate::cpu::wfi();
    }
}
