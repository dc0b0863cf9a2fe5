//! What changes the machine from outside a guest: teardown and restart of domains, CPU hotplug, debug keys.

pub mod debug_keys;
pub mod hotplug;
pub mod teardown;

use crate::domain::table::Domains;
use teardown::Teardown;

/// The domains, and the teardown of those that have ended.
pub struct Control {
    /// All domains, and the machine that they share.
    pub domains: &'static Domains,
    /// The teardown of domains that have ended.
    pub teardown: Teardown,
}

impl Control {
    /// No teardown is in progress.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Control {
        Control { domains, teardown: Teardown::new(domains) }
    }
}
