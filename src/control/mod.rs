//! What changes the machine from outside a guest: teardown of domains, what dom0's tools ask for, CPU hotplug, debug keys.

pub mod debug_keys;
pub mod hotplug;
pub mod manage;
pub mod teardown;

use crate::domain::table::Domains;
use crate::vits::Progress;
use manage::Manage;
use manage::server::Closed;
use teardown::Teardown;

/// The domains, and the teardown of those that have ended.
pub struct Control {
    /// All domains, and the machine that they share.
    pub domains: &'static Domains,
    /// The teardown of domains that have ended.
    pub teardown: Teardown,
    /// What dom0's tools ask for.
    pub manage: Manage,
}

impl Control {
    /// No teardown is in progress.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Control {
        Control { domains, teardown: Teardown::new(domains), manage: Manage::new(domains) }
    }

    /// Performs a step of what the tools of dom0 ask for. Called by a vCPU of dom0.
    pub fn step_manage(&self) -> Progress {
        self.manage.step(&self.teardown, &Closed, &Closed)
    }

    /// Sends dom0's tools what has become due. Called by any CPU that has a moment.
    #[inline]
    pub fn poll_manage(&self) {
        self.manage.poll(&self.teardown, &Closed, &Closed);
    }
}
