//! Errors of the SMMU itself: GERROR and GERRORN (IHI 0070, 7.5).

use super::error::Reason;

/// The errors that were active, and have been acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// CMDQ_ERR: a command was refused. The operation that had posted it fails.
    pub command: Option<Reason>,
    /// EVENTQ_ABT_ERR: writing an event was aborted. All events that were in the queue are discarded.
    pub events_lost: bool,
    /// SFM_ERR: the SMMU has stopped, with all traffic through it. Only a reset can help.
    pub failure: bool,
    /// Other errors, as bits of GERROR: MSIs and queues that the driver does not use.
    pub other: u32,
}
