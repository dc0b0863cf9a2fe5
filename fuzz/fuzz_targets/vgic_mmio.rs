//! A guest writes anything to its distributor and redistributors, at any time: the virtual GIC does not panic, and no
//! interrupt is lost, duplicated or left active in hardware.
//!
//! The domain is the one of `src/vgic/random_tests.rs`, which lists what is checked; here the fuzzer chooses its bytes.
//!
//! `cargo +nightly fuzz run vgic_mmio -- -max_total_time=60 -max_len=4096`
#![no_main]

use doorward::ids;
use doorward::vgic::{LrImage, Owner, Port, SgiGroup, Signal, Trigger, Vgic, VgicConfig};
use libfuzzer_sys::fuzz_target;

#[path = "../../src/vgic/random_tests.rs"]
mod random_tests;

fuzz_target!(|bytes: &[u8]| random_tests::run(bytes));
