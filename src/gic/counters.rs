//! Event counters of the GIC driver, for debug keys, benchmarks and tests.

use super::command_kind::Kind;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// A counter. Its accesses are relaxed: it orders no other access.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds 1.
    #[inline]
    pub fn bump(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All opcodes are below this.
const OPCODES: usize = 0x30;

/// All counters of one GIC.
pub struct Counters {
    commands: [Counter; OPCODES],
    /// Moves of vPEs between redistributors.
    pub vmovp: Counter,
    /// Times that a vPE was made resident.
    pub enters: Counter,
    /// Times that a vPE left because its vCPU was preempted.
    pub leaves_preempt: Counter,
    /// Times that a vPE left because its vCPU blocked.
    pub leaves_block: Counter,
    /// Times that a vPE left, for either reason, with PendingLast set.
    pub pending_last: Counter,
    /// Doorbells taken.
    pub doorbells: Counter,
    /// Waits for an ITS that missed their deadline.
    pub timeouts: Counter,
    /// Waits for a redistributor that missed their deadline.
    pub redist_timeouts: Counter,
    /// Command queues found stalled.
    pub stalls: Counter,
    /// Times that ITSs which waited for one another at a VMOVP were recovered.
    pub vmovp_recoveries: Counter,
    /// ITSs declared dead.
    pub dead_itss: Counter,
    /// Bytes of memory that are never freed because the hardware may still use them.
    pub quarantined_bytes: Counter,
    /// Operations whose failure could not be reported to a caller, such as a batch that was dropped.
    pub batch_errors: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        Counters {
            commands: [const { Counter(AtomicU64::new(0)) }; OPCODES],
            vmovp: Counter::default(),
            enters: Counter::default(),
            leaves_preempt: Counter::default(),
            leaves_block: Counter::default(),
            pending_last: Counter::default(),
            doorbells: Counter::default(),
            timeouts: Counter::default(),
            redist_timeouts: Counter::default(),
            stalls: Counter::default(),
            vmovp_recoveries: Counter::default(),
            dead_itss: Counter::default(),
            quarantined_bytes: Counter::default(),
            batch_errors: Counter::default(),
        }
    }

    /// How many ITS commands of this kind were posted.
    #[must_use]
    pub fn commands(&self, kind: Kind) -> u64 {
        self.commands.get(kind as usize).map_or(0, Counter::get)
    }

    pub(super) fn command(&self, kind: Kind) {
        if let Some(c) = self.commands.get(kind as usize) {
            c.bump();
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "vPEs: {} entered, {} left to block, {} left preempted, {} with an interrupt pending, {} moved, {} doorbells",
            self.enters.get(),
            self.leaves_block.get(),
            self.leaves_preempt.get(),
            self.pending_last.get(),
            self.vmovp.get(),
            self.doorbells.get(),
        )?;
        write!(f, "ITS commands:")?;
        for kind in Kind::ALL {
            match self.commands(kind) {
                0 => {}
                n => write!(f, " {} {n}", kind.name())?,
            }
        }
        writeln!(f)?;
        write!(
            f,
            "faults: {} ITS timeouts, {} redistributor timeouts, {} stalls, {} dead ITSs, {} bytes quarantined, {} batch errors",
            self.timeouts.get(),
            self.redist_timeouts.get(),
            self.stalls.get(),
            self.dead_itss.get(),
            self.quarantined_bytes.get(),
            self.batch_errors.get(),
        )
    }
}

const _: () = assert!(Kind::Invdb as usize + 1 < OPCODES, "every opcode has a counter");
