//! What happens to the machine from outside a guest: teardown and restart of domains, CPU hotplug, debug keys.

pub mod debug_keys;
pub mod hotplug;
pub mod teardown;

use crate::domain::table::Domains;
use teardown::Teardown;

/// The machine with its domains, and what is done to them from outside.
pub struct Control {
    /// All domains, and the machine that they share.
    pub domains: &'static Domains,
    /// Takes down domains that have ended.
    pub teardown: Teardown,
}

impl Control {
    /// No domain is being taken down.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Control {
        Control { domains, teardown: Teardown::new(domains) }
    }
}
