//! What dom0's tools ask for: domains that are created, watched and ended while the machine runs.
//!
//! | file | content |
//! |---|---|
//! | [`server`] | frames, one request after the other, answers, events: the protocol, without what is asked |
//! | [`acts`] | what is asked: creates, pauses, ends domains |
//! | `queries` | answers about the machine and its domains |
//!
//! A request is the work of the vCPU of dom0 that has sent it: the run loop performs it in steps, which are charged to dom0,
//! before that vCPU enters its guest again. What takes long without EL2's doing (the end of a domain) is not waited for:
//! the answer is sent when it is time, by the CPU that notices.

pub mod acts;
mod queries;
pub mod server;

use super::teardown::Teardown;
use crate::domain::table::Domains;
use crate::sync::Exclusive;
use crate::util::progress::Progress;
use acts::Hypervisor;
use server::{Did, Server, Stream};

/// The server of dom0's requests.
pub struct Manage {
    domains: &'static Domains,
    server: Exclusive<Server<Hypervisor>>,
}

impl Manage {
    /// Nobody is served yet. Nothing is allocated after this call, except for domains and their images.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Manage {
        Manage { domains, server: Exclusive::new(Server::new(Hypervisor::new(domains))) }
    }

    /// Performs a step for what dom0 has sent by `control`. Called by a vCPU of dom0.
    pub fn step(&self, teardown: &Teardown, control: &dyn Stream) -> Progress {
        match self.server.take().map(|mut server| server.step(teardown, control)) {
            // Another CPU performs a step.
            None | Some(Did::Something) => Progress::More,
            Some(Did::Nothing) => Progress::Done,
        }
    }

    /// Sends what has become due: an event, or an answer to a request that had to wait; and takes note that dom0 has opened
    /// the stream of events, which counts as news, so that it gets what happens from then on. Called by any CPU after
    /// [`Events::has_news`](crate::host::events::Events::has_news).
    pub fn look(&self, teardown: &Teardown, control: &dyn Stream, events: &dyn Stream) {
        // If another CPU performs a step, the news stays for the next one that looks.
        let Some(mut server) = self.server.take() else { return };
        if self.domains.host.events.take_news() && server.look(teardown, control, events) == Did::Something {
            self.domains.host.events.announce();
        }
    }
}
