//! PCI functions by ECAM: what is there, its capabilities, its BARs.

use crate::fdt::{self, Node};
use crate::mmio::{read16, read32, write16, write32};

/// Bytes of a function's configuration space.
pub const CONFIG: u64 = 0x1000;

const NOTHING: u32 = u32::MAX;

const COMMAND: u64 = 0x4;
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const CLASS: u64 = 0x8;
const BAR0: u64 = 0x10;
const BAR_64: u32 = 2 << 1;
const CAPABILITIES: u64 = 0x34;

/// Capability IDs.
pub const CAP_POWER: u8 = 0x01;
/// MSI.
pub const CAP_MSI: u8 = 0x05;
/// MSI-X.
pub const CAP_MSIX: u8 = 0x11;

/// A PCI host with a plain ECAM.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    node: Node,
    /// The address of its configuration space.
    pub ecam: u64,
}

impl Host {
    /// The one in the device tree.
    #[must_use]
    pub fn find() -> Option<Host> {
        let node = fdt::compatible("pci-host-ecam-generic")?;
        let (ecam, _) = node.ranges().next()?;
        Some(Host { node, ecam })
    }

    /// Function 0 of this device on the first bus.
    #[must_use]
    pub fn function(&self, device: u16) -> Function {
        let rid = device << 3;
        Function { rid, at: self.ecam + u64::from(rid) * CONFIG }
    }

    /// The function on the first bus with these IDs (device in the upper half, vendor in the lower).
    #[must_use]
    pub fn with_ids(&self, ids: u32) -> Option<Function> {
        (0..32).map(|device| self.function(device)).find(|function| function.ids() == Some(ids))
    }

    /// The DeviceID of a requester ID by `msi-map`.
    #[must_use]
    pub fn device_id(&self, rid: u16) -> Option<u32> {
        let mut cells = self.node.cells("msi-map");
        core::iter::from_fn(|| Some([cells.next()?, cells.next()?, cells.next()?, cells.next()?])).find_map(
            |[first, _, device, length]| {
                let offset = u32::from(rid).checked_sub(first)?;
                (offset < length).then(|| device + offset)
            },
        )
    }
}

/// A function.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Its requester ID.
    pub rid: u16,
    /// The address of its configuration space.
    pub at: u64,
}

impl Function {
    /// Device ID in the upper half, vendor ID in the lower; `None` if nothing answers.
    #[must_use]
    pub fn ids(&self) -> Option<u32> {
        Some(read32(self.at)).filter(|ids| *ids != NOTHING)
    }

    /// Class, subclass and programming interface.
    #[must_use]
    pub fn class(&self) -> u32 {
        read32(self.at + CLASS) >> 8
    }

    /// The address of a capability.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<u64> {
        let mut next = read32(self.at + CAPABILITIES) as u8;
        // A chain has no more entries than fit; a longer one is a circle.
        for _ in 0..48 {
            if next < 0x40 {
                return None;
            }
            let at = self.at + u64::from(next & !3);
            let head = read32(at);
            if head as u8 == id {
                return Some(at);
            }
            next = (head >> 8) as u8;
        }
        None
    }

    /// Puts BAR0 at `address`, and switches memory space and bus mastering on.
    pub fn switch_on(&self, address: u64) {
        write16(self.at + COMMAND, 0);
        let wide = read32(self.at + BAR0) & 0x7 == BAR_64;
        write32(self.at + BAR0, address as u32);
        if wide {
            write32(self.at + BAR0 + 4, (address >> 32) as u32);
        }
        write16(self.at + COMMAND, MEMORY | MASTER);
    }

    /// Whether the address of BAR0 is `address`, and memory space and bus mastering are on.
    #[must_use]
    pub fn is_on(&self, address: u64) -> bool {
        let on = read16(self.at + COMMAND) & (MEMORY | MASTER) == MEMORY | MASTER;
        on && u64::from(read32(self.at + BAR0) & !0xf) == address
    }

    /// Switches MSI on with one message; returns whether the function has MSI.
    pub fn msi(&self, address: u64, data: u16) -> bool {
        const ENABLE: u16 = 1 << 0;
        const WIDE: u16 = 1 << 7;
        let Some(msi) = self.capability(CAP_MSI) else { return false };
        let control = read16(msi + 2);
        write16(msi + 2, control & !(ENABLE | 0x70));
        write32(msi + 4, address as u32);
        if control & WIDE != 0 {
            write32(msi + 8, (address >> 32) as u32);
            write16(msi + 0xc, data);
        } else {
            write16(msi + 8, data);
        }
        write16(msi + 2, control & !0x70 | ENABLE);
        true
    }

    /// Sets entry `entry` of the MSI-X table and switches MSI-X on; returns whether the function has MSI-X. Its table must be
    /// in BAR0, which is at `bar0`.
    pub fn msix(&self, bar0: u64, entry: u64, address: u64, data: u32) -> bool {
        const ENABLE: u16 = 1 << 15;
        const MASK_ALL: u16 = 1 << 14;
        let Some(msix) = self.capability(CAP_MSIX) else { return false };
        let table = read32(msix + 4);
        if table & 7 != 0 {
            return false;
        }
        let at = bar0 + u64::from(table & !7) + 16 * entry;
        write16(msix + 2, read16(msix + 2) & !MASK_ALL | ENABLE);
        write32(at, address as u32);
        write32(at + 4, (address >> 32) as u32);
        write32(at + 8, data);
        write32(at + 12, 0);
        true
    }
}
