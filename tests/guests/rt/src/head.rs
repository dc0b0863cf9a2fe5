//! The first instructions, on the first vCPU and on the others.
//!
//! Entry is by Linux's boot protocol: MMU off, interrupts masked, x0 = device tree, which `fdt` reads. Stage 1 is an identity map of
//! 1 GiB blocks: the first GiB and everything from 256 GiB on is Device memory, the rest is Normal memory.

use core::arch::global_asm;

global_asm!(
    r#"
.section .head.code, "ax"
    nop
    b       guest_start

.section .head.uart, "a"
    // xtask patches the seed into the image: a tag to find it by, then the number.
    .ascii  "GUEST   "
.global guest_seed
guest_seed:
    .quad   0

.section .text.boot, "ax"
guest_start:
    msr     daifset, #0xf
    mov     x20, x0
    adrp    x19, __image_start
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     x4, #1027                   // R_AARCH64_RELATIVE
    b.ne    1b
    add     x5, x5, x19
    str     x5, [x19, x3]
    b       1b
2:  adrp    x1, __bss_start
    adrp    x2, __bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

    // Stage 1: 512 blocks of 1 GiB.
4:  adrp    x1, guest_table
    mov     x2, #0
    mov     x3, #0x701                  // block, attribute 0, AF, inner shareable
    mov     x5, #0x705                  // attribute 1
5:  lsl     x4, x2, #30
    cbz     x2, 6f
    cmp     x2, #256
    b.hs    6f
    orr     x4, x4, x3
    b       7f
6:  orr     x4, x4, x5
7:  str     x4, [x1, x2, lsl #3]
    add     x2, x2, #1
    cmp     x2, #512
    b.lo    5b

    // Invalidate lines that could hide what was written with the caches off.
    dsb     sy
    adrp    x1, __rodata_end
    adrp    x2, __image_end
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x4, x4, x3
8:  dc      ivac, x1
    add     x1, x1, x4
    cmp     x1, x2
    b.lo    8b
    dsb     sy

    adrp    x0, guest_cpus
    add     x0, x0, :lo12:guest_cpus
    adrp    x1, __stack_top
    str     x1, [x0]
    bl      guest_cpu_setup
    adrp    x1, guest_fdt
    str     x20, [x1, :lo12:guest_fdt]
    bl      guest_main
    b       .

// A vCPU started by CPU_ON: x0 = its Cpu.
.global guest_secondary
guest_secondary:
    msr     daifset, #0xf
    bl      guest_cpu_setup
    mrs     x0, tpidr_el1
    bl      guest_secondary_main
    b       .

// x0 = Cpu, whose first word is the stack. Leaves the MMU and the caches on.
guest_cpu_setup:
    msr     tpidr_el1, x0
    ldr     x1, [x0]
    mov     sp, x1
    adrp    x1, guest_vectors
    add     x1, x1, :lo12:guest_vectors
    msr     vbar_el1, x1
    mov     x1, #0x04ff                 // 0: Normal write-back, 1: Device-nGnRE
    msr     mair_el1, x1
    adrp    x1, guest_table
    msr     ttbr0_el1, x1
    ldr     x1, =0x0000000200803519     // T0SZ 25, write-back walks, inner shareable, no TTBR1, 40-bit PA
    msr     tcr_el1, x1
    mov     x1, #(3 << 20)              // FP is on
    msr     cpacr_el1, x1
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    ldr     x1, =0x30d01805             // RES1, M, C, I
    msr     sctlr_el1, x1
    isb
    ret

.macro vector kind
    .balign 0x80
    sub     sp, sp, #272
    stp     x0, x1, [sp]
    mov     x0, #\kind
    b       guest_exception_common
.endm

.section .text.vectors, "ax"
.balign 0x800
guest_vectors:
    vector 0
    vector 1
    vector 2
    vector 3
    vector 4
    vector 5
    vector 6
    vector 7
    vector 8
    vector 9
    vector 10
    vector 11
    vector 12
    vector 13
    vector 14
    vector 15

guest_exception_common:
    stp     x2, x3, [sp, #16]
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
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x30, x1, [sp, #240]
    str     x2, [sp, #256]
    mov     x1, sp
    bl      guest_exception
    ldr     x2, [sp, #256]
    ldp     x30, x1, [sp, #240]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp]
    add     sp, sp, #272
    eret

.section .bss.guest_table, "aw", %nobits
.balign 0x1000
guest_table:
    .skip   0x1000

.section .bss.guest_fdt, "aw", %nobits
.balign 8
.global guest_fdt
guest_fdt:
    .skip   8
"#
);
