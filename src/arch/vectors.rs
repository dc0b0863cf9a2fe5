//! EL2's exception vectors, entry to a guest, and fatal exceptions from EL2.
//!
//! Entering a guest is a function call. `doorward_enter` saves its caller's registers and a pointer to the guest's
//! registers on the stack and enters the guest by ERET. SP_EL2 keeps its value while the guest runs, so the vector of
//! an exception from the guest finds both, stores the guest's registers, restores the caller's and returns. The FP
//! registers hold the guest's values throughout, because EL2 is built without FP.
//!
//! A guest can train the branch predictors, and there is no indirect branch before the vectors have made that useless.
//! What it takes differs between CPUs (see [`super::speculation`]), so there are several tables of vectors, of which
//! [`harden`] chooses one for its CPU. They differ only in what they do at an entry from a guest.
//!
//! SErrors are masked at EL2, so one that an access of the guest has caused could stay pending after the exit and be taken
//! when the next guest is entered. Each exit therefore waits for the SErrors of what the guest has done (DDI 0487, ESB;
//! without FEAT_RAS by a DSB). One that is pending at an entry was caused by EL2, and the guest is not entered.
//!
//! EL2 runs with interrupts masked and causes no exception on purpose, so an exception from EL2 is fatal. It is handled
//! on the CPU's emergency stack, since its cause may be a stack overflow into the guard page.

use super::asm::{extern_asm, global_asm};
use super::fault::Fault;
use super::percpu;
use super::speculation::{Clear, Entry};
use super::sysreg::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable, VBAR_EL2, Writeable};
use super::vcpu::{GuestRegs, RawExit, Reason};
use core::mem::offset_of;
use smccc::arch::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3};

extern_asm! {
    static doorward_vectors;
    static doorward_vectors_loop;
    static doorward_vectors_clear;
    static doorward_vectors_call;
    static doorward_vectors_call_loop;
    static doorward_vectors_call_clear;
}

extern_asm! {
    fn doorward_enter(regs: *mut GuestRegs, ras: bool) -> u64;
}

const _: () = assert!(offset_of!(GuestRegs, x) == 0 && offset_of!(GuestRegs, pc) == 248);

global_asm!(
    r#"
.macro from_el2 kind
    .balign 0x80
    msr     sp_el0, x0                  // scratch; the guest's values are lost, as no guest runs here again
    msr     tpidr_el0, x1
    mov     x0, #\kind
    b       doorward_el2_fatal
.endm

// `call`: the firmware's workaround is called. `clear`: 1 for a loop of branches, 2 for CLRBHB.
.macro from_guest reason, call, clear
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    .if \call
    stp     x2, x3, [sp, #-16]!
    mrs     x0, tpidr_el2
    ldr     w0, [x0, #{workaround}]
    smc     #0                          // SMCCC 1.1: keeps all but x0 to x3
    ldp     x2, x3, [sp], #16
    .endif
    .if \clear == 1
    mrs     x0, tpidr_el2
    ldr     w0, [x0, #{branches}]
1:  b       2f
2:  subs    w0, w0, #1
    b.ne    1b
    dsb     nsh                         // no speculation past the loop
    isb
    .elseif \clear == 2
    hint    #22                         // CLRBHB
    isb
    .endif
    mov     x1, #\reason
    .if \call && \reason == 0
    b       doorward_called
    .else
    b       doorward_exit
    .endif
.endm

.macro vectors name, call, clear
.balign 0x800
.global \name
\name:
    from_el2 0                          // from EL2 with SP_EL0: only `doorward_take_serror` uses it
    from_el2 1
    from_el2 2
    .balign 0x80
    b       doorward_serror_taken
    from_el2 4                          // from EL2 with SP_EL2
    from_el2 5
    from_el2 6
    from_el2 7
    from_guest 0, \call, \clear         // from a guest in AArch64
    from_guest 1, \call, \clear
    from_guest 2, \call, \clear
    from_guest 3, \call, \clear
    from_guest 4, \call, \clear         // from a guest in AArch32
    from_guest 5, \call, \clear
    from_guest 6, \call, \clear
    from_guest 7, \call, \clear
    .balign 0x80
.endm

.section .text.doorward_vectors, "ax"
    vectors doorward_vectors, 0, 0
    vectors doorward_vectors_loop, 0, 1
    vectors doorward_vectors_clear, 0, 2
    vectors doorward_vectors_call, 1, 0
    vectors doorward_vectors_call_loop, 1, 1
    vectors doorward_vectors_call_clear, 1, 2

// Unmasks SErrors for one instruction, so that a pending one is taken and is no longer pending. Returns whether one was
// taken. Within it, SP is SP_EL0, which EL2 does not use otherwise; so its exceptions have a vector of their own.
doorward_take_serror:
    mov     x0, #0
    msr     spsel, #0
    msr     daifclr, #4
    isb                                 // a pending SError is taken here at the latest
    msr     daifset, #4
    msr     spsel, #1
    ret

doorward_serror_taken:
    mov     x0, #1
    eret                                // SPSR_EL2 has SP_EL0 and SErrors unmasked, or masked again

// SErrors that are pending after an exit, without and with FEAT_RAS. x0 gets the flag SERROR. ESR_EL2 keeps the syndrome of
// the exit; ELR_EL2 and SPSR_EL2 have been saved.
doorward_exit_serror:
    mov     x5, x0
    mrs     x6, esr_el2
    bl      doorward_take_serror
    msr     esr_el2, x6
    orr     x0, x5, x0, lsl #{serror}
    b       doorward_exit_done

doorward_exit_deferred:
    msr     s3_0_c12_c1_1, xzr
    orr     x0, x0, #(1 << {serror})
    b       doorward_exit_done

doorward_own_serror:
    mov     x5, x30
    bl      doorward_take_serror
    mov     x0, #{own}
    ret     x5

// A synchronous exception from a guest in AArch64 on a CPU whose vectors call the firmware. If it is the guest's own
// call of a workaround, it has been carried out above, and the guest continues: kernels make it at each switch of a
// process, or each entry from EL0.
doorward_called:
    mrs     x0, esr_el2
    mov     x1, #{hvc}
    cmp     x0, x1
    b.ne    1f
    ldr     w0, [sp]
    mov     w1, #{workaround_1}
    cmp     w0, w1
    mov     w1, #{workaround_3}
    ccmp    w0, w1, #4, ne
    b.ne    1f
    ldr     x1, [sp, #8]
    mov     x0, #0                      // SUCCESS
    add     sp, sp, #16
    eret
    dsb     nsh
    isb
1:  mov     x1, #0
    b       doorward_exit

.global doorward_enter
doorward_enter:
    mrs     x2, isr_el1
    tbnz    x2, #8, doorward_own_serror // A
    sub     sp, sp, #112
    stp     x29, x30, [sp]
    mov     x29, sp
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     x0, x1, [sp, #96]
    ldp     x2, x3, [x0, #248]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                         // stops speculation past the ERET
    isb

doorward_exit:
    ldr     x0, [sp, #(16 + 96)]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #248]
    mov     x0, x1
    ldr     w2, [sp, #104]
    tbz     w2, #0, 1f
    hint    #16                         // ESB
    mrs     x2, s3_0_c12_c1_1           // DISR_EL1
    tbnz    x2, #31, doorward_exit_deferred
    b       doorward_exit_done
1:  dsb     sy
    isb                                 // the DSB has to be complete before ISR_EL1 is read
    mrs     x2, isr_el1
    tbnz    x2, #8, doorward_exit_serror
doorward_exit_done:
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp]
    add     sp, sp, #112
    ret

doorward_el2_fatal:
    mrs     x1, tpidr_el2
    ldr     x1, [x1, #{emergency}]
    sub     x1, x1, #320
    stp     x2, x3, [x1, #16]
    mov     x2, sp
    mov     sp, x1
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    stp     x30, x2, [sp, #240]
    mrs     x2, sp_el0
    mrs     x3, tpidr_el0
    stp     x2, x3, [sp]
    mrs     x2, elr_el2
    mrs     x3, esr_el2
    stp     x2, x3, [sp, #256]
    mrs     x3, far_el2
    stp     x3, x0, [sp, #272]
    stp     x29, x2, [sp, #304]         // a frame record, so that the backtrace continues at ELR_EL2
    add     x29, sp, #304
    mov     x0, sp
    bl      doorward_el2_exception
    b       .
"#,
    emergency = const percpu::EMERGENCY_OFFSET,
    workaround = const percpu::WORKAROUND_OFFSET,
    branches = const percpu::BRANCHES_OFFSET,
    hvc = const HVC_0,
    serror = const SERROR,
    own = const OWN_SERROR,
    workaround_1 = const SMCCC_ARCH_WORKAROUND_1 as usize,
    workaround_3 = const SMCCC_ARCH_WORKAROUND_3 as usize,
);

/// ESR_EL2 of `HVC #0` in AArch64: the class and IL.
const HVC_0: usize = 0x16 << 26 | 1 << 25;

/// The number of the bit in the result of `doorward_enter` that says that the guest has caused an SError. Bits 1:0 are the
/// kind of exception, and bit 2 is set if it came from AArch32.
const SERROR: usize = 3;
/// The result of `doorward_enter` if it has not entered the guest, because an SError of EL2 was pending.
const OWN_SERROR: usize = 1 << 4;

/// Runs the guest until it exits. `ras` says whether this CPU has FEAT_RAS.
///
/// The caller has programmed what the guest may do and see: HCR_EL2, stage 2 and the registers of EL1. The function is
/// safe, because these decide what memory the guest can reach, and because every exit from the guest goes through EL2's
/// vectors.
#[inline]
pub fn enter(regs: &mut GuestRegs, ras: bool) -> RawExit {
    // SAFETY: `regs` is borrowed exclusively until the guest exits, and `doorward_enter` follows the calling
    // convention.
    let code = unsafe { doorward_enter(regs, ras) };
    let serror = code & 1 << SERROR != 0;
    let mut exit = RawExit { reason: Reason::Irq, serror, esr: 0, far: 0, hpfar: 0 };
    match code & 3 {
        0 if code == OWN_SERROR as u64 => exit.reason = Reason::OwnSError,
        0 => {
            exit.reason = Reason::Sync;
            exit.esr = ESR_EL2.get();
            exit.far = FAR_EL2.get();
            exit.hpfar = HPFAR_EL2.get();
        }
        1 => {}
        2 => exit.reason = Reason::Fiq,
        _ => {
            exit.reason = Reason::SError;
            exit.esr = ESR_EL2.get();
        }
    }
    exit
}

/// Installs the vectors on this CPU, without mitigations. No guest runs before [`harden`].
pub fn install() {
    VBAR_EL2.set(&raw const doorward_vectors as u64);
    super::barrier::isb();
}

/// Installs the vectors that do what `entry` says at each entry from a guest to this CPU.
pub fn harden(entry: Entry) {
    let this = percpu::this();
    this.workaround.set(entry.call.unwrap_or_default());
    let branches = if let Clear::Branches(count) = entry.clear { count } else { 0 };
    this.branches.set(branches.into());
    let vectors = match (entry.call, entry.clear) {
        (None, Clear::No) => &raw const doorward_vectors,
        (None, Clear::Branches(_)) => &raw const doorward_vectors_loop,
        (None, Clear::Instruction) => &raw const doorward_vectors_clear,
        (Some(_), Clear::No) => &raw const doorward_vectors_call,
        (Some(_), Clear::Branches(_)) => &raw const doorward_vectors_call_loop,
        (Some(_), Clear::Instruction) => &raw const doorward_vectors_call_clear,
    };
    VBAR_EL2.set(vectors as u64);
    super::barrier::isb();
}

#[unsafe(no_mangle)]
extern "C" fn doorward_el2_exception(fault: &'static Fault) -> ! {
    let this = percpu::this();
    if this.panicking.get() {
        // The panic handler itself has failed; what it has printed so far is all there is.
        super::barrier::park();
    }
    this.fault.set(Some(fault));
    panic!("{} from EL2 at {:#x}", fault.kind(), fault.elr)
}
