//! The serial port: all its registers, control sequences, and more bytes than its FIFO takes.

use crate::guest::{Dice, touch, touch_oddly};
use guest_rt::console::{self, PL011};

/// What a terminal would obey, and pieces of it.
const SEQUENCES: [&[u8]; 16] = [
    b"\x1b[1G",
    b"\x1b[2K",
    b"\x1b[2J",
    b"\x1b]0;title\x07",
    b"\x1bP",
    b"\x1b[",
    b"\x1b%@",
    b"\x9b2K",
    b"\xc2\x9b2K",
    b"\r\r\r",
    b"\x08\x08",
    b"\0\x7f\x18",
    b"\xff\xfe",
    b"\xe2\x80",
    b"\xe2\x80\xae",
    b"text ",
];

/// More than the hypervisor keeps of what a domain has printed.
const FLOOD: u32 = 6_000;

pub fn act(dice: &mut Dice) {
    match dice.below(256) {
        // Without a look at TXFF: what the FIFO does not take is lost.
        0 if dice.one_in(16) => console::line_of((0..FLOOD).map(|_| b'x'), false),
        // The line ends, so that the guest's own lines stay whole.
        1..8 => {
            let count = 1 + dice.below(6);
            (0..count).for_each(|_| {
                let sequence = SEQUENCES[dice.below(SEQUENCES.len() as u64) as usize];
                console::line_of(sequence.iter().copied(), dice.one_in(2));
            });
        }
        _ => registers(dice),
    }
}

/// All registers but the data register, whose random bytes could end a line of the guest's own in the middle.
fn registers(dice: &mut Dice) {
    let offset = 4 + dice.below(0xffc);
    if dice.one_in(4) { touch_oddly(dice, PL011 + (offset | 0x10)) } else { touch(dice, PL011 + offset) }
}
