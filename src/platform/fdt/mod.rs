//! The reader of flattened device trees.
//!
//! The header and the structure are checked once; after that the iterators of `dtoolkit` cannot fail. The properties are
//! interpreted here and checked by [`Machine::check`].
//!
//! | file | content |
//! |---|---|
//! | `structure` | the check of the header and the structure |
//! | `open` | access to a tree after that check |
//! | `walk` | nodes, cells, address translation, interrupt specifiers |
//! | `gic`, `pci` | the bindings of the GIC and of PCI hosts |
//! | `msi` | the other devices that send MSIs |
//! | `iommu` | the other devices behind SMMUs, and the memory that they access for the firmware |
//! | `chosen` | console, command lines, boot modules, domUs |
//! | `devices` | the list of all devices, from which dom0 is built |
//! | this file | memory, CPUs, timer, PSCI, SMMUs |
//!
//! The boot loader is trusted not to lie, but it may have bugs: no input makes this code panic, loop or recurse without
//! bound (`fuzz/fuzz_targets/fdt.rs`), and everything that is refused is reported.

mod chosen;
mod devices;
mod gic;
mod iommu;
mod lists;
mod msi;
mod open;
mod pci;
mod structure;
mod walk;

pub use devices::{DeviceNode, Spi, for_each_device};
pub use iommu::{DEVICE_STREAMS, DeviceStreams, device_streams};
pub use open::{is_compatible, parse, trim};
pub use walk::Trigger;

use super::machine::TOP;
use super::{Conduit, Cpu, Machine, MachineError, Part, Smmu, TimerPpis};
use crate::ids::{Intid, Mpidr, Pa};
use crate::util::range::Range;
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use lists::{Phandles, push};
use open::open;
#[cfg(test)]
use walk::MAX_DEPTH;
use walk::{Cells, Go, Place, Tree, strings};

/// The size of a page of an SMMU's registers (IHI 0070, 6.1).
const SMMU_FRAME: u64 = 0x1_0000;

/// Reads and checks a machine. `blob` may be longer than the tree in it.
///
/// The result is large, so it is on the heap; where there is none, use [`read_into`] on a static.
///
/// # Errors
///
/// The first problem that is found.
pub fn read(blob: &[u8]) -> Result<Box<Machine>, MachineError> {
    let mut machine = Box::new(Machine::new());
    read_into(&mut machine, blob)?;
    Ok(machine)
}

/// Like [`read`], but into `machine`, which is fresh from [`Machine::new`]. After an error its contents are undefined.
///
/// # Errors
///
/// The first problem that is found.
pub fn read_into(machine: &mut Machine, blob: &[u8]) -> Result<(), MachineError> {
    let tree = open(blob)?;
    let mut known = Phandles::default();

    // First, since an unsupported GIC is the most likely reason to refuse a machine, and the most useful to report.
    gic::read(tree, machine, &mut known)?;
    read_memory(tree, machine)?;
    read_cpus(tree, machine)?;
    gic::cut_redists(tree, machine)?;
    tree.walk_available(&mut |place| {
        if place.is_compatible("arm,armv8-timer") {
            read_timer(tree, place, machine)?;
        } else if place.is_compatible("arm,psci-1.0") || place.is_compatible("arm,psci-0.2") {
            read_psci(place, machine);
        } else if place.is_compatible("arm,smmu-v3") {
            read_smmu(tree, place, machine, &mut known)?;
        }
        Ok(Go::In)
    })?;
    pci::read(tree, machine, &known)?;
    msi::read(tree, machine, &known)?;
    iommu::read(tree, machine, &known)?;
    chosen::read(tree, machine)?;
    machine.check()
}

/// Reads `/memory` nodes, `/memreserve/`, and the fixed part of `/reserved-memory`.
fn read_memory(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    for entry in tree.fdt.memory_reservations() {
        if entry.size() != 0 {
            reserve(machine, Range::new(Pa(entry.address()), entry.size()))?;
        }
    }
    tree.walk_available(&mut |place| {
        let kind = place.value("device_type").and_then(|kind| strings(kind).next());
        if place.depth == 1 && kind == Some("memory") {
            for range in place.regs() {
                let added =
                    range.ok_or("an entry of `reg` is invalid: ignored").and_then(|bank| machine.add_memory(bank));
                if let Err(problem) = added {
                    machine.warn(place.path(), problem);
                }
            }
        } else if let Some(parent) =
            place.parent.filter(|parent| parent.depth == 1 && parent.name() == "reserved-memory")
        {
            // Linux ignores all of it without `ranges`. To keep it is safer, and means the same.
            if parent.has("ranges") {
                read_reserved(place, place.regs(), machine)?;
            } else {
                if place.has("reg") {
                    machine
                        .warn(place.path(), "/reserved-memory has no `ranges`: the addresses are taken for the root's");
                }
                read_reserved(place, place.regs_of_root(), machine)?;
            }
        }
        Ok(if place.depth < 2 { Go::In } else { Go::Over })
    })
}

/// Reads the fixed reservations of a node.
fn read_reserved(
    place: &Place<'_, '_>,
    regs: impl Iterator<Item = Option<Range>>,
    machine: &mut Machine,
) -> Result<(), MachineError> {
    for range in regs {
        match range {
            Some(range) if range.is_empty() => machine.warn(place.path(), "it is empty: ignored"),
            Some(range) if range.base.0.checked_add(range.size).is_none_or(|end| end > TOP) => {
                machine.warn(place.path(), "it exceeds 52 bits of address: ignored");
            }
            Some(range) => reserve(machine, range)?,
            None => machine.warn(place.path(), "an entry of `reg` is invalid: ignored"),
        }
    }
    Ok(())
}

/// Adds a reservation. That one does not fit is an error, since nobody may use what is reserved.
fn reserve(machine: &mut Machine, range: Range) -> Result<(), MachineError> {
    if machine.reserved.iter().any(|known| known.covers(range)) {
        return Ok(());
    }
    push(&mut machine.reserved, range, Part::Reserved)
}

/// Reads `/cpus/cpu@…`. An unavailable CPU is listed as disabled, so that the `CpuId`s do not depend on it.
fn read_cpus(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    tree.walk(&mut |place| {
        match place.depth {
            0 => return Ok(Go::In),
            1 => return Ok(if place.name() == "cpus" { Go::In } else { Go::Over }),
            _ => {}
        }
        let is_cpu = place.value("device_type").is_some_and(|kind| strings(kind).next() == Some("cpu"));
        if is_cpu && let Err(problem) = read_cpu(place, machine) {
            machine.warn(place.path(), problem);
        }
        Ok(Go::Over)
    })
}

/// Reads one CPU.
///
/// # Errors
///
/// Why it is not used.
fn read_cpu(place: &Place<'_, '_>, machine: &mut Machine) -> Result<(), &'static str> {
    const BAD: &str = "property `reg` is missing or no affinity: this CPU is not used";
    let cells = place.parent.map_or(0, Place::address_cells);
    let reg = Cells(place.value("reg").ok_or(BAD)?).number(cells).filter(|_| cells != 0).ok_or(BAD)?;
    let mpidr = Mpidr::from_register(reg);
    if mpidr.0 != reg {
        return Err(BAD);
    }
    if machine.cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
        return Err("another CPU has the same affinity: this one is not used");
    }
    let cpu = Cpu { mpidr, enabled: place.is_available() };
    machine.cpus.try_push(cpu).map_err(|_| "there are too many CPUs: this one is not used")
}

/// Reads the timer's interrupts: by `interrupt-names` if there are any, by position otherwise.
fn read_timer(tree: Tree<'_>, place: &Place<'_, '_>, machine: &mut Machine) -> Result<(), MachineError> {
    let mut intids: ArrayVec<Intid, 8> = ArrayVec::new();
    tree.interrupts(place, &mut |intid, _| {
        let _ = intids.try_push(intid);
        Ok(())
    })?;
    let names = place.value("interrupt-names");
    let find = |name: &str, index: usize| {
        let index = match names {
            Some(names) => strings(names).position(|word| word == name)?,
            None => index,
        };
        intids.get(index).copied()
    };
    let (Some(phys), Some(virt), Some(hyp)) = (find("phys", 1), find("virt", 2), find("hyp-phys", 3)) else {
        return Err(MachineError::NoTimer);
    };
    machine.timer = TimerPpis { phys_s: find("sec-phys", 0), phys, virt, hyp };
    Ok(())
}

/// Reads the PSCI conduit. PSCI 0.1, with function numbers in the tree, is older than any CPU with a GICv3.
fn read_psci(place: &Place<'_, '_>, machine: &mut Machine) {
    match place.value("method").and_then(walk::text) {
        Some("smc") => machine.psci = Some(Conduit::Smc),
        Some("hvc") => machine.psci = Some(Conduit::Hvc),
        _ => machine.warn(place.path(), "property `method` is missing or invalid: this PSCI is not used"),
    }
}

/// Reads an SMMUv3: registers and, by name, the wired interrupts.
///
/// # Errors
///
/// [`MachineError::TooMany`] if the tree is too deep.
fn read_smmu(
    tree: Tree<'_>,
    place: &Place<'_, '_>,
    machine: &mut Machine,
    known: &mut Phandles,
) -> Result<(), MachineError> {
    let aligned = place.reg(0).filter(|regs| regs.size >= SMMU_FRAME && regs.base.0.is_multiple_of(SMMU_FRAME));
    let Some(regs) = aligned else {
        machine.warn(place.path(), "its registers are missing, too small or misaligned: this SMMU is not used");
        // Nor may a domain use it.
        return place.reg(0).filter(|regs| !regs.is_empty()).map_or(Ok(()), |regs| machine.gic.add_unused(regs));
    };
    let mut intids: ArrayVec<Intid, 4> = ArrayVec::new();
    tree.interrupts(place, &mut |intid, _| {
        let _ = intids.try_push(intid);
        Ok(())
    })?;
    let names = place.value("interrupt-names").unwrap_or(&[]);
    let find = |name: &str| strings(names).position(|word| word == name).and_then(|index| intids.get(index).copied());
    let smmu = Smmu { regs, coherent: place.has("dma-coherent"), event: find("eventq"), gerror: find("gerror") };
    if machine.smmus.try_push(smmu).is_ok() {
        let _ = known.smmus.try_push(place.phandle()); // as large as the other
    } else {
        machine.warn(place.path(), "there are too many SMMUs: this one is not used");
        // Nor may a domain use it.
        machine.gic.add_unused(regs)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
