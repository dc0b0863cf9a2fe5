//! ITSList mode: when one ITS of a list no longer comes to its VMOVPs, the others wait for it for ever.
//!
//! A VMOVP with a list is executed by all the ITSs that it names together (IHI 0069, 5.3.25). If one of them has gone
//! deaf, all of them stand before that command, and from their registers nobody can tell which one it is. So all of them
//! are stopped; each pending VMOVP is made one for its ITS alone; each ITS gets through its ring while the others stand
//! still, so nothing can be delivered to a place that only some of them know. The one that does not get on even so is
//! given up. The others are started again, and every vPE that was moving lives where it was to go.
//!
//! MSIs that came while an ITS was stopped are lost, so every event of theirs is made pending once: one extra edge each.

use super::V4;
use crate::gic::its::{COMMAND_LIMIT_US, ItsError};
use crate::mmio::Hw;

impl<H: Hw + Clone> V4<'_, H> {
    /// Gets ITSs on that wait for one another, if there are any. No lock is held.
    #[cold]
    pub(super) fn mend(self) {
        if !self.itss().any(|its| its.queue.waits_for_others()) {
            return;
        }
        let counters = &self.gic.counters;
        let alive = || self.itss().filter(|its| !its.queue.is_dead());
        // No VMOVP is posted meanwhile.
        let moves = self.state.moves.lock();
        if !alive().any(|its| its.queue.waits_for_others()) {
            return;
        }
        counters.mends.bump();
        log::error!("ITSs wait for one another before a VMOVP: stopping all of them to find the one that is deaf");
        for its in alive() {
            if !its.queue.pause() {
                its.queue.give_up(counters);
            }
        }
        alive().for_each(|its| its.queue.part_moves(its.facts.number));
        for its in alive() {
            its.queue.resume();
            let done = its.queue.wait(counters, its.queue.latest(), COMMAND_LIMIT_US);
            if done == Err(ItsError::Timeout) || !its.queue.pause() {
                its.queue.give_up(counters);
            }
        }
        alive().for_each(|its| its.queue.resume());
        drop(moves);
        for its in alive() {
            let replayed = self.gic.batch(its.id).and_then(|mut batch| {
                batch.set_all_pending()?;
                batch.finish()
            });
            if replayed.is_err() {
                counters.batch_errors.bump();
            }
        }
    }
}
