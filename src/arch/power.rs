//! Power off and reset of the machine.

use super::{barrier, psci};

/// Switches the machine off. If the firmware cannot do that, parks this CPU.
pub fn off() -> ! {
    psci::system_off();
    barrier::park()
}

/// Restarts the machine. If the firmware cannot do that, parks this CPU.
pub fn reset() -> ! {
    psci::system_reset();
    barrier::park()
}
