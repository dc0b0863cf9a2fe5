//! Finding tables, and fields in them.
//!
//! The root pointer (RSDP) names the list of tables (XSDT); each table starts with the same 36 bytes, of which
//! signature, length and checksum are used here (ACPI 6.5, 5.2.5 to 5.2.8). Nothing is aligned: a field is copied out
//! of its bytes. A table is handed on only once all of it has been found readable and its checksum right.

use super::{AcpiError, Damage};
use crate::ids::Pa;
use core::fmt;

/// Where tables are read.
pub trait PhysicalMemory {
    /// `length` bytes from `at` on, if all of them can be read.
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]>;
}

/// A table's four letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// Multiple APIC description: CPUs and interrupt controllers.
    pub const MADT: Signature = Signature(*b"APIC");
    /// Fixed ACPI description: PSCI, and where the DSDT is.
    pub const FADT: Signature = Signature(*b"FACP");
    /// Generic timers.
    pub const GTDT: Signature = Signature(*b"GTDT");
    /// PCI configuration spaces.
    pub const MCFG: Signature = Signature(*b"MCFG");
    /// I/O remapping: what becomes of requester IDs.
    pub const IORT: Signature = Signature(*b"IORT");
    /// The console.
    pub const SPCR: Signature = Signature(*b"SPCR");
    /// The devices, in AML.
    pub const DSDT: Signature = Signature(*b"DSDT");
    /// More devices.
    pub const SSDT: Signature = Signature(*b"SSDT");
    /// The list of tables.
    pub const XSDT: Signature = Signature(*b"XSDT");
    /// Devices that the namespace has, and the operating system must not use.
    pub const STAO: Signature = Signature(*b"STAO");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in &self.0 {
            fmt::Write::write_char(f, if byte.is_ascii_graphic() { char::from(byte) } else { '?' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Length of the header that all tables have.
pub const HEADER: usize = 36;
/// No table is longer; DSDTs of large servers have some hundred KiB.
const LONGEST: u32 = 16 << 20;
/// The largest XSDT that is read: 512 tables.
const LONGEST_XSDT: usize = HEADER + 8 * 512;

/// A table, or a part of one, as bytes whose fields are read by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields<'m> {
    /// The table's signature, for messages.
    pub table: Signature,
    /// The bytes.
    pub bytes: &'m [u8],
}

impl<'m> Fields<'m> {
    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], AcpiError> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk::<N>);
        bytes.copied().ok_or(AcpiError::Short(self.table))
    }

    /// The byte at an offset.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Short`], as for the other widths.
    pub fn u8(self, at: usize) -> Result<u8, AcpiError> {
        self.array(at).map(u8::from_le_bytes)
    }

    /// Two bytes.
    pub fn u16(self, at: usize) -> Result<u16, AcpiError> {
        self.array(at).map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(self, at: usize) -> Result<u32, AcpiError> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(self, at: usize) -> Result<u64, AcpiError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// `length` bytes of it.
    pub fn part(self, at: usize, length: usize) -> Result<Fields<'m>, AcpiError> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.get(..length)).ok_or(AcpiError::Short(self.table))?;
        Ok(Fields { bytes, ..self })
    }

    /// The bytes from an offset on; none where that is behind the end.
    #[must_use]
    pub fn rest(self, at: usize) -> Fields<'m> {
        Fields { bytes: self.bytes.get(at..).unwrap_or(&[]), ..self }
    }

    /// The table's revision; 0 for what is not a whole table.
    #[must_use]
    pub fn revision(self) -> u8 {
        self.bytes.get(8).copied().unwrap_or(0)
    }

    /// The machine's maker, as the header of a whole table gives it, and the maker's name for the table.
    #[must_use]
    pub fn oem(self) -> Oem {
        Oem { id: self.array(10).unwrap_or_default(), table: self.array(16).unwrap_or_default() }
    }

    /// Entries that start with a type and a length of one byte each, as those of the MADT do, from an offset on.
    pub fn entries(self, from: usize) -> impl Iterator<Item = Result<(u8, Fields<'m>), AcpiError>> {
        let mut rest = self.rest(from);
        core::iter::from_fn(move || {
            let &[kind, length, ..] = rest.bytes else {
                return (!rest.bytes.is_empty()).then(|| {
                    rest.bytes = &[];
                    Err(AcpiError::BadEntry(self.table))
                });
            };
            let length = usize::from(length);
            let entry = if length < 2 { None } else { rest.bytes.split_at_checked(length) };
            let Some((entry, behind)) = entry else {
                rest.bytes = &[];
                return Some(Err(AcpiError::BadEntry(self.table)));
            };
            rest.bytes = behind;
            Some(Ok((kind, Fields { bytes: entry, ..self })))
        })
    }
}

/// Who made a machine, in the words of its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Oem {
    /// OEMID, padded with blanks or zeros.
    pub id: [u8; 6],
    /// OEM Table ID, padded as well.
    pub table: [u8; 8],
}

/// Whether bytes add up to zero.
pub(super) fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

/// The tables of a machine.
#[derive(Clone, Copy)]
pub struct Tables<'m> {
    memory: &'m dyn PhysicalMemory,
    xsdt: Fields<'m>,
}

impl<'m> Tables<'m> {
    /// Reads the root pointer and the list of tables.
    ///
    /// # Errors
    ///
    /// [`AcpiError::NoRsdp`], or what is wrong with the XSDT.
    pub fn open(rsdp: Pa, memory: &'m dyn PhysicalMemory) -> Result<Tables<'m>, AcpiError> {
        let none = AcpiError::NoRsdp(rsdp);
        let bytes = memory.bytes(rsdp, HEADER).ok_or(none)?;
        let root = Fields { table: Signature(*b"RSDP"), bytes };
        let old = bytes.get(..20).ok_or(none)?;
        if !bytes.starts_with(b"RSD PTR ") || !sums_to_zero(old) || !sums_to_zero(bytes) || root.u8(15)? < 2 {
            return Err(none);
        }
        let xsdt = table_at(memory, Pa(root.u64(24)?))?;
        if xsdt.table != Signature::XSDT {
            return Err(AcpiError::Missing(Signature::XSDT));
        }
        let xsdt = Fields { bytes: xsdt.bytes.get(..LONGEST_XSDT).unwrap_or(xsdt.bytes), ..xsdt };
        Ok(Tables { memory, xsdt })
    }

    /// Where the tables are. Empty places in the list are passed over.
    pub fn addresses(&self) -> impl Iterator<Item = Pa> + use<'m> {
        let list = self.xsdt.bytes.get(HEADER..).unwrap_or(&[]);
        list.as_chunks().0.iter().map(|&at: &[u8; 8]| Pa(u64::from_le_bytes(at))).filter(|at| at.0 != 0)
    }

    /// The signature of what is at an address; `None` where nothing can be read.
    #[must_use]
    pub fn signature(&self, at: Pa) -> Option<Signature> {
        self.memory.bytes(at, 4)?.first_chunk().map(|&letters| Signature(letters))
    }

    /// Every table with a signature, in the list's order.
    pub fn all(&self, signature: Signature) -> impl Iterator<Item = Result<Fields<'m>, AcpiError>> + use<'m> {
        let tables = *self;
        self.addresses()
            .filter(move |&at| tables.signature(at) == Some(signature))
            .map(move |at| table_at(tables.memory, at))
    }

    /// The first table with a signature.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Damaged`] when it is there but of no use.
    pub fn find(&self, signature: Signature) -> Result<Option<Fields<'m>>, AcpiError> {
        self.all(signature).next().transpose()
    }

    /// As [`find`](Self::find), for a table without which there is no machine.
    ///
    /// # Errors
    ///
    /// Also [`AcpiError::Missing`].
    pub fn require(&self, signature: Signature) -> Result<Fields<'m>, AcpiError> {
        self.find(signature)?.ok_or(AcpiError::Missing(signature))
    }

    /// The table at an address that another table gave.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Damaged`].
    pub fn at(&self, at: Pa) -> Result<Fields<'m>, AcpiError> {
        table_at(self.memory, at)
    }

    /// The list itself.
    #[must_use]
    pub fn xsdt(&self) -> Fields<'m> {
        self.xsdt
    }
}

/// The whole table at an address.
fn table_at(memory: &dyn PhysicalMemory, at: Pa) -> Result<Fields<'_>, AcpiError> {
    let lost = |table| AcpiError::Damaged { table, at, damage: Damage::Unreachable };
    let unknown = Signature([0; 4]);
    let bytes = memory.bytes(at, HEADER).ok_or(lost(unknown))?;
    let header = Fields { table: unknown, bytes };
    let table = Signature(header.array(0)?);
    let length = header.u32(4)?;
    let bad = |damage| AcpiError::Damaged { table, at, damage };
    let whole = usize::try_from(length).ok().filter(|&whole| whole >= HEADER && length <= LONGEST);
    let whole = whole.ok_or(bad(Damage::Length(length)))?;
    let bytes = memory.bytes(at, whole).ok_or(lost(table))?;
    if !sums_to_zero(bytes) {
        return Err(bad(Damage::Checksum));
    }
    Ok(Fields { table, bytes })
}
