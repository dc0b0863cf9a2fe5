//! The first instructions on the boot CPU.
//!
//! The boot CPU is entered as Linux would be (Documentation/arch/arm64/booting.rst): MMU off, x0 = address of the
//! device tree, image clean to the point of coherency. The state of the caches is otherwise unknown. What is written
//! here before stage 1 is on bypasses the caches, so the lines that it lies in are invalidated before they are read
//! through a cache.
//!
//! As an EFI application the image is entered at `efi_entry`, with MMU and caches on, and may return. After
//! ExitBootServices, [`super::efi`] calls `efi_leave`, which sets the state that a loader would have set.
//!
//! The other CPUs are entered through PSCI CPU_ON; their code is in [`doorward::arch::smp`].

use core::arch::global_asm;

global_asm!(
    r#"
.section .head.code, "ax"
    ccmp    x18, #0, #0xd, pl           // "MZ"; changes flags only
    b       boot_start

.section .head.uart, "a"
    // The early UART, which can be patched in the image for a board: a tag to find it by, the kind
    // (1: PL011, 2: 16550 with 8-bit registers, 3: 16550 with 32-bit registers, 0: none), the address.
    .ascii  "DWRDUART"
.global early_uart_kind
early_uart_kind:
    .quad   1
.global early_uart_base
early_uart_base:
    .quad   0x09000000

.section .text.boot, "ax"
boot_start:
    msr     daifset, #0xf
    mov     x20, x0

    bl      relocate
    adrp    x1, __bss_start
    adrp    x2, __bss_end
3:  cmp     x1, x2
    b.hs    boot_clean
    stp     xzr, xzr, [x1], #16
    b       3b

    // Stale cache lines must not hide what was written, once the caches are on. The loader has cleaned the image and
    // the memory for .bss, so invalidation loses nothing.
boot_clean:
    dsb     sy
    adrp    x1, __image_start
    adrp    x2, __image_end
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x4, x4, x3                  // bytes in the smallest data cache line
5:  dc      ivac, x1
    add     x1, x1, x4
    cmp     x1, x2
    b.lo    5b
    dsb     sy

    adrp    x5, __stack_top
    mov     sp, x5
    mov     x29, xzr
    mov     x30, xzr
    mrs     x1, CurrentEL
    ubfx    x1, x1, #2, #2
    cmp     x1, #2
    b.ne    6f
    // Reset what a loader may have set: above all HCR_EL2.E2H, which changes the meaning of many registers.
    mov     x2, #(1 << 31)
    msr     hcr_el2, x2
    ldr     x2, =0x30c50830             // SCTLR_EL2: the RES1 bits, no MMU, no caches
    msr     sctlr_el2, x2
    msr     spsel, #1
    msr     cnthp_ctl_el2, xzr
    isb
    mov     sp, x5                      // again, in case SP_EL0 was selected before
6:  mov     x0, x20
    b       boot_cpu

    // Applies the relocations: the image is linked at 0, so the load address is added to each addend. Uses x1 to x6.
relocate:
    adrp    x6, __image_start
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16           // r_offset, r_info
    ldr     x5, [x1], #8                // r_addend
    cmp     x4, #1027                   // R_AARCH64_RELATIVE: the only kind a static PIE has
    b.ne    1b
    add     x5, x5, x6
    str     x5, [x6, x3]
    b       1b
2:  ret

    // efi_main(handle, system table) -> status. The firmware has zeroed .bss.
.global efi_entry
efi_entry:
    stp     x29, x30, [sp, #-32]!
    mov     x29, sp
    stp     x0, x1, [sp, #16]
    bl      relocate
    ldp     x0, x1, [sp, #16]
    bl      efi_main
    ldp     x29, x30, [sp], #32
    ret

    // Switches the firmware's stage 1 off. All that this image has written is cleaned to memory, and nothing is written
    // from the first clean until the caches are off. Lines that remain in the caches are clean, and boot_clean
    // invalidates them.
.global efi_leave
efi_leave:
    msr     daifset, #0xf
    adrp    x1, __image_start
    adrp    x2, __image_end
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x4, x4, x3
1:  dc      civac, x1
    add     x1, x1, x4
    cmp     x1, x2
    b.lo    1b
    dsb     sy
    mrs     x3, sctlr_el2
    mov     x4, #0x1005                 // I, C, M
    bic     x3, x3, x4
    msr     sctlr_el2, x3
    isb
    ic      iallu
    dsb     sy
    isb
    mov     x20, xzr
    b       boot_clean
"#
);
