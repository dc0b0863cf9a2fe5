//! The device tree reader does not panic on any input, and a tree that it accepts can be edited for dom0.
//!
//! `cargo +nightly fuzz run fdt fuzz/corpus/fdt tests/data -- -max_total_time=60 -max_len=16384`
#![cfg_attr(fuzzing, no_main)]

use doorward::build::fdt::edit;
use doorward::build::layout;
use doorward::ids::{Intid, Mpidr, Pa};
use doorward::platform::{Machine, fdt};
use doorward::util::range::Range;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|blob: &[u8]| run(blob));

/// Reads a blob.
pub fn run(blob: &[u8]) {
    let _ = fdt::for_each_device(blob, |device| {
        assert!(device.path.starts_with('/'));
        assert!(!device.regs.is_empty() || !device.spis.is_empty());
    });
    match fdt::read(blob) {
        Ok(machine) => edit_for_dom0(blob, &machine),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn edit_for_dom0(blob: &[u8], machine: &Machine) {
    let banks = layout::plan_dom0_memory(machine, &[], 64 << 20);
    for (index, bank) in banks.iter().enumerate() {
        assert!(machine.memory.iter().any(|ram| ram.contains(bank.base)));
        assert!(!machine.reserved.iter().chain(&banks[..index]).any(|other| other.overlaps(*bank)));
    }
    let vcpus: Vec<Mpidr> = machine.cpus.iter().map(|cpu| cpu.mpidr).take(8).collect();
    let Ok(gicr) = edit::vgicr_region(machine, vcpus.len()) else { return };
    let plan = edit::Dom0Plan {
        vcpus: &vcpus,
        memory: &banks,
        gicr,
        absent_itss: &[],
        given_bars: &[],
        given_devices: &[],
        ports: Some((Range::new(Pa(0x4000_1000), 0x1000), Intid(288))),
        bootargs: "quiet",
        initrd: None,
    };
    if let Ok(edited) = edit::build_dom0_fdt(blob, machine, &plan) {
        fdt::parse(&edited).expect("the edited tree can be read");
    }
}
