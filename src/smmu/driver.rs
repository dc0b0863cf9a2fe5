//! One SMMU: streams are assigned and blocked, and translations invalidated.

use super::bringup::{self, Parts};
use super::command::Command;
use super::error::SmmuError;
use super::event::Event;
use super::facts::Facts;
use super::faults::{Errors, Faults};
use super::queue::CommandQueue;
use super::ste::Translation;
use super::stream_table::{StreamTable, Then};
use super::{View, range};
use crate::ids::{Ipa, StreamId, VmId};
use crate::mmio::Hw;
use crate::platform::machine;
use crate::sync::{Lock, Rank};
use core::ops::RangeInclusive;

/// One SMMU, which this driver has for itself.
///
/// Methods may be called on any CPU at a time. Those that change something wait for the SMMU, for 100 ms at most at each
/// step if it does not respond, and hold a lock meanwhile. [`next_event`](Self::next_event) and
/// [`take_errors`](Self::take_errors) do not wait.
pub struct Smmu<H> {
    facts: Facts,
    core: Lock<Core<H>>,
    faults: Lock<Faults<H>>,
}

/// The stream table, and the queue for the commands that make it take effect.
struct Core<H> {
    table: StreamTable<H>,
    queue: CommandQueue<H>,
    /// An operation has failed, so the SMMU may have cached what is no longer in the table.
    uncertain: bool,
}

impl<H: Hw + Clone> Smmu<H> {
    /// Takes an SMMU from whoever had it before. From the first step on, until streams are assigned, all transactions
    /// are aborted, also those that the firmware's tables allowed. So a device that the firmware left active, as the
    /// one that fetches a picture from memory, stops working until its stream is assigned.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: it cannot be used. It then aborts all transactions, if it took as much as that, until
    /// [`bypass`](super::bypass()).
    pub fn start(hw: H, at: &machine::Smmu) -> Result<Smmu<H>, SmmuError> {
        let Parts { facts, queue, table, faults } = bringup::start(&hw, at)?;
        let core = Lock::new(Rank::Smmu, Core { table, queue, uncertain: false });
        Ok(Smmu { facts, core, faults })
    }

    /// What the SMMU can do.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Lets streams reach what `view` maps, and nothing else. Until it returns, they may reach what they reached
    /// before, nothing, or the view.
    ///
    /// It takes a leaf of the stream table (4 KiB with up to 18 stream bits, 64 KiB at most) for each end of the range that
    /// is within a leaf, one for the leaves between, and one for each leaf that the range shares with other streams.
    ///
    /// # Errors
    ///
    /// [`SmmuError::BadStream`] (also of an empty range), [`SmmuError::BadVmid`], [`SmmuError::BadView`],
    /// [`SmmuError::OutOfMemory`] and [`SmmuError::Unreachable`]: nothing has changed. After others, the streams may
    /// reach both what they reached before and the view, until a later call of `assign` or `block` for them succeeds.
    /// Neither may be freed until then.
    pub fn assign(&self, streams: RangeInclusive<StreamId>, view: &View) -> Result<(), SmmuError> {
        let translation = Translation::new(view, &self.facts)?;
        let mut core = self.core.lock();
        core.begin(&self.faults, &streams)?;
        let change = core.table.plan(&streams, translation)?;
        if let Err(error) = core.silence(&self.faults, &streams, Then::Enable) {
            core.table.cancel(change);
            return Err(error);
        }
        core.table.prepare(&change);
        // Entries that the VMID's earlier owner has left in the TLB (5.2.1). Nothing of this view is in it yet.
        core.apply(&self.faults, &streams, Some(Command::tlbi_s12_vmall(view.vmid)))?;
        core.table.free_unused();
        core.table.enable(&change);
        let applied = core.apply(&self.faults, &streams, None);
        if applied.is_err() {
            core.table.disable(&change);
        }
        applied
    }

    /// Lets streams reach nothing. When it returns, all their transactions that an old view let pass are complete.
    ///
    /// # Errors
    ///
    /// As for [`assign`](Self::assign). Memory is only needed if some, but not all of the streams are blocked that were
    /// assigned together.
    pub fn block(&self, streams: RangeInclusive<StreamId>) -> Result<(), SmmuError> {
        let mut core = self.core.lock();
        core.begin(&self.faults, &streams)?;
        core.silence(&self.faults, &streams, Then::Stay)?;
        if core.table.settle(&streams) {
            core.apply(&self.faults, &streams, None)?;
            core.table.free_unused();
        }
        Ok(())
    }

    /// Invalidates all translations of a VMID. When it returns, no transaction uses them any more. Before the tables of
    /// a view are freed, its streams are blocked, and then this is called.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: translations may still be used.
    pub fn invalidate_all(&self, vmid: VmId) -> Result<(), SmmuError> {
        self.invalidate_by([Command::tlbi_s12_vmall(vmid)])
    }

    /// Invalidates the translations of `size` bytes from `ipa` on, in whole pages. When it returns, no transaction uses
    /// them any more.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: translations may still be used.
    pub fn invalidate(&self, vmid: VmId, ipa: Ipa, size: u64) -> Result<(), SmmuError> {
        self.invalidate_by(range::tlb_commands(vmid, ipa, size, self.facts.range_invalidation))
    }

    fn invalidate_by(&self, commands: impl IntoIterator<Item = Command>) -> Result<(), SmmuError> {
        let mut core = self.core.lock();
        core.recover(&self.faults)?;
        core.run(&self.faults, commands)
    }

    /// Takes the oldest event from the queue. It does not wait.
    pub fn next_event(&self) -> Option<Event> {
        self.faults.lock().next_event()
    }

    /// Takes the errors that have occurred since the last call. It does not wait: if an operation on another CPU is
    /// under way, that one takes a command error.
    pub fn take_errors(&self) -> Errors {
        if let Some(mut core) = self.core.try_lock()
            && !core.queue.is_dead()
            && core.queue.is_refused()
        {
            core.queue.take_back(&self.faults);
            core.uncertain = true;
        }
        self.faults.lock().take_errors()
    }
}

impl<H: Hw> Core<H> {
    /// Before an operation on streams: whether they are in the table, and nothing of earlier ones is left.
    fn begin(&mut self, faults: &Lock<Faults<H>>, streams: &RangeInclusive<StreamId>) -> Result<(), SmmuError> {
        self.table.check(streams)?;
        self.recover(faults)
    }

    /// If an operation has failed, makes the SMMU forget all that it has cached.
    fn recover(&mut self, faults: &Lock<Faults<H>>) -> Result<(), SmmuError> {
        if self.uncertain {
            // Not in one go: until the first is complete, an old entry may fill the TLB again (4.3.6).
            self.run(faults, [Command::cfgi_all()])?;
            self.run(faults, [Command::tlbi_nsnh_all()])?;
            self.uncertain = false;
            self.table.free_unused();
        }
        Ok(())
    }

    /// Lets streams reach nothing. Their leaves then serve no other streams, those that a change needs included.
    fn silence(
        &mut self,
        faults: &Lock<Faults<H>>,
        streams: &RangeInclusive<StreamId>,
        then: Then,
    ) -> Result<(), SmmuError> {
        let copied = self.table.separate(streams, then)?;
        if self.table.abort(streams) || copied { self.apply(faults, streams, None) } else { Ok(()) }
    }

    /// Makes changes of the table for these streams take effect, then executes another command.
    fn apply(
        &mut self,
        faults: &Lock<Faults<H>>,
        streams: &RangeInclusive<StreamId>,
        then: Option<Command>,
    ) -> Result<(), SmmuError> {
        let affected = self.table.affected(streams);
        self.run(faults, range::configuration_commands(&affected).chain(then))
    }

    fn run(&mut self, faults: &Lock<Faults<H>>, commands: impl IntoIterator<Item = Command>) -> Result<(), SmmuError> {
        let done = self.queue.run(faults, commands);
        self.uncertain |= done.is_err();
        done
    }
}
