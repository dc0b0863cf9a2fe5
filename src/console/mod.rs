//! The UART, the log, and who gets what is typed.
//!
//! One UART serves the hypervisor and all domains. What the hypervisor says goes out in whole lines under a lock that
//! is only ever tried: a CPU that cannot get it within a tenth of a second prints anyhow, since garbled text is better
//! than none. Before stage 1 is on there are no locks, and the same functions write straight to the UART.
//!
//! * [`uart`]: the drivers. [`mux`]: Ctrl-A. [`lines`]: domains' output by the line. [`keys`]: debug keys.
//! * [`stamp`]: how a line of the log starts. [`onpanic`]: park or switch off.
//! * `target`: the console of the running image, which joins them.

pub mod keys;
pub mod lines;
pub mod mux;
pub mod onpanic;
pub mod stamp;
pub mod uart;

mod target;
pub use target::*;

/// Ends the start-up with a sentence: `doorward: fatal: ...`, then parks, or switches off with `onpanic=off`.
#[macro_export]
macro_rules! fatal {
    ($($sentence:tt)*) => { $crate::console::fatal(format_args!($($sentence)*)) };
}
