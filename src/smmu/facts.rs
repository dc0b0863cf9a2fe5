//! What an SMMU can do, as its ID registers say (IHI 0070, 6.3.1 to 6.3.6).

use super::error::SmmuError;
use super::regs::{AIDR, IDR0, IDR1, IDR3, IDR5, smmu};
use crate::ids::Pa;
use crate::mmio::{Coherence, Hw};
use core::fmt;
use tock_registers::LocalRegisterCopy;

/// What an SMMU can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The minor number of the architecture, 1 for SMMUv3.1.
    pub minor: u8,
    /// The number of bits of a StreamID that the stream table resolves. Streams beyond it are always aborted.
    pub stream_bits: u8,
    /// Whether the stream table has two levels.
    pub two_levels: bool,
    /// The number of bits of a physical address, and the largest of an address that a device sends.
    pub address_bits: u8,
    /// The number of bits of a VMID: 8 or 16.
    pub vmid_bits: u8,
    /// Whether one command can invalidate a range of addresses (RIL).
    pub range_invalidation: bool,
    /// Whether it knows the attributes of stage 2 tables that are made for HCR_EL2.FWB.
    pub fwb: bool,
    /// Whether it snoops the CPUs' caches when it accesses its tables and queues and stage 2 tables.
    pub coherence: Coherence,
    /// Whether it takes part in the CPUs' TLB maintenance (BTM). The driver does not rely on it.
    pub broadcast: bool,
    /// Whether it knows ATS.
    pub ats: bool,
    /// Whether it has TLB entries of EL2's stage 1.
    pub(super) hyp: bool,
    /// Whether it can send its interrupts as MSIs.
    pub(super) msi: bool,
    /// Whether entries can override the attributes of transactions.
    pub(super) overrides_types: bool,
    /// The largest command queue and event queue, as log2 of their entries.
    pub(super) command_bits: u8,
    pub(super) event_bits: u8,
}

/// Address bits by their encoding, as in IDR5.OAS and VTCR_EL2.PS.
pub(super) const fn address_bits(encoding: u8) -> u8 {
    match encoding {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        _ => 56,
    }
}

impl Facts {
    /// Reads the ID registers. `coherent` is what the firmware says, which overrides IDR0.COHACC: the system's designer
    /// may have connected the SMMU otherwise than its register says (6.3.1).
    ///
    /// # Errors
    ///
    /// [`SmmuError`], if the SMMU cannot be used for stage 2.
    pub(super) fn read(hw: &impl Hw, base: Pa, coherent: bool) -> Result<Facts, SmmuError> {
        let read = |register| hw.read32(base.add(register));
        let idr0 = LocalRegisterCopy::<u32, IDR0::Register>::new(read(smmu::IDR0));
        let idr1 = LocalRegisterCopy::<u32, IDR1::Register>::new(read(smmu::IDR1));
        let idr3 = LocalRegisterCopy::<u32, IDR3::Register>::new(read(smmu::IDR3));
        let idr5 = LocalRegisterCopy::<u32, IDR5::Register>::new(read(smmu::IDR5));
        let aidr = LocalRegisterCopy::<u32, AIDR::Register>::new(read(smmu::AIDR));

        let little = idr0.matches_any(&[IDR0::TTENDIAN::Mixed, IDR0::TTENDIAN::Little]);
        let long = idr0.read(IDR0::TTF) & 0b10 != 0;
        if !idr0.is_set(IDR0::S2P) || !long || !little || !idr5.is_set(IDR5::GRAN4K) {
            return Err(SmmuError::NoStage2);
        }
        if !idr0.matches_any(&[IDR0::STALL_MODEL::Either, IDR0::STALL_MODEL::Terminate]) {
            return Err(SmmuError::StallsForced);
        }
        if idr1.is_set(IDR1::TABLES_PRESET) || idr1.is_set(IDR1::QUEUES_PRESET) {
            return Err(SmmuError::Preset);
        }
        // With 4 KiB pages and descriptors of VMSAv8-64 without DS, no more than 48 bits can be translated.
        let address_bits = address_bits(idr5.read(IDR5::OAS) as u8).min(48);
        let two_levels = idr0.matches_all(IDR0::ST_LEVEL::TwoLevels);
        Ok(Facts {
            minor: aidr.read(AIDR::MINOR) as u8,
            stream_bits: (idr1.read(IDR1::SIDSIZE) as u8).min(if two_levels { MOST_STREAM_BITS } else { LINEAR_BITS }),
            two_levels,
            address_bits,
            vmid_bits: if idr0.is_set(IDR0::VMID16) { 16 } else { 8 },
            range_invalidation: idr3.is_set(IDR3::RIL),
            fwb: idr3.is_set(IDR3::FWB),
            coherence: if coherent { Coherence::Coherent } else { Coherence::NonCoherent },
            broadcast: idr0.is_set(IDR0::BTM),
            ats: idr0.is_set(IDR0::ATS),
            hyp: idr0.is_set(IDR0::HYP),
            msi: idr0.is_set(IDR0::MSI),
            overrides_types: idr1.is_set(IDR1::ATTR_TYPES_OVR),
            command_bits: (idr1.read(IDR1::CMDQS) as u8).min(MOST_QUEUE_BITS),
            event_bits: (idr1.read(IDR1::EVENTQS) as u8).min(MOST_QUEUE_BITS),
        })
    }
}

/// StreamIDs of more bits would need a first-level table of more than 256 KiB.
pub(super) const MOST_STREAM_BITS: u8 = 25;
/// The largest linear stream table: 64 KiB. SMMUs of 7 or more bits have two levels (6.3.2), so none needs a larger one.
pub(super) const LINEAR_BITS: u8 = 10;
/// The largest queue of the architecture (3.5.1).
const MOST_QUEUE_BITS: u8 = 19;

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = if self.two_levels { "two levels" } else { "linear" };
        write!(
            f,
            "SMMUv3.{}: streams of {} bits ({levels}), addresses of {} bits, VMIDs of {} bits",
            self.minor, self.stream_bits, self.address_bits, self.vmid_bits
        )?;
        let has = [
            (self.range_invalidation, "range invalidation"),
            (self.fwb, "FWB"),
            (self.coherence == Coherence::NonCoherent, "not coherent"),
            (self.broadcast, "broadcast TLB maintenance"),
            (self.ats, "ATS"),
        ];
        has.iter().filter(|(has, _)| *has).try_for_each(|(_, name)| write!(f, ", {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::facts;
    use super::*;
    use std::string::ToString;

    /// IHI 0070, 6.3.6 (IDR5.OAS).
    #[test]
    fn each_encoding_of_the_address_size_is_that_of_the_manual() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(address_bits), [32, 36, 40, 42, 44, 48, 52, 56]);
    }

    #[test]
    fn what_an_smmu_can_do_is_one_line() {
        let with = |coherence| Facts { coherence, ats: true, ..facts() }.to_string();
        let [coherent, not] = [Coherence::Coherent, Coherence::NonCoherent].map(with);
        assert!(coherent.starts_with("SMMUv3.") && coherent.ends_with(", ATS"), "{coherent}");
        assert!(not.contains(", not coherent") && !coherent.contains("not coherent"), "{not}, {coherent}");
    }
}
