//! What differs between GICv4.0 and GICv4.1.
//!
//! Each generation is one file with the same functions, [`v40`] and [`v41`]. The verbs call the functions below, which
//! choose the file by [`Generation`]; another generation is another file and another arm.

mod common;
mod v40;
mod v41;

pub use common::DOORBELL_PRIORITY;

use super::error::V4Error;
use super::state::Generation;
use super::view::V4;
use super::vpe::{InterruptGroups, Left, PendingDoorbell, Vpe, Why};
use super::vpe_tables::{Sharing, VpeTables};
use crate::gic::error::GicError;
use crate::gic::its::{Command, Its};
use crate::gic::redist::Redist;
use crate::gic::table::TableError;
use crate::ids::{Lpi, VIntid, VpeId};
use crate::mmio::Hw;
use arrayvec::ArrayVec;

/// Makes the vPE tables of redistributors, each with room for `vpes` vPEs if possible.
pub fn vpe_tables<H: Hw + Clone>(
    generation: Generation,
    sharing: &Sharing,
    boot: &Redist<H>,
    itss: &[Option<Its<H>>],
    vpes: u64,
) -> Result<VpeTables, TableError> {
    match generation {
        Generation::V40 => v40::vpe_tables(sharing, boot, itss, vpes),
        Generation::V41 => v41::vpe_tables(sharing, boot, itss, vpes),
    }
}

/// Defines functions that call the one of the same name in the file of the machine's generation.
macro_rules! backends {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name<H: Hw + Clone>(v4: V4<'_, H>, $($arg: $type),*) $(-> $ret)? {
            match v4.state.generation {
                Generation::V40 => v40::$name(v4, $($arg),*),
                Generation::V41 => v41::$name(v4, $($arg),*),
            }
        }
    )*};
}

backends! {
    /// Prepares the redistributor of a CPU that comes into service: its LPIs are enabled, no vPE is resident.
    fn init_redist(redist: &Redist<H>, coherent: bool) -> Result<(), GicError>;

    /// Whether a vPE may be resident only while the guest has enabled interrupt group 1.
    fn needs_group1() -> bool;

    /// Makes a vPE resident that lives at this redistributor, on which no vPE is resident.
    fn enter(vpe: VpeId, v: &Vpe, groups: InterruptGroups, redist: &Redist<H>);

    /// Ends the residency on a redistributor. GICR_VPENDBASER.Dirty is 0.
    fn leave(redist: &Redist<H>, why: Why) -> Left;

    /// The [`carry`](Left::carry) of a vPE that has left, from GICR_VPENDBASER.
    fn carry(vpendbaser: u64) -> u64;

    /// Completes a new vPE, which is mapped on no ITS: sets its backend state, and makes its doorbell, which has been
    /// enabled in the LPI configuration table, known to the redistributor of its home.
    fn set_up(v: &mut Vpe, home: &Redist<H>);

    /// Whether a vPE is mapped on every ITS from the start, and not on each with its first event.
    fn maps_on_all_itss() -> bool;

    /// The command that maps a vPE on an ITS.
    fn map(its: &Its<H>, vpe: VpeId, v: &Vpe, home: &Redist<H>) -> Command;

    /// The commands that unmap a vPE on an ITS; `last`: no other ITS maps it.
    fn unmap(vpe: VpeId, last: bool) -> ArrayVec<Command, 2>;

    /// Whether the commands that map and unmap a vPE say which is the first and the last one over all ITSs. Then nothing
    /// is unmapped of a vPE of which an ITS was not seen to complete one.
    fn counts_mappings() -> bool;

    /// Completes the mapping of a vPE on all ITSs.
    fn after_map(vpe: VpeId, v: &Vpe) -> Result<(), V4Error>;

    /// Prepares a vPE to be unmapped on all ITSs.
    fn before_unmap(vpe: VpeId, v: &Vpe) -> Result<(), V4Error>;

    /// Disables the doorbell of a vPE that no ITS maps any more. Afterwards its LPI can be freed.
    fn disable_doorbell(v: &Vpe) -> Result<(), V4Error>;

    /// Clears the pending state of the doorbell of a vPE that no ITS maps, where that is possible.
    fn clear_doorbell(v: &Vpe) -> Result<(), V4Error>;

    /// The doorbell that VMAPTI and VMOVI name for an event of this vPE.
    fn event_doorbell(v: &Vpe) -> Option<Lpi>;

    /// The doorbell that VMOVP names.
    fn vmovp_doorbell(v: &Vpe) -> Option<Lpi>;

    /// The commands that move the doorbell along with its vPE, if `its` is the ITS to execute them. They are posted
    /// together with the VMOVP, because posting takes the queue's lock and writes a register of the ITS.
    fn doorbell_commands(its: &Its<H>, v: &Vpe, to: &Redist<H>) -> Option<[Command; 4]>;

    /// Moves the doorbell along with its vPE, which is `moving`, if [`doorbell_commands`] did not.
    fn move_doorbell(v: &mut Vpe, to: &Redist<H>, pending: PendingDoorbell);

    /// Whether a doorbell can ring again before its vPE has run, so that masking it is of use.
    fn doorbell_repeats() -> bool;

    /// Masks or unmasks the doorbell of a vPE that is not being moved. While it is masked it stays pending.
    fn mask_doorbell(v: &Vpe, home: &Redist<H>, masked: bool) -> Result<(), V4Error>;

    /// Whether redistributors can reload the configuration of vLPIs by themselves.
    fn reloads_at_redist() -> bool;

    /// Makes a vPE's redistributor reload the configuration of one vLPI, or of all. `false`: it did not complete in
    /// time, or cannot.
    fn reload_at_redist(vpe: VpeId, vlpi: Option<VIntid>, home: &Redist<H>) -> bool;
}
