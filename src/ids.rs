//! Every number that names something, as its own type.
//!
//! An INTID, a vINTID, a DeviceID and an EventID are all small integers, and a hypervisor that mixes
//! two of them up loses interrupts silently. Nothing in this file touches hardware; everything above
//! speaks in these types and unwraps them only where a register or a command is encoded.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

number! {
    /// A physical interrupt number (IHI 0069, 2.2.1).
    Intid(u32), "INTID {}"
}
number! {
    /// A physical LPI: an INTID of 8192 or above.
    Lpi(u32), "LPI {}"
}
number! {
    /// An interrupt number as a guest sees it; as a vLPI, 8192 or above.
    VIntid(u32), "vINTID {}"
}
number! {
    /// What the interconnect says about who wrote an MSI.
    DeviceId(u32), "device {:#x}"
}
number! {
    /// What the device wrote: the MSI's data.
    EventId(u32), "event {}"
}
number! {
    /// Which ITS, in the order the platform describes them.
    ItsId(u8), "ITS{}"
}
number! {
    /// A virtual PE as the ITS knows it: 16 bits at most (GITS commands, vPEID).
    VpeId(u16), "vPE {}"
}
number! {
    /// A stage-2 context: VTTBR_EL2.VMID.
    VmId(u16), "VMID {}"
}
number! {
    /// A collection: the ITS's name for a redistributor.
    CollectionId(u16), "collection {}"
}
number! {
    /// A physical CPU, by its place in `platform::Machine::cpus`; the boot CPU is wherever it is listed.
    CpuId(u16), "CPU{}"
}
number! {
    /// A virtual CPU, by its place in its domain.
    VcpuId(u16), "vCPU{}"
}
number! {
    /// A domain; dom0 is 0.
    DomId(u16), "dom{}"
}
number! {
    /// A physical address.
    Pa(u64), "{:#x}"
}
number! {
    /// An intermediate physical address: what a guest takes for physical.
    Ipa(u64), "{:#x}"
}
number! {
    /// A virtual address.
    Va(u64), "{:#x}"
}
number! {
    /// A CPU's affinity in MPIDR_EL1's layout: Aff3 in [39:32], Aff2..Aff0 in [23:0], all else zero.
    Mpidr(u64), "{:#x}"
}

impl CpuId {
    /// As an index into per-CPU arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl VcpuId {
    /// As an index into a domain's vCPUs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl ItsId {
    /// As an index into the list of ITSs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl VpeId {
    /// As an index into tables of vPEs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Lpi {
    /// The lowest LPI (IHI 0069, 2.2.1).
    pub const FIRST: u32 = 8192;

    /// This LPI as a plain INTID.
    #[must_use]
    pub const fn intid(self) -> Intid {
        Intid(self.0)
    }
}

impl Intid {
    /// This INTID as an LPI, if it is one.
    #[must_use]
    pub const fn lpi(self) -> Option<Lpi> {
        if self.0 >= Lpi::FIRST { Some(Lpi(self.0)) } else { None }
    }
}

impl Pa {
    /// The address `bytes` further on.
    #[must_use]
    pub const fn add(self, bytes: u64) -> Pa {
        Pa(self.0 + bytes)
    }
}

impl Mpidr {
    /// The affinity bits of an MPIDR_EL1 value; U, MT and RES1 bits are dropped.
    #[must_use]
    pub const fn from_register(mpidr_el1: u64) -> Mpidr {
        Mpidr(mpidr_el1 & 0xff_00ff_ffff)
    }

    /// From GICR_TYPER.Affinity_Value [63:32]: Aff3.Aff2.Aff1.Aff0 packed into 32 bits.
    #[must_use]
    pub const fn from_packed(aff: u32) -> Mpidr {
        Mpidr(((aff as u64 & 0xff00_0000) << 8) | (aff as u64 & 0x00ff_ffff))
    }

    /// Aff3.Aff2.Aff1.Aff0 packed into 32 bits, as in GICR_TYPER.
    #[must_use]
    pub const fn packed(self) -> u32 {
        (((self.0 >> 8) & 0xff00_0000) | (self.0 & 0x00ff_ffff)) as u32
    }

    /// Affinity level `level` (0 to 3).
    #[must_use]
    pub const fn aff(self, level: u32) -> u8 {
        (self.packed() >> (8 * level)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_survives_packing_with_aff3_set() {
        let m = Mpidr::from_register(0x0000_0001_8104_0203);
        assert_eq!(m, Mpidr(0x1_0004_0203));
        assert_eq!(m.packed(), 0x0104_0203);
        assert_eq!(Mpidr::from_packed(m.packed()), m);
        assert_eq!([m.aff(0), m.aff(1), m.aff(2), m.aff(3)], [3, 2, 4, 1]);
    }

    #[test]
    fn only_numbers_from_8192_are_lpis() {
        assert_eq!(Intid(8191).lpi(), None);
        assert_eq!(Intid(8192).lpi(), Some(Lpi(8192)));
    }
}
