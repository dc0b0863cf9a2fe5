//! The console: the UART, the log, and the input focus.
//!
//! The hypervisor and all domains share one UART. The hypervisor prints whole lines, at once, under a lock that it only
//! tries to take. A domain prints into a ring of its own and waits for nobody: whoever has a moment (the domain itself after
//! each access to its port, an idle CPU, the UART's transmit interrupt, a timer) moves bytes from the rings to the UART, as
//! many as it takes without waiting. Before stage 1 is on, locks do not work, and the functions that print a line write
//! directly to the UART.
//!
//! | file | content |
//! |---|---|
//! | [`mod@uart`] | the UART drivers |
//! | [`mux`] | the input focus, which Ctrl-A moves |
//! | [`ring`] | a domain's output |
//! | [`turns`] | which byte goes to the UART next |
//! | [`escape`] | the visible form of control characters |
//! | [`printer`] | what the lock protects: focus, turns, state of the UART |
//! | [`keys`] | the table of debug keys |
//! | [`stamp`] | the prefix of a log line |
//! | [`onpanic`] | the option `onpanic=`: park or power off |
//! | [`log_ring`] | the last lines of the hypervisor, for dom0's tools |
//! | `target` | the console of the running image |

pub mod escape;
pub mod keys;
pub mod limit;
pub mod log_ring;
pub mod mux;
pub mod onpanic;
pub mod printer;
pub mod ring;
pub mod stamp;
pub mod turns;
pub mod uart;

mod target;
pub use target::*;

/// Prints `doorward: fatal: ...` and stops: parks, or powers off with `onpanic=off`.
#[macro_export]
macro_rules! fatal {
    ($($message:tt)*) => { $crate::console::fatal(format_args!($($message)*)) };
}
