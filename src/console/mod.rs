//! The UART, the log, and who gets what is typed.
//!
//! One UART serves the hypervisor and all domains. What the hypervisor says goes out in whole lines under a lock that
//! is only ever tried: a CPU that cannot get it within a tenth of a second prints anyhow, since garbled text is better
//! than none. Before stage 1 is on there are no locks, and the same functions write straight to the UART.
//!
//! * [`uart`]: the drivers. [`onpanic`]: park or switch off.

pub mod onpanic;
pub mod uart;

#[cfg(target_os = "none")]
mod target;
#[cfg(target_os = "none")]
pub use target::*;
