//! What belongs to one CPU: TPIDR_EL2 points at it.
//!
//! EL2 is never interrupted, so a CPU alone touches its block and plain cells are enough. The boot CPU's block is in
//! the image and is there before the first lock; the others' come with their stacks (see [`super::smp`]).

use super::sysreg::TPIDR_EL2;
use crate::ids::CpuId;
use core::cell::Cell;
use core::ptr;

/// One CPU's own state.
#[repr(C, align(64))]
pub struct PerCpu {
    cpu: Cell<CpuId>,
    locks_held: Cell<u32>,
    /// Set once this CPU panics, so that a second panic on the way does not start over.
    pub panicking: Cell<bool>,
    /// The vCPU that runs here, for whoever put it there; null when there is none.
    pub vcpu: Cell<*mut ()>,
    /// Another slot of the same kind, for the residency guard.
    pub resident: Cell<*mut ()>,
}

// SAFETY: each block is reached through its own CPU's TPIDR_EL2 only; the boot CPU's is a static for want of a heap.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// A block for `cpu`.
    #[must_use]
    pub const fn new(cpu: CpuId) -> PerCpu {
        PerCpu {
            cpu: Cell::new(cpu),
            locks_held: Cell::new(0),
            panicking: Cell::new(false),
            vcpu: Cell::new(ptr::null_mut()),
            resident: Cell::new(ptr::null_mut()),
        }
    }
}

static BOOT: PerCpu = PerCpu::new(CpuId(0));

/// Gives the boot CPU its block. Before any lock.
pub fn init_boot() {
    install(&BOOT);
}

/// Makes `block` this CPU's own; nobody else has it.
pub(super) fn install(block: &'static PerCpu) {
    TPIDR_EL2.set(ptr::from_ref(block) as u64);
}

/// This CPU's block.
#[inline(always)]
#[must_use]
pub fn this() -> &'static PerCpu {
    // SAFETY: `install` ran on this CPU before anything that asks (boot and secondary entry do it first), with a block
    // that lives for ever.
    unsafe { &*(TPIDR_EL2.get() as *const PerCpu) }
}

/// Which CPU this is.
#[inline(always)]
#[must_use]
pub fn cpu() -> CpuId {
    this().cpu.get()
}

/// Tells the boot CPU its place in the machine's list, once that has been read.
pub fn set_cpu(cpu: CpuId) {
    this().cpu.set(cpu);
}

/// The ranks of the locks that this CPU holds (see [`crate::sync`]).
#[inline(always)]
#[must_use]
pub fn locks_held() -> &'static Cell<u32> {
    &this().locks_held
}
