//! VMOVP: moving a vPE from one redistributor to another.
//!
//! Where GITS_TYPER.VMOVP is 1, one ITS gets the command and informs the others. In ITSList mode every ITS that maps
//! the vPE gets the same command with the same sequence number and the list of all of them, and all ITSs have to see
//! all such commands in the same order (IHI 0069, 5.3.25). One lock covers taking the number and posting to all queues.
//!
//! A command that has been posted will be executed, however late, unless its ITS dies. So a move only goes forward:
//!
//! * Not posted on any queue: nothing happened, and the vPE keeps its home.
//! * Posted on some queues only, because another one stayed full: the rest is posted before any other vPE's move.
//! * Posted, but its completion was not seen: the vPE is *moving*, and is resident nowhere until it is seen.
//! * An ITS died: it no longer matters whether it consumed the move, because it translates nothing any more. It leaves
//!   the list.
//!
//! A vPE that moves because it is about to run may lose a pending doorbell on the way. One that moves because its CPU
//! is taken out of service must not: its vCPU may sleep, and nothing but that doorbell will wake it.

use super::backend;
use super::error::EnterError;
use super::state::Broadcast;
use super::view::{V4, bit};
use super::vpe::{Moving, PendingDoorbell, Vpe};
use crate::gic::error::ItsError;
use crate::gic::its::{Command, Its, Ticket};
use crate::gic::redist::Redist;
use crate::ids::{CpuId, ItsId, Lpi, VpeId};
use crate::mmio::Hw;
use arrayvec::ArrayVec;

/// How long a vCPU switch may wait for the move of its vPE.
const MOVE_LIMIT_US: u64 = 10_000;

impl<H: Hw + Clone> V4<'_, H> {
    /// Moves a vPE that is resident nowhere to a CPU, and waits for completion.
    #[cold]
    pub(super) fn migrate_vpe(
        self,
        vpe: VpeId,
        v: &mut Vpe,
        cpu: CpuId,
        pending: PendingDoorbell,
    ) -> Result<(), EnterError> {
        if v.moving.is_some() {
            self.finish_move(vpe, v)?;
        }
        if v.home == cpu {
            return Ok(());
        }
        self.start_move(vpe, v, cpu, pending)?;
        self.finish_move(vpe, v)
    }

    /// Posts a move. After an error nothing was posted.
    fn start_move(self, vpe: VpeId, v: &mut Vpe, cpu: CpuId, pending: PendingDoorbell) -> Result<(), EnterError> {
        debug_assert!(
            v.resident.is_none() && v.moving.is_none(),
            "{vpe} is resident or being moved, and moves to {cpu}"
        );
        let stays = EnterError::NotMoved { home: v.home };
        let to = self.gic.in_service(cpu).map_err(|_| EnterError::CpuOffline(cpu))?;
        let alive =
            self.itss().filter(|its| v.mapped & bit(its) != 0 && !its.queue.is_dead()).fold(0, |a, its| a | bit(its));
        let mut with_doorbell = false;
        if alive == 0 {
            if v.mapped != 0 {
                return Err(stays);
            }
            // Mapped on no ITS: the first VMAPP will name the new home.
            v.moving = Some(Moving::new(cpu));
        } else if self.gic.facts.single_vmovp {
            let its = self.itss().find(|its| bit(its) & alive != 0).ok_or(stays)?;
            let mut commands: ArrayVec<Command, 6> =
                [self.vmovp(its, vpe, v, to), Command::vsync(vpe)].into_iter().collect();
            if let Some(doorbell) = backend::doorbell_commands(self, its, v, to) {
                commands.extend(doorbell);
                with_doorbell = true;
            }
            let ticket = its.queue.post(&self.gic.counters, &commands).map_err(|_| stays)?;
            v.moving.insert(Moving::new(cpu)).add(its.id, ticket);
        } else {
            let doorbell = backend::vmovp_doorbell(self, v);
            let mut moving = Moving::new(cpu);
            self.broadcast(vpe, doorbell, to, alive, &mut moving).map_err(|_| stays)?;
            v.moving = Some(moving);
        }
        self.gic.counters.vmovp.bump();
        if !with_doorbell {
            backend::move_doorbell(self, v, to, pending);
        }
        Ok(())
    }

    fn vmovp(self, its: &Its<H>, vpe: VpeId, v: &Vpe, to: &Redist<H>) -> Command {
        let command = Command::vmovp(vpe, its.target(to));
        match backend::vmovp_doorbell(self, v) {
            Some(doorbell) => command.with_default_doorbell(doorbell),
            None => command,
        }
    }

    /// Posts one VMOVP with one sequence number and one list on the queues of all ITSs in `list`, under one lock. After
    /// an error no queue has it.
    fn broadcast(
        self,
        vpe: VpeId,
        doorbell: Option<Lpi>,
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
        let mut all = Broadcast { vpe, to: to.cpu, doorbell, sequence: moves.sequence, list, missing: list };
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

    /// Posts a broadcast on the queues that it is missing on, in ITS order, and stops at the first one that has no
    /// room. ITSs that have died are no longer missing.
    fn post_missing(self, all: &mut Broadcast, mut posted: impl FnMut(ItsId, Ticket)) {
        let Some(to) = self.gic.redist(all.to) else { return };
        for its in self.itss() {
            if all.missing & bit(its) == 0 {
                continue;
            }
            let numbers = self.itss().filter(|i| all.list & bit(i) != 0).fold(0, |a, i| a | 1u16 << i.facts.number);
            let mut command = Command::vmovp_listed(all.vpe, its.target(to), all.sequence, numbers);
            if let Some(doorbell) = all.doorbell {
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

    /// Waits until a move is complete; then the vPE lives at its new home.
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
                // The ITS that had to inform the others died before it did. Another one can still move the vPE.
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

    /// Posts the rest of a broadcast that some queue had no room for.
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
        // Another CPU posted the rest before its own broadcast, and the tickets were not kept: another VSYNC on each of
        // those queues completes after it.
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
