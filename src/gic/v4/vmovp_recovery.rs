//! ITSList mode: when one ITS of a list no longer arrives at its VMOVPs, the others wait for it for ever.
//!
//! A VMOVP with a list is executed by all the ITSs that it names together (IHI 0069, 5.3.25). If one of them has
//! stopped consuming commands, all of them stall at that command, and their registers do not tell which one is at
//! fault. So all of them are disabled; each pending VMOVP is rewritten to name its own ITS alone; then each ITS
//! consumes its queue while the others are disabled, so that no interrupt can be delivered to a home that only some of
//! them know. An ITS that makes no progress even so is declared dead. The others are enabled again, and every vPE that
//! was being moved lives at its new home.
//!
//! MSIs that arrived while an ITS was disabled are lost, so each of its events is made pending once: one extra edge
//! each.

use super::view::V4;
use crate::gic::error::ItsError;
use crate::gic::its::COMMAND_LIMIT_US;
use crate::log_limited;
use crate::mmio::Hw;

impl<H: Hw + Clone> V4<'_, H> {
    /// Frees ITSs that wait for one another, if there are any. The caller holds no lock.
    #[cold]
    pub(super) fn recover_vmovps(self) {
        if !self.itss().any(|its| its.queue.waits_for_other_itss()) {
            return;
        }
        let counters = &self.gic.counters;
        let alive = || self.itss().filter(|its| !its.queue.is_dead());
        // Held so that no VMOVP is posted meanwhile.
        let moves = self.state.moves.lock();
        if !alive().any(|its| its.queue.waits_for_other_itss()) {
            return;
        }
        counters.vmovp_recoveries.bump();
        log_limited!(Error; "ITSs wait for one another at a VMOVP: disabling all of them to find the one that is at fault");
        for its in alive() {
            if !its.queue.disable() {
                its.queue.mark_dead(counters);
            }
        }
        alive().for_each(|its| its.queue.unlist_vmovps(its.facts.number));
        for its in alive() {
            its.queue.enable();
            let done = its.queue.wait(counters, its.queue.latest(), COMMAND_LIMIT_US);
            if done == Err(ItsError::Timeout) || !its.queue.disable() {
                its.queue.mark_dead(counters);
            }
        }
        alive().for_each(|its| its.queue.enable());
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
