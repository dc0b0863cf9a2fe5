//! No sequence of accesses to a guest's distributor and redistributors makes the vGIC panic, lose or duplicate an interrupt, or
//! leave one active in hardware.
//!
//! This is the test `vgic::random_tests`, which documents what is checked, with the fuzzer's input instead of random bytes.
//!
//! `cargo +nightly fuzz run vgic_mmio -- -max_total_time=60 -max_len=4096`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids;
use doorward::vgic::{LrImage, Owner, Port, SgiGroup, Signal, TableCursor, Trigger, Vgic, VgicConfig};

#[path = "../../src/vgic/random_tests.rs"]
mod random_tests;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| random_tests::run(bytes));
