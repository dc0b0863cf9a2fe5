//! Exceptions: expected ones are recorded, interrupts go to the guest's handler, SErrors are counted, all others end the guest.

use crate::{cpu, gic, mrs, off, say};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, compiler_fence};

/// The registers saved on the stack.
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
}

/// The result of a probed instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It took no exception.
    Ran,
    /// It is UNDEFINED.
    Undefined,
    /// A data abort: the syndrome's status code and FAR_EL1.
    DataAbort {
        /// DFSC.
        status: u8,
        /// FAR_EL1.
        far: u64,
    },
    /// An instruction abort.
    InstructionAbort {
        /// IFSC.
        status: u8,
    },
    /// Another exception, by its syndrome.
    Other(u64),
}

/// Runs `code`, one instruction of which may take an exception; the handler then steps over it.
pub fn probe(code: impl FnOnce()) -> Outcome {
    let cpu = cpu::this();
    cpu.esr.store(u64::MAX, Ordering::Relaxed);
    cpu.expected.store(1, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    code();
    cpu::isb();
    compiler_fence(Ordering::SeqCst);
    cpu.expected.store(0, Ordering::Relaxed);
    let esr = cpu.esr.load(Ordering::Relaxed);
    if esr == u64::MAX {
        return Outcome::Ran;
    }
    let status = (esr & 0x3f) as u8;
    match esr >> 26 & 0x3f {
        0x00 => Outcome::Undefined,
        0x21 => Outcome::InstructionAbort { status },
        0x25 => Outcome::DataAbort { status, far: cpu.far.load(Ordering::Relaxed) },
        _ => Outcome::Other(esr),
    }
}

static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Sets the interrupt handler. Its argument is the INTID, acknowledged and not yet ended.
pub fn on_interrupt(handler: fn(u32)) {
    HANDLER.store(handler as usize, Ordering::Release);
}

static SERRORS: AtomicU32 = AtomicU32::new(0);

/// Takes a pending SError, if there is one; they are masked otherwise. Returns how many were taken so far.
pub fn serrors() -> u32 {
    // SAFETY: the handler returns.
    unsafe { asm!("msr daifclr, #4", "isb", "msr daifset, #4") };
    SERRORS.load(Ordering::Relaxed)
}

const INSTRUCTION_ABORT: u64 = 0x21;

#[unsafe(no_mangle)]
extern "C" fn guest_exception(vector: u64, frame: &mut Frame) {
    match vector {
        4 => synchronous(frame),
        5 => interrupt(),
        7 => _ = SERRORS.fetch_add(1, Ordering::Relaxed),
        _ => {
            say!("GUEST FAIL exception: vector {vector} esr {:#x} elr {:#x}", mrs!("esr_el1"), frame.elr);
            off()
        }
    }
}

fn synchronous(frame: &mut Frame) {
    let cpu = cpu::this();
    let (esr, far) = (mrs!("esr_el1"), mrs!("far_el1"));
    if cpu.expected.swap(0, Ordering::Relaxed) == 0 {
        say!("GUEST FAIL exception: esr {esr:#x} far {far:#x} elr {:#x} lr {:#x}", frame.elr, frame.x[30]);
        off()
    }
    cpu.esr.store(esr, Ordering::Relaxed);
    cpu.far.store(far, Ordering::Relaxed);
    // After a call to an address without code, return to the caller.
    frame.elr = if esr >> 26 & 0x3f == INSTRUCTION_ABORT { frame.x[30] } else { frame.elr + 4 };
}

fn interrupt() {
    while let Some(intid) = gic::acknowledge() {
        let handler = HANDLER.load(Ordering::Acquire);
        if handler != 0 {
            // SAFETY: `on_interrupt` stored a `fn(u32)` there.
            let handler: fn(u32) = unsafe { core::mem::transmute(handler) };
            handler(intid);
        }
        gic::end(intid);
    }
}
