//! What a physical function is: its identity, its BARs, and the capabilities that matter when it is given to a domain.
//!
//! Configuration space is believed in nothing. A chain of capabilities may be circular, point outside of it or overlap
//! another, a BAR may decode a size that is none, and all may read as ones because the function is gone. Reading ends in
//! each case, after a bounded number of accesses.
//!
//! [`Facts::read`] only reads. [`Facts::size_bars`] writes, and belongs to a time when nobody uses the function.

use super::ConfigSpace;
use super::regs::*;
use super::topology::{capabilities, extended_capabilities};
use crate::ids::Pa;
use arrayvec::ArrayVec;
use core::fmt;

/// The end of the part of configuration space in which capabilities are.
const END: u64 = 0x100;

/// What kind of function it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A function with a type 0 header, which may be given to a domain.
    Endpoint,
    /// A bridge, with a type 1 header.
    Bridge {
        /// The bus behind it; 0 if it has not been numbered.
        secondary: u8,
        /// The last bus behind it.
        subordinate: u8,
    },
}

/// What addresses a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere. The BAR takes two registers.
    Memory64,
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// What addresses it decodes.
    pub space: Space,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Its PCI address; 0 if nobody has placed it.
    pub base: u64,
    /// The size in bytes, a power of two.
    pub size: u64,
}

/// The Power Management capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// Its offset.
    pub at: u64,
    /// Whether the way from D3hot to D0 resets the function (No_Soft_Reset = 0).
    pub resets: bool,
}

/// The MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Its offset.
    pub at: u64,
    /// Multiple Message Capable: log2 of the number of vectors.
    pub vectors_log2: u32,
    /// Whether the address has 64 bits.
    pub wide: bool,
    /// Whether vectors can be masked.
    pub masks: bool,
}

impl Msi {
    /// The offset of the message data from the capability.
    #[must_use]
    pub const fn data(self) -> u64 {
        if self.wide { 0x0c } else { 0x08 }
    }

    /// The size of the capability in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        match (self.wide, self.masks) {
            (false, false) => 0x0c,
            (true, false) => 0x10,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }

    /// No such capability is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Its offset.
    pub at: u64,
    /// The number of vectors, 1 to 2048.
    pub vectors: u32,
    /// The BAR with the table, and the table's offset there.
    pub table: (u8, u64),
    /// The BAR with the Pending Bit Array, and its offset there.
    pub pending: (u8, u64),
}

/// The PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Its offset.
    pub at: u64,
    /// Capability Version.
    pub version: u32,
    /// What the function is in the hierarchy.
    pub port: Port,
    /// Whether it can be reset by itself (Function Level Reset).
    pub resets: bool,
}

/// Device/Port Type (table 7-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// PCI Express endpoint, with or without I/O ports.
    Endpoint,
    /// Root port.
    Root,
    /// Upstream port of a switch.
    Upstream,
    /// Downstream port of a switch.
    Downstream,
    /// A bridge to or from conventional PCI.
    ToPci,
    /// Endpoint that is part of the root complex.
    Integrated,
    /// Root Complex Event Collector, or a type that is not known.
    Other,
}

/// Access Control Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    /// The offset of the capability.
    pub at: u64,
    /// What it can do.
    pub capability: u16,
    /// What is on.
    pub control: u16,
}

impl Acs {
    /// Whether what it can do to keep functions apart is on. What a function cannot control it does by itself (7.7.11.2).
    #[must_use]
    pub const fn isolates(self) -> bool {
        let wanted = self.capability & ACS_ISOLATES;
        self.control & wanted == wanted
    }
}

/// A physical function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its requester ID in its segment: bus, device and function number.
    pub rid: u16,
    /// Its configuration space.
    pub page: Pa,
    /// Device ID in the upper half, Vendor ID in the lower.
    pub id: u32,
    /// Class Code in the upper 24 bits, and Revision ID.
    pub class: u32,
    /// Subsystem ID and Subsystem Vendor ID; 0 for a bridge.
    pub subsystem: u32,
    /// Endpoint or bridge.
    pub kind: Kind,
    /// Whether its device has several functions. This is known of function 0 for certain.
    pub multi_function: bool,
    /// Its BARs by their first register, when [`size_bars`](Facts::size_bars) has been called. The second register of a
    /// 64-bit BAR is `None`.
    pub bars: [Option<Bar>; BAR_COUNT],
    /// Power Management.
    pub power: Option<Power>,
    /// MSI.
    pub msi: Option<Msi>,
    /// MSI-X.
    pub msix: Option<MsiX>,
    /// PCI Express.
    pub express: Option<Express>,
    /// Access Control Services.
    pub acs: Option<Acs>,
    /// Whether it has Alternative Routing-ID Interpretation.
    pub ari: bool,
    /// Whether it has Advanced Error Reporting.
    pub advanced_errors: bool,
    /// The number of its virtual functions that are enabled (SR-IOV); `None` if it can have none.
    pub virtual_functions: Option<u16>,
}

/// Why a function cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nothing answers.
    Absent,
    /// A type of header that is not known.
    Header(u8),
    /// The capability with this ID, at this offset, does not fit, or overlaps another.
    Capability(u8, u64),
    /// The BAR with this index decodes no power of two, or has a reserved type.
    Bar(u8),
    /// The table or the Pending Bit Array of MSI-X is in no memory BAR.
    Table,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Absent => write!(f, "nothing answers"),
            Broken::Header(kind) => write!(f, "its header has the unknown type {kind:#x}"),
            Broken::Capability(id, at) => {
                write!(f, "its capability {id:#x} at {at:#x} does not fit or overlaps another")
            }
            Broken::Bar(index) => write!(f, "its BAR {index} decodes no valid size"),
            Broken::Table => write!(f, "its MSI-X table or pending bits are in no memory BAR"),
        }
    }
}

impl Facts {
    /// Reads what there is to know of the function `rid` with its configuration space at `page`, without its BARs.
    ///
    /// # Errors
    ///
    /// [`Broken`], but for BARs and the MSI-X table.
    pub fn read(rid: u16, page: Pa, config: &impl ConfigSpace) -> Result<Facts, Broken> {
        let word = |at: u64| config.read32(page.add(at));
        let id = word(ID);
        if id == NONE {
            return Err(Broken::Absent);
        }
        let header = word(HEADER);
        let kind = match header & HEADER_TYPE {
            0 => Kind::Endpoint,
            BRIDGE => {
                let [_, secondary, subordinate, _] = word(BUSES).to_le_bytes();
                Kind::Bridge { secondary, subordinate }
            }
            other => return Err(Broken::Header((other >> 16) as u8)),
        };
        let mut facts = Facts {
            rid,
            page,
            id,
            class: word(CLASS),
            subsystem: if kind == Kind::Endpoint { word(SUBSYSTEM) } else { 0 },
            kind,
            multi_function: header & MULTI_FUNCTION != 0,
            bars: [None; BAR_COUNT],
            power: None,
            msi: None,
            msix: None,
            express: None,
            acs: None,
            ari: false,
            advanced_errors: false,
            virtual_functions: None,
        };
        facts.read_capabilities(config)?;
        // A function without the PCI Express capability has no extended configuration space.
        if facts.express.is_some() {
            facts.read_extended(config);
        }
        Ok(facts)
    }

    /// Of a capability that is there several times, the first counts.
    fn read_capabilities(&mut self, config: &impl ConfigSpace) -> Result<(), Broken> {
        let page = self.page;
        // The parts of configuration space that the capabilities take which are used.
        let mut taken: ArrayVec<(u64, u64), 4> = ArrayVec::new();
        let mut result = Ok(());
        capabilities(page, config, |id, at| {
            let word = |offset: u64| config.read32(page.add(at).add(offset));
            let head = word(0);
            let length = match id {
                POWER if self.power.is_none() => {
                    self.power = Some(Power { at, resets: false });
                    POWER_LEN
                }
                MSI if self.msi.is_none() => {
                    let control = head >> 16;
                    let msi = Msi {
                        at,
                        vectors_log2: (control >> MSI_CAPABLE_SHIFT & MSI_COUNT).min(5),
                        wide: control & MSI_64 != 0,
                        masks: control & MSI_MASKS != 0,
                    };
                    self.msi = Some(msi);
                    msi.len()
                }
                MSI_X if self.msix.is_none() => {
                    self.msix = Some(MsiX { at, vectors: 0, table: (0, 0), pending: (0, 0) });
                    MSI_X_LEN
                }
                EXPRESS if self.express.is_none() => {
                    let version = (head & EXPRESS_VERSION) >> 16;
                    let port = port(head >> EXPRESS_TYPE_SHIFT & EXPRESS_TYPE);
                    self.express = Some(Express { at, version, port, resets: false });
                    if version >= 2 { EXPRESS2_LEN } else { EXPRESS_LEN }
                }
                _ => return,
            };
            let end = at.saturating_add(length);
            if end > END || taken.iter().any(|&(start, stop)| at < stop && start < end) {
                result = Err(Broken::Capability(id, at));
            }
            // There are four kinds, each once.
            let _ = taken.try_push((at, end));
        });
        result?;
        // What is read here lies in configuration space, as is known now.
        let word = |at: u64, offset: u64| config.read32(page.add(at).add(offset));
        if let Some(power) = &mut self.power {
            power.resets = word(power.at, POWER_CONTROL) & NO_SOFT_RESET == 0;
        }
        if let Some(msix) = &mut self.msix {
            let place = |word: u32| ((word & MSI_X_BIR) as u8, u64::from(word & !MSI_X_BIR));
            msix.vectors = (word(msix.at, 0) >> 16 & MSI_X_SIZE).saturating_add(1);
            msix.table = place(word(msix.at, MSI_X_TABLE));
            msix.pending = place(word(msix.at, MSI_X_PENDING));
        }
        if let Some(express) = &mut self.express {
            let is_endpoint = matches!(express.port, Port::Endpoint | Port::Integrated);
            express.resets = is_endpoint && word(express.at, DEVICE_CAPABILITIES) & FUNCTION_RESET_CAPABLE != 0;
        }
        Ok(())
    }

    fn read_extended(&mut self, config: &impl ConfigSpace) {
        let page = self.page;
        extended_capabilities(page, config, |id, at| {
            let word = |offset: u64| {
                let at = at.saturating_add(offset);
                if at < super::topology::FUNCTION { config.read32(page.add(at)) } else { 0 }
            };
            match id {
                ADVANCED_ERRORS => self.advanced_errors = true,
                ARI => self.ari = true,
                ACCESS_CONTROL if self.acs.is_none() => {
                    let registers = word(ACS_REGISTERS);
                    self.acs = Some(Acs { at, capability: registers as u16, control: (registers >> 16) as u16 });
                }
                SR_IOV if self.virtual_functions.is_none() => {
                    let on = word(VF_CONTROL) & VF_ENABLE != 0;
                    self.virtual_functions = Some(if on { word(VF_COUNT) as u16 } else { 0 });
                }
                _ => {}
            }
        });
    }

    /// Finds the sizes of the BARs, by writing ones to them with decoding off, and restores both.
    ///
    /// # Errors
    ///
    /// [`Broken::Bar`], [`Broken::Table`], and [`Broken::Absent`] if the function is gone.
    pub fn size_bars(&mut self, config: &impl ConfigSpace) -> Result<(), Broken> {
        self.bars = [None; BAR_COUNT];
        if self.kind != Kind::Endpoint {
            return Ok(());
        }
        // A 16-bit store leaves the Status as it is.
        let command = config.read(self.page.add(COMMAND), 2);
        config.write(self.page.add(COMMAND), 2, command & !DECODES);
        let found = self.read_bars(config);
        config.write(self.page.add(COMMAND), 2, command);
        if config.read32(self.page.add(ID)) != self.id {
            return Err(Broken::Absent);
        }
        self.bars = found?;
        let is_there = |(index, offset): (u8, u64), size: u64| {
            let bar = self.bars.get(usize::from(index)).copied().flatten();
            bar.is_some_and(|bar| bar.space != Space::Io && offset.saturating_add(size) <= bar.size)
        };
        let whole = self.msix.is_none_or(|msix| {
            let vectors = u64::from(msix.vectors);
            is_there(msix.table, vectors.saturating_mul(MSI_X_ENTRY))
                && is_there(msix.pending, vectors.div_ceil(64).saturating_mul(8))
        });
        if whole { Ok(()) } else { Err(Broken::Table) }
    }

    fn read_bars(&self, config: &impl ConfigSpace) -> Result<[Option<Bar>; BAR_COUNT], Broken> {
        // The value of a register, and what it reads after ones were written to it.
        let probe = |index: usize| {
            let at = self.page.add(bar_at(index));
            let value = config.read32(at);
            config.write(at, 4, u32::MAX);
            let mask = config.read32(at);
            config.write(at, 4, value);
            (value, mask)
        };
        let mut bars = [None; BAR_COUNT];
        let mut registers = 0..BAR_COUNT;
        while let Some(index) = registers.next() {
            let broken = Broken::Bar(index as u8);
            let (value, mask) = probe(index);
            if mask == 0 {
                continue;
            }
            let bar = if mask & BAR_IO != 0 {
                // The upper half may be hard-wired to 0.
                let size = u64::from((mask & !BAR_IO_FLAGS | 0xffff_0000).wrapping_neg());
                Bar { space: Space::Io, prefetchable: false, base: (value & !BAR_IO_FLAGS).into(), size }
            } else {
                let (space, high) = match mask & BAR_TYPE {
                    0 => (Space::Memory32, (0, u32::MAX)),
                    BAR_64 => (Space::Memory64, probe(registers.next().ok_or(broken)?)),
                    _ => return Err(broken),
                };
                let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low & !BAR_FLAGS);
                let size = join(mask, high.1).wrapping_neg();
                let prefetchable = mask & BAR_PREFETCHABLE != 0;
                Bar { space, prefetchable, base: join(value, high.0), size }
            };
            // The bits that can be written are the upper ones, without a gap.
            let is_too_large = bar.space == Space::Memory32 && bar.size > 1 << 31;
            if !bar.size.is_power_of_two() || is_too_large {
                return Err(broken);
            }
            if let Some(place) = bars.get_mut(index) {
                *place = Some(bar);
            }
        }
        Ok(bars)
    }

    /// The largest number of MSIs that the function can tell apart, 1 to 2048.
    #[must_use]
    pub fn vectors(&self) -> u32 {
        let msi = self.msi.map_or(1, |msi| 1 << msi.vectors_log2.min(5));
        self.msix.map_or(msi, |msix| msi.max(msix.vectors))
    }

    /// The memory BARs, with their indices.
    pub fn memory_bars(&self) -> impl Iterator<Item = (usize, Bar)> {
        let bars = self.bars.into_iter().enumerate();
        bars.filter_map(|(index, bar)| Some((index, bar.filter(|bar| bar.space != Space::Io)?)))
    }
}

/// The offset of a BAR.
pub(super) fn bar_at(index: usize) -> u64 {
    BARS.saturating_add((index as u64).saturating_mul(4))
}

fn port(kind: u32) -> Port {
    match kind {
        0b0000 | 0b0001 => Port::Endpoint,
        0b0100 => Port::Root,
        0b0101 => Port::Upstream,
        0b0110 => Port::Downstream,
        0b0111 | 0b1000 => Port::ToPci,
        INTEGRATED_TYPE => Port::Integrated,
        _ => Port::Other,
    }
}

#[cfg(test)]
mod tests;
