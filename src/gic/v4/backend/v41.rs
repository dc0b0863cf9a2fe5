//! GICv4.1: redistributors and ITSs find a vPE by its vPEID in a vPE table, and each vPE has a default doorbell.
//!
//! VMAPP and VMOVP name the default doorbell, so it follows its vPE by itself; INVDB makes redistributors reload its
//! configuration byte. It rings at most once for each time that the vPE leaves with GICR_VPENDBASER.Doorbell set.

use super::super::error::V4Error;
use super::super::view::V4;
use super::super::vpe::{InterruptGroups, Left, PendingDoorbell, Vpe, Why};
use super::super::vpe_tables::{Sharing, VpeTables};
use super::common::{self, DOORBELL_PRIORITY};
use crate::gic::error::{GicError, ItsError};
use crate::gic::its::{Command, Its, VmappV40, VmappV41};
use crate::gic::redist::Redist;
use crate::gic::regs::{GICR_VPENDBASER, GICR_VPENDBASER_4_1};
use crate::gic::table::TableError;
use crate::ids::{Lpi, VIntid, VpeId};
use crate::mmio::Hw;
use arrayvec::ArrayVec;

pub fn vpe_tables<H: Hw + Clone>(
    sharing: &Sharing,
    boot: &Redist<H>,
    itss: &[Option<Its<H>>],
    vpes: u64,
) -> Result<VpeTables, TableError> {
    let tables = VpeTables::plan(sharing, itss, vpes)?;
    tables.make(boot, 0)?;
    Ok(tables)
}

pub fn init_redist<H: Hw + Clone>(v4: V4<'_, H>, redist: &Redist<H>, coherent: bool) -> Result<(), GicError> {
    // No vPE is added meanwhile, so the new table has all of them.
    let _vms = v4.state.vms.lock();
    let used = v4.state.slots().map(|(vpe, _)| u64::from(vpe.0));
    v4.state.tables.attach(redist, coherent, u64::from(v4.gic.facts.vpes), used)
}

// ---- residency ----------------------------------------------------------------------------------------------

#[inline(always)]
pub fn enter<H: Hw + Clone>(_v4: V4<'_, H>, vpe: VpeId, _v: &Vpe, groups: InterruptGroups, redist: &Redist<H>) {
    let value = GICR_VPENDBASER_4_1::VALID::SET
        + GICR_VPENDBASER_4_1::VGRP0EN.val(u64::from(groups.group0))
        + GICR_VPENDBASER_4_1::VGRP1EN.val(u64::from(groups.group1))
        + GICR_VPENDBASER_4_1::VPEID.val(u64::from(vpe.0));
    redist.enter_v41(value);
}

#[inline(always)]
pub fn leave<H: Hw + Clone>(_v4: V4<'_, H>, redist: &Redist<H>, why: Why) -> Left {
    match why {
        Why::Block => {
            redist.leave_v41(GICR_VPENDBASER_4_1::DOORBELL::SET);
            let clean = redist.clean();
            Left::new(redist.vpend().is_set(GICR_VPENDBASER::PENDING_LAST), 0, clean)
        }
        // With PendingLast set the redistributor neither searches for pending interrupts nor arms the doorbell: a
        // vCPU that is preempted needs neither.
        Why::Preempt => {
            redist.leave_v41(GICR_VPENDBASER_4_1::PENDING_LAST::SET);
            Left::new(true, 0, redist.clean())
        }
    }
}

pub fn carry<H: Hw + Clone>(_v4: V4<'_, H>, _vpendbaser: u64) -> u64 {
    0
}

// ---- mapping ------------------------------------------------------------------------------------------------

/// The doorbell becomes known with VMAPP.
pub fn set_up<H: Hw + Clone>(_v4: V4<'_, H>, _v: &mut Vpe, _home: &Redist<H>) {}

/// GICR_VPENDBASER.VGrp1En holds what the guest has enabled.
pub fn needs_group1<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    false
}

pub fn maps_on_all_itss<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    true
}

pub fn map<H: Hw + Clone>(_v4: V4<'_, H>, its: &Its<H>, vpe: VpeId, v: &Vpe, home: &Redist<H>) -> Command {
    let first = v.mapped == 0;
    Command::vmapp_v41(VmappV41 {
        base: VmappV40 { vpe, target: its.target(home), vpt: v.vpt, id_bits: v.id_bits },
        config: v.config,
        doorbell: v.doorbell,
        alloc: first,
    })
}

/// The unmap is complete when it is consumed. A VSYNC would name a vPE that is not mapped.
pub fn unmap<H: Hw + Clone>(_v4: V4<'_, H>, vpe: VpeId, last: bool) -> ArrayVec<Command, 2> {
    [Command::vmapp_unmap_v41(vpe, last)].into_iter().collect()
}

pub fn counts_mappings<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    true
}

pub fn after_map<H: Hw + Clone>(v4: V4<'_, H>, vpe: VpeId, v: &Vpe) -> Result<(), V4Error> {
    reload_doorbell(v4, vpe, v)
}

/// The doorbell is disabled while INVDB can still name its vPE.
pub fn before_unmap<H: Hw + Clone>(v4: V4<'_, H>, vpe: VpeId, v: &Vpe) -> Result<(), V4Error> {
    let Some(lpis) = &v4.gic.lpis else { return Ok(()) };
    lpis.configure(v.doorbell, DOORBELL_PRIORITY, false);
    reload_doorbell(v4, vpe, v)
}

/// Makes all redistributors reload the configuration of a default doorbell. The vPE is mapped.
fn reload_doorbell<H: Hw + Clone>(v4: V4<'_, H>, vpe: VpeId, v: &Vpe) -> Result<(), V4Error> {
    let its = v4.alive(v.mapped).ok_or(V4Error::Its(ItsError::Dead))?;
    its.run(&v4.gic.counters, &[Command::invdb(vpe), Command::vsync(vpe)])?;
    Ok(())
}

// ---- doorbells ----------------------------------------------------------------------------------------------

pub fn disable_doorbell<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe) -> Result<(), V4Error> {
    common::disable(v4, v).map(|_| ())
}

pub fn clear_doorbell<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe) -> Result<(), V4Error> {
    common::clear(v4, v)
}

pub fn event_doorbell<H: Hw + Clone>(_v4: V4<'_, H>, _v: &Vpe) -> Option<Lpi> {
    None
}

pub fn vmovp_doorbell<H: Hw + Clone>(_v4: V4<'_, H>, v: &Vpe) -> Option<Lpi> {
    Some(v.doorbell)
}

#[inline]
pub fn doorbell_commands<H: Hw + Clone>(
    _v4: V4<'_, H>,
    _its: &Its<H>,
    _v: &Vpe,
    _to: &Redist<H>,
) -> Option<[Command; 4]> {
    None
}

pub fn move_doorbell<H: Hw + Clone>(_v4: V4<'_, H>, _v: &mut Vpe, _to: &Redist<H>, _pending: PendingDoorbell) {}

pub fn doorbell_repeats<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    false
}

pub fn mask_doorbell<H: Hw + Clone>(_v4: V4<'_, H>, _v: &Vpe, _home: &Redist<H>, _masked: bool) -> Result<(), V4Error> {
    Ok(())
}

// ---- configuration of vLPIs ---------------------------------------------------------------------------------

pub fn reloads_at_redist<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    true
}

pub fn reload_at_redist<H: Hw + Clone>(_v4: V4<'_, H>, vpe: VpeId, vlpi: Option<VIntid>, home: &Redist<H>) -> bool {
    match vlpi {
        Some(vlpi) => home.invalidate_vlpi(vpe, vlpi.0),
        None => home.invalidate_vpe(vpe),
    }
}
