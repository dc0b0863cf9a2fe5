//! The console: the UART, the log, and the input focus.
//!
//! The hypervisor and all domains share one UART. The hypervisor prints whole lines under a lock that it only tries to
//! take: a CPU that cannot take it within 100 ms prints nevertheless, since garbled text is better than none. Before
//! stage 1 is on, locks do not work, and the same functions write directly to the UART.
//!
//! | file | content |
//! |---|---|
//! | [`mod@uart`] | the UART drivers |
//! | [`mux`] | the input focus, which Ctrl-A moves |
//! | [`lines`] | line buffers for the output of domains without the focus |
//! | [`keys`] | the table of debug keys |
//! | [`stamp`] | the prefix of a log line |
//! | [`onpanic`] | the option `onpanic=`: park or power off |
//! | `target` | the console of the running image |

pub mod keys;
pub mod limit;
pub mod lines;
pub mod mux;
pub mod onpanic;
pub mod stamp;
pub mod uart;

mod target;
pub use target::*;

/// Prints `doorward: fatal: ...` and stops: parks, or powers off with `onpanic=off`.
#[macro_export]
macro_rules! fatal {
    ($($message:tt)*) => { $crate::console::fatal(format_args!($($message)*)) };
}
