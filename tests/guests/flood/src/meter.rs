//! A domU: computes, and measures how long it has a CPU between two moments.
//!
//! It looks at the counter all the time: where the counter leaps, the vCPU was without a CPU. In the end it prints
//! `GUEST METER window_us=T had_us=T gap_us=T end`, twice: the length of the measurement, the time with a CPU, and the
//! longest leap.

use crate::guest::{now_us, ticks};
use guest_rt::{cpu, say};

/// Start of the measurement in milliseconds since the machine was started. By then dom0 has begun its first store.
const FROM: u64 = 500;

/// Length of the measurement in milliseconds.
const WINDOW: u64 = 2_000;

/// A leap of the counter by so many microseconds is time without a CPU. One turn of [`compute`] takes a few, an exit to
/// EL2 and back no more. Another vCPU runs for a slice, which is some milliseconds at least.
const LEAP_US: u64 = 500;

/// Time between the two lines, in microseconds: enough for whatever dom0 is saying.
const AGAIN_US: u64 = 50_000;

fn compute() {
    for turn in 0..1024 {
        // No YIELD: QEMU would run its next CPU.
        core::hint::black_box(turn);
    }
}

pub fn run() -> ! {
    while now_us() < FROM * 1000 {
        compute();
    }
    let leap = ticks(LEAP_US);
    let from = cpu::now();
    let (mut last, mut had, mut gap) = (from, 0, 0);
    while last - from < ticks(WINDOW * 1000) {
        compute();
        let now = cpu::now();
        let step = now - last;
        last = now;
        if step < leap {
            had += step;
        } else {
            gap = gap.max(step);
        }
    }
    let us = ticks(1);
    let (window, had, gap) = ((last - from) / us, had / us, gap / us);
    loop {
        say!("GUEST METER window_us={window} had_us={had} gap_us={gap} end");
        let again = now_us() + AGAIN_US;
        while now_us() < again {
            compute();
        }
    }
}
