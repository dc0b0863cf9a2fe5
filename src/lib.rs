//! Doorward: a type-1 hypervisor for AArch64. Device interrupts reach its guests directly, without an exit to EL2
//! (GICv4).
//!
//! Each module below is a *room*. A room imports only rooms further down in this list; `cargo xtask test` checks that.
//!
//! | room | content |
//! |---|---|
//! | `main.rs` | the start-up of the machine, from a console and a heap to the run loop |
//! | [`run`] | the vCPU run loop, exits, decoding of traps, dispatch of SMCCC calls |
//! | [`control`] | teardown and restart of domains, CPU hotplug, debug keys |
//! | [`build`] | building of domains: memory layout, boot modules, device trees and ACPI tables |
//! | [`domain`] | a domain: emulated devices, MSIs, physical interrupts, lifecycle; the table of domains |
//! | [`host`] | the machine that all domains share: state of each CPU, timers, owners of interrupts, command line |
//! | [`vcpu`] | a virtual CPU: registers, state, list registers |
//! | [`dev`] | emulated PL011, PSCI and physical timer |
//! | [`vits`] | the emulated ITS |
//! | [`virtio`] | virtio devices that guests see: a console with several ports |
//! | [`pci`] | PCI functions; configuration space that a domain sees other than it is |
//! | [`sched`] | the schedulers; they access vCPUs through a trait |
//! | [`smmu`] | the SMMUv3: which memory the streams of devices reach |
//! | [`vgic`] | the emulated GIC: distributor, redistributors, list registers |
//! | [`gic`] | the physical GIC: distributor, redistributors, ITSs, and the GICv4 functions |
//! | [`console`] | the UART, the log, the debug keys' input |
//! | [`trace`] | event counters for each CPU |
//! | [`platform`] | the description of the machine, from a device tree or ACPI tables |
//! | [`mm`] | memory: frames, heap, EL2's stage 1, guests' stage 2, guest RAM |
//! | [`sync`] | locks and other synchronisation |
//! | [`mmio`] | access to device registers, and the trait by which drivers run on an executable model |
//! | [`util`] | bits, number allocation, ranges |
//! | [`arch`] | AArch64 at EL2: system registers, exception vectors, PSCI, CPU features |
//! | [`ids`] | identifying numbers, each as its own type |
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

// The fuzz targets are tests of the library, too. They name it as any other crate does.
#[cfg(all(test, not(loom)))]
extern crate self as doorward;
#[cfg(all(test, not(loom)))]
#[path = "../fuzz/host.rs"]
#[allow(
    clippy::duplicate_mod,
    reason = "each target is a program of its own with libFuzzer, and includes what it shares"
)]
mod fuzz;

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
pub mod pci;
pub mod platform;
pub mod run;
pub mod sched;
pub mod smmu;
pub mod sync;
pub mod trace;
pub mod util;
pub mod vcpu;
pub mod vgic;
pub mod virtio;
pub mod vits;
