//! GICv4.0: a redistributor is told where the tables of the resident vPE are, and each event names its doorbell.
//!
//! A doorbell is a physical LPI that no device sends. It belongs to one redistributor at a time, which may cache its
//! configuration byte. So it has to be made known where its vPE lives, and to be moved with the vPE, by one of three
//! means: see [`Control`]. It stays enabled while its vPE is resident, when it does not ring, and while its vPE is
//! preempted, when it may ring for a vCPU that is runnable anyway: the caller counts and ignores that.

use super::super::error::V4Error;
use super::super::view::V4;
use super::super::vpe::{BackendState, Control, InterruptGroups, Left, PendingDoorbell, Vpe, Why};
use super::super::vpe_tables::{Sharing, VpeTables};
use super::common::{self, DOORBELL_PRIORITY};
use crate::gic::error::GicError;
use crate::gic::its::{Command, Its, VmappV40};
use crate::gic::redist::Redist;
use crate::gic::regs::{GICR_VPENDBASER, GICR_VPROPBASER, attributes, pa_4k, pa_64k};
use crate::gic::table::TableError;
use crate::ids::{Lpi, Pa, VIntid, VpeId};
use crate::mmio::{Coherence, Hw};
use arrayvec::ArrayVec;
use tock_registers::LocalRegisterCopy;

type Vpend = LocalRegisterCopy<u64, GICR_VPENDBASER::Register>;

/// Redistributors have no vPE tables.
pub fn vpe_tables<H: Hw + Clone>(
    _sharing: &Sharing,
    _boot: &Redist<H>,
    _itss: &[Option<Its<H>>],
    _vpes: u64,
) -> Result<VpeTables, TableError> {
    Ok(VpeTables::default())
}

pub fn init_redist<H: Hw + Clone>(_v4: V4<'_, H>, _redist: &Redist<H>, _coherent: bool) -> Result<(), GicError> {
    Ok(())
}

// ---- residency ----------------------------------------------------------------------------------------------

#[inline(always)]
pub fn enter<H: Hw + Clone>(_v4: V4<'_, H>, _vpe: VpeId, v: &Vpe, _: InterruptGroups, redist: &Redist<H>) {
    redist.set_vpropbaser(v.backend.vpropbaser);
    redist.write_vpend(GICR_VPENDBASER::VALID::SET.value | v.backend.carry | v.backend.vpendbaser);
}

#[inline(always)]
pub fn leave<H: Hw + Clone>(_v4: V4<'_, H>, redist: &Redist<H>, _why: Why) -> Left {
    let mut value = redist.vpend();
    value.modify(GICR_VPENDBASER::VALID::CLEAR);
    redist.write_vpend(value.get());
    let clean = redist.clean();
    let value = redist.vpend();
    Left::new(value.is_set(GICR_VPENDBASER::PENDING_LAST), idai(value), clean)
}

/// IDAI is an implementation's own: it is written back as it was read.
fn idai(value: Vpend) -> u64 {
    GICR_VPENDBASER::IDAI.val(value.read(GICR_VPENDBASER::IDAI)).value
}

pub fn carry<H: Hw + Clone>(_v4: V4<'_, H>, vpendbaser: u64) -> u64 {
    idai(Vpend::new(vpendbaser))
}

/// GICR_VPROPBASER for the vPEs of a VM.
fn vpropbaser(config: Pa, id_bits: u8, coherence: Coherence) -> u64 {
    let (share, inner) = share(coherence, attributes::READ_ALLOCATE);
    (GICR_VPROPBASER::PA_4K.val(pa_4k(config))
        + GICR_VPROPBASER::ID_BITS.val(u64::from(id_bits - 1))
        + GICR_VPROPBASER::SHAREABILITY.val(share)
        + GICR_VPROPBASER::INNER_CACHE.val(inner)
        + GICR_VPROPBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER))
    .value
}

/// GICR_VPENDBASER for a vPE, without Valid and IDAI. PendingLast is always set: it is only a hint here.
fn vpendbaser(vpt: Pa, coherence: Coherence) -> u64 {
    let (share, inner) = share(coherence, attributes::WRITE_ALLOCATE);
    (GICR_VPENDBASER::PA_64K.val(pa_64k(vpt))
        + GICR_VPENDBASER::PENDING_LAST::SET
        + GICR_VPENDBASER::SHAREABILITY.val(share)
        + GICR_VPENDBASER::INNER_CACHE.val(inner)
        + GICR_VPENDBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER))
    .value
}

fn share(coherence: Coherence, inner: u64) -> (u64, u64) {
    match coherence {
        Coherence::Coherent => (attributes::INNER_SHAREABLE, inner),
        Coherence::NonCoherent => (0, attributes::NON_CACHEABLE),
    }
}

// ---- mapping ------------------------------------------------------------------------------------------------

pub fn set_up<H: Hw + Clone>(v4: V4<'_, H>, v: &mut Vpe, home: &Redist<H>) {
    v.backend = BackendState {
        control: enable_doorbell(v4, v.doorbell, home),
        vpropbaser: vpropbaser(v.config, v.id_bits, v4.coherence()),
        vpendbaser: vpendbaser(v.vpt, v4.coherence()),
        carry: 0,
    };
}

/// GICR_VPENDBASER has no enable bits of groups: a resident vPE gets its vLPIs whether or not the guest has enabled
/// group 1.
pub fn needs_group1<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    true
}

pub fn maps_on_all_itss<H: Hw + Clone>(v4: V4<'_, H>) -> bool {
    v4.gic.facts.single_vmovp
}

pub fn map<H: Hw + Clone>(_v4: V4<'_, H>, its: &Its<H>, vpe: VpeId, v: &Vpe, home: &Redist<H>) -> Command {
    Command::vmapp(VmappV40 { vpe, target: its.target(home), vpt: v.vpt, id_bits: v.id_bits })
}

pub fn unmap<H: Hw + Clone>(_v4: V4<'_, H>, vpe: VpeId, _last: bool) -> ArrayVec<Command, 2> {
    [Command::vmapp_unmap(vpe), Command::vsync(vpe)].into()
}

pub fn counts_mappings<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    false
}

pub fn after_map<H: Hw + Clone>(_v4: V4<'_, H>, _vpe: VpeId, _v: &Vpe) -> Result<(), V4Error> {
    Ok(())
}

pub fn before_unmap<H: Hw + Clone>(_v4: V4<'_, H>, _vpe: VpeId, _v: &Vpe) -> Result<(), V4Error> {
    Ok(())
}

// ---- doorbells ----------------------------------------------------------------------------------------------

fn enable_doorbell<H: Hw + Clone>(v4: V4<'_, H>, doorbell: Lpi, home: &Redist<H>) -> Control {
    let gic = v4.gic;
    if gic.facts.can_invlpi {
        if !home.invalidate_lpi(doorbell) {
            gic.counters.redist_timeouts.bump();
        }
        return Control::Direct;
    }
    let mapped = v4.state.proxy.as_ref().map(|proxy| proxy.map(gic.its(proxy.its)?, &gic.counters, doorbell, home));
    match mapped {
        Some(Ok(ev)) => Control::Proxy(ev),
        _ => {
            let _ = gic.invalidate_cpu(home.cpu);
            Control::Coarse
        }
    }
}

pub fn disable_doorbell<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe) -> Result<(), V4Error> {
    let home = common::disable(v4, v)?;
    match v.backend.control {
        Control::Direct if home.invalidate_lpi(v.doorbell) => Ok(()),
        Control::Direct => Err(V4Error::Redist(v.home)),
        Control::Proxy(ev) => match &v4.state.proxy {
            Some(proxy) => Ok(proxy.unmap(v4.gic.its(proxy.its)?, &v4.gic.counters, ev, home)?),
            None => Ok(()),
        },
        Control::Coarse => Ok(v4.gic.invalidate_cpu(v.home)?),
    }
}

pub fn clear_doorbell<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe) -> Result<(), V4Error> {
    common::clear(v4, v)?;
    match (v.backend.control, &v4.state.proxy) {
        (Control::Proxy(ev), Some(proxy)) => {
            let home = v4.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
            Ok(proxy.clear(v4.gic.its(proxy.its)?, &v4.gic.counters, ev, home)?)
        }
        _ => Ok(()),
    }
}

pub fn event_doorbell<H: Hw + Clone>(_v4: V4<'_, H>, v: &Vpe) -> Option<Lpi> {
    Some(v.doorbell)
}

pub fn vmovp_doorbell<H: Hw + Clone>(_v4: V4<'_, H>, _v: &Vpe) -> Option<Lpi> {
    None
}

#[inline]
pub fn doorbell_commands<H: Hw + Clone>(v4: V4<'_, H>, its: &Its<H>, v: &Vpe, to: &Redist<H>) -> Option<[Command; 4]> {
    let (Control::Proxy(ev), Some(proxy)) = (v.backend.control, &v4.state.proxy) else { return None };
    let from = v4.gic.online(v.home).ok()?;
    (proxy.its == its.id).then(|| proxy.move_commands(its, ev, from, to))
}

pub fn move_doorbell<H: Hw + Clone>(v4: V4<'_, H>, v: &mut Vpe, to: &Redist<H>, pending: PendingDoorbell) {
    let gic = v4.gic;
    let Ok(from) = gic.online(v.home) else { return };
    match v.backend.control {
        Control::Direct => {
            let keep = pending == PendingDoorbell::Keep || !gic.facts.can_setclr;
            let cleared = keep || from.clear_lpi(v.doorbell);
            if !(to.invalidate_lpi(v.doorbell) && cleared) {
                gic.counters.redist_timeouts.bump();
            }
        }
        Control::Proxy(ev) => {
            let Some(proxy) = &v4.state.proxy else { return };
            let posted = gic
                .its(proxy.its)
                .and_then(|its| its.queue.post(&gic.counters, &proxy.move_commands(its, ev, from, to)));
            match posted {
                Ok(ticket) => {
                    if let Some(moving) = &mut v.moving {
                        moving.add(proxy.its, ticket);
                    }
                }
                Err(_) => v.backend.control = Control::Coarse,
            }
        }
        Control::Coarse => {
            if gic.invalidate_cpu(to.cpu).is_err() {
                gic.counters.batch_errors.bump();
            }
        }
    }
}

pub fn doorbell_repeats<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    true
}

pub fn mask_doorbell<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe, home: &Redist<H>, masked: bool) -> Result<(), V4Error> {
    let lpis = v4.gic.lpis.as_ref().ok_or(V4Error::NoLpi)?;
    lpis.configure(v.doorbell, DOORBELL_PRIORITY, !masked);
    match v.backend.control {
        Control::Direct if home.invalidate_lpi(v.doorbell) => Ok(()),
        Control::Direct => Err(V4Error::Redist(v.home)),
        Control::Proxy(ev) => match &v4.state.proxy {
            Some(proxy) => Ok(proxy.reload(v4.gic.its(proxy.its)?, &v4.gic.counters, ev, home)?),
            None => Ok(()),
        },
        Control::Coarse => Ok(v4.gic.invalidate_cpu(v.home)?),
    }
}

// ---- configuration of vLPIs ---------------------------------------------------------------------------------

pub fn reloads_at_redist<H: Hw + Clone>(_v4: V4<'_, H>) -> bool {
    false
}

pub fn reload_at_redist<H: Hw + Clone>(_v4: V4<'_, H>, _vpe: VpeId, _vlpi: Option<VIntid>, _home: &Redist<H>) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registers_of_a_vpe_are_encoded_as_the_manual_says() {
        let pa = Pa(0x000a_bcde_1234_0000);
        let (shared, not) = (Coherence::Coherent, Coherence::NonCoherent);
        // InnerCache 0b011 (read-allocate, write-back), inner shareable, IDbits one less than the bits.
        assert_eq!(vpropbaser(pa, 14, shared), 0x000a_bcde_1234_058d);
        // InnerCache 0b001 (non-cacheable), non-shareable.
        assert_eq!(vpropbaser(pa, 16, not), 0x000a_bcde_1234_008f);
        // InnerCache 0b111 (read- and write-allocate, write-back), inner shareable, PendingLast.
        assert_eq!(vpendbaser(pa, shared), 0x200a_bcde_1234_0780);
        assert_eq!(vpendbaser(pa, not), 0x200a_bcde_1234_0080);
    }
}
