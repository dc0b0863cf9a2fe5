//! What this machine's GIC supports, read once at boot.
//!
//! A capability of redistributors counts only if all of them have it, because a vCPU may run on any CPU.

use crate::ids::{DeviceId, ItsId};
use alloc::vec::Vec;
use core::fmt;

/// What one ITS supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItsFacts {
    /// The ITS.
    pub id: ItsId,
    /// Number of EventID bits.
    pub event_bits: u8,
    /// Number of DeviceID bits that its device table has room for.
    pub device_bits: u8,
    /// It supports virtual LPIs, and they are used.
    pub virtual_lpis: bool,
    /// One VMOVP on any ITS moves a vPE for all of them (GITS_TYPER.VMOVP).
    pub single_vmovp: bool,
    /// It implements GICv4.1.
    pub v41: bool,
    /// It supports virtual SGIs (GICv4.1).
    pub vsgi: bool,
    /// How many affinity levels name the redistributors that share its vPE table (GITS_TYPER.SVPET).
    pub svpet: u8,
    /// Its affinity, packed as in GICR_TYPER (GICv4.1).
    pub affinity: u32,
    /// Its number in an ITSList.
    pub number: u8,
    /// It snoops the CPUs' caches when it accesses tables.
    pub coherent: bool,
}

impl ItsFacts {
    /// Whether it shares its vPE table with a redistributor of this affinity.
    pub(super) fn shares_vpes_with(&self, affinity: u32) -> bool {
        self.v41
            && self.svpet != 0
            && common_affinity(self.affinity, self.svpet) == common_affinity(affinity, self.svpet)
    }
}

/// An affinity without the levels below the uppermost `levels`: what GITS_TYPER.SVPET and GICR_TYPER.CommonLPIAff
/// compare.
pub(super) const fn common_affinity(affinity: u32, levels: u8) -> u32 {
    match 32u32.saturating_sub(8 * levels as u32) {
        32 => 0,
        low => affinity >> low << low,
    }
}

/// What the GIC supports as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Number of SPIs, without extended ones.
    pub spis: u32,
    /// Number of INTID bits for LPIs; 0 if LPIs are not supported.
    pub lpi_bits: u8,
    /// Number of LPIs.
    pub lpis: u32,
    /// Number of CPUs.
    pub cpus: u16,
    /// Virtual LPIs are used: every redistributor and at least one ITS supports them, and the platform wants them.
    pub virtual_lpis: bool,
    /// Virtual LPIs are those of GICv4.1.
    pub v41: bool,
    /// Every redistributor implements GICR_INVLPIR and GICR_SYNCR.
    pub can_invlpi: bool,
    /// Every redistributor implements GICR_SETLPIR and GICR_CLRLPIR.
    pub can_setclr: bool,
    /// On every redistributor GICR_VPENDBASER.Dirty says whether a pending table is still being read.
    pub dirty: bool,
    /// One VMOVP moves a vPE for all ITSs. Otherwise each ITS gets one (ITSList mode).
    pub single_vmovp: bool,
    /// Virtual SGIs can be used.
    pub vsgi: bool,
    /// Number of bits of a vPEID.
    pub vpe_bits: u8,
    /// The largest number of vPEs.
    pub vpes: u32,
    /// The proxy device, through whose events doorbells are controlled where redistributors cannot do it.
    pub proxy: Option<(ItsId, DeviceId)>,
    pub(super) itss: Vec<Option<ItsFacts>>,
}

impl Facts {
    /// What one ITS supports; `None` if there is no such ITS or it could not be brought up.
    #[must_use]
    pub fn its(&self, id: ItsId) -> Option<&ItsFacts> {
        self.itss.get(id.index())?.as_ref()
    }

    /// What each ITS that was brought up supports.
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
