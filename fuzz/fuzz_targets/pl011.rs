//! The emulated PL011: no sequence of accesses and of input makes it panic, the line is what the registers say, and input
//! reaches the guest complete and in order. So does output the console, but for what is sent while the FIFO is full.
//!
//! `cargo +nightly fuzz run pl011 -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::console::ring::Ring;
use doorward::dev::pl011::{BACKLOG_LEN, FIFO_LEN, Vpl011};
use std::collections::VecDeque;
use std::sync::Arc;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const LCR_H: u64 = 0x2c;
const MIS: u64 = 0x40;
const REGISTERS: [u64; 16] = [DR, DR, DR, 0x04, FR, 0x20, 0x24, 0x28, LCR_H, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x48];
const RXFE: u64 = 1 << 4;
const TXFF: u64 = 1 << 5;
const RXFF: u64 = 1 << 6;
const FEN: u64 = 1 << 4;

/// Performs a sequence of accesses.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let ring = Arc::new(Ring::new(usize::from(input.byte())));
    let mut port = Vpl011::new(ring.clone());
    let mut sent = VecDeque::new();
    // Bytes that the guest has not read, in order, and how many of them are in the FIFO.
    let (mut waits, mut in_fifo, mut fifos) = (VecDeque::new(), 0, false);
    while !input.0.is_empty() {
        let act = input.byte();
        let offset = if act & 0x80 == 0 { REGISTERS[usize::from(input.byte() & 15)] } else { input.half().into() };
        let size = if act & 0x40 == 0 { 4 } else { input.byte() };
        match act % 8 {
            0 | 1 => {
                for _ in 0..if act & 0x20 == 0 { 1 } else { u32::from(input.byte()) * 4 } {
                    let byte = input.byte();
                    if port.push_input(byte) {
                        waits.push_back(byte);
                    } else {
                        assert_eq!(waits.len() - in_fifo, BACKLOG_LEN);
                    }
                }
            }
            2..=4 => {
                let value = port.read(offset, size);
                assert!(size >= 4 || value >> (8 * size) == 0);
                assert!(value >> 32 == 0);
                if offset == DR && size != 0 {
                    let expected = waits.pop_front().filter(|_| in_fifo > 0);
                    assert_eq!(value, u64::from(expected.unwrap_or(0)));
                }
            }
            5 | 6 => {
                let value = input.word();
                if offset == DR && size != 0 && ring.room() > 0 {
                    sent.push_back(value as u8);
                }
                port.write(offset, size, value);
                if offset == LCR_H && size != 0 && (value & FEN != 0) != fifos {
                    fifos = !fifos;
                    waits.drain(..in_fifo);
                }
            }
            _ if act & 0x38 == 0 => {
                port.reset();
                fifos = false;
                waits.clear();
            }
            _ => {
                for _ in 0..input.byte() {
                    assert_eq!(ring.pop(), sent.pop_front());
                }
                if ring.take_request() {
                    port.update_transmit();
                }
            }
        }
        let depth = if fifos { FIFO_LEN } else { 1 };
        in_fifo = waits.len().min(depth);
        assert_eq!(port.room(), depth - in_fifo);
        let status = port.read(FR, 4);
        assert_eq!(status & TXFF != 0, ring.room() == 0);
        assert_eq!((status & RXFE != 0, status & RXFF != 0), (in_fifo == 0, in_fifo == depth));
        let masked = port.read(MIS, 4);
        assert_eq!(port.irq_level(), masked != 0);
    }
}
