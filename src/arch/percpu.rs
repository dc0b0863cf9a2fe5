//! What belongs to one CPU: TPIDR_EL2 points at it.
//!
//! EL2 is never interrupted, so a CPU alone touches its block and plain cells are enough. The boot CPU's block is in
//! the image and is there before the first lock; the others' lie with their stacks (see [`super::smp`]).

use super::fault::Fault;
use super::sysreg::{Readable, TPIDR_EL2, Writeable};
use crate::ids::CpuId;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

/// Enough for a panic to format its message.
const EMERGENCY_SIZE: usize = 16 << 10;

/// A stack: SP is a multiple of 16 (DDI 0487, D1.3.10).
#[repr(C, align(16))]
struct Emergency(UnsafeCell<[u64; EMERGENCY_SIZE / 8]>);

/// One CPU's own state.
#[repr(C, align(64))]
pub struct PerCpu {
    emergency_top: Cell<u64>,
    cpu: Cell<CpuId>,
    locks_held: Cell<u32>,
    /// Set once this CPU panics, so that a second panic on the way does not start over.
    pub panicking: Cell<bool>,
    /// The exception that EL2 died of, if that is what happened.
    pub fault: Cell<Option<&'static Fault>>,
    /// It has reached its entry.
    online: AtomicBool,
    /// The stack for exceptions of EL2 itself.
    emergency: Emergency,
}

/// Where the vectors find the emergency stack.
pub(super) const EMERGENCY_OFFSET: usize = offset_of!(PerCpu, emergency_top);

// SAFETY: each block is reached through its own CPU's TPIDR_EL2 only, but for `online`, which is atomic.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// A block for `cpu`.
    #[must_use]
    pub const fn new(cpu: CpuId) -> PerCpu {
        PerCpu {
            emergency_top: Cell::new(0),
            cpu: Cell::new(cpu),
            locks_held: Cell::new(0),
            panicking: Cell::new(false),
            fault: Cell::new(None),
            online: AtomicBool::new(false),
            emergency: Emergency(UnsafeCell::new([0; EMERGENCY_SIZE / 8])),
        }
    }

    pub(super) fn set_online(&self) {
        self.online.store(true, Ordering::Release);
    }

    pub(super) fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }
}

static BOOT: PerCpu = PerCpu::new(CpuId(0));

/// Gives the boot CPU its block. Before any lock, and with stage 1 off or on.
pub fn init_boot() {
    install(&BOOT);
}

/// Makes `block` this CPU's own; nobody else has it.
pub(super) fn install(block: &'static PerCpu) {
    block.emergency_top.set(block.emergency.0.get() as u64 + EMERGENCY_SIZE as u64);
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
