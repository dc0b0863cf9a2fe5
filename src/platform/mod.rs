//! The description of the machine, read from a device tree or from ACPI tables.
//!
//! [`Machine`] is the one description that the rest of the hypervisor uses: memory, CPUs, the GIC's frames, PCI hosts
//! and SMMUs, and what the boot loader has loaded. It is filled once, early in boot, by [`fdt::read_into`] from a
//! device tree or by [`acpi::read_into`] from ACPI tables, and checked by [`Machine::check`] before it is used. After
//! that it never changes.
//!
//! It does not use the heap, because it is needed to find the memory for the heap. Capacities are fixed, and larger than
//! machines need. It takes about 250 KiB, so it must be in a static (see [`Machine::new`]) and not on a boot stack.
//!
//! A machine is refused only for what makes it impossible to run. Anything else that is odd is skipped, clamped or
//! joined, and [`Machine::warnings`] says so; what exceeds a capacity is left out, and [`Machine::left_out`] says so.
//!
//! | file | content |
//! |---|---|
//! | [`machine`] | the description itself |
//! | [`domu`], [`module`] | the parts of it that describe domUs and boot modules |
//! | [`fdt`], [`acpi`] | the two readers |
//! | [`efi`] | what UEFI adds: configuration file, load options, memory map, a Linux's reservations |
//! | [`windows`] | PCI windows from the command line |
//! | [`check`] | the consistency checks |
//! | [`error`] | the errors of all of these |

pub mod acpi;
pub mod check;
pub mod domu;
pub mod efi;
pub mod error;
pub mod fdt;
pub mod machine;
pub mod module;
pub mod windows;

#[cfg(test)]
pub(crate) mod testing;

pub use domu::{ConfigProblem, DOMAINS, DomainConfig, FUNCTIONS};
pub use error::{MachineError, Part};
pub use machine::{
    CPUS, Conduit, Cpu, DmaReserved, Gic, GicKind, ITSS, IdMap, Its, Machine, MsiDevices, PCI_HOSTS, PciHost,
    PciWindow, PciWindowKind, RESERVATIONS, SMMUS, Smmu, TimerPpis, Uart, UartKind, Warning,
};
pub use module::{Module, ModuleKind};
