//! Bring-up of secondary CPUs, from PSCI CPU_ON to a Rust function.
//!
//! A CPU starts with its MMU off and the address of its `Start` in x0. The boot CPU has cleaned that block to memory.
//! The CPU then enables the stage 1 that the boot CPU runs on, through which it reaches everything else.

use super::asm::{extern_asm, global_asm};
use super::percpu::{self, PerCpu};
use super::psci::{self, PsciError};
use super::sysreg::{MAIR_EL2, Readable};
use super::{cache, mmu, timer, vectors};
use crate::ids::{CpuId, Mpidr, Pa};
use alloc::boxed::Box;
use core::fmt;
use core::mem::{offset_of, size_of};
use core::ptr;

/// Time in microseconds within which a CPU has to arrive after CPU_ON. The firmware may have to initialise it first.
const LIMIT_US: u64 = 1_000_000;

/// What a CPU needs before it has stage 1, its stack and its per-CPU block.
#[repr(C)]
struct Start {
    root: u64,
    mair: u64,
    tcr: u64,
    sctlr: u64,
    stack: u64,
    percpu: &'static PerCpu,
    cpu: CpuId,
    entry: extern "C" fn(CpuId) -> !,
}

const _: () = assert!(offset_of!(Start, root) == 0 && offset_of!(Start, tcr) == 16 && offset_of!(Start, stack) == 32);

/// Why a CPU did not come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The firmware returned an error.
    Firmware(PsciError),
    /// The firmware returned success, but the CPU did not arrive in time.
    Timeout,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Firmware(error) => write!(f, "PSCI CPU_ON: {error}"),
            StartError::Timeout => write!(f, "PSCI CPU_ON succeeded, but the CPU did not arrive within {LIMIT_US} us"),
        }
    }
}

extern_asm! {
    static doorward_secondary;
}

global_asm!(
    r#"
.section .text.boot, "ax"
.global doorward_secondary
doorward_secondary:
    msr     daifset, #0xf
    mov     x20, x0
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
1:  b.ne    1b                          // not at EL2: the CPU is unusable, and there is no way to report it
    mov     x2, #(1 << 31)
    msr     hcr_el2, x2
    ldr     x2, =0x30c50830
    msr     sctlr_el2, x2
    msr     spsel, #1
    msr     cnthp_ctl_el2, xzr          // UNKNOWN after a reset
    isb
    ldp     x1, x2, [x20]
    ldp     x3, x4, [x20, #16]
    msr     ttbr0_el2, x1
    msr     mair_el2, x2
    msr     tcr_el2, x3
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x4
    isb
    ldr     x5, [x20, #32]
    mov     sp, x5
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x20
    b       doorward_secondary_main
"#
);

#[unsafe(no_mangle)]
extern "C" fn doorward_secondary_main(start: &'static Start) -> ! {
    percpu::install(start.percpu);
    vectors::install();
    start.percpu.set_online();
    (start.entry)(start.cpu)
}

/// A CPU that has been started once, and can be started again when it is off.
#[derive(Clone, Copy)]
pub struct Secondary {
    mpidr: Mpidr,
    start: &'static Start,
}

impl Secondary {
    /// Starts the CPU, which is off, with the stack and entry that it was given first. Does not wait until it has
    /// arrived.
    pub fn start(&self) -> Result<(), PsciError> {
        psci::cpu_on(self.mpidr, Pa(&raw const doorward_secondary as u64), ptr::from_ref(self.start) as u64)
    }
}

/// Starts the CPU with affinity `mpidr` as `cpu`, in `entry`, on the stack that ends at `stack`. Returns when it has
/// arrived.
///
/// Called once for each CPU; no other CPU uses `stack`. The CPU is started again through the [`Secondary`] that is
/// returned.
pub fn start(cpu: CpuId, mpidr: Mpidr, stack: Pa, entry: extern "C" fn(CpuId) -> !) -> Result<Secondary, StartError> {
    let percpu: &'static PerCpu = Box::leak(Box::new(PerCpu::new(cpu)));
    let start: &'static Start = Box::leak(Box::new(Start {
        root: mmu::root().0,
        mair: MAIR_EL2.get(),
        tcr: mmu::tcr(),
        sctlr: mmu::SCTLR,
        stack: stack.0,
        percpu,
        cpu,
        entry,
    }));
    cache::clean(Pa(ptr::from_ref(start) as u64), size_of::<Start>() as u64);
    let secondary = Secondary { mpidr, start };
    secondary.start().map_err(StartError::Firmware)?;
    let begin = timer::now_us();
    while !percpu.is_online() {
        if timer::now_us() - begin > LIMIT_US {
            return Err(StartError::Timeout);
        }
        super::barrier::yield_cpu();
    }
    Ok(secondary)
}
