//! Firmware at EL3 for one CPU of QEMU's `virt,secure=on`: it starts EL2, and offers SMCCC_ARCH_WORKAROUND_1 to 3, which QEMU
//! itself has not. It only counts their calls. On a CPU with FEAT_RAS it also leaves DISR_EL1 as an ESB does that has deferred an
//! SError, when it is asked for the last workaround.
//!
//! It enters EL2 at 0x4030_0000, where the test has put the last steps of a boot loader. Results that are not defined are
//! scribbled over, so that a caller which relies on them is found. SYSTEM_OFF prints the counts, and as a fourth number the last
//! argument of SMCCC_ARCH_WORKAROUND_2, as `FIRMWARE calls 1=N 2=N 3=N 4=N` in hexadecimal, and powers the machine off.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "it is written in assembly")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("firmware: build it for aarch64-unknown-none-softfloat and start it with QEMU's -bios");
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.section .head.code, "ax"
    nop
    b       start

.section .text.boot, "ax"
start:
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el3, x1
    mov     x1, #0x0e100000             // the end of the first MiB of secure RAM
    mov     sp, x1
    mov     x1, #0x531                  // NS, RES1, HCE, RW
    msr     scr_el3, x1
    msr     cptr_el3, xzr
    mov     x1, #0xf
    msr     s3_6_c12_c12_5, x1          // ICC_SRE_EL3
    isb
    // All interrupts are in the non-secure group 1.
    mov     x1, #0x08000000             // the distributor
    mov     w2, #0x37                   // both AREs, all groups
    str     w2, [x1]
    mov     w3, #-1
    add     x4, x1, #0x84
    mov     x5, #31
1:  str     w3, [x4], #4
    subs    x5, x5, #1
    b.ne    1b
    mov     x1, #0x080a0000             // the redistributor
    str     wzr, [x1, #0x14]            // GICR_WAKER: awake
    mov     x1, #0x080b0000
    str     w3, [x1, #0x80]
    mov     x1, #0x3c9                  // EL2h, masked
    msr     spsr_el3, x1
    mov     x1, #0x40300000
    msr     elr_el3, x1
    isb
    eret

// x9 = UART. Prints the character in w11, an equals sign and the number in w10. Keeps x7 to x9.
print_number:
    str     w11, [x9]
    mov     w11, #'='
    str     w11, [x9]
    mov     w12, #8
1:  ror     w10, w10, #28
    and     w11, w10, #0xf
    cmp     w11, #10
    add     w13, w11, #'0'
    add     w14, w11, #('a' - 10)
    csel    w11, w13, w14, lo
    str     w11, [x9]
    subs    w12, w12, #1
    b.ne    1b
    mov     w11, #' '
    str     w11, [x9]
    ret

system_off:
    mov     x9, #0x09000000
    adr     x8, text
1:  ldrb    w11, [x8], #1
    cbz     w11, 2f
    str     w11, [x9]
    b       1b
2:  mov     x8, #0x0e000000
    mov     w7, #'1'
3:  ldr     w10, [x8], #4
    mov     w11, w7
    bl      print_number
    add     w7, w7, #1
    cmp     w7, #'5'
    b.ne    3b
    mov     w11, #'\r'
    str     w11, [x9]
    mov     w11, #'\n'
    str     w11, [x9]
    mov     x9, #0x090b0000             // the secure GPIO: line 0 powers off
    mov     w10, #1
    str     w10, [x9, #0x400]
    str     w10, [x9, #4]
    b       .

text:
    .asciz  "\r\nFIRMWARE calls "
    .balign 4

// Compares w0 to a function.
.macro is function, to
    movz    w2, #(\function >> 16), lsl #16
    movk    w2, #(\function & 0xffff)
    cmp     w0, w2
    b.eq    \to
.endm

smc_call:
    mov     x3, x1
    mrs     x2, esr_el3
    lsr     x2, x2, #26
    cmp     x2, #0x17
    b.ne    .                           // no SMC
    is      0x80008000, workaround_1
    is      0x80007fff, workaround_2
    is      0x80003fff, workaround_3
    is      0x80000000, version
    is      0x84000000, version
    is      0x80000001, features
    is      0x8400000a, features
    is      0x84000008, system_off
    b       unknown

workaround_1:
    mov     x2, #0
    b       counted
workaround_2:
    mov     x2, #0x0e000000
    str     w3, [x2, #12]
    mov     x2, #4
    b       counted
workaround_3:
    mov     x2, #8
counted:
    movk    x2, #0x0e00, lsl #16
    ldr     w0, [x2]
    add     w0, w0, #1
    str     w0, [x2]
defer_serror:
    mrs     x2, id_aa64pfr0_el1
    ubfx    x2, x2, #28, #4             // RAS
    cbz     x2, success
    mov     x2, #0x80000000             // A
    msr     s3_0_c12_c1_1, x2           // DISR_EL1
success:
    mov     x0, #0
    b       done
version:
    mov     w0, #1
    movk    w0, #1, lsl #16
    b       done
features:
    mov     w0, w3
    is      0x80008000, success
    is      0x80007fff, success
    is      0x80003fff, defer_serror
    is      0x80000000, success
    is      0x80000001, success
    is      0x84000008, success
unknown:
    mov     x0, #-1
done:
    mov     x1, #0xdead
    mov     x2, #0xdead
    mov     x3, #0xdead
    eret

.balign 0x800
vectors:
    .rept   8                           // from EL3: none
    .balign 0x80
    b       .
    .endr
    .balign 0x80
    b       smc_call
    .rept   7
    .balign 0x80
    b       .
    .endr
    .balign 0x80
"#
);
