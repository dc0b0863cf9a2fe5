//! vCPUs. TPIDR_EL1 holds the address of each vCPU's [`Cpu`].

use crate::smccc;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The most vCPUs that a guest uses.
pub const MAX: usize = 65;

/// Reads a system register by name, such as `s3_0_c0_c4_0`.
#[macro_export]
macro_rules! mrs {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading a register changes no memory. If the register does not exist, the exception handler steps over
        // the instruction or ends the guest.
        unsafe {
            core::arch::asm!("mov {0}, xzr", concat!("mrs {0}, ", $name), out(reg) value, options(nostack))
        };
        value
    }};
}

/// Writes a system register by name.
#[macro_export]
macro_rules! msr {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: guests write registers of timers, interrupts and debug in this way, none of which changes memory that
        // Rust uses.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {0}"), in(reg) value, options(nostack)) };
    }};
}

/// The state of a vCPU.
#[repr(C)]
pub struct Cpu {
    /// Top of its stack. The start-up code reads it at offset 0.
    stack: AtomicU64,
    /// Its index; 0 is the vCPU that booted.
    index: AtomicU32,
    /// 1 while an exception is expected: see [`crate::exception::probe`].
    pub(crate) expected: AtomicU32,
    /// ESR_EL1 of the expected exception; `u64::MAX` if none was taken.
    pub(crate) esr: AtomicU64,
    /// FAR_EL1 of the same exception.
    pub(crate) far: AtomicU64,
    /// The function that it runs once started.
    entry: AtomicU64,
}

impl Cpu {
    const fn new() -> Cpu {
        Cpu {
            stack: AtomicU64::new(0),
            index: AtomicU32::new(0),
            expected: AtomicU32::new(0),
            esr: AtomicU64::new(u64::MAX),
            far: AtomicU64::new(0),
            entry: AtomicU64::new(0),
        }
    }

    /// Its index; 0 is the vCPU that booted.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed) as usize
    }
}

#[unsafe(no_mangle)]
static guest_cpus: [Cpu; MAX] = [const { Cpu::new() }; MAX];

const STACK: usize = 0x2000;

#[repr(C, align(16))]
struct Stacks(core::cell::UnsafeCell<[[u8; STACK]; MAX]>);
// SAFETY: only the vCPU that a stack belongs to uses it, and only as its stack.
unsafe impl Sync for Stacks {}
static STACKS: Stacks = Stacks(core::cell::UnsafeCell::new([[0; STACK]; MAX]));

unsafe extern "C" {
    fn guest_secondary();
}

/// The vCPU that runs this.
#[must_use]
pub fn this() -> &'static Cpu {
    let cpu = mrs!("tpidr_el1") as *const Cpu;
    // SAFETY: the start-up code put a pointer into `guest_cpus` there before any Rust ran.
    unsafe { &*cpu }
}

/// Starts the vCPU with this index at `entry`. Returns the result of PSCI CPU_ON.
pub fn start(index: usize, entry: fn() -> !) -> i64 {
    let cpu = &guest_cpus[index];
    let top = STACKS.0.get() as u64 + ((index + 1) * STACK) as u64;
    cpu.stack.store(top, Ordering::Relaxed);
    cpu.index.store(index as u32, Ordering::Relaxed);
    cpu.entry.store(entry as usize as u64, Ordering::Relaxed);
    // SAFETY: cleans a line to memory: the other vCPU reads its stack pointer with its caches off.
    unsafe { asm!("dc civac, {}", "dsb sy", in(reg) core::ptr::from_ref(cpu), options(nostack)) };
    let start = guest_secondary as *const () as u64;
    smccc::hvc(smccc::CPU_ON, affinity(index), start, core::ptr::from_ref(cpu) as u64)
}

/// The affinity of a vCPU, in the format of MPIDR_EL1: that of the redistributor with this index. Without one, it is what
/// the board gives the CPU and Doorward a domain's vCPU, sixteen to a cluster.
fn affinity(index: usize) -> u64 {
    match crate::gic::redistributors().nth(index) {
        Some(redistributor) => {
            let packed = redistributor.typer >> 32;
            ((packed & 0xff00_0000) << 8) | (packed & 0xff_ffff)
        }
        None => (((index / 16) << 8) | (index % 16)) as u64,
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_secondary_main(cpu: &Cpu) -> ! {
    // SAFETY: `start` stored a `fn() -> !` there.
    let entry: fn() -> ! = unsafe { core::mem::transmute(cpu.entry.load(Ordering::Acquire) as usize) };
    entry()
}

/// The number that was patched into the image behind the tag `GUEST   ` (at 0x800); 0 if none was.
#[must_use]
pub fn seed() -> u64 {
    unsafe extern "C" {
        static guest_seed: u64;
    }
    // SAFETY: it is a constant of the image; read as volatile, as it is patched after the compiler has run.
    unsafe { (&raw const guest_seed).read_volatile() }
}

/// Unmasks interrupts.
pub fn unmask() {
    // SAFETY: the handler saves what it uses.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
}

/// Masks interrupts.
pub fn mask() {
    // SAFETY: no memory is touched.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

/// Waits for an interrupt.
pub fn wfi() {
    // SAFETY: no memory is touched.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Waits for an interrupt, takes it with interrupts unmasked for a moment, and masks them again.
///
/// To not miss an interrupt, the caller masks interrupts before it decides to sleep.
pub fn sleep() {
    wfi();
    unmask();
    isb();
    mask();
}

/// An instruction barrier.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// CNTVCT_EL0.
#[must_use]
pub fn now() -> u64 {
    isb();
    mrs!("cntvct_el0")
}

/// Milliseconds after which an event that has not happened will not happen, on a busy host either.
pub const LONG: u64 = 60_000;

/// Waits until `done` returns `true`, for at most `milliseconds`; returns what `done` returned last.
#[must_use]
pub fn wait(milliseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + mrs!("cntfrq_el0") / 1000 * milliseconds;
    while !done() {
        if now() > end {
            return done();
        }
        core::hint::spin_loop();
    }
    true
}
