//! What changes the machine from outside a guest: teardown of domains, what dom0's tools ask for, CPU hotplug, debug keys.

pub mod debug_keys;
pub mod hotplug;
pub mod manage;
pub mod teardown;

use crate::domain::streams::{Server, Stream};
use crate::domain::table::Domains;
use crate::util::progress::Progress;
use manage::Manage;
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

    /// Sends dom0's tools what has become due. Called by any CPU that has a moment, with no lock held; nearly always there
    /// is nothing.
    #[inline]
    pub fn poll_manage(&self) {
        if self.domains.host.events.has_news() {
            self.send_news();
        }
    }

    #[cold]
    fn send_news(&self) {
        let Some(dom0) = self.domains.dom0() else { return };
        let look = |control: &Stream<'_>, events: &Stream<'_>| self.manage.look(&self.teardown, control, events);
        let _ = dom0.with_control(|control| dom0.with_events(|events| look(control, events)));
    }
}

impl Server for Control {
    fn step(&self, control: &Stream<'_>) -> Progress {
        self.manage.step(&self.teardown, control)
    }
}
