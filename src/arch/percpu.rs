//! The block of data that belongs to one CPU, to which its TPIDR_EL2 points.
//!
//! A block is accessed by its own CPU only, and EL2 is never interrupted, so plain cells are enough. The block of the
//! boot CPU is in the image and is installed before the first lock is taken; [`super::smp`] allocates the others.

use super::fault::Fault;
use super::sysreg::{Readable, TPIDR_EL2, Writeable};
use crate::ids::CpuId;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

/// Size in bytes of an emergency stack: enough for a panic to format its message.
const EMERGENCY_SIZE: usize = 16 << 10;

/// An emergency stack. SP has to be a multiple of 16 (DDI 0487, D1.3.10).
#[repr(C, align(16))]
struct Emergency(UnsafeCell<[u64; EMERGENCY_SIZE / 8]>);

/// The data of one CPU.
#[repr(C, align(64))]
pub struct PerCpu {
    emergency_top: Cell<u64>,
    cpu: Cell<CpuId>,
    locks_held: Cell<u32>,
    /// The function of the firmware that the vectors call at an entry from a guest, if they call one.
    pub(super) workaround: Cell<u32>,
    /// The number of branches by which the vectors clear the branch history, if they do.
    pub(super) branches: Cell<u32>,
    /// Whether this CPU is panicking, so that a panic in the panic handler is recognised.
    pub panicking: Cell<bool>,
    /// The exception from EL2 that caused the panic, if one did.
    pub fault: Cell<Option<&'static Fault>>,
    /// Whether the CPU has reached `doorward_secondary_main`.
    online: AtomicBool,
    /// The stack for exceptions from EL2.
    emergency: Emergency,
}

/// The offset at which the vectors find the end of the emergency stack.
pub(super) const EMERGENCY_OFFSET: usize = offset_of!(PerCpu, emergency_top);
/// Where they find [`PerCpu::workaround`].
pub(super) const WORKAROUND_OFFSET: usize = offset_of!(PerCpu, workaround);
/// Where they find [`PerCpu::branches`].
pub(super) const BRANCHES_OFFSET: usize = offset_of!(PerCpu, branches);

// SAFETY: other CPUs access `online` only, which is atomic; all else is reached through the TPIDR_EL2 of its own CPU.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// Creates the block of `cpu`.
    #[must_use]
    pub const fn new(cpu: CpuId) -> PerCpu {
        PerCpu {
            emergency_top: Cell::new(0),
            cpu: Cell::new(cpu),
            locks_held: Cell::new(0),
            workaround: Cell::new(0),
            branches: Cell::new(0),
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

/// Installs the block of the boot CPU. Called before the first lock is taken; stage 1 may be off.
pub fn init_boot() {
    install(&BOOT);
}

/// Installs `block` on this CPU. No other CPU has it.
pub(super) fn install(block: &'static PerCpu) {
    block.emergency_top.set(block.emergency.0.get() as u64 + EMERGENCY_SIZE as u64);
    // The compiler may move the store above behind this write. The vectors that read it are installed later, before an
    // ISB.
    TPIDR_EL2.set(ptr::from_ref(block) as u64);
}

/// Returns this CPU's block.
#[inline(always)]
#[must_use]
pub fn this() -> &'static PerCpu {
    // SAFETY: the entry code of the boot CPU and of secondaries calls `install` before anything else, with a block that
    // is never freed.
    unsafe { &*(TPIDR_EL2.get() as *const PerCpu) }
}

/// Returns the number of this CPU.
#[inline(always)]
#[must_use]
pub fn cpu() -> CpuId {
    this().cpu.get()
}

/// Sets the number of the boot CPU, once the list of CPUs has been read.
pub fn set_cpu(cpu: CpuId) {
    this().cpu.set(cpu);
}

/// Returns the ranks of the locks that this CPU holds, one bit each (see `sync`).
#[inline(always)]
#[must_use]
pub fn locks_held() -> &'static Cell<u32> {
    &this().locks_held
}
