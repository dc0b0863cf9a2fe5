//! VMOVP: taking a vPE from one redistributor to another.
//!
//! Where GITS_TYPER.VMOVP is 1, one ITS is told and tells the others. In ITSList mode every ITS that maps the vPE
//! gets the same command with the same sequence number and the list of all of them; all ITSs have to see all
//! such commands in one order (IHI 0069, 5.3.25). One lock covers taking the number and posting to all rings.
//!
//! A command that has been posted will be executed, however late, unless its ITS dies. So a move goes forward only:
//!
//! * Not posted anywhere: nothing happened, the vPE lives where it did.
//! * Posted on some rings only (one stayed full): it is finished before any other vPE's move is posted.
//! * Posted, completion not seen: the vPE is *moving*, and resident nowhere until the completion is seen.
//! * An ITS died: if it had consumed the move or not no longer matters, it translates nothing. It leaves the list.
//!
//! A vPE that moves because it is about to run can lose a doorbell that is ringing on the way. One that moves because
//! its CPU is taken out cannot: its virtual CPU may sleep, and nothing but that doorbell will wake it.

use super::doorbell::Ringing;
use super::residency::EnterError;
use super::vm::{Vpe, bit};
use super::{CHUNK, V4};
use crate::gic::its::{Command, Its, ItsError, Ticket};
use crate::gic::redist::Redist;
use crate::ids::{CpuId, ItsId, Lpi, VpeId};
use crate::mmio::Hw;
use arrayvec::ArrayVec;

/// How long a virtual CPU's switch may wait for its move.
const MOVE_LIMIT_US: u64 = 10_000;
const ITSS: usize = 16;

/// What has been posted about where a vPE lives, and was not seen to complete: a move, or in ITSList mode a map or unmap.
pub(super) struct Moving {
    to: CpuId,
    /// Where it has been posted: of each ITS the last position.
    tickets: ArrayVec<(u8, Ticket), ITSS>,
    /// Where it has yet to be posted (ITSList mode).
    missing: u16,
}

impl Moving {
    /// Nothing posted yet.
    pub fn new(to: CpuId) -> Self {
        Moving { to, tickets: ArrayVec::new(), missing: 0 }
    }

    /// Posted on an ITS: whatever it was told before comes before.
    pub fn add(&mut self, its: ItsId, ticket: Ticket) {
        match self.tickets.iter_mut().find(|(i, _)| *i == its.0) {
            Some((_, last)) => *last = ticket,
            None => self.tickets.push((its.0, ticket)),
        }
    }
}

/// What all moves share.
#[derive(Default)]
pub(super) struct Moves {
    sequence: u16,
    /// A broadcast that not all rings had room for; no other may overtake it.
    unfinished: Option<Broadcast>,
}

struct Broadcast {
    vpe: VpeId,
    to: CpuId,
    /// GICv4.1.
    default_doorbell: Option<Lpi>,
    sequence: u16,
    list: u16,
    missing: u16,
}

impl<H: Hw + Clone> V4<'_, H> {
    /// Makes a vPE live on `cpu`, completely. It is resident nowhere.
    #[cold]
    pub(super) fn bring(self, vpe: VpeId, v: &mut Vpe, cpu: CpuId, ringing: Ringing) -> Result<(), EnterError> {
        if v.moving.is_some() {
            self.finish_move(vpe, v)?;
        }
        if v.home == cpu {
            return Ok(());
        }
        self.start_move(vpe, v, cpu, ringing)?;
        self.finish_move(vpe, v)
    }

    /// Moves every vPE that lives on a CPU, or is on its way there, to another; how many. Stops at the first that
    /// cannot be moved, and says which. `from` is leaving: none can follow.
    pub(in crate::gic) fn evacuate(self, from: CpuId, to: CpuId) -> Result<u32, (VpeId, EnterError)> {
        // Whoever found `from` open while making a vPE has made it when this lock is free.
        drop(self.state.vms.lock());
        let mut moved = 0;
        for (n, chunk) in self.state.chunks.iter().enumerate() {
            for (m, slot) in chunk.get().into_iter().flatten().enumerate() {
                let vpe = VpeId((n * CHUNK + m) as u16);
                let mut guard = slot.vpe.lock();
                let Some(v) = guard.as_mut() else { continue };
                match self.evict(vpe, v, from, to) {
                    Ok(one) => moved += u32::from(one),
                    Err(e) => {
                        drop(guard);
                        self.mend();
                        return Err((vpe, e));
                    }
                }
            }
        }
        Ok(moved)
    }

    fn evict(self, vpe: VpeId, v: &mut Vpe, from: CpuId, to: CpuId) -> Result<bool, EnterError> {
        if v.unclean_on == Some(from) {
            self.settle(v)?;
        }
        if v.resident == Some(from) {
            return Err(EnterError::Elsewhere(from));
        }
        if v.moving.as_ref().is_some_and(|m| m.to == from || v.home == from) {
            self.finish_move(vpe, v)?;
        }
        if v.home != from {
            return Ok(false);
        }
        self.bring(vpe, v, to, Ringing::Keep)?;
        Ok(true)
    }

    /// Posts a move. After an error nothing has happened.
    fn start_move(self, vpe: VpeId, v: &mut Vpe, cpu: CpuId, ringing: Ringing) -> Result<(), EnterError> {
        debug_assert!(
            v.resident.is_none() && v.moving.is_none(),
            "{vpe} is resident or being moved, and moves to {cpu}"
        );
        let stays = EnterError::NotMoved { home: v.home };
        let to = self.gic.open(cpu).map_err(|_| EnterError::CpuOffline(cpu))?;
        let alive =
            self.itss().filter(|its| v.mapped & bit(its) != 0 && !its.queue.is_dead()).fold(0, |a, its| a | bit(its));
        let mut moving = Moving::new(cpu);
        let mut with_doorbell = false;
        if alive == 0 {
            if v.mapped != 0 {
                return Err(stays);
            }
            // Mapped nowhere: the first VMAPP will name the new home.
        } else if self.gic.facts.single_vmovp {
            let its = self.itss().find(|its| bit(its) & alive != 0).ok_or(stays)?;
            let mut commands: ArrayVec<Command, 6> =
                [self.vmovp(its, vpe, v, to), Command::vsync(vpe)].into_iter().collect();
            if let Some(doorbell) = self.doorbell_commands(its, v, to) {
                commands.extend(doorbell);
                with_doorbell = true;
            }
            moving.add(its.id, its.queue.post(&self.gic.counters, &commands).map_err(|_| stays)?);
        } else {
            let default_doorbell = self.gic.facts.v41.then_some(v.doorbell);
            self.broadcast(vpe, default_doorbell, to, alive, &mut moving).map_err(|_| stays)?;
        }
        self.gic.counters.vmovp.bump();
        if !with_doorbell {
            self.move_doorbell(v, to, ringing, &mut moving);
        }
        v.moving = Some(moving);
        Ok(())
    }

    fn vmovp(self, its: &Its<H>, vpe: VpeId, v: &Vpe, to: &Redist<H>) -> Command {
        let command = Command::vmovp(vpe, its.target(to));
        if self.gic.facts.v41 { command.with_default_doorbell(v.doorbell) } else { command }
    }

    /// One number, one list, all rings, under one lock. An error means that no ring has it.
    fn broadcast(
        self,
        vpe: VpeId,
        default_doorbell: Option<Lpi>,
        to: &Redist<H>,
        list: u16,
        moving: &mut Moving,
    ) -> Result<(), ItsError> {
        let mut moves = self.state.moves.lock();
        if let Some(mut earlier) = moves.unfinished.take() {
            self.post_missing(&mut earlier, |_, _| {});
            if earlier.missing != 0 {
                moves.unfinished = Some(earlier);
                return Err(ItsError::Timeout);
            }
        }
        moves.sequence = moves.sequence.wrapping_add(1);
        let mut all = Broadcast { vpe, to: to.cpu, default_doorbell, sequence: moves.sequence, list, missing: list };
        self.post_missing(&mut all, |its, ticket| moving.add(its, ticket));
        if all.missing == list {
            return Err(ItsError::Timeout);
        }
        moving.missing = all.missing;
        if all.missing != 0 {
            moves.unfinished = Some(all);
        }
        Ok(())
    }

    /// Posts a broadcast where it is missing, in ITS order; stops at the first ring that has no room. ITSs that have
    /// died are no longer missing.
    fn post_missing(self, all: &mut Broadcast, mut posted: impl FnMut(ItsId, Ticket)) {
        let Some(to) = self.gic.redists.get(all.to.index()) else { return };
        for its in self.itss() {
            if all.missing & bit(its) == 0 {
                continue;
            }
            let numbers = self.itss().filter(|i| all.list & bit(i) != 0).fold(0, |a, i| a | 1u16 << i.facts.number);
            let mut command = Command::vmovp_listed(all.vpe, its.target(to), all.sequence, numbers);
            if let Some(doorbell) = all.default_doorbell {
                command = command.with_default_doorbell(doorbell);
            }
            match its.queue.post(&self.gic.counters, &[command, Command::vsync(all.vpe)]) {
                Ok(ticket) => posted(its.id, ticket),
                Err(ItsError::Dead) => {}
                Err(_) => return,
            }
            all.missing &= !bit(its);
        }
    }

    /// Sees a move through: afterwards the vPE lives where it was moved to.
    #[cold]
    pub(super) fn finish_move(self, vpe: VpeId, v: &mut Vpe) -> Result<(), EnterError> {
        let Some(moving) = v.moving.as_mut() else { return Ok(()) };
        if moving.missing != 0 {
            self.catch_up(vpe, moving)?;
        }
        while let Some(&(its, ticket)) = moving.tickets.last() {
            match self.gic.its(ItsId(its)).and_then(|its| self.gic.wait(its, ticket, MOVE_LIMIT_US)) {
                Ok(_) => {
                    moving.tickets.pop();
                }
                // The first that it was posted on: it was to tell the others, and has not. They can be told by another.
                Err(ItsError::Dead) if self.gic.facts.single_vmovp && moving.tickets.len() == 1 => {
                    v.moving = None;
                    return Err(EnterError::NotMoved { home: v.home });
                }
                Err(ItsError::Dead | ItsError::NoSuchIts(_)) => {
                    moving.tickets.pop();
                }
                Err(_) => return Err(EnterError::Moving),
            }
        }
        v.home = moving.to;
        v.moving = None;
        Ok(())
    }

    /// The rest of a broadcast that not all rings had room for.
    fn catch_up(self, vpe: VpeId, moving: &mut Moving) -> Result<(), EnterError> {
        let mut moves = self.state.moves.lock();
        if let Some(mut rest) = moves.unfinished.take_if(|b| b.vpe == vpe) {
            self.post_missing(&mut rest, |its, ticket| moving.add(its, ticket));
            moving.missing = rest.missing;
            if rest.missing != 0 {
                moves.unfinished = Some(rest);
                return Err(EnterError::Moving);
            }
            return Ok(());
        }
        drop(moves);
        // Another CPU has posted the rest on its way: one more VSYNC stands behind it on each of those rings.
        for its in self.itss() {
            if moving.missing & bit(its) == 0 {
                continue;
            }
            match its.queue.post(&self.gic.counters, &[Command::vsync(vpe)]) {
                Ok(ticket) => moving.add(its.id, ticket),
                Err(ItsError::Dead) => {}
                Err(_) => return Err(EnterError::Moving),
            }
            moving.missing &= !bit(its);
        }
        Ok(())
    }
}
