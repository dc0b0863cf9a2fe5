//! The CPU features that guests have: one table determines the ID registers that they read and the controls of EL2.
//!
//! [`table::TABLE`] lists each feature as exposed or hidden, with the reason. [`Features::decide`] applies the table to
//! the ID registers of the CPUs; [`program`] writes the controls on each CPU before its first guest. `run::decode`
//! emulates the accesses that trap because of the controls.
//!
//! Two rules keep a guest from using state that is not switched: an ID field that no row names is hidden, and a feature
//! is exposed only if its state is part of the vCPU's context or if it has none.
//!
//! Arm ARM (DDI 0487), D24.2: HCR_EL2, HCRX_EL2, CPTR_EL2, MDCR_EL2, CNTHCTL_EL2 (all in the layout for
//! HCR_EL2.E2H = 0), HFG*_EL2 and the ID registers.

pub mod controls;
pub mod ids;
pub mod table;

use crate::arch::sysreg::HCR_EL2;
use crate::ids::Mpidr;
pub use controls::Controls;
use controls::{HCR_ENABLES, HCRX_ENABLES};
use ids::{COUNT, PA_RANGE_48, reg};
pub use ids::{IdRegs, Reg};
use table::TABLE;

/// Returns the controls that the table determines for the CPU with the ID registers `host`.
fn controls_for(host: &IdRegs) -> Controls {
    let mut controls = table::base(host);
    for row in TABLE {
        if row.is_present(host) {
            (row.control)(host, &mut controls);
        }
    }
    if host.field(reg::MMFR2, 40) >= 1 {
        controls.hcr |= HCR_EL2::FWB::SET.value;
    }
    controls
}

/// Parameters of stage 2 that depend on the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Params {
    /// Number of output address bits, 32 to 48, which is also the most that an IPA space may have.
    pub pa_bits: u8,
    /// The same number as encoded in VTCR_EL2.PS, 0 to 5.
    pub pa_range: u8,
    /// HCR_EL2.FWB is set: the memory type of stage 2 overrides that of stage 1.
    pub fwb: bool,
    /// VMIDs have 16 bits rather than 8.
    pub vmid16: bool,
    /// Execute-never applies to EL0 and EL1 separately.
    pub xnx: bool,
}

/// The features of guests, which are the same on every CPU.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    host: IdRegs,
    guest: [u64; COUNT],
    controls: Controls,
}

impl Features {
    /// Applies the table to the ID registers of a CPU.
    #[must_use]
    pub fn decide(host: &IdRegs) -> Features {
        let mut guest = [0u64; COUNT];
        for row in TABLE {
            for field in row.fields {
                if let Some(register) = guest.get_mut(field.reg.index()) {
                    *register |= field.shown(host) << field.lsb;
                }
            }
        }
        if host.field(reg::PFR0, 0) < 2 {
            // The AArch32 ID registers (CRm 1 to 3) are UNKNOWN on a CPU without AArch32.
            guest[..reg::PFR0.index()].fill(0);
        }
        Features { host: *host, guest, controls: controls_for(host) }
    }

    /// Adds another CPU: guests then have what both have.
    pub fn restrict(&mut self, other: &IdRegs) {
        *self = Features::decide(&self.host.common(other));
    }

    /// Returns whether guests have the same features with `self` as with `other`, and stage 2 the same parameters.
    #[must_use]
    pub fn offers_same_as(&self, other: &Features) -> bool {
        let enabled = |f: &Features| (f.controls.hcr & HCR_ENABLES, f.controls.hcrx.unwrap_or(0) & HCRX_ENABLES);
        self.guest == other.guest && self.stage2() == other.stage2() && enabled(self) == enabled(other)
    }

    /// Returns the controls for one CPU: all traps that it has, but only those enables that all CPUs have.
    #[must_use]
    pub fn controls_on(&self, cpu: &IdRegs) -> Controls {
        let own = controls_for(cpu);
        let common = self.controls.hcrx.unwrap_or(0);
        Controls {
            hcr: own.hcr & (!HCR_ENABLES | self.controls.hcr),
            hcrx: own.hcrx.map(|hcrx| hcrx & (!HCRX_ENABLES | common)),
            ..own
        }
    }

    /// Returns why a CPU with these ID registers cannot run Doorward; `None` if it can.
    #[must_use]
    pub fn refusal(host: &IdRegs) -> Option<&'static str> {
        if host.field(reg::MMFR4, 24) >= 8 {
            return Some("HCR_EL2.E2H is fixed at 1, but EL2 needs E2H = 0");
        }
        let tgran4_2 = host.field(reg::MMFR0, 40);
        let tgran4 = host.field(reg::MMFR0, 28);
        if tgran4 == 0xf || tgran4_2 == 1 {
            return Some("the CPU has no 4 KiB translation granule");
        }
        if host.field(reg::PFR0, 24) == 0 {
            return Some("the CPU has no system register interface to a GICv3");
        }
        None
    }

    /// Returns what a guest reads from the ID register S3_`op1`_C`crn`_C`crm`_`op2`. Unallocated registers of the
    /// feature space read as zero. `None` for a register that a guest does not have: the access is UNDEFINED.
    #[must_use]
    pub fn guest_id(&self, op1: u8, crn: u8, crm: u8, op2: u8) -> Option<u64> {
        match (op1, crn, crm, op2) {
            (0, 0, 0, 6) => Some(self.host.revidr),
            (1, 0, 0, 7) => Some(self.host.aidr),
            (0, 0, ..) => self.guest.get(Reg::new(crm, op2)?.index()).copied(),
            _ => None,
        }
    }

    /// Returns whether guests have PSTATE.SSBS.
    #[must_use]
    pub fn ssbs(&self) -> bool {
        self.guest.get(reg::PFR1.index()).is_some_and(|pfr1| pfr1 >> 4 & 0xf != 0)
    }

    /// Returns the parameters of stage 2.
    #[must_use]
    pub const fn stage2(&self) -> Stage2Params {
        let host_range = self.host.field(reg::MMFR0, 0);
        let pa_range = if host_range > PA_RANGE_48 { PA_RANGE_48 } else { host_range };
        let pa_bits = match pa_range {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        };
        Stage2Params {
            pa_bits,
            pa_range,
            fwb: self.host.field(reg::MMFR2, 40) >= 1,
            vmid16: self.host.field(reg::MMFR1, 4) == 2,
            xnx: self.host.field(reg::MMFR1, 28) >= 1,
        }
    }

    /// Returns whether guests have pointer authentication.
    #[must_use]
    pub const fn pauth(&self) -> bool {
        self.controls.hcr & HCR_EL2::APK::SET.value != 0
    }
}

/// Returns VMPIDR_EL2 for a vCPU: its affinity and the RES1 bit.
#[must_use]
pub const fn vmpidr(affinity: Mpidr) -> u64 {
    affinity.0 | 1 << 31
}

/// Writes the controls on this CPU, before its first guest. Returns HCR_EL2, which is written for each vCPU (see
/// [`controls::HCR_BASE`]).
pub fn program(features: &Features) -> u64 {
    let cpu = IdRegs::read();
    let controls = features.controls_on(&cpu);
    controls.write(&cpu);
    controls.hcr
}

#[cfg(test)]
mod tests;
