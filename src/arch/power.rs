//! The machine's switch.

use super::{barrier, psci};

/// Switches the machine off; parks this CPU if the firmware cannot.
pub fn off() -> ! {
    psci::system_off();
    barrier::park()
}

/// Restarts the machine; parks this CPU if the firmware cannot.
pub fn reset() -> ! {
    psci::system_reset();
    barrier::park()
}
