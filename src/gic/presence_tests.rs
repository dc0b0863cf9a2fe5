//! CPUs without a redistributor, on the executable GIC.

use super::testing::{Bench, DEV, Described, ITS0, ModelHw, interface, key, reserve};
use super::v4::{InterruptGroups, Why};
use super::{Gic, GicError, Layout, TakeOutError};
use crate::ids::{CpuId, Intid, Mpidr, Pa};
use gic_model::{Config, Machine};
use std::vec::Vec;

/// A CPU that the platform describes and that the machine does not have, between two that it has.
const ABSENT: CpuId = CpuId(1);

/// The driver on a machine where each [`ABSENT`] CPU of the description has no redistributor.
fn discover(config: Config, edit: impl FnOnce(&mut Layout<'_>)) -> Result<Bench, GicError> {
    let described = Described::new(&config);
    let mut layout = described.layout();
    let mut cpus: Vec<Mpidr> = layout.cpus.to_vec();
    cpus.insert(ABSENT.index(), Mpidr(0x77_0001));
    layout.cpus = &cpus;
    edit(&mut layout);
    let machine = Machine::new(config);
    let gic = Gic::discover(ModelHw::new(machine.clone()), &layout)?;
    Ok(Bench { machine, gic })
}

#[test]
fn a_cpu_without_a_redistributor_stays_off_and_the_others_work() {
    for config in [Config::gicv3(3), Config::v4_0(3), Config::its_list(3, 2), Config::v4_1(3, 2), Config::graviton3(3)]
    {
        let interfaces: Vec<_> = config.cpus.iter().map(interface).collect();
        let Bench { machine, gic } = discover(config, |_| {}).unwrap();
        assert!(!gic.has_redistributor(ABSENT));
        assert_eq!(gic.init_cpu(ABSENT), Err(GicError::NoRedistributor(ABSENT)));
        let there = [CpuId(0), CpuId(2), CpuId(3)];
        for (cpu, interface) in there.into_iter().zip(interfaces) {
            assert!(gic.has_redistributor(cpu));
            gic.join(cpu, interface).unwrap();
            gic.init_cpu(cpu).unwrap();
        }
        assert_eq!(gic.facts().cpus, 3);
        // Each verb refuses the CPU, or does nothing.
        assert_eq!(gic.nearest_in_service(ABSENT), Some(CpuId(2)));
        assert_eq!(gic.take_out(ABSENT, CpuId(0)), Err(TakeOutError::NotInService(ABSENT)));
        assert_eq!(gic.take_out(CpuId(0), ABSENT), Err(TakeOutError::NoTarget(ABSENT)));
        gic.ppi_enable(ABSENT, Intid(27));
        gic.ppi_disable(ABSENT, Intid(27));
        assert!(!gic.ppi_is_active(ABSENT, Intid(27)));
        reserve(&gic);
        gic.map_device(ITS0, DEV, 3).unwrap();
        let lpi = gic.alloc_lpi().unwrap();
        gic.configure_lpi(lpi, 0x80, true);
        assert!(gic.map_physical(key(ITS0, 1), lpi, ABSENT).is_err());
        gic.map_physical(key(ITS0, 1), lpi, CpuId(3)).unwrap();
        machine.msi(DEV.0, 1);
        machine.advance_us(100);
        // The model numbers the CPUs that it has.
        assert_eq!(machine.host_ack(2), Some(lpi.0));
        if let Some(v4) = gic.v4() {
            let vm = v4.create_vm(14).unwrap();
            assert!(v4.add_vpe(vm, ABSENT).is_err());
            let vpe = v4.add_vpe(vm, CpuId(2)).unwrap();
            assert!(v4.enter(vpe, ABSENT, InterruptGroups::GROUP1).is_err());
            for cpu in [CpuId(2), CpuId(3), CpuId(0)] {
                let mut resident = v4.enter(vpe, cpu, InterruptGroups::GROUP1).unwrap();
                v4.before_eret(&mut resident);
                let _ = v4.leave(resident, Why::Preempt);
            }
            let _ = gic.take_out(CpuId(3), CpuId(2)).unwrap();
        }
        machine.assert_clean();
    }
}

#[test]
fn the_boot_cpu_must_have_a_redistributor() {
    let absent = discover(Config::v4_0(2), |layout| layout.boot_cpu = ABSENT);
    assert_eq!(absent.err(), Some(GicError::NoRedistributor(ABSENT)));
}

#[test]
fn nothing_is_read_beyond_the_last_redistributor_of_a_region_that_is_not_listed_one_by_one() {
    // The region that the firmware describes is larger than the redistributors in it, and a CPU is missing.
    let config = Config::v4_0(3);
    let (start, size) = (Pa(config.cpus[0].gicr), 4 * config.cpus[0].frames_size());
    let Bench { machine, gic } = discover(config, |layout| {
        (layout.redists, layout.redists_listed) = (Vec::leak(vec![(start, size)]), false);
    })
    .unwrap();
    assert!(gic.has_redistributor(CpuId(3)) && !gic.has_redistributor(ABSENT));
    machine.assert_clean();
}

#[test]
fn gicr_typer_last_is_ignored_where_the_firmware_lists_each_redistributor() {
    // As on Graviton, but with the bit set in the middle of a region.
    let config = Config::v4_1(3, 1).each_cpu(|n, cpu| cpu.last = n == 0);
    let (start, size) = (Pa(config.cpus[0].gicr), 3 * config.cpus[0].frames_size());
    for (listed, found) in [(true, 3), (false, 1)] {
        let Bench { machine, gic } = discover(config.clone(), |layout| {
            (layout.redists, layout.redists_listed) = (Vec::leak(vec![(start, size)]), listed);
        })
        .unwrap();
        assert_eq!(gic.facts().cpus, found);
        machine.assert_clean();
    }
}
