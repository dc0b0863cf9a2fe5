//! The command queue (IHI 0070, 3.5 and 7.1).
//!
//! An index is a slot and, above it, a bit that changes each time around the ring, so all slots can be in use. Whoever
//! posts commands ends with CMD_SYNC and waits, up to a deadline, until the SMMU has consumed it: then all commands
//! before it are complete. So between two operations the queue is empty, unless a deadline was missed.
//!
//! The SMMU stops at a command that it refuses. What has not been consumed is then taken back: CMDQ_PROD may be set to
//! CMDQ_CONS while the error is active. An SMMU that makes no progress for [`DEAD_AFTER_US`] is declared dead: it is
//! disabled, which aborts all transactions (GBPA.ABORT stays set), and commands are refused from then on.

use super::command::Command;
use super::error::{Reason, SmmuError};
use super::faults::Faults;
use super::regs::{CMDQ_CONS, GERROR, smmu};
use super::ring::Ring;
use super::{LIMIT_US, control};
use crate::ids::Pa;
use crate::log_limited;
use crate::mmio::Hw;
use crate::sync::Lock;
use tock_registers::LocalRegisterCopy;

/// The largest ring that is used, as log2 of its entries: 4 KiB.
pub const MOST_BITS: u8 = 8;
/// How long an SMMU may make no progress with commands before it is declared dead.
pub const DEAD_AFTER_US: u64 = 1_000_000;

/// The command queue of one SMMU.
pub struct CommandQueue<H> {
    hw: H,
    base: Pa,
    ring: Ring,
    /// The index after the last command that was stored.
    produced: u32,
    /// The index after the last command that CMDQ_PROD has published.
    posted: u32,
    /// The index at which the SMMU was found at the last missed deadline, and since when.
    stuck: Option<(u32, u64)>,
    dead: bool,
}

impl<H: Hw> CommandQueue<H> {
    /// The queue of the SMMU at `base`, in memory that CMDQ_BASE points at, with CMDQ_PROD and CMDQ_CONS at 0.
    pub fn new(hw: H, base: Pa, ring: Ring) -> Self {
        CommandQueue { hw, base, ring, produced: 0, posted: 0, stuck: None, dead: false }
    }

    /// Whether the SMMU has been declared dead.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Executes commands, and waits until they are complete.
    ///
    /// # Errors
    ///
    /// [`SmmuError::Refused`], [`SmmuError::Timeout`] and [`SmmuError::Dead`]: any of the commands may not have been
    /// executed.
    pub fn run(
        &mut self,
        faults: &Lock<Faults<H>>,
        commands: impl IntoIterator<Item = Command>,
    ) -> Result<(), SmmuError> {
        if self.dead {
            return Err(SmmuError::Dead);
        }
        for command in commands.into_iter().chain([Command::sync()]) {
            if self.ring.between(self.consumed(), self.produced) >= self.ring.entries() {
                self.post();
                self.wait(faults, self.ring.entries().saturating_sub(1))?;
            }
            self.store(self.produced, command);
            self.produced = self.ring.next(self.produced);
        }
        self.post();
        self.wait(faults, 0)
    }

    /// Waits until no more than `most` commands are left.
    fn wait(&mut self, faults: &Lock<Faults<H>>, most: u32) -> Result<(), SmmuError> {
        let mut refused = false;
        let in_time = self.hw.wait(LIMIT_US, || {
            refused = self.is_refused();
            refused || self.ring.between(self.consumed(), self.posted) <= most
        });
        if refused {
            return Err(self.take_back(faults));
        }
        if !in_time {
            return Err(self.deadline_missed());
        }
        self.stuck = None;
        Ok(())
    }

    /// Whether the SMMU has stopped at a command that it refuses.
    pub fn is_refused(&self) -> bool {
        let read = |register| self.hw.read32(self.base.add(register));
        (read(smmu::GERROR) ^ read(smmu::GERRORN)) & GERROR::CMDQ_ERR::SET.value != 0
    }

    /// Takes back the command that the SMMU refuses and all after it, and lets the SMMU go on.
    pub fn take_back(&mut self, faults: &Lock<Faults<H>>) -> SmmuError {
        let cons = self.cons();
        let at = cons.read(CMDQ_CONS::RD) & self.ring.index_mask();
        let reason = Reason::new(cons.read(CMDQ_CONS::ERR) as u8);
        if self.ring.between(at, self.posted) > self.ring.entries() {
            return self.declare_dead("it reports an index of the command queue that was not posted");
        }
        let command = self.load(at);
        log_limited!(Error; "SMMU at {}: refused {command}: {reason}", self.base);
        (self.produced, self.posted) = (at, at);
        self.hw.write32(self.base.add(smmu::CMDQ_PROD), at);
        faults.lock().acknowledge_command(reason);
        SmmuError::Refused(command, reason)
    }

    /// Declares the SMMU dead if it has made no progress for too long.
    fn deadline_missed(&mut self) -> SmmuError {
        let (at, now) = (self.consumed(), self.hw.now_us());
        match self.stuck {
            Some((since_at, since)) if since_at == at => {
                if now.saturating_sub(since) > DEAD_AFTER_US {
                    return self.declare_dead("it executes no commands");
                }
            }
            _ => {
                self.stuck = Some((at, now));
                log_limited!(Error; "SMMU at {}: timed out before {}", self.base, self.load(at));
            }
        }
        SmmuError::Timeout
    }

    fn declare_dead(&mut self, why: &str) -> SmmuError {
        self.dead = true;
        let stopped = control::disable(&self.hw, self.base).is_ok();
        log_limited!(Error;
            "SMMU at {}: dead: {why}: {}",
            self.base,
            if stopped { "its devices reach no memory" } else { "and it cannot be disabled" }
        );
        SmmuError::Dead
    }

    /// Publishes the commands that were stored.
    fn post(&mut self) {
        if self.posted == self.produced {
            return;
        }
        let count = self.ring.between(self.posted, self.produced);
        let first = self.posted & self.ring.entries().wrapping_sub(1);
        let head = count.min(self.ring.entries().saturating_sub(first));
        self.publish(self.posted, head);
        self.publish(0, count.saturating_sub(head));
        self.posted = self.produced;
        self.hw.write32(self.base.add(smmu::CMDQ_PROD), self.produced);
    }

    fn publish(&self, first: u32, count: u32) {
        if count > 0 {
            let bytes = (count as usize).saturating_mul(Command::SIZE as usize);
            self.hw.publish(self.ring.at(first), bytes, self.ring.coherence);
        }
    }

    fn consumed(&self) -> u32 {
        self.cons().read(CMDQ_CONS::RD) & self.ring.index_mask()
    }

    fn cons(&self) -> LocalRegisterCopy<u32, CMDQ_CONS::Register> {
        LocalRegisterCopy::new(self.hw.read32(self.base.add(smmu::CMDQ_CONS)))
    }

    fn store(&self, index: u32, command: Command) {
        let slot = self.ring.at(index);
        let [first, second] = command.words();
        self.hw.store64(slot, first);
        self.hw.store64(slot.add(8), second);
    }

    fn load(&self, index: u32) -> Command {
        let slot = self.ring.at(index);
        Command::from_words([self.hw.load64(slot), self.hw.load64(slot.add(8))])
    }
}
