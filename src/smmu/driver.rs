//! One SMMU.

use super::View;
use super::error::SmmuError;
use super::event::Event;
use super::facts::Facts;
use super::global_errors::Errors;
use crate::ids::{Ipa, StreamId, VmId};
use crate::mmio::Hw;
use crate::platform::machine;
use core::ops::RangeInclusive;

/// One SMMU, which this driver has for itself.
///
/// Methods may be called on any CPU at a time. Those that change something wait for the SMMU, 100 ms at most if it does
/// not respond, while they hold the lock; [`next_event`](Self::next_event) does not wait for them.
pub struct Smmu<H> {
    _hw: H,
    facts: Facts,
}

impl<H: Hw + Clone> Smmu<H> {
    /// Takes an SMMU from whoever had it before. From the first step on, until streams are assigned, all transactions
    /// are aborted, also those that the firmware's tables allowed.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: it cannot be used. What could be set to abort stays so, until [`bypass`](super::bypass()).
    pub fn start(_hw: H, _at: &machine::Smmu) -> Result<Smmu<H>, SmmuError> {
        todo!()
    }

    /// What the SMMU can do.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Lets streams reach what `view` maps, and nothing else. Before it returns, they may reach what they reached
    /// before, nothing, or the view.
    ///
    /// # Errors
    ///
    /// [`SmmuError::BadStream`], [`SmmuError::BadVmid`] and [`SmmuError::BadView`]: nothing has changed. After others,
    /// streams may reach either what they reached before or the view, until a later call of `assign` or `block` for them
    /// succeeds: until then neither of the two may be freed.
    pub fn assign(&self, _streams: RangeInclusive<StreamId>, _view: &View) -> Result<(), SmmuError> {
        todo!()
    }

    /// Lets streams reach nothing. When it returns, all their transactions that the old view let pass are complete.
    ///
    /// # Errors
    ///
    /// As for [`assign`](Self::assign).
    pub fn block(&self, _streams: RangeInclusive<StreamId>) -> Result<(), SmmuError> {
        todo!()
    }

    /// Invalidates all translations of a VMID. When it returns, no transaction uses them any more. Before the tables of
    /// a view are freed, its streams are blocked, and then this is called.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: translations may still be used.
    pub fn invalidate_all(&self, _vmid: VmId) -> Result<(), SmmuError> {
        todo!()
    }

    /// Invalidates the translations of `size` bytes from `ipa` on, in whole pages. When it returns, no transaction uses
    /// them any more.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: translations may still be used.
    pub fn invalidate(&self, _vmid: VmId, _ipa: Ipa, _size: u64) -> Result<(), SmmuError> {
        todo!()
    }

    /// Takes the oldest event from the queue.
    pub fn next_event(&self) -> Option<Event> {
        todo!()
    }

    /// Takes the errors that have occurred since the last call.
    pub fn take_errors(&self) -> Errors {
        todo!()
    }

    /// Makes the SMMU abort all transactions, without tables or queues in memory, before the machine is reset or its
    /// memory is given to someone else. `false`: it does not respond, and may use them further.
    pub fn stop(&self) -> bool {
        todo!()
    }
}
