//! AML (ACPI 6.5, 20.2) for one device: the PL011 that dom0 sees on a machine that has none, or its console device with
//! ports.

use crate::ids::Intid;
use crate::util::range::Range;
use alloc::vec::Vec;

const SCOPE: u8 = 0x10;
const NAME: u8 = 0x08;
const STRING: u8 = 0x0d;
const BYTE: u8 = 0x0a;
const BUFFER: u8 = 0x11;
const ZERO: u8 = 0x00;
const DWORD: u8 = 0x0c;
const DEVICE: [u8; 2] = [0x5b, 0x82];

const ONE: u8 = 0x01;

/// A device with registers and one interrupt.
pub(crate) struct Device {
    /// Its name in `\_SB`.
    pub name: [u8; 4],
    /// Its hardware ID, which ends with a zero.
    pub hid: &'static [u8],
    /// Its number among the devices with this ID.
    pub uid: u32,
    /// Whether it does DMA, which is then coherent with the caches. Kernels want to be told.
    pub coherent_dma: bool,
}

/// A PL011.
pub(crate) const PL011: Device = Device { name: *b"DWC0", hid: b"ARMH0011\0", uid: 0, coherent_dma: false };

/// A virtio device, with the ID that Linux and QEMU use for it. The machine may have some, too, which count from 0.
pub(crate) const VIRTIO: Device = Device { name: *b"DWV0", hid: b"LNRO0005\0", uid: 0x4457_5244, coherent_dma: true };

/// Returns the AML of `Scope (\_SB) { Device (NAME) { _HID, _UID, _CCA, _CRS { registers, interrupt } } }`.
pub(crate) fn device(kind: &Device, (regs, irq): (Range, Intid)) -> Vec<u8> {
    let mut crs = Vec::new();
    // QWORD address space descriptor (6.4.3.5.1): memory, consumer, both ends fixed, read and write.
    crs.extend([0x8a, 0x2b, 0x00, 0x00, 0x0d, 0x01]);
    for number in [0, regs.base.0, regs.end().0 - 1, 0, regs.size] {
        crs.extend(number.to_le_bytes());
    }
    // Extended interrupt descriptor (6.4.3.6): consumer, level, active high, exclusive, one interrupt.
    crs.extend([0x89, 0x06, 0x00, 0x01, 0x01]);
    crs.extend(irq.0.to_le_bytes());
    // End tag (6.4.2.9) without a checksum.
    crs.extend([0x79, 0x00]);

    let mut buffer = alloc::vec![BYTE, crs.len() as u8];
    buffer.extend(crs);
    let mut device = Vec::from(kind.name);
    device.push(NAME);
    device.extend(*b"_HID");
    device.push(STRING);
    device.extend(kind.hid);
    device.push(NAME);
    device.extend(*b"_UID");
    match kind.uid {
        0 => device.push(ZERO),
        uid => {
            device.push(DWORD);
            device.extend(uid.to_le_bytes());
        }
    }
    if kind.coherent_dma {
        device.push(NAME);
        device.extend(*b"_CCA");
        device.push(ONE);
    }
    device.push(NAME);
    device.extend(*b"_CRS");
    device.push(BUFFER);
    device.extend(package(buffer));
    let mut scope = Vec::from(*b"\\_SB_");
    scope.extend(DEVICE);
    scope.extend(package(device));
    let mut aml = alloc::vec![SCOPE];
    aml.extend(package(scope));
    aml
}

/// Prepends PkgLength (20.2.4), which includes its own size: one byte for lengths below 64, two for those below 4096.
fn package(content: Vec<u8>) -> Vec<u8> {
    let mut package = if content.len() + 1 < 64 {
        alloc::vec![content.len() as u8 + 1]
    } else {
        let length = content.len() + 2;
        alloc::vec![0x40 | (length & 0xf) as u8, (length >> 4) as u8]
    };
    package.extend(content);
    package
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;

    #[test]
    fn the_aml_is_what_a_compiler_makes_of_the_source() {
        let aml = device(&PL011, (Range::new(Pa(0x8001_0000), 0x1000), Intid(408)));
        // Encoded by hand from the grammar.
        let mut expected =
            Vec::from(*b"\x10\x40\x07\\_SB_\x5b\x82\x48\x06DWC0\x08_HID\x0dARMH0011\0\x08_UID\0\x08_CRS\x11");
        expected.extend([0x3c, 0x0a, 57]);
        expected.extend([0x8a, 0x2b, 0, 0, 0x0d, 0x01]);
        expected.extend([0; 8]);
        expected.extend([0, 0, 1, 0x80, 0, 0, 0, 0]);
        expected.extend([0xff, 0x0f, 1, 0x80, 0, 0, 0, 0]);
        expected.extend([0; 8]);
        expected.extend([0, 0x10, 0, 0, 0, 0, 0, 0]);
        expected.extend([0x89, 6, 0, 1, 1, 0x98, 1, 0, 0, 0x79, 0]);
        let virtio = device(&VIRTIO, (Range::new(Pa(0x8001_0000), 0x1000), Intid(408)));
        let with = b"DWV0\x08_HID\x0dLNRO0005\0\x08_UID\x0cDRWD\x08_CCA\x01\x08_CRS\x11";
        assert!(virtio.windows(with.len()).any(|part| part == with));
        assert_eq!(virtio[virtio.len() - 59..], expected[expected.len() - 59..], "registers and interrupt");
        // Both packages extend to the end of the table.
        let (scope, device) = (aml.len() - 1, aml.len() - 1 - 2 - 5 - 2);
        expected[1] = 0x40 | (scope & 0xf) as u8;
        expected[2] = (scope >> 4) as u8;
        expected[10] = 0x40 | (device & 0xf) as u8;
        expected[11] = (device >> 4) as u8;
        assert_eq!(aml, expected);
        assert_eq!(package(alloc::vec![0; 62]).len(), 63);
        assert_eq!(package(alloc::vec![0; 63])[..2], [0x41, 4]);
    }
}
