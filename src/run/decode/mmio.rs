//! Decoding of a guest's loads and stores to emulated devices.
//!
//! The syndrome of a stage 2 abort describes a plain load or store of one register completely (ISV = 1). For pairs, for
//! addresses with writeback and for a few other forms it does not, and the instruction itself is decoded. The
//! instruction is not trusted, since another vCPU may have overwritten it after the fault: if its address or direction
//! do not agree with FAR_EL2 and the syndrome, the guest executes it again. SIMD and FP registers, exclusives, atomics
//! and pointer-authenticated loads are not used with devices and are refused: the guest gets a data abort.
//!
//! [`decode`] returns a [`Plan`] of one or two accesses, which do not cross a 4 KiB page, and of the writeback of the
//! base register. It has no side effects: the caller carries the plan out.
//!
//! Arm ARM (DDI 0487), C4.1.94 "Loads and stores" and D24.2.40 "ISS encoding for an exception from a Data Abort".

use crate::arch::esr::DataAbort;
use crate::ids::Ipa;
use crate::util::PAGE;

/// The general-purpose registers of a vCPU.
pub trait Registers {
    /// Value of Xn, or 0 for n = 31.
    fn x(&self, n: u8) -> u64;
    /// Value of the stack pointer that PSTATE selects.
    fn sp(&self) -> u64;
    /// Whether data accesses at the guest's exception level are big-endian (SCTLR_EL1.EE or E0E, PSTATE.E).
    fn big_endian(&self) -> bool;
}

/// A base register with writeback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// X0 to X30.
    X(u8),
    /// The stack pointer that PSTATE selects.
    Sp,
}

/// How to convert a loaded value, and the register to put it into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    rt: u8,
    bytes: u8,
    sign: bool,
    wide: bool,
    swap: bool,
}

impl Load {
    /// Number of the register to write. 31 is XZR: the value is discarded.
    #[must_use]
    pub const fn rt(&self) -> u8 {
        self.rt
    }

    /// Returns the register's value if the device returned `raw`.
    #[must_use]
    pub const fn value(&self, raw: u64) -> u64 {
        let bytes = truncate(raw, self.bytes);
        let ordered = if self.swap { swap(bytes, self.bytes) } else { bytes };
        let extended = if self.sign { sign_extend(ordered, self.bytes) } else { ordered };
        if self.wide { extended } else { extended & 0xffff_ffff }
    }
}

/// The operation of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A store of this value.
    Write(u64),
    /// A load.
    Read(Load),
}

/// One access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Address of the access, not necessarily aligned.
    pub at: Ipa,
    /// Size in bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Load or store.
    pub op: Op,
}

/// A decoded load or store. To carry it out, make the accesses in order, write the base register, and advance to the
/// next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first access.
    pub first: Access,
    /// The second access of a pair.
    pub second: Option<Access>,
    /// The base register's new value.
    pub writeback: Option<(Base, u64)>,
}

impl Plan {
    /// Returns the accesses in order.
    pub fn accesses(&self) -> impl Iterator<Item = Access> + use<> {
        core::iter::once(self.first).chain(self.second)
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The instruction is a cache operation or a prefetch. Skip it.
    NotAnAccess,
    /// The instruction is not supported for devices. Inject a data abort.
    Unsupported,
    /// The instruction is not the one that faulted. Resume the guest at it.
    Changed,
}

/// Whether [`decode`] needs the instruction word. The caller reads it at the guest's PC, through the guest's own stage
/// 1 translation.
#[must_use]
pub const fn needs_instruction(abort: &DataAbort) -> bool {
    !abort.isv && !abort.cm && !abort.s1ptw && !abort.fnv
}

/// Bits of a virtual address. The top byte may be a tag.
const ADDRESS: u64 = 0x00ff_ffff_ffff_ffff;

/// Decodes a load or store that faulted at stage 2.
///
/// `far` is FAR_EL2 and `ipa` the result of [`crate::arch::esr::ipa`] for it. `instruction` is the word at the guest's
/// PC if [`needs_instruction`] asks for it, and `None` if the guest was in AArch32 state, whose instructions are not
/// decoded.
///
/// # Errors
///
/// [`Refused`].
pub fn decode(
    abort: &DataAbort,
    far: u64,
    ipa: Ipa,
    instruction: Option<u32>,
    regs: &dyn Registers,
) -> Result<Plan, Refused> {
    if abort.s1ptw || abort.fnv {
        return Err(Refused::Unsupported);
    }
    if abort.cm {
        return Err(Refused::NotAnAccess);
    }
    if abort.isv {
        return from_syndrome(abort, ipa, regs);
    }
    let word = instruction.ok_or(Refused::Unsupported)?;
    let form = parse(word)?;
    form.plan(abort, far, ipa, regs)
}

/// Decodes an access from the syndrome alone.
fn from_syndrome(abort: &DataAbort, ipa: Ipa, regs: &dyn Registers) -> Result<Plan, Refused> {
    let bytes = 1u8 << (abort.sas & 3);
    in_one_page(ipa.0, bytes)?;
    let element = Element { rt: abort.srt, bytes, load: !abort.wnr, sign: abort.sse, wide: abort.sf };
    Ok(Plan { first: element.access(ipa, regs), second: None, writeback: None })
}

fn in_one_page(address: u64, bytes: u8) -> Result<(), Refused> {
    let last = (address & (PAGE - 1)).wrapping_add(u64::from(bytes));
    if last > PAGE { Err(Refused::Unsupported) } else { Ok(()) }
}

/// The transfer of one register of a load or store.
#[derive(Clone, Copy)]
struct Element {
    rt: u8,
    bytes: u8,
    load: bool,
    sign: bool,
    wide: bool,
}

impl Element {
    fn access(self, at: Ipa, regs: &dyn Registers) -> Access {
        let swapped = regs.big_endian();
        let op = if self.load {
            Op::Read(Load { rt: self.rt, bytes: self.bytes, sign: self.sign, wide: self.wide, swap: swapped })
        } else {
            let value = truncate(if self.rt == 31 { 0 } else { regs.x(self.rt) }, self.bytes);
            Op::Write(if swapped { swap(value, self.bytes) } else { value })
        };
        Access { at, bytes: self.bytes, op }
    }
}

/// Addressing mode.
#[derive(Clone, Copy)]
enum Address {
    /// The address is the base plus an offset.
    Offset(i64),
    /// The address is the base plus an offset, and is written to the base register.
    Pre(i64),
    /// The address is the base. The base plus an offset is written to the base register.
    Post(i64),
    /// The address is the base plus an extended and shifted index register.
    Index { rm: u8, extend: u8, shift: u8 },
}

/// A parsed load or store instruction.
#[derive(Clone, Copy)]
struct Form {
    rn: u8,
    address: Address,
    first: Element,
    second: Option<u8>,
}

impl Form {
    fn plan(self, abort: &DataAbort, far: u64, ipa: Ipa, regs: &dyn Registers) -> Result<Plan, Refused> {
        let Element { bytes, load, .. } = self.first;
        if load == abort.wnr {
            return Err(Refused::Changed);
        }
        let base = if self.rn == 31 { regs.sp() } else { regs.x(self.rn) };
        let (start, written) = match self.address {
            Address::Offset(by) => (base.wrapping_add_signed(by), None),
            Address::Pre(by) => (base.wrapping_add_signed(by), Some(base.wrapping_add_signed(by))),
            Address::Post(by) => (base, Some(base.wrapping_add_signed(by))),
            Address::Index { rm, extend, shift } => {
                let index = if rm == 31 { 0 } else { regs.x(rm) };
                (base.wrapping_add(extend_index(index, extend) << (shift & 7)), None)
            }
        };
        let total = if self.second.is_some() { bytes.wrapping_mul(2) } else { bytes };
        in_one_page(start, total)?;
        // FAR_EL2 may be the address of any byte of the access.
        let into = far.wrapping_sub(start) & ADDRESS;
        if into >= u64::from(total) {
            return Err(Refused::Changed);
        }
        let at = Ipa((ipa.0 & !(PAGE - 1)) | (start & (PAGE - 1)));
        let second = self.second.map(|rt| {
            let next = Ipa(at.0.wrapping_add(u64::from(bytes)));
            Element { rt, ..self.first }.access(next, regs)
        });
        let base_register = if self.rn == 31 { Base::Sp } else { Base::X(self.rn) };
        Ok(Plan { first: self.first.access(at, regs), second, writeback: written.map(|value| (base_register, value)) })
    }
}

const fn bits(word: u32, lsb: u32, count: u32) -> u8 {
    // Callers ask for at most 7 bits, so the cast does not truncate.
    (word >> lsb & !(u32::MAX << count)) as u8
}

/// Returns a signed immediate of up to 9 bits.
const fn signed(word: u32, lsb: u32, count: u32) -> i64 {
    let field = word >> lsb & !(u32::MAX << count);
    let high = 32u32.wrapping_sub(count);
    ((field << high) as i32 >> high) as i64
}

fn parse(word: u32) -> Result<Form, Refused> {
    const SIMD: u32 = 1 << 26;
    if word & SIMD != 0 {
        return Err(Refused::Unsupported);
    }
    match (word >> 24 & 0x3f, bits(word, 21, 1)) {
        (0x28 | 0x29, _) => pair(word),
        (0x39, _) => unsigned_offset(word),
        (0x38, 0) => indexed(word),
        (0x38, _) => register_offset(word),
        (0x08, 0) => ordered(word),
        (0x19, 0) => ordered_unscaled(word),
        _ => Err(Refused::Unsupported),
    }
}

/// Parses LDP, STP, LDPSW, LDNP, STNP: `opc 101 V mode L imm7 Rt2 Rn Rt`.
fn pair(word: u32) -> Result<Form, Refused> {
    let load = bits(word, 22, 1) == 1;
    let mode = bits(word, 23, 3);
    let (bytes, sign) = match (bits(word, 30, 2), load) {
        (0, _) => (4u8, false),
        (1, true) if mode != 0 => (4, true),
        (2, _) => (8, false),
        _ => return Err(Refused::Unsupported),
    };
    let offset = signed(word, 15, 7).wrapping_mul(i64::from(bytes));
    let address = match mode {
        0 | 2 => Address::Offset(offset),
        1 => Address::Post(offset),
        3 => Address::Pre(offset),
        _ => return Err(Refused::Unsupported),
    };
    let (rt, rt2, rn) = (bits(word, 0, 5), bits(word, 10, 5), bits(word, 5, 5));
    let writes_back = !matches!(address, Address::Offset(_));
    // CONSTRAINED UNPREDICTABLE: one register is loaded twice, or a base register with writeback is also transferred.
    if (load && rt == rt2) || (writes_back && rn != 31 && (rt == rn || rt2 == rn)) {
        return Err(Refused::Unsupported);
    }
    let first = Element { rt, bytes, load, sign, wide: bytes == 8 || sign };
    Ok(Form { rn, address, first, second: Some(rt2) })
}

/// Parses the size and opc fields, which all forms with a single register have in the same place.
fn single(word: u32) -> Result<Element, Refused> {
    let size = bits(word, 30, 2);
    let bytes = 1u8 << size;
    let rt = bits(word, 0, 5);
    match (bits(word, 22, 2), size) {
        (0, _) => Ok(Element { rt, bytes, load: false, sign: false, wide: true }),
        (1, _) => Ok(Element { rt, bytes, load: true, sign: false, wide: true }),
        (2, 0..=2) => Ok(Element { rt, bytes, load: true, sign: true, wide: true }),
        (3, 0 | 1) => Ok(Element { rt, bytes, load: true, sign: true, wide: false }),
        // PRFM and PRFUM
        (2, 3) => Err(Refused::NotAnAccess),
        _ => Err(Refused::Unsupported),
    }
}

/// Parses LDR and STR with an unsigned, scaled offset: `size 111 V 01 opc imm12 Rn Rt`.
fn unsigned_offset(word: u32) -> Result<Form, Refused> {
    let first = single(word)?;
    let offset = i64::from(word >> 10 & 0xfff) << bits(word, 30, 2);
    Ok(Form { rn: bits(word, 5, 5), address: Address::Offset(offset), first, second: None })
}

/// Parses the unscaled, post-indexed, unprivileged and pre-indexed forms: `size 111 V 00 opc 0 imm9 mode Rn Rt`.
fn indexed(word: u32) -> Result<Form, Refused> {
    let first = single(word);
    let rn = bits(word, 5, 5);
    let offset = signed(word, 12, 9);
    let address = match bits(word, 10, 2) {
        0 => Address::Offset(offset),
        1 => Address::Post(offset),
        2 => Address::Offset(offset),
        _ => Address::Pre(offset),
    };
    let writes_back = !matches!(address, Address::Offset(_));
    // The encoding of a prefetch is allocated only in the unscaled form.
    let first = match first {
        Err(Refused::NotAnAccess) if bits(word, 10, 2) != 0 => return Err(Refused::Unsupported),
        other => other?,
    };
    if writes_back && rn != 31 && first.rt == rn {
        return Err(Refused::Unsupported);
    }
    Ok(Form { rn, address, first, second: None })
}

/// Parses LDR and STR with an index register, `size 111 V 00 opc 1 Rm option S 10 Rn Rt`, and LDAPR, whose encoding is
/// among those of the atomics.
fn register_offset(word: u32) -> Result<Form, Refused> {
    const LDAPR_MASK: u32 = 0x3fff_fc00;
    const LDAPR: u32 = 0x38bf_c000;
    let rn = bits(word, 5, 5);
    if word & LDAPR_MASK == LDAPR {
        let bytes = 1u8 << bits(word, 30, 2);
        let first = Element { rt: bits(word, 0, 5), bytes, load: true, sign: false, wide: true };
        return Ok(Form { rn, address: Address::Offset(0), first, second: None });
    }
    let extend = bits(word, 13, 3);
    // Bits [11:10] of a register offset are 0b10. Of the extensions, UXTW, UXTX (LSL), SXTW and SXTX are allocated.
    if bits(word, 10, 2) != 2 || extend & 2 == 0 {
        return Err(Refused::Unsupported);
    }
    let first = single(word)?;
    let shift = if bits(word, 12, 1) == 1 { bits(word, 30, 2) } else { 0 };
    let address = Address::Index { rm: bits(word, 16, 5), extend, shift };
    Ok(Form { rn, address, first, second: None })
}

/// Parses LDAR, STLR, LDLAR and STLLR: `size 001000 1 L 0 Rs o0 Rt2 Rn Rt`. With bit 23 clear these are exclusives,
/// which are refused.
fn ordered(word: u32) -> Result<Form, Refused> {
    if bits(word, 23, 1) == 0 {
        return Err(Refused::Unsupported);
    }
    let bytes = 1u8 << bits(word, 30, 2);
    let load = bits(word, 22, 1) == 1;
    let first = Element { rt: bits(word, 0, 5), bytes, load, sign: false, wide: true };
    Ok(Form { rn: bits(word, 5, 5), address: Address::Offset(0), first, second: None })
}

/// Parses LDAPUR and STLUR: `size 011001 opc 0 imm9 00 Rn Rt`.
fn ordered_unscaled(word: u32) -> Result<Form, Refused> {
    if bits(word, 10, 2) != 0 {
        return Err(Refused::Unsupported);
    }
    let first = match single(word) {
        Err(Refused::NotAnAccess) => return Err(Refused::Unsupported),
        other => other?,
    };
    Ok(Form { rn: bits(word, 5, 5), address: Address::Offset(signed(word, 12, 9)), first, second: None })
}

const fn truncate(value: u64, bytes: u8) -> u64 {
    match bytes {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

const fn sign_extend(value: u64, bytes: u8) -> u64 {
    match bytes {
        1 => value as u8 as i8 as u64,
        2 => value as u16 as i16 as u64,
        4 => value as u32 as i32 as u64,
        _ => value,
    }
}

const fn swap(value: u64, bytes: u8) -> u64 {
    match bytes {
        1 => value,
        2 => (value as u16).swap_bytes() as u64,
        4 => (value as u32).swap_bytes() as u64,
        _ => value.swap_bytes(),
    }
}

/// Extends an index register: UXTW (2), UXTX (3), SXTW (6), SXTX (7).
const fn extend_index(index: u64, extend: u8) -> u64 {
    match extend {
        2 => index & 0xffff_ffff,
        6 => index as u32 as i32 as u64,
        _ => index,
    }
}

#[cfg(test)]
mod tests;
