//! What both generations do with a doorbell.

use super::super::error::V4Error;
use super::super::view::V4;
use super::super::vpe::Vpe;
use crate::gic::redist::Redist;
use crate::mmio::Hw;

/// The priority of every doorbell.
pub const DOORBELL_PRIORITY: u8 = 0xa0;

/// Disables a doorbell in the LPI configuration table, and clears its pending state where redistributors can do that.
/// Returns the redistributor that may have its configuration cached.
pub fn disable<'a, H: Hw + Clone>(v4: V4<'a, H>, v: &Vpe) -> Result<&'a Redist<H>, V4Error> {
    let lpis = v4.gic.lpis.as_ref().ok_or(V4Error::NoLpi)?;
    let home = v4.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
    lpis.configure(v.doorbell, DOORBELL_PRIORITY, false);
    clear_at(v4, v, home)?;
    Ok(home)
}

/// Clears the pending state of a doorbell at its redistributor, if redistributors can do that.
pub fn clear<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe) -> Result<(), V4Error> {
    let home = v4.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
    clear_at(v4, v, home)
}

fn clear_at<H: Hw + Clone>(v4: V4<'_, H>, v: &Vpe, home: &Redist<H>) -> Result<(), V4Error> {
    if v4.gic.facts.can_setclr && !home.clear_lpi(v.doorbell) {
        return Err(V4Error::Redist(v.home));
    }
    Ok(())
}
