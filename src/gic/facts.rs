//! What this machine's GIC can do, established once at boot.
//!
//! The capabilities of redistributors are those that all of them have: a vCPU may run anywhere.

use crate::ids::{DeviceId, ItsId};
use alloc::vec::Vec;
use core::fmt;

/// What one ITS can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItsFacts {
    /// Which.
    pub id: ItsId,
    /// EventID bits.
    pub event_bits: u8,
    /// DeviceID bits that its device table has room for.
    pub device_bits: u8,
    /// It maps events to vLPIs, and we use that.
    pub virtual_lpis: bool,
    /// One VMOVP on any ITS is enough (GITS_TYPER.VMOVP).
    pub single_vmovp: bool,
    /// It speaks GICv4.1.
    pub v41: bool,
    /// It generates virtual SGIs (GICv4.1).
    pub vsgi: bool,
    /// How widely it shares its vPE table with redistributors (GITS_TYPER.SVPET).
    pub svpet: u8,
    /// Its affinity, packed as in GICR_TYPER (GICv4.1).
    pub affinity: u32,
    /// Its name in ITSList mode.
    pub number: u8,
    /// It walks tables through the caches.
    pub coherent: bool,
}

impl ItsFacts {
    /// Whether it has its vPE table in common with a redistributor of this affinity.
    pub(super) fn shares_vpes_with(&self, affinity: u32) -> bool {
        self.v41
            && self.svpet != 0
            && common_affinity(self.affinity, self.svpet) == common_affinity(affinity, self.svpet)
    }
}

/// The affinity levels that SVPET or CommonLPIAff names, from Aff3 down; 0 names none.
pub(super) const fn common_affinity(affinity: u32, levels: u8) -> u32 {
    match 32u32.saturating_sub(8 * levels as u32) {
        32 => 0,
        low => affinity >> low << low,
    }
}

/// What the GIC can do as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How many SPIs there are (without extended ones).
    pub spis: u32,
    /// INTID bits for LPIs; 0 without LPIs.
    pub lpi_bits: u8,
    /// How many LPIs can be given out.
    pub lpis: u32,
    /// How many CPUs it serves.
    pub cpus: u16,
    /// Virtual LPIs can be used: every redistributor and at least one ITS has them, and they are wanted.
    pub virtual_lpis: bool,
    /// ... in the ways of GICv4.1.
    pub v41: bool,
    /// Every redistributor has INVLPIR and SYNCR.
    pub can_invlpi: bool,
    /// Every redistributor has SETLPIR and CLRLPIR.
    pub can_setclr: bool,
    /// GICR_VPENDBASER.Dirty tells on every redistributor when a table has been parsed.
    pub dirty: bool,
    /// One VMOVP reaches all ITSs; else each is told (ITSList mode).
    pub single_vmovp: bool,
    /// Virtual SGIs can be used.
    pub vsgi: bool,
    /// Bits of a vPEID.
    pub vpe_bits: u8,
    /// How many vPEs can exist.
    pub vpes: u32,
    /// The device through whose events doorbells are controlled, where redistributors cannot do it.
    pub proxy: Option<(ItsId, DeviceId)>,
    pub(super) itss: Vec<Option<ItsFacts>>,
}

impl Facts {
    /// One ITS; `None` if there is none of that number or it could not be brought up.
    #[must_use]
    pub fn its(&self, id: ItsId) -> Option<&ItsFacts> {
        self.itss.get(id.index())?.as_ref()
    }

    /// The ITSs that work.
    pub fn itss(&self) -> impl Iterator<Item = &ItsFacts> {
        self.itss.iter().flatten()
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GIC: {} SPIs, {} CPUs", self.spis, self.cpus)?;
        match self.lpi_bits {
            0 => writeln!(f, ", no LPIs")?,
            bits => writeln!(f, ", {} LPIs ({bits} INTID bits)", self.lpis)?,
        }
        let yes = |flag: bool, name: &'static str| if flag { name } else { "" };
        writeln!(
            f,
            "GIC: redistributors:{}{}{}{}",
            yes(self.can_setclr, " DirectLPI"),
            yes(self.can_invlpi, " INVLPIR"),
            yes(self.dirty, " Valid+Dirty"),
            yes(!(self.can_setclr || self.can_invlpi || self.dirty), " no direct LPI control"),
        )?;
        for its in self.itss() {
            writeln!(
                f,
                "{}: {} DeviceID bits, {} EventID bits,{}{}{}{}{}",
                its.id,
                its.device_bits,
                its.event_bits,
                if its.virtual_lpis { " virtual LPIs" } else { " physical LPIs only" },
                yes(its.v41, ", GICv4.1"),
                yes(its.vsgi, ", virtual SGIs"),
                yes(its.single_vmovp, ", single VMOVP"),
                yes(!its.coherent, ", not cache-coherent"),
            )?;
        }
        if !self.virtual_lpis {
            return write!(f, "GIC: no direct injection: device interrupts are taken at EL2");
        }
        write!(
            f,
            "GIC: direct injection by GICv4.{}, {} vPEs{}",
            u8::from(self.v41),
            self.vpes,
            if self.single_vmovp { "" } else { ", ITSList mode" },
        )?;
        match self.proxy {
            Some((its, device)) => write!(f, ", doorbells through {device} of {its}"),
            None => Ok(()),
        }
    }
}
