//! Whatever a guest writes to its distributor and redistributors, at whatever moment: no panic, and no interrupt lost, doubled or
//! left active in hardware.
//!
//! The world is the one of the random_tests test, which says what is checked; here the fuzzer chooses its bytes.
//!
//! `cargo +nightly fuzz run vgic_mmio -- -max_total_time=60 -max_len=4096`
#![no_main]

use doorward::ids;
use doorward::vgic::{LrImage, Owner, Port, SgiGroup, Signal, Trigger, Vgic, VgicConfig};
use libfuzzer_sys::fuzz_target;

#[path = "../../src/vgic/random_tests.rs"]
mod random_tests;

fuzz_target!(|bytes: &[u8]| random_tests::run(bytes));
