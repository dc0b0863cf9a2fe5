//! The command queue of one ITS (IHI 0069, 5.2.3 and 12.19.1 to 12.19.3).
//!
//! Positions count all commands since the queue was started and never wrap, so a position names one command for ever,
//! and whether it has been consumed is a comparison. GITS_CREADR gives a position modulo the size of the ring.
//! [`Queue::consumed`] extends it to the largest position that is not above what had been posted before the register
//! was read. If other CPUs post meanwhile, this is a lower bound, which never reports a completion too early. No value
//! of the register reports the completion of a command that was not posted.
//!
//! The lock protects the contents of the ring and GITS_CWRITER. Waiting for completion does not take it. Every wait has
//! a deadline. A missed deadline is an error for the caller, but the ITS stays in use. An ITS that has stalled and does
//! not recover after one retry, or that has made no progress for [`DEAD_AFTER_US`], is declared dead: it is disabled,
//! commands for it are refused from then on, and one line is logged.

use super::command::Command;
use super::control;
use super::regs::{GITS_CREADR, GITS_CWRITER, gits};
use crate::gic::command_kind::Kind;
use crate::gic::counters::Counters;
use crate::gic::error::ItsError;
use crate::ids::{ItsId, Pa};
use crate::log_limited;
use crate::mmio::{Coherence, Hw};
use crate::sync::{Lock, Rank};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tock_registers::LocalRegisterCopy;

/// Size of the ring in bytes, and its alignment.
pub const RING_SIZE: u64 = 0x1_0000;
const SLOTS: u64 = RING_SIZE / Command::SIZE;
/// One slot stays free, so that a full ring can be told from an empty one.
const ROOM: u64 = SLOTS - 1;

/// How long a caller waits for the completion of commands, or for room in the queue.
pub const COMMAND_LIMIT_US: u64 = 100_000;
/// How long an ITS may make no progress with commands to consume before it is declared dead.
pub const DEAD_AFTER_US: u64 = 1_000_000;
/// How long an ITS may take to make progress after a retry, or to become quiescent when it is disabled.
const RETRY_LIMIT_US: u64 = 1_000;

/// Proof that every command up to some position has been consumed, and has taken effect if the last one is SYNC or
/// VSYNC.
///
/// Only a wait makes one. A function that frees memory which an ITS table pointed at takes it as an argument.
#[derive(Debug, PartialEq, Eq)]
pub struct Synced(());

/// A position in a queue: just after the commands that were posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What the lock protects.
struct Ring {
    base: Pa,
    coherence: Coherence,
    /// Position after the last command that was written.
    produced: u64,
}

/// The command queue, and what is known about the ITS that consumes it.
pub struct Queue<H> {
    hw: H,
    id: ItsId,
    its: Pa,
    ring: Lock<Ring>,
    /// Position after the last command that GITS_CWRITER has published.
    posted: AtomicU64,
    /// Position after the last command known to be consumed.
    consumed: AtomicU64,
    dead: AtomicBool,
    /// The position, plus one, at which the ITS was found at the last missed deadline (0: none), and since when.
    stuck_at: AtomicU64,
    stuck_since: AtomicU64,
    /// It has been waiting for too long at a VMOVP that several ITSs execute together. Which of them is at fault is not
    /// known.
    waits_for_other_itss: AtomicBool,
}

impl<H: Hw> Queue<H> {
    /// A queue in zeroed memory that GITS_CBASER points at already. GITS_CREADR is 0.
    pub fn new(hw: H, id: ItsId, its: Pa, base: Pa, coherence: Coherence) -> Self {
        Queue {
            hw,
            id,
            its,
            ring: Lock::new(Rank::ItsQueue, Ring { base, coherence, produced: 0 }),
            posted: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            stuck_at: AtomicU64::new(0),
            stuck_since: AtomicU64::new(0),
            waits_for_other_itss: AtomicBool::new(false),
        }
    }

    /// Whether this ITS has been declared dead.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Writes commands into the ring and publishes them with GITS_CWRITER. While the ring is full it waits, up to a
    /// deadline.
    pub fn post(&self, counters: &Counters, commands: &[Command]) -> Result<Ticket, ItsError> {
        debug_assert!(commands.len() as u64 <= ROOM, "more commands than the ring holds");
        let mut ring = self.ring.lock();
        if self.is_dead() {
            return Err(ItsError::Dead);
        }
        let end = ring.produced + commands.len() as u64;
        if end - self.consumed.load(Ordering::Acquire) > ROOM {
            let mut room = || end - self.consumed() <= ROOM || self.is_dead() || self.stalled_for_good(counters, &ring);
            if !self.hw.wait(COMMAND_LIMIT_US, &mut room) {
                self.deadline_missed(counters, ring.produced, &ring);
                return Err(if self.is_dead() { ItsError::Dead } else { ItsError::Timeout });
            }
            if self.is_dead() {
                return Err(ItsError::Dead);
            }
        }
        for (position, command) in (ring.produced..end).zip(commands) {
            self.store(&ring, position, *command);
            if let Some(kind) = command.kind() {
                counters.command(kind);
            }
        }
        let first = ring.produced % SLOTS;
        let head = (commands.len() as u64).min(SLOTS - first);
        self.publish(&ring, first, head);
        self.publish(&ring, 0, commands.len() as u64 - head);
        ring.produced = end;
        self.hw.write64(self.its.add(gits::CWRITER), GITS_CWRITER::SLOT.val(end % SLOTS).value);
        self.posted.store(end, Ordering::Release);
        Ok(Ticket(end))
    }

    fn publish(&self, ring: &Ring, first: u64, slots: u64) {
        if slots > 0 {
            let bytes = (slots * Command::SIZE) as usize;
            self.hw.publish(ring.base.add(first * Command::SIZE), bytes, ring.coherence);
        }
    }

    /// Waits until the ITS has consumed everything up to `ticket`.
    pub fn wait(&self, counters: &Counters, ticket: Ticket, limit_us: u64) -> Result<Synced, ItsError> {
        loop {
            let mut stalled = false;
            let in_time = self.hw.wait(limit_us, || {
                stalled = self.stalled();
                self.consumed() >= ticket.0 || stalled || self.is_dead()
            });
            if self.is_done(ticket) {
                return Ok(Synced(()));
            }
            if self.is_dead() {
                return Err(ItsError::Dead);
            }
            let ring = self.ring.lock();
            // This ends: a retry without progress declares the ITS dead.
            if stalled && in_time && !self.stalled_for_good(counters, &ring) {
                continue;
            }
            if !self.is_dead() {
                self.deadline_missed(counters, ticket.0, &ring);
            }
            return match (self.is_done(ticket), self.is_dead()) {
                (true, _) => Ok(Synced(())),
                (false, true) => Err(ItsError::Dead),
                (false, false) => Err(ItsError::Timeout),
            };
        }
    }

    /// Retries a queue that has stalled. `true` if it had, whether it makes progress now or has been declared dead.
    pub fn retry_stalled(&self, counters: &Counters) -> bool {
        if self.is_dead() || !self.stalled() {
            return false;
        }
        let ring = self.ring.lock();
        let before = self.consumed();
        before < ring.produced && (self.stalled_for_good(counters, &ring) || self.consumed() > before)
    }

    /// The position after all commands that any CPU has posted so far.
    pub fn latest(&self) -> Ticket {
        Ticket(self.posted.load(Ordering::Acquire))
    }

    /// Whether every command up to `ticket` has been consumed. It does not wait.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.consumed.load(Ordering::Acquire) >= ticket.0 || self.consumed() >= ticket.0
    }

    /// A lower bound of the position up to which the ITS has consumed commands.
    fn consumed(&self) -> u64 {
        let posted = self.posted.load(Ordering::Acquire);
        let slot = self.creadr().read(GITS_CREADR::SLOT);
        let behind = (posted % SLOTS + SLOTS - slot % SLOTS) % SLOTS;
        let now = posted.saturating_sub(behind);
        self.consumed.fetch_max(now, Ordering::AcqRel).max(now)
    }

    fn creadr(&self) -> LocalRegisterCopy<u64, GITS_CREADR::Register> {
        LocalRegisterCopy::new(self.hw.read64(self.its.add(gits::CREADR)))
    }

    fn stalled(&self) -> bool {
        self.creadr().is_set(GITS_CREADR::STALLED)
    }

    /// Handles a stall: retries once, and declares the ITS dead if it makes no progress. `true` if it is dead.
    ///
    /// Progress decides, not the bit: STALLED may stay set after a recovery (QEMU clears it only when CBASER is
    /// written).
    fn stalled_for_good(&self, counters: &Counters, ring: &Ring) -> bool {
        if !self.stalled() {
            return false;
        }
        let at = self.consumed();
        if at >= ring.produced {
            return false;
        }
        // While this CPU waited for the lock, another one may have retried and declared the ITS dead.
        if !self.is_dead() {
            counters.stalls.bump();
            log_limited!(Error;
                "{}: stalled at command {} of {}: {}; retrying once",
                self.id,
                at,
                ring.produced,
                self.command_at(ring, at)
            );
            let retry = GITS_CWRITER::SLOT.val(ring.produced % SLOTS) + GITS_CWRITER::RETRY::SET;
            self.hw.write64(self.its.add(gits::CWRITER), retry.value);
            if self.hw.wait(RETRY_LIMIT_US, || self.consumed() > at) {
                return false;
            }
        }
        self.declare_dead(counters, ring, "stalled");
        true
    }

    /// Logs that a deadline was missed, and declares the ITS dead if it has made no progress for too long.
    fn deadline_missed(&self, counters: &Counters, wanted: u64, ring: &Ring) {
        counters.timeouts.bump();
        let at = self.consumed();
        if at >= ring.produced {
            return;
        }
        let now = self.hw.now_us();
        if self.stuck_at.swap(at + 1, Ordering::AcqRel) != at + 1 {
            self.stuck_since.store(now, Ordering::Release);
            log_limited!(Error;
                "{}: timed out waiting for command {wanted}: stopped before command {at} of {}: {}",
                self.id,
                ring.produced,
                self.command_at(ring, at)
            );
        } else if now.saturating_sub(self.stuck_since.load(Ordering::Acquire)) > DEAD_AFTER_US {
            if self.load(ring, at).vmovp_list().is_some() {
                self.waits_for_other_itss.store(true, Ordering::Release);
            } else {
                self.declare_dead(counters, ring, "stuck");
            }
        }
    }

    // ---- recovery of ITSs that wait for one another (ITSList mode): used by v4/vmovp_recovery --------------

    /// Whether the ITS has been waiting for too long at a VMOVP that several ITSs execute together.
    pub fn waits_for_other_itss(&self) -> bool {
        self.waits_for_other_itss.load(Ordering::Acquire) && !self.is_dead()
    }

    /// Declares the ITS dead.
    pub fn mark_dead(&self, counters: &Counters) {
        let ring = self.ring.lock();
        self.declare_dead(counters, &ring, "no progress even without the other ITSs");
    }

    /// Disables the ITS. `false`: it does not become quiescent.
    pub fn disable(&self) -> bool {
        control::stop(&self.hw, self.its, RETRY_LIMIT_US)
    }

    /// Rewrites each VMOVP that is still to be consumed so that it names this ITS alone. The ITS is disabled.
    pub fn unlist_vmovps(&self, its_number: u8) {
        let ring = self.ring.lock();
        for position in self.consumed()..ring.produced {
            let command = self.load(&ring, position);
            if command.vmovp_list().is_some() {
                self.store(&ring, position, command.for_one_its(its_number));
                self.publish(&ring, position % SLOTS, 1);
            }
        }
    }

    /// Enables the ITS again. It continues where it was disabled.
    pub fn enable(&self) {
        let ring = self.ring.lock();
        self.waits_for_other_itss.store(false, Ordering::Release);
        // An ITS that waited at a VMOVP uses virtual LPIs.
        control::start(&self.hw, self.its, true);
        self.hw.write64(self.its.add(gits::CWRITER), GITS_CWRITER::SLOT.val(ring.produced % SLOTS).value);
    }

    /// Declares the ITS dead and disables it, so that it consumes no more commands.
    fn declare_dead(&self, counters: &Counters, ring: &Ring, how: &str) {
        if self.dead.swap(true, Ordering::AcqRel) {
            return;
        }
        counters.dead_itss.bump();
        let quiet = control::stop(&self.hw, self.its, RETRY_LIMIT_US);
        let at = self.consumed();
        log::error!(
            "{}: dead ({how}) before command {at} of {}: {}; its interrupts are lost and its memory is not reused{}",
            self.id,
            ring.produced,
            if at < ring.produced { self.command_at(ring, at) } else { "none" },
            if quiet { "" } else { "; it does not become quiescent" },
        );
    }

    fn store(&self, ring: &Ring, position: u64, command: Command) {
        let slot = ring.base.add(position % SLOTS * Command::SIZE);
        for (at, word) in (0..).step_by(8).zip(command.words()) {
            self.hw.store64(slot.add(at), word);
        }
    }

    fn load(&self, ring: &Ring, position: u64) -> Command {
        let slot = ring.base.add(position % SLOTS * Command::SIZE);
        let word = |n: u64| self.hw.load64(slot.add(8 * n));
        Command::from_words([word(0), word(1), word(2), word(3)])
    }

    fn command_at(&self, ring: &Ring, position: u64) -> &'static str {
        self.load(ring, position).kind().map_or("unknown", Kind::name)
    }
}
