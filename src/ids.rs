//! Types for identifiers and addresses.
//!
//! An INTID, a vINTID, a DeviceID and an EventID are all small integers, and mixing up two of them loses interrupts
//! silently. All other files use these types, and take the number out only to encode a register or a command.

use core::fmt;
use core::str::FromStr;

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
    /// A physical interrupt ID (IHI 0069, 2.2.1).
    Intid(u32), "INTID {}"
}
number! {
    /// A physical LPI: an INTID of at least 8192.
    Lpi(u32), "LPI {}"
}
number! {
    /// An interrupt ID of a guest; that of a vLPI is at least 8192.
    VIntid(u32), "vINTID {}"
}
number! {
    /// The ID by which the ITS distinguishes devices; the interconnect adds it to an MSI.
    DeviceId(u32), "device {:#x}"
}
number! {
    /// An SMMU, as an index into `platform::Machine::smmus`.
    SmmuId(u8), "SMMU{}"
}
number! {
    /// The ID by which an SMMU distinguishes devices; the interconnect adds it to each of their accesses (IHI 0070,
    /// 3.2).
    StreamId(u32), "stream {:#x}"
}
number! {
    /// The ID by which the ITS distinguishes the events of a device: the data of an MSI.
    EventId(u32), "event {}"
}
number! {
    /// An ITS, as an index into `platform::Gic::itss`.
    ItsId(u8), "ITS{}"
}
number! {
    /// A virtual PE: the vPEID of ITS commands, at most 16 bits.
    VpeId(u16), "vPE {}"
}
number! {
    /// A stage 2 context: VTTBR_EL2.VMID.
    VmId(u16), "VMID {}"
}
number! {
    /// A port of a virtio console.
    PortId(u16), "port {}"
}
number! {
    /// A collection: the ID by which an ITS refers to a redistributor.
    CollectionId(u16), "collection {}"
}
number! {
    /// A physical CPU, as an index into `platform::Machine::cpus`. The boot CPU may have any index.
    CpuId(u16), "CPU{}"
}
number! {
    /// A virtual CPU, as an index into the vCPUs of its domain.
    VcpuId(u16), "vCPU{}"
}
number! {
    /// A domain; dom0 is 0.
    DomId(u16), "dom{}"
}

/// The largest number of domains that exist at the same time, dom0 included. What is kept for each domain is in tables of
/// this size, at [`DomId::slot`]. VMIDs have 8 bits, so more would find none.
pub const DOMAINS: usize = 256;

/// The name of a domain; [`doorward_api::Name`] says what it may be.
pub type DomainName = arrayvec::ArrayString<{ doorward_api::NAME_MAX }>;

impl DomId {
    /// dom0.
    pub const DOM0: DomId = DomId(0);

    /// The largest number of a domain; Xen has the same.
    pub const LAST: DomId = DomId(0x7fef);

    /// The domain's place in tables of [`DOMAINS`] entries. Of the domains that exist at the same time, each has a place
    /// of its own (`domain/table.rs`). dom0's is 0.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.0 as usize % DOMAINS
    }
}

number! {
    /// A physical address.
    Pa(u64), "{:#x}"
}
number! {
    /// An intermediate physical address: the physical address that a guest uses.
    Ipa(u64), "{:#x}"
}
number! {
    /// A CPU's affinity in MPIDR_EL1's layout: Aff3 in bits 39:32, Aff2..Aff0 in bits 23:0, all others zero.
    Mpidr(u64), "{:#x}"
}

/// DeviceIDs from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceIds {
    /// The first one.
    pub first: DeviceId,
    /// The last one.
    pub last: DeviceId,
}

impl DeviceIds {
    /// Whether `device` is one of them.
    #[must_use]
    pub fn contains(self, device: DeviceId) -> bool {
        (self.first..=self.last).contains(&device)
    }
}

/// Consecutive StreamIDs of an SMMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Streams {
    /// The SMMU.
    pub smmu: SmmuId,
    /// The first one.
    pub first: StreamId,
    /// The last one.
    pub last: StreamId,
}

impl Streams {
    /// Whether a stream of an SMMU is one of them.
    #[must_use]
    pub fn contains(self, smmu: SmmuId, stream: StreamId) -> bool {
        self.smmu == smmu && (self.first..=self.last).contains(&stream)
    }

    /// Whether any stream is one of both.
    #[must_use]
    pub fn overlaps(self, other: Streams) -> bool {
        self.smmu == other.smmu && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Streams { smmu, first, last } = self;
        if first == last {
            write!(f, "{smmu} {first}")
        } else {
            write!(f, "{smmu} streams {:#x} to {:#x}", first.0, last.0)
        }
    }
}

impl SmmuId {
    /// Returns the index into the list of SMMUs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl CpuId {
    /// Returns the index into per-CPU arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl VcpuId {
    /// Returns the index into a domain's vCPUs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl ItsId {
    /// Returns the index into the list of ITSs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl VpeId {
    /// Returns the index into tables of vPEs.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An event of a device on an ITS: what one MSI names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// The ITS that translates the MSI.
    pub its: ItsId,
    /// The device that writes it.
    pub device: DeviceId,
    /// The data that it writes.
    pub event: EventId,
}

impl EventKey {
    /// The event `event` of `device` on `its`.
    #[must_use]
    pub const fn new(its: ItsId, device: DeviceId, event: EventId) -> EventKey {
        EventKey { its, device, event }
    }
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.its, self.device, self.event)
    }
}

/// A PCI function: segment, bus, device and function.
///
/// It is written as `lspci -D` and Xen write it, `SSSS:BB:DD.F`, in hexadecimal. The segment must be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf {
    /// The segment (a PCI domain in Linux' terms).
    pub segment: u16,
    /// Its requester ID in the segment: the bus in bits 15:8, the device in 7:3, the function in 2:0.
    pub rid: u16,
}

impl Sbdf {
    /// Returns the bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.rid >> 8) as u8
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sbdf { segment, rid } = self;
        write!(f, "{segment:04x}:{:02x}:{:02x}.{:x}", rid >> 8, rid >> 3 & 0x1f, rid & 7)
    }
}

/// A text is not the name of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnSbdf;

impl fmt::Display for NotAnSbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a PCI function; expected SSSS:BB:DD.F in hexadecimal")
    }
}

impl FromStr for Sbdf {
    type Err = NotAnSbdf;

    fn from_str(text: &str) -> Result<Sbdf, NotAnSbdf> {
        let parse = || {
            let (segment, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let (segment, bus) = (hexadecimal(segment, 0xffff)?, hexadecimal(bus, 0xff)?);
            let (device, function) = (hexadecimal(device, 0x1f)?, hexadecimal(function, 7)?);
            Some(Sbdf { segment, rid: bus << 8 | device << 3 | function })
        };
        parse().ok_or(NotAnSbdf)
    }
}

/// Reads a number of at most `max`. `from_str_radix` alone would take a sign.
fn hexadecimal(text: &str, max: u16) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|&number| digits && number <= max)
}

impl Lpi {
    /// The lowest LPI (IHI 0069, 2.2.1).
    pub const FIRST: u32 = 8192;

    /// Converts to an INTID.
    #[must_use]
    pub const fn intid(self) -> Intid {
        Intid(self.0)
    }
}

impl Intid {
    /// Converts to an LPI, if the INTID is that of one.
    #[must_use]
    pub const fn lpi(self) -> Option<Lpi> {
        if self.0 >= Lpi::FIRST { Some(Lpi(self.0)) } else { None }
    }
}

impl Pa {
    /// Returns the address plus `bytes`.
    #[must_use]
    pub const fn add(self, bytes: u64) -> Pa {
        Pa(self.0 + bytes)
    }
}

impl Mpidr {
    /// Extracts the affinity fields of an MPIDR_EL1 value, without U, MT and RES1 bits.
    #[must_use]
    pub const fn from_register(mpidr_el1: u64) -> Mpidr {
        Mpidr(mpidr_el1 & 0xff_00ff_ffff)
    }

    /// Converts from Aff3.Aff2.Aff1.Aff0 packed into 32 bits, as in GICR_TYPER.Affinity_Value.
    #[must_use]
    pub const fn from_packed(aff: u32) -> Mpidr {
        Mpidr(((aff as u64 & 0xff00_0000) << 8) | (aff as u64 & 0x00ff_ffff))
    }

    /// Converts to Aff3.Aff2.Aff1.Aff0 packed into 32 bits, as in GICR_TYPER.Affinity_Value.
    #[must_use]
    pub const fn packed(self) -> u32 {
        (((self.0 >> 8) & 0xff00_0000) | (self.0 & 0x00ff_ffff)) as u32
    }

    /// Returns the affinity field of `level` (0 to 3).
    #[must_use]
    pub const fn aff(self, level: u32) -> u8 {
        (self.packed() >> (8 * level)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_and_unpacking_an_affinity_keeps_aff3() {
        let m = Mpidr::from_register(0x0000_0001_8104_0203);
        assert_eq!(m, Mpidr(0x1_0004_0203));
        assert_eq!(m.packed(), 0x0104_0203);
        assert_eq!(Mpidr::from_packed(m.packed()), m);
        assert_eq!([m.aff(0), m.aff(1), m.aff(2), m.aff(3)], [3, 2, 4, 1]);
    }

    #[test]
    fn an_event_key_names_its_parts() {
        let key = EventKey::new(ItsId(1), DeviceId(0x10), EventId(3));
        assert_eq!(std::string::ToString::to_string(&key), "ITS1: device 0x10: event 3");
    }

    #[test]
    fn a_pci_function_is_read_and_written_as_lspci_does() {
        let function = Sbdf { segment: 1, rid: 0x3fd };
        assert_eq!("0001:03:1f.5".parse(), Ok(function));
        assert_eq!("1:3:1F.5".parse(), Ok(function));
        assert_eq!(std::string::ToString::to_string(&function), "0001:03:1f.5");
        assert_eq!("ffff:ff:1f.7".parse(), Ok(Sbdf { segment: 0xffff, rid: 0xffff }));
        assert_eq!(function.bus(), 3);
    }

    #[test]
    fn a_text_that_names_no_pci_function_is_refused() {
        for bad in [
            "",
            "03:00.0",
            "0000:03:00",
            "0000:03:20.0",
            "0000:03:00.8",
            "0000:100:00.0",
            "10000:00:00.0",
            "0000:+3:00.0",
            "-0:03:00.0",
            "0000::00.0",
            "0000:03:00.",
            "0000:03:00.0 ",
            "0000:03:00.0.0",
            "0000:03:00:0.0",
            "0x0:03:00.0",
        ] {
            assert_eq!(bad.parse::<Sbdf>(), Err(NotAnSbdf), "{bad}");
        }
    }

    #[test]
    fn only_intids_from_8192_on_are_lpis() {
        assert_eq!(Intid(8191).lpi(), None);
        assert_eq!(Intid(8192).lpi(), Some(Lpi(8192)));
    }
}
