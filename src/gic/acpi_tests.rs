//! From a server's ACPI tables to a vLPI in a guest: the layout of a Graviton3 (redistributors described by the GICCs
//! only, in two regions 16 GiB apart, Aff3 in use) on the executable GIC with GICv4.1.

use super::testing::{DEV, Guest, ITS0, ModelHw, vlpi};
use super::v4::Why::{Block, Preempt};
use super::{Gic, ItsLayout, Layout, arch_rev};
use crate::gic::testing::key;
use crate::ids::{CpuId, Mpidr, Pa};
use crate::platform::acpi::testing::{Memory, graviton3};
use gic_model::Config;
use std::vec::Vec;

const CPUS: usize = 64;

/// The driver on the model, with the layout that the tables describe.
fn guest(homes: &[u16]) -> Guest {
    let mut tables = Memory::with(&graviton3()).read().unwrap();
    let config = Config::graviton3(CPUS).each_cpu(|n, cpu| cpu.affinity = tables.cpus[n].mpidr.packed());
    let machine = gic_model::Machine::new(config.clone());
    tables.gic.size_redists(arch_rev(&ModelHw::new(machine.clone()), tables.gic.dist.base));
    for cpu in &config.cpus {
        assert!(tables.gic.redists.iter().any(|region| region.contains(Pa(cpu.gicr + cpu.frames_size() - 1))));
    }
    let layout = Layout {
        dist: tables.gic.dist.base,
        redists: &tables.gic.redists.iter().map(|range| (range.base, range.size)).collect::<Vec<_>>(),
        redists_listed: tables.gic.redists_listed,
        stride: tables.gic.redist_stride,
        cpus: &tables.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<Mpidr>>(),
        reserved: &[],
        boot_cpu: CpuId(0),
        itss: &tables
            .gic
            .itss
            .iter()
            .map(|its| ItsLayout::new(its.control.base, !its.non_coherent))
            .collect::<Vec<_>>(),
        coherent: !tables.gic.non_coherent,
        virtual_lpis_wanted: true,
    };
    let gic = Gic::discover(ModelHw::new(machine.clone()), &layout).expect("discover");
    crate::gic::testing::reserve(&gic);
    (0..CPUS).for_each(|cpu| gic.init_cpu(CpuId(cpu as u16)).expect("init_cpu"));
    let v4 = gic.v4().expect("virtual LPIs");
    let vm = v4.create_vm(14).unwrap();
    let vpes = homes.iter().map(|&home| v4.add_vpe(vm, CpuId(home)).unwrap()).collect();
    gic.map_device(ITS0, DEV, 5).unwrap();
    machine.assert_clean();
    Guest { machine, gic, vm, vpes }
}

#[test]
fn a_vlpi_reaches_a_vpe_on_each_half_of_a_graviton3() {
    let homes = [0u16, 31, 32, 63];
    let g = guest(&homes);
    assert!(g.gic.facts().v41 && g.gic.facts().single_vmovp);
    for (vpe, &home) in homes.iter().enumerate() {
        g.map(ITS0, vpe as u32, vpe);
        let resident = g.enter(vpe, home);
        g.msi(ITS0, vpe as u32);
        assert_eq!(g.guest(usize::from(home)), [vpe as u32], "CPU {home}");
        assert!(!g.leave(resident, Block));
        // The vPE is not resident, so its doorbell rings.
        g.msi(ITS0, vpe as u32);
        assert_eq!(g.all_doorbells(), [g.vpes[vpe]]);
        let resident = g.enter(vpe, home);
        assert_eq!(g.guest(usize::from(home)), [vpe as u32]);
        g.leave(resident, Preempt);
    }
    g.machine.assert_clean();
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_vpe_moves_from_one_half_to_the_other_with_its_pending_vlpis() {
    let g = guest(&[5]);
    g.map(ITS0, 7, 0);
    let resident = g.enter(0, 5);
    assert!(!g.leave(resident, Block));
    g.msi(ITS0, 7);
    // The redistributors of the other half use another vPE table.
    let resident = g.enter(0, 40);
    assert_eq!(g.guest(40), [7]);
    g.msi(ITS0, 7);
    assert_eq!(g.guest(40), [7]);
    g.leave(resident, Preempt);
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(40)));
    g.gic.unmap_event(key(ITS0, 7)).unwrap();
    assert_eq!(vlpi(7).0, 8199);
    g.take_down();
    g.machine.assert_clean();
}
