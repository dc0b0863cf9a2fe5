//! Decodes the 32 bytes of an ITS command (IHI 0069, 5.3).
//!
//! Reserved fields are ignored. Only the opcode is checked here; the interpreter checks the other fields.

use crate::ids::{CollectionId, DeviceId, EventId, VIntid};

/// Size of a command, in bytes.
pub(super) const BYTES: u64 = 32;

/// A command as a guest wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Map the device with an ITT of 2^`event_bits` entries, or unmap it (`None`).
    Mapd { device: DeviceId, event_bits: Option<u8> },
    /// Map the collection to a redistributor, or unmap it (`None`).
    Mapc { collection: CollectionId, target: Option<u64> },
    /// Map an event (MAPTI and MAPI).
    Mapti { device: DeviceId, event: EventId, vintid: VIntid, collection: CollectionId },
    /// Move an event to another collection.
    Movi { device: DeviceId, event: EventId, collection: CollectionId },
    /// Move all pending interrupts from one redistributor to another.
    Movall { from: u64, to: u64 },
    /// Read the configuration of one interrupt again.
    Inv { device: DeviceId, event: EventId },
    /// Read the configuration of a collection's interrupts again.
    Invall { collection: CollectionId },
    /// Make an event pending.
    Int { device: DeviceId, event: EventId },
    /// Make an event not pending.
    Clear { device: DeviceId, event: EventId },
    /// Unmap an event and clear its pending state.
    Discard { device: DeviceId, event: EventId },
    /// Wait for the preceding commands, which are always complete when this one is read.
    Sync,
}

fn field(word: u64, shift: u32, bits: u32) -> u64 {
    word.wrapping_shr(shift) & 1u64.wrapping_shl(bits).wrapping_sub(1)
}

fn field32(word: u64, shift: u32, bits: u32) -> u32 {
    u32::try_from(field(word, shift, bits)).unwrap_or(u32::MAX)
}

impl Command {
    /// Decodes a command. The error is an unknown opcode.
    pub fn decode(bytes: &[u8; 32]) -> Result<Command, u8> {
        let mut words = [0u64; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        let [dw0, dw1, dw2, dw3] = words;
        let device = DeviceId(field32(dw0, 32, 32));
        let event = EventId(field32(dw1, 0, 32));
        let collection = CollectionId(u16::try_from(field(dw2, 0, 16)).unwrap_or(u16::MAX));
        let target = field(dw2, 16, 36);
        let valid = field(dw2, 63, 1) != 0;
        let [opcode, ..] = dw0.to_le_bytes();
        Ok(match opcode {
            0x01 => Command::Movi { device, event, collection },
            0x03 => Command::Int { device, event },
            0x04 => Command::Clear { device, event },
            0x05 => Command::Sync,
            0x08 => {
                let bits = u8::try_from(field(dw1, 0, 5)).unwrap_or(u8::MAX).saturating_add(1);
                Command::Mapd { device, event_bits: valid.then_some(bits) }
            }
            0x09 => Command::Mapc { collection, target: valid.then_some(target) },
            0x0a => Command::Mapti { device, event, vintid: VIntid(field32(dw1, 32, 32)), collection },
            0x0b => Command::Mapti { device, event, vintid: VIntid(event.0), collection },
            0x0c => Command::Inv { device, event },
            0x0d => Command::Invall { collection },
            0x0e => Command::Movall { from: target, to: field(dw3, 16, 36) },
            0x0f => Command::Discard { device, event },
            other => return Err(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(words: [u64; 4]) -> Result<Command, u8> {
        let mut bytes = [0; 32];
        for (n, word) in words.iter().enumerate() {
            bytes[8 * n..8 * n + 8].copy_from_slice(&word.to_le_bytes());
        }
        Command::decode(&bytes)
    }

    const DEVICE: DeviceId = DeviceId(0xabcd_1234);
    const EVENT: EventId = EventId(0x8765_4321);
    const COLLECTION: CollectionId = CollectionId(0xfedc);

    /// Encodings written by hand from IHI 0069, 5.3. Reserved fields are set, which must have no effect.
    #[test]
    fn each_command_is_decoded_as_the_manual_encodes_it() {
        let (device, event, collection) = (DEVICE, EVENT, COLLECTION);
        let golden = [
            (
                [0xabcd_1234_ffff_ff01, 0xffff_ffff_8765_4321, 0xffff_ffff_ffff_fedc, u64::MAX],
                Command::Movi { device, event, collection },
            ),
            ([0xabcd_1234_0000_0003, 0x8765_4321, 0, 0], Command::Int { device, event }),
            ([0xabcd_1234_0000_0004, 0x8765_4321, 0, 0], Command::Clear { device, event }),
            ([0x05, 0, 0x30000, 0], Command::Sync),
            (
                [0xabcd_1234_0000_0008, 0xffff_ffff_ffff_ffef, 0x8000_0000_4000_0000, 0],
                Command::Mapd { device, event_bits: Some(16) },
            ),
            ([0xabcd_1234_0000_0008, 0x1f, 0x7fff_ffff_ffff_ffff, 0], Command::Mapd { device, event_bits: None }),
            ([0x09, 0, 0xfff0_0000_0003_fedc, 0], Command::Mapc { collection, target: Some(3) }),
            ([0x09, 0, 0x0000_0000_0003_fedc, 0], Command::Mapc { collection, target: None }),
            (
                [0xabcd_1234_0000_000a, 0x0000_2001_8765_4321, 0xfedc, 0],
                Command::Mapti { device, event, vintid: VIntid(8193), collection },
            ),
            (
                [0xabcd_1234_0000_000b, 0xffff_ffff_8765_4321, 0xfedc, 0],
                Command::Mapti { device, event, vintid: VIntid(0x8765_4321), collection },
            ),
            ([0xabcd_1234_0000_000c, 0x8765_4321, 0, 0], Command::Inv { device, event }),
            ([0x0d, 0, 0xfedc, 0], Command::Invall { collection }),
            ([0x0e, 0, 0xfff0_0000_0001_ffff, 0xffff_0000_0002_ffff], Command::Movall { from: 1, to: 0xf_0000_0002 }),
            ([0xabcd_1234_0000_000f, 0x8765_4321, 0, 0], Command::Discard { device, event }),
        ];
        for (words, command) in golden {
            assert_eq!(decode(words), Ok(command), "{words:#x?}");
        }
    }

    #[test]
    fn commands_of_gicv4_and_undefined_opcodes_are_unknown() {
        let known = [0x01, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f];
        for opcode in 0..=255u8 {
            let decoded = decode([u64::from(opcode), 0, 0, 0]);
            assert_eq!(decoded.is_ok(), known.contains(&opcode), "{opcode:#x}");
        }
    }
}
