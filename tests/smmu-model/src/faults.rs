//! Faults that tests inject.
//!
//! A fault that happens once stays armed until it has happened. All others stay until
//! [`Machine::heal`](crate::Machine::heal). What has been recorded because of one stays recorded, and a failed SMMU stays
//! failed.

use crate::machine::State;
use crate::regs::SFM_ERR;

/// A fault of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// The SMMU rejects the command once, with CERROR_ILL. It executes it after the error has been acknowledged.
    Illegal,
    /// The fetch of the command is aborted once, with CERROR_ABT.
    Abort,
    /// The command is never consumed.
    Hang,
    /// The command is consumed late.
    Late {
        /// The delay in microseconds.
        us: u64,
    },
}

/// A fault of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A command fails.
    Command {
        /// Number of the command, counted in the order of consumption from the next one, which is 1.
        nth: usize,
        /// The fault.
        fault: CommandFault,
    },
    /// No commands are consumed.
    QueueStops,
    /// No commands are consumed for a time.
    QueueStopsFor {
        /// The time in microseconds.
        us: u64,
    },
    /// Changes of some fields of SMMU_CR0 are never acknowledged.
    Cr0Stuck {
        /// The fields.
        fields: u32,
    },
    /// SMMU_GBPA.Update stays 1.
    GbpaStuck,
    /// Changes of SMMU_IRQ_CTRL are never acknowledged.
    IrqCtrlStuck,
    /// The next event finds the event queue full.
    EventOverflow,
    /// The next write to the event queue is aborted.
    EventWriteAborts,
    /// The next fetch of an STE is aborted.
    SteFetchAborts,
    /// The next fetch of a stage 2 descriptor is aborted.
    WalkAborts,
    /// The next translation by stage 2 finds two entries in the TLB.
    TlbConflict,
    /// The SMMU enters service failure mode.
    ServiceFailure,
    /// Allocations fail after some more have succeeded.
    OutOfMemory {
        /// Number of allocations that succeed.
        after: u64,
    },
}

/// The faults that are armed.
#[derive(Default)]
pub(crate) struct Armed {
    pub(crate) queue_stopped: Option<u64>,
    pub(crate) cr0_stuck: u32,
    pub(crate) gbpa_stuck: bool,
    pub(crate) irq_stuck: bool,
    pub(crate) event_overflow: bool,
    pub(crate) event_write_aborts: bool,
    pub(crate) ste_fetch_aborts: bool,
    pub(crate) walk_aborts: bool,
    pub(crate) tlb_conflict: bool,
}

impl State {
    pub(crate) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Command { nth, fault } => {
                let c = &mut self.commands;
                c.plan.insert(c.history.len() + nth.max(1) - 1, fault);
            }
            Fault::QueueStops => self.faults.queue_stopped = Some(u64::MAX),
            Fault::QueueStopsFor { us } => self.faults.queue_stopped = Some(self.now + us * 1000),
            Fault::Cr0Stuck { fields } => self.faults.cr0_stuck = fields,
            Fault::GbpaStuck => self.faults.gbpa_stuck = true,
            Fault::IrqCtrlStuck => self.faults.irq_stuck = true,
            Fault::EventOverflow => self.faults.event_overflow = true,
            Fault::EventWriteAborts => self.faults.event_write_aborts = true,
            Fault::SteFetchAborts => self.faults.ste_fetch_aborts = true,
            Fault::WalkAborts => self.faults.walk_aborts = true,
            Fault::TlbConflict => self.faults.tlb_conflict = true,
            Fault::ServiceFailure => self.raise(SFM_ERR),
            Fault::OutOfMemory { after } => self.mem.allowance = Some(after),
        }
    }

    pub(crate) fn heal(&mut self) {
        self.faults = Armed::default();
        self.commands.plan.clear();
        self.mem.allowance = None;
    }
}
