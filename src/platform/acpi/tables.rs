//! Lookup of tables, and access to their fields.
//!
//! The root pointer (RSDP) has the address of the list of tables (XSDT). Each table starts with the same 36-byte
//! header, of which signature, length and checksum are used here (ACPI 6.5, 5.2.5 to 5.2.8). Fields are not aligned, so
//! each is copied out of its bytes. A table is returned only if all of it is readable and its checksum is correct.

use super::{AcpiError, Damage, Signature};
use crate::ids::Pa;

/// Access to the physical memory that holds the tables.
pub trait PhysicalMemory {
    /// Returns `length` bytes from `at` on, if all of them can be read.
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]>;
}

/// The length of the header of a table in bytes.
pub const HEADER: usize = 36;
/// The largest table that is accepted. The DSDTs of large servers have some hundred KiB.
const LONGEST: u32 = 16 << 20;
/// The largest XSDT that is read: 512 tables.
const LONGEST_XSDT: usize = HEADER + 8 * 512;

/// The bytes of a table, or of a part of one, with access to fields by offset.
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

    /// Reads the byte at an offset.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Short`], as for the other widths.
    pub fn u8(self, at: usize) -> Result<u8, AcpiError> {
        self.array(at).map(u8::from_le_bytes)
    }

    /// Reads the 16-bit field at an offset.
    pub fn u16(self, at: usize) -> Result<u16, AcpiError> {
        self.array(at).map(u16::from_le_bytes)
    }

    /// Reads the 32-bit field at an offset.
    pub fn u32(self, at: usize) -> Result<u32, AcpiError> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// Reads the 64-bit field at an offset.
    pub fn u64(self, at: usize) -> Result<u64, AcpiError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Returns the `length` bytes at an offset.
    pub fn part(self, at: usize, length: usize) -> Result<Fields<'m>, AcpiError> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.get(..length)).ok_or(AcpiError::Short(self.table))?;
        Ok(Fields { bytes, ..self })
    }

    /// Returns the bytes from an offset on; none if it is beyond the end.
    #[must_use]
    pub fn rest(self, at: usize) -> Fields<'m> {
        Fields { bytes: self.bytes.get(at..).unwrap_or(&[]), ..self }
    }

    /// Returns the revision in the header of a whole table.
    #[must_use]
    pub fn revision(self) -> u8 {
        self.bytes.get(8).copied().unwrap_or(0)
    }

    /// Returns the OEM fields in the header of a whole table.
    #[must_use]
    pub fn oem(self) -> Oem {
        Oem { id: self.array(10).unwrap_or_default(), table: self.array(16).unwrap_or_default() }
    }

    /// Returns the entries from an offset on, with their types. An entry starts with a byte for the type and a byte for
    /// the length, as in the MADT.
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

/// The OEM fields of a table header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Oem {
    /// The OEMID, padded with blanks or zeros.
    pub id: [u8; 6],
    /// The OEM Table ID, padded with blanks or zeros.
    pub table: [u8; 8],
}

/// Whether the sum of the bytes is zero modulo 256.
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

    /// Returns the addresses of the tables. Empty entries of the list are skipped.
    pub fn addresses(&self) -> impl Iterator<Item = Pa> + use<'m> {
        let list = self.xsdt.bytes.get(HEADER..).unwrap_or(&[]);
        list.as_chunks().0.iter().map(|&at: &[u8; 8]| Pa(u64::from_le_bytes(at))).filter(|at| at.0 != 0)
    }

    /// Returns the signature of the table at an address, or `None` if it cannot be read.
    #[must_use]
    pub fn signature(&self, at: Pa) -> Option<Signature> {
        self.memory.bytes(at, 4)?.first_chunk().map(|&letters| Signature(letters))
    }

    /// Returns every table with a signature, in the order of the list.
    pub fn all(&self, signature: Signature) -> impl Iterator<Item = Result<Fields<'m>, AcpiError>> + use<'m> {
        let tables = *self;
        self.addresses()
            .filter(move |&at| tables.signature(at) == Some(signature))
            .map(move |at| table_at(tables.memory, at))
    }

    /// Returns the first table with a signature.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Damaged`] if it is listed but damaged.
    pub fn find(&self, signature: Signature) -> Result<Option<Fields<'m>>, AcpiError> {
        self.all(signature).next().transpose()
    }

    /// Returns the first table with a signature, which must exist.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Missing`], and the errors of [`find`](Self::find).
    pub fn require(&self, signature: Signature) -> Result<Fields<'m>, AcpiError> {
        self.find(signature)?.ok_or(AcpiError::Missing(signature))
    }

    /// Returns the table at an address from another table.
    ///
    /// # Errors
    ///
    /// [`AcpiError::Damaged`].
    pub fn at(&self, at: Pa) -> Result<Fields<'m>, AcpiError> {
        table_at(self.memory, at)
    }

    /// Returns the XSDT, as far as it is read: a header and at most 512 entries.
    #[must_use]
    pub fn xsdt(&self) -> Fields<'m> {
        self.xsdt
    }
}

/// Returns the table at an address after checking its length and checksum.
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
