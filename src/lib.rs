//! Doorward: a type-1 hypervisor for AArch64 whose guests take device interrupts without it.
//!
//! The map of the house. Imports point one way, from the top of this list to the bottom; a test checks it.
//!
//! | room | what it is |
//! |---|---|
//! | `main.rs` | the image: the order in which the machine comes up |
//! | [`run`] | the vCPU run loop, exits, decoding of traps |
//! | [`control`] | teardown and restart of domains, CPU hotplug, debug keys |
//! | [`build`] | how a domain is built: memory layout, boot modules, device trees and ACPI tables |
//! | [`domain`] | a domain, its interrupts and its life cycle |
//! | [`host`] | the machine that all domains share |
//! | [`vcpu`], [`dev`] | a virtual CPU; emulated devices |
//! | [`vits`] | the ITS that a guest sees |
//! | [`sched`] | which vCPU runs where; knows vCPUs by its own trait |
//! | [`smmu`] | SMMUs, put into bypass |
//! | [`vgic`] | the GIC that a guest sees |
//! | [`gic`] | the physical GIC: distributor, redistributors, ITSs, and the verbs of GICv4 |
//! | [`console`], [`trace`], [`platform`], [`mm`] | the UART and log; counters; what machine this is; memory |
//! | [`sync`], [`mmio`], [`util`] | locks; the seam between drivers and hardware; small tools |
//! | [`arch`] | AArch64 EL2 |
//! | [`ids`] | every number, as its own type |
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod arch;
pub mod build;
pub mod console;
pub mod control;
pub mod dev;
pub mod domain;
pub mod gic;
pub mod host;
pub mod ids;
pub mod mm;
pub mod mmio;
pub mod platform;
pub mod run;
pub mod sched;
pub mod smmu;
pub mod sync;
pub mod trace;
pub mod util;
pub mod vcpu;
pub mod vgic;
pub mod vits;
