//! What a guest has of the CPU: one table, from which come the ID registers it reads and the controls of EL2.
//!
//! [`table::TABLE`] lists each feature as exposed or hidden and says why. [`Features::decide`] applies it to
//! the ID registers of the CPU, once; `program` writes the controls on every CPU before its first guest.
//! What traps because of them is answered in `run::decode`.
//!
//! The rule that keeps this honest: an ID field that no row names is hidden, and a feature is exposed only if
//! its state is in the vCPU's context or it has none.
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
use table::{Exposure, TABLE};

/// The controls that the table makes for one CPU.
fn controls_for(host: &IdRegs) -> Controls {
    let mut controls = table::base(host);
    for row in TABLE {
        if row.on(host) {
            (row.control)(host, &mut controls);
        }
    }
    if host.field(reg::MMFR2, 40) >= 1 {
        controls.hcr |= HCR_EL2::FWB::SET.value;
    }
    controls
}

/// What the CPU allows stage 2 to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Params {
    /// Bits of output address, 32 to 48; an IPA space may be as large.
    pub pa_bits: u8,
    /// The same as VTCR_EL2.PS wants it, 0 to 5.
    pub pa_range: u8,
    /// HCR_EL2.FWB is on: stage 2's memory type wins over stage 1's.
    pub fwb: bool,
    /// VMIDs have 16 bits rather than 8.
    pub vmid16: bool,
    /// Execute-never can tell EL0 from EL1.
    pub xnx: bool,
}

/// What guests have: decided once, the same on every CPU.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    host: IdRegs,
    guest: [u64; COUNT],
    controls: Controls,
}

impl Features {
    /// Applies the table to what the CPU says of itself.
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
            // Without AArch32 its ID registers (CRm 1 to 3) are UNKNOWN.
            guest[..reg::PFR0.index()].fill(0);
        }
        Features { host: *host, guest, controls: controls_for(host) }
    }

    /// Takes another kind of CPU into account: guests then have what both have.
    pub fn restrict(&mut self, other: &IdRegs) {
        *self = Features::decide(&self.host.common(other));
    }

    /// Whether guests have the same by both, and stage 2 as well.
    #[must_use]
    pub fn offers_what(&self, other: &Features) -> bool {
        let enabled = |f: &Features| (f.controls.hcr & HCR_ENABLES, f.controls.hcrx.unwrap_or(0) & HCRX_ENABLES);
        self.guest == other.guest && self.stage2() == other.stage2() && enabled(self) == enabled(other)
    }

    /// The controls on a CPU of one kind: every trap that it has, but switched on only what all CPUs have.
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

    /// Why this CPU cannot run Doorward at all, as a sentence; `None` if it can.
    #[must_use]
    pub fn refusal(host: &IdRegs) -> Option<&'static str> {
        if host.field(reg::MMFR4, 24) >= 8 {
            return Some("this CPU has HCR_EL2.E2H fixed at 1; doorward needs E2H = 0");
        }
        let tgran4_2 = host.field(reg::MMFR0, 40);
        let tgran4 = host.field(reg::MMFR0, 28);
        if tgran4 == 0xf || tgran4_2 == 1 {
            return Some("this CPU has no 4 KiB translation granule");
        }
        if host.field(reg::PFR0, 24) == 0 {
            return Some("this CPU has no system registers for a GICv3");
        }
        None
    }

    /// What a guest reads from the ID register S3_`op1`_C`crn`_C`crm`_`op2`. The feature space reads as zero
    /// where nothing is allocated. `None`: no register that a guest has; the access is UNDEFINED.
    #[must_use]
    pub fn guest_id(&self, op1: u8, crn: u8, crm: u8, op2: u8) -> Option<u64> {
        match (op1, crn, crm, op2) {
            (0, 0, 0, 6) => Some(self.host.revidr),
            (1, 0, 0, 7) => Some(self.host.aidr),
            (0, 0, ..) => self.guest.get(Reg::new(crm, op2)?.index()).copied(),
            _ => None,
        }
    }

    /// What stage 2 may do.
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

    /// Whether the five pointer authentication keys exist and are to be switched.
    #[must_use]
    pub const fn pauth(&self) -> bool {
        self.controls.hcr & HCR_EL2::APK::SET.value != 0
    }

    /// The table with what the CPU makes of it, for a human reader.
    pub fn report(&self) -> impl Iterator<Item = Report> + '_ {
        TABLE.iter().map(|row| Report {
            name: row.name,
            exposed: row.exposure == Exposure::Exposed,
            on_host: row.on(&self.host),
            why: row.why,
        })
    }
}

/// One line of [`Features::report`].
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The feature.
    pub name: &'static str,
    /// Guests have it where the CPU has it.
    pub exposed: bool,
    /// The CPU has it.
    pub on_host: bool,
    /// Why it is exposed or hidden.
    pub why: &'static str,
}

/// VMPIDR_EL2 for a vCPU: its affinity, with the RES1 bit.
#[must_use]
pub const fn vmpidr(affinity: Mpidr) -> u64 {
    affinity.0 | 1 << 31
}

/// Writes the controls on the CPU that calls, before its first guest, and returns HCR_EL2 for its guests.
pub fn program(features: &Features) -> u64 {
    let cpu = IdRegs::read();
    let controls = features.controls_on(&cpu);
    controls.write(&cpu);
    controls.hcr
}

#[cfg(test)]
mod tests;
