//! The command ring of one ITS (IHI 0069, 5.2.3 and 12.19.1 to 12.19.3).
//!
//! Positions are counted from the day the ring was started and never wrap: a position names one command for
//! ever, and "has it been consumed" is a comparison. GITS_CREADR only gives a position modulo the ring's size.
//! [`Queue::consumed`] unfolds it below what had been posted before the register was read, which yields a lower
//! bound when other CPUs have run ahead meanwhile; a lower bound never claims a completion too early, and no
//! value that the register may have claims one that was not asked for.
//!
//! The lock covers the ring's contents and GITS_CWRITER. Waiting for completion is done without it.
//! Every wait has a deadline. A missed one is an error to the caller and not yet the end of the ITS; an ITS
//! that has stalled and does not recover from one retry, or has made no progress for [`DEAD_AFTER_US`], is
//! declared dead: it is disabled, its commands are refused from then on, one line is logged.

use super::command::Command;
use super::regs::{GITS_CREADR, GITS_CTLR, GITS_CWRITER, gits};
use crate::gic::command_kind::Kind;
use crate::gic::counters::Counters;
use crate::gic::error::ItsError;
use crate::ids::{ItsId, Pa};
use crate::mmio::{Coherence, Hw};
use crate::sync::{Lock, Rank};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tock_registers::LocalRegisterCopy;

/// Bytes of the ring; also its alignment, which CBASER wants.
pub const RING_SIZE: u64 = 0x1_0000;
const SLOTS: u64 = RING_SIZE / Command::SIZE;
/// One slot stays free, so that a full ring is not an empty one.
const ROOM: u64 = SLOTS - 1;

/// How long a caller waits for commands that change a mapping.
pub const COMMAND_LIMIT_US: u64 = 100_000;
/// How long an ITS may stand still with work to do before it is given up.
pub const DEAD_AFTER_US: u64 = 1_000_000;
/// How long a retry after a stall may take to show progress, and a dead ITS to become quiescent.
const RETRY_LIMIT_US: u64 = 1_000;

/// That every command up to some position has been consumed and, where it ends in SYNC or VSYNC, taken effect.
///
/// Only a wait makes one. What frees memory that a table pointed at asks for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Synced(());

/// A position in a ring: just behind the commands that were posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What the lock covers.
struct Ring {
    base: Pa,
    coherence: Coherence,
    /// Position behind the last command written.
    produced: u64,
}

/// The ring and what is known about its consumer.
pub struct Queue<H> {
    hw: H,
    id: ItsId,
    its: Pa,
    ring: Lock<Ring>,
    /// Position behind the last command that the ITS has been told of.
    posted: AtomicU64,
    /// Position behind the last command known to be consumed.
    consumed: AtomicU64,
    dead: AtomicBool,
    /// Where the ring last stood still at a deadline (plus one; 0: nowhere), and since when.
    stuck_at: AtomicU64,
    stuck_since: AtomicU64,
    /// It stands before a VMOVP that several ITSs have to come to, and has for too long. Which of them is to blame
    /// cannot be told from here.
    waits_for_other_itss: AtomicBool,
}

impl<H: Hw> Queue<H> {
    /// A ring in zeroed memory that GITS_CBASER points at already; GITS_CREADR is 0.
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

    /// Whether this ITS has been given up.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Writes commands into the ring and lets the ITS see them. Waits, within bounds, while the ring is full.
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
            // A retry that gets no further is the end of the ITS, so this ends.
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

    /// Gets a stalled queue going again, if anything does. `true` if it was stalled.
    pub fn retry_stalled(&self, counters: &Counters) -> bool {
        if self.is_dead() || !self.stalled() {
            return false;
        }
        let ring = self.ring.lock();
        let before = self.consumed();
        before < ring.produced && (self.stalled_for_good(counters, &ring) || self.consumed() > before)
    }

    /// Behind everything that has been posted so far, by anybody.
    pub fn latest(&self) -> Ticket {
        Ticket(self.posted.load(Ordering::Acquire))
    }

    /// Whether everything up to `ticket` has been consumed; does not wait.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.consumed.load(Ordering::Acquire) >= ticket.0 || self.consumed() >= ticket.0
    }

    /// The position up to which the ITS has consumed, or an earlier one.
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

    /// Deals with a stall: one retry; when that does not help the ITS is dead. `true` when it is.
    ///
    /// STALLED may stay set after a recovery (QEMU clears it only with CBASER), so progress decides, not the bit.
    fn stalled_for_good(&self, counters: &Counters, ring: &Ring) -> bool {
        if !self.stalled() {
            return false;
        }
        let at = self.consumed();
        if at >= ring.produced {
            return false;
        }
        // Another CPU may have tried while this one waited for the ring, and given the ITS up.
        if !self.is_dead() {
            counters.stalls.bump();
            log::error!(
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

    /// A deadline was missed: says so, and gives the ITS up when it has stood still for too long.
    fn deadline_missed(&self, counters: &Counters, wanted: u64, ring: &Ring) {
        counters.timeouts.bump();
        let at = self.consumed();
        if at >= ring.produced {
            return;
        }
        let now = self.hw.now_us();
        if self.stuck_at.swap(at + 1, Ordering::AcqRel) != at + 1 {
            self.stuck_since.store(now, Ordering::Release);
            log::error!(
                "{}: no completion in time: waited for command {wanted}, stands before {at} of {}: {}",
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

    // ---- getting ITSs on that wait for one another (ITSList mode); see v4/mend.rs ---------------------------

    /// Whether it stands before a VMOVP for several ITSs, and has for too long.
    pub fn waits_for_other_itss(&self) -> bool {
        self.waits_for_other_itss.load(Ordering::Acquire) && !self.is_dead()
    }

    /// Gives the ITS up.
    pub fn mark_dead(&self, counters: &Counters) {
        let ring = self.ring.lock();
        self.declare_dead(counters, &ring, "alone with a VMOVP and does not get on");
    }

    fn set_enabled(&self, enabled: bool) {
        let at = self.its.add(gits::CTLR);
        let mut ctlr = LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(self.hw.read32(at));
        ctlr.modify(GITS_CTLR::ENABLED.val(u32::from(enabled)));
        self.hw.write32(at, ctlr.get());
    }

    /// Stops the ITS. `false`: it does not become quiescent.
    pub fn disable(&self) -> bool {
        self.set_enabled(false);
        let at = self.its.add(gits::CTLR);
        let ctlr = || LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(self.hw.read32(at));
        self.hw.wait(RETRY_LIMIT_US, || ctlr().is_set(GITS_CTLR::QUIESCENT))
    }

    /// While the ITS is stopped: each VMOVP that it has still to consume becomes one for itself alone.
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

    /// Starts the ITS again where it stood.
    pub fn enable(&self) {
        let ring = self.ring.lock();
        self.waits_for_other_itss.store(false, Ordering::Release);
        self.set_enabled(true);
        self.hw.write64(self.its.add(gits::CWRITER), GITS_CWRITER::SLOT.val(ring.produced % SLOTS).value);
    }

    /// Gives the ITS up. It is disabled, so that what it has not consumed by now it never will.
    fn declare_dead(&self, counters: &Counters, ring: &Ring, how: &str) {
        if self.dead.swap(true, Ordering::AcqRel) {
            return;
        }
        counters.dead_itss.bump();
        let ctlr = self.its.add(gits::CTLR);
        let value = LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(self.hw.read32(ctlr));
        let mut off = value;
        off.modify(GITS_CTLR::ENABLED::CLEAR);
        self.hw.write32(ctlr, off.get());
        let quiet = self.hw.wait(RETRY_LIMIT_US, || {
            LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(self.hw.read32(ctlr)).is_set(GITS_CTLR::QUIESCENT)
        });
        let at = self.consumed();
        log::error!(
            "{}: dead ({how}) before command {at} of {}: {}; its interrupts are lost, its memory stays with it{}",
            self.id,
            ring.produced,
            if at < ring.produced { self.command_at(ring, at) } else { "none" },
            if quiet { "" } else { "; it does not even become quiescent" },
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
