//! Things that go wrong on demand.
//!
//! A fault stays until it has happened (single commands) or until [`Machine::heal`](crate::Machine::heal).

use crate::machine::State;

/// What happens to one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// The ITS stops there with GITS_CREADR.Stalled set, once. It goes on after a retry.
    Stall,
    /// It never completes.
    Hang,
    /// It completes this much later.
    Late {
        /// Microseconds.
        us: u64,
    },
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Something happens to a command of an ITS.
    Command {
        /// Which ITS.
        its: usize,
        /// Which command from now on, counted as it is consumed; 1 is the next.
        nth: usize,
        /// What happens.
        fault: CommandFault,
    },
    /// The ITS consumes nothing any more.
    Deaf {
        /// Which ITS.
        its: usize,
    },
    /// The ITS goes deaf when it comes to a VMOVP.
    DeafAtVmovp {
        /// Which ITS.
        its: usize,
    },
    /// GITS_CREADR always reads as one behind a full queue.
    QueueLooksFull {
        /// Which ITS.
        its: usize,
    },
    /// GITS_CTLR.Quiescent stays 0.
    NeverQuiescent {
        /// Which ITS.
        its: usize,
    },
    /// The next command that writes a device, collection or vPE table stalls the ITS.
    TableWriteFails {
        /// Which ITS.
        its: usize,
    },
    /// GICR_VPENDBASER.Dirty, once set, stays 1.
    DirtyStuck {
        /// On which CPU.
        cpu: usize,
    },
    /// GICR_SYNCR.Busy, once set, stays 1.
    BusyStuck {
        /// On which CPU.
        cpu: usize,
    },
    /// Only this many more allocations succeed.
    OutOfMemory {
        /// How many.
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
            Fault::Deaf { its } => self.its[its].deaf = true,
            Fault::DeafAtVmovp { its } => self.its[its].deaf_at_vmovp = true,
            Fault::QueueLooksFull { its } => self.its[its].looks_full = true,
            Fault::NeverQuiescent { its } => self.its[its].never_quiescent = true,
            Fault::TableWriteFails { its } => self.its[its].table_write_fails = true,
            Fault::DirtyStuck { cpu } => self.rds[cpu].dirty_stuck = true,
            Fault::BusyStuck { cpu } => self.rds[cpu].busy_stuck = true,
            Fault::OutOfMemory { after } => self.mem.allowance = Some(after),
        }
    }

    pub(crate) fn heal(&mut self) {
        for i in &mut self.its {
            i.plan.clear();
            i.late_until = 0;
            i.deaf = false;
            i.deaf_at_vmovp = false;
            i.looks_full = false;
            i.never_quiescent = false;
            i.table_write_fails = false;
        }
        for r in &mut self.rds {
            r.dirty_stuck = false;
            r.busy_stuck = false;
        }
        self.mem.allowance = None;
    }
}
