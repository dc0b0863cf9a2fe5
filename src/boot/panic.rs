//! The panic handler.

use core::panic::PanicInfo;
use doorward::console;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::line(format_args!("doorward: panic: {}", info.message()));
    console::stop()
}
