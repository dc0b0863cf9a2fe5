//! What happens to the machine from outside a guest: teardown and restart of domains, CPU hotplug, debug keys.

pub mod debug_keys;
pub mod hotplug;
pub mod teardown;

use crate::domain::table::Domains;
use crate::host::background::Background;

/// The machine with its domains, and the work that goes on behind them.
pub struct Control {
    /// All domains, and the machine that they share.
    pub domains: &'static Domains,
    /// Domains that have ended and are taken down.
    background: Background<teardown::Work>,
}

impl Control {
    /// No domain is being taken down.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Control {
        Control { domains, background: Background::new(domains.host.cpus.ids().len()) }
    }
}
