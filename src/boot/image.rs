//! The memory of the image, from the linker's symbols (`linker.ld`).

use doorward::console::uart::Uart;
use doorward::ids::Pa;
use doorward::mm::stage1::Kind;
use doorward::util::range::Range;

unsafe extern "C" {
    static early_uart_kind: u64;
    static early_uart_base: u64;
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __stack_guard: u8;
    static __stack_bottom: u8;
    static __image_end: u8;
}

fn address(symbol: *const u8) -> Pa {
    Pa(symbol as u64)
}

/// Returns the memory of the image.
pub fn range() -> Range {
    Range::between(address(&raw const __image_start), address(&raw const __image_end))
}

/// Returns the sections of the image, with the kind of mapping that each needs. The guard page below the boot stack is
/// not in any of them.
pub fn sections() -> [(Pa, Pa, Kind); 5] {
    [
        (address(&raw const __image_start), address(&raw const __text_start), Kind::Rodata),
        (address(&raw const __text_start), address(&raw const __text_end), Kind::Text),
        (address(&raw const __rodata_start), address(&raw const __data_start), Kind::Rodata),
        (address(&raw const __data_start), address(&raw const __stack_guard), Kind::Data),
        (address(&raw const __stack_bottom), address(&raw const __image_end), Kind::Data),
    ]
}

/// Returns the early UART in the image's header.
pub fn early_uart() -> Option<Uart> {
    // SAFETY: both are initialized constants of the image. The reads are volatile, because the image may have been
    // patched after it was compiled.
    let (kind, base) =
        unsafe { ((&raw const early_uart_kind).read_volatile(), (&raw const early_uart_base).read_volatile()) };
    Uart::from_words(kind, base)
}
