//! Hardware faults that tests inject.
//!
//! A fault of a single command stays armed until it has happened. All others stay until
//! [`Machine::heal`](crate::Machine::heal).

use crate::machine::State;

/// A fault of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// The ITS stalls at the command once, with GITS_CREADR.Stalled set. It continues after a retry.
    Stall,
    /// The command never completes.
    Hang,
    /// The command completes late.
    Late {
        /// The delay in microseconds.
        us: u64,
    },
}

/// A fault of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A command of an ITS fails.
    Command {
        /// Number of the ITS.
        its: usize,
        /// Number of the command, counted in the order of consumption from the next one, which is 1.
        nth: usize,
        /// The fault.
        fault: CommandFault,
    },
    /// The ITS consumes no more commands.
    Hung {
        /// Number of the ITS.
        its: usize,
    },
    /// The ITS consumes no more commands from its next VMOVP on.
    HangsAtVmovp {
        /// Number of the ITS.
        its: usize,
    },
    /// GITS_CREADR always reads as one command ahead of GITS_CWRITER, as if the queue were full.
    QueueLooksFull {
        /// Number of the ITS.
        its: usize,
    },
    /// GITS_CTLR.Quiescent stays 0.
    NeverQuiescent {
        /// Number of the ITS.
        its: usize,
    },
    /// The next command that writes a device, collection or vPE table stalls the ITS.
    TableWriteFails {
        /// Number of the ITS.
        its: usize,
    },
    /// DISCARD of an event that is a vLPI does not clear its pending state.
    DiscardKeepsPending {
        /// Number of the ITS.
        its: usize,
    },
    /// GICR_VPENDBASER.Dirty, once set, stays 1.
    DirtyStuck {
        /// Number of the CPU.
        cpu: usize,
    },
    /// GICR_SYNCR.Busy, once set, stays 1.
    BusyStuck {
        /// Number of the CPU.
        cpu: usize,
    },
    /// Allocations fail after some more have succeeded.
    OutOfMemory {
        /// Number of allocations that succeed.
        after: u64,
    },
}

impl State {
    pub(crate) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Command { its, nth, fault } => {
                let i = &mut self.its[its];
                i.plan.insert(i.history.len() + nth.max(1) - 1, fault);
            }
            Fault::Hung { its } => self.its[its].hung = true,
            Fault::HangsAtVmovp { its } => self.its[its].hangs_at_vmovp = true,
            Fault::QueueLooksFull { its } => self.its[its].looks_full = true,
            Fault::NeverQuiescent { its } => self.its[its].never_quiescent = true,
            Fault::TableWriteFails { its } => self.its[its].table_write_fails = true,
            Fault::DiscardKeepsPending { its } => self.its[its].discard_keeps_pending = true,
            Fault::DirtyStuck { cpu } => self.rds[cpu].dirty_stuck = true,
            Fault::BusyStuck { cpu } => self.rds[cpu].busy_stuck = true,
            Fault::OutOfMemory { after } => self.mem.allowance = Some(after),
        }
    }

    pub(crate) fn heal(&mut self) {
        for i in &mut self.its {
            i.plan.clear();
            i.late_until = 0;
            i.hung = false;
            i.hangs_at_vmovp = false;
            i.looks_full = false;
            i.never_quiescent = false;
            i.table_write_fails = false;
            i.discard_keeps_pending = false;
        }
        for r in &mut self.rds {
            r.dirty_stuck = false;
            r.busy_stuck = false;
        }
        self.mem.allowance = None;
    }
}
