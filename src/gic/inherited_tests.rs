//! LPIs that an earlier owner of the machine has left enabled, on the executable GIC.

use super::testing::{Bench, DEV, Described, ITS0, ModelHw, interface, key, reserve};
use super::v4::{InterruptGroups, Why};
use super::{Gic, GicError};
use crate::ids::{CpuId, Lpi, Pa, VIntid};
use crate::util::range::Range;
use gic_model::{Config, LpisAtReset, Machine};
use std::vec::Vec;

const CPUS: usize = 3;
/// The configuration table of the earlier owner, and another one.
const CONFIG: u64 = 0x40_1000_0000;
const OTHER: u64 = 0x40_1010_0000;
/// Its pending tables, 64 KiB each.
const PENDING: u64 = 0x40_1001_0000;
/// Inner-shareable, write-back; and non-cacheable.
const SHARED: u64 = 0x780;
const NON_CACHEABLE: u64 = 0x80;
const ID_BITS: u64 = 16;

fn pending(cpu: usize) -> u64 {
    PENDING + cpu as u64 * 0x1_0000
}

/// Leaves LPIs enabled on some CPUs, with a configuration table each. EnableLPIs cannot be cleared.
fn left_on(config: Config, tables: &[(usize, u64)]) -> Config {
    config.each_cpu(|n, cpu| {
        cpu.ces = false;
        let attributes = if cpu.shareable { SHARED } else { NON_CACHEABLE };
        let table = tables.iter().find(|(cpu, _)| *cpu == n).map(|(_, table)| *table);
        cpu.lpis_at_reset = table.map(|table| LpisAtReset {
            propbaser: table | attributes | (ID_BITS - 1),
            pendbaser: pending(n) | attributes,
        });
    })
}

/// No two redistributors share tables.
fn apart(config: Config) -> Config {
    config.each_cpu(|n, cpu| {
        (cpu.common_lpi_aff, cpu.affinity) = (3, (n as u32) << 8);
    })
}

const ALL: Range = Range::new(Pa(CONFIG), 0x20_0000);

/// The driver on such a machine, and what the bring-up of each CPU returned.
fn up(config: Config, reserved: &[Range]) -> (Bench, Vec<Result<(), GicError>>) {
    let mut described = Described::new(&config);
    described.reserved = reserved.to_vec();
    let interfaces: Vec<_> = config.cpus.iter().map(interface).collect();
    let machine = Machine::new(config);
    let gic = Gic::discover(ModelHw::new(machine.clone()), &described.layout()).expect("discover");
    let results = (0..).map(CpuId).zip(interfaces).map(|(cpu, interface)| {
        gic.join(cpu, interface).unwrap();
        gic.init_cpu(cpu)
    });
    let results = results.collect();
    (Bench { machine, gic }, results)
}

/// A device's interrupt arrives at each of these CPUs, as a physical LPI and where possible as a vLPI.
fn interrupts_arrive(Bench { machine, gic }: &Bench, cpus: &[usize]) {
    reserve(gic);
    gic.map_device(ITS0, DEV, 5).unwrap();
    let vm = gic.v4().map(|v4| (v4, v4.create_vm(gic.facts().lpi_bits).unwrap()));
    for &cpu in cpus {
        let id = CpuId(cpu as u16);
        let lpi = gic.alloc_lpi().unwrap();
        gic.configure_lpi(lpi, 0x80, true);
        gic.map_physical(key(ITS0, cpu as u32), lpi, id).unwrap();
        machine.msi(DEV.0, cpu as u32);
        machine.advance_us(100);
        assert_eq!(machine.host_ack(cpu), Some(lpi.0), "CPU{cpu}");
        if let Some((v4, vm)) = vm {
            let (vpe, vintid) = (v4.add_vpe(vm, id).unwrap(), VIntid(Lpi::FIRST + cpu as u32));
            v4.configure(vm, vintid, 0xa1).unwrap();
            v4.map_event(key(ITS0, 16 + cpu as u32), vpe, vintid).unwrap();
            let mut resident = v4.enter(vpe, id, InterruptGroups::GROUP1).unwrap();
            v4.before_eret(&mut resident);
            machine.advance_us(10);
            machine.msi(DEV.0, 16 + cpu as u32);
            machine.advance_us(10);
            assert_eq!(machine.guest_ack(cpu), Some(vintid.0), "CPU{cpu}");
            let _ = v4.leave(resident, Why::Preempt);
        }
    }
    machine.assert_clean();
}

fn machines() -> [Config; 4] {
    [Config::gicv3(CPUS), Config::v4_0(CPUS), Config::v4_1(CPUS, 1), Config::v4_0(CPUS).noncoherent()]
}

#[test]
fn tables_in_reserved_memory_are_used_further() {
    for config in machines() {
        let (bench, results) = up(left_on(config, &[(0, CONFIG), (1, CONFIG), (2, CONFIG)]), &[ALL]);
        assert_eq!(results, [Ok(()); CPUS]);
        let tables: Vec<u64> = bench.gic.inherited_tables().iter().map(|table| table.base.0).collect();
        assert_eq!(tables, [CONFIG, pending(0), pending(1), pending(2)]);
        interrupts_arrive(&bench, &[0, 1, 2]);
    }
}

#[test]
fn a_cpu_without_left_over_lpis_uses_the_configuration_table_of_those_with() {
    // The boot CPU has none.
    for config in machines() {
        let (bench, results) = up(left_on(config.clone(), &[(1, CONFIG)]), &[ALL]);
        assert_eq!(results, [Ok(()); CPUS]);
        let propbaser = |cpu: usize| bench.machine.read64(config.cpus[cpu].gicr + 0x70) & 0x000f_ffff_ffff_f01f;
        assert_eq!([0, 1, 2].map(propbaser), [CONFIG | (ID_BITS - 1); CPUS]);
        interrupts_arrive(&bench, &[0, 1, 2]);
    }
}

#[test]
fn a_cpu_comes_back_with_the_tables_that_it_was_left_with() {
    let (bench, _) = up(left_on(Config::v4_1(CPUS, 1), &[(0, CONFIG), (1, CONFIG)]), &[ALL]);
    let _ = bench.gic.take_out(CpuId(1), CpuId(0)).unwrap();
    assert_eq!(bench.gic.init_cpu(CpuId(1)), Ok(()));
    assert_eq!(bench.gic.inherited_tables().len(), 3);
    interrupts_arrive(&bench, &[0, 1, 2]);
}

#[test]
fn with_tables_that_are_not_reserved_on_the_boot_cpu_the_machine_runs_without_lpis() {
    let not_reserved: [&[Range]; 3] = [&[], &[Range::new(Pa(CONFIG), 0x1_0000)], &[Range::new(Pa(PENDING), 0x10_0000)]];
    for config in machines() {
        for reserved in not_reserved {
            let (Bench { machine, gic }, results) = up(left_on(config.clone(), &[(0, CONFIG)]), reserved);
            assert_eq!(results, [Ok(()); CPUS]);
            let facts = gic.facts();
            assert_eq!((facts.lpi_bits, facts.lpis, facts.virtual_lpis), (0, 0, false));
            assert!(facts.its(ITS0).is_none() && gic.v4().is_none() && gic.alloc_lpi().is_none());
            assert_eq!(gic.inherited_tables(), []);
            // SPIs and PPIs work, also when a CPU leaves.
            gic.ppi_enable(CpuId(2), crate::ids::Intid(27));
            assert!(gic.take_out(CpuId(2), CpuId(0)).is_ok());
            machine.assert_clean();
        }
    }
}

#[test]
fn a_secondary_cpu_whose_tables_cannot_be_used_stays_off_if_it_shares_tables_with_no_other() {
    for config in machines().map(apart) {
        // Not reserved; another configuration table than that of the boot CPU; the same pending table as another CPU.
        let mut twice = left_on(config.clone(), &[(0, CONFIG), (1, CONFIG), (2, CONFIG)]);
        twice.cpus[2].lpis_at_reset.as_mut().unwrap().pendbaser -= 0x1_0000;
        for (config, reserved) in [
            (left_on(config.clone(), &[(2, CONFIG)]), &[][..]),
            (left_on(config.clone(), &[(0, CONFIG), (2, OTHER)]), &[ALL][..]),
            (twice, &[ALL][..]),
        ] {
            let (bench, results) = up(config, reserved);
            assert_eq!(results, [Ok(()), Ok(()), Err(GicError::LpisStuckOn(CpuId(2)))]);
            assert!(bench.gic.facts().lpi_bits != 0);
            interrupts_arrive(&bench, &[0, 1]);
        }
    }
}

#[test]
fn redistributors_that_share_tables_get_no_lpis_if_one_of_them_cannot_use_the_others_table() {
    // Two configuration tables within a group are UNPREDICTABLE.
    for tables in [&[(2, CONFIG)][..], &[(0, CONFIG), (2, OTHER)]] {
        let reserved = if tables.len() == 1 { vec![] } else { vec![ALL] };
        let (Bench { machine, gic }, results) = up(left_on(Config::v4_1(CPUS, 1), tables), &reserved);
        assert_eq!((results, gic.facts().lpi_bits), (vec![Ok(()); CPUS], 0));
        machine.assert_clean();
    }
}

#[test]
fn lpis_that_can_be_disabled_are_disabled_before_anything_is_allocated() {
    let config = left_on(Config::v4_0(CPUS), &[(0, CONFIG), (1, OTHER)]).each_cpu(|_, cpu| cpu.ces = true);
    let described = Described::new(&config);
    let machine = Machine::new(config);
    // The memory of the earlier owner's tables.
    assert!([CONFIG, OTHER, pending(0), pending(1)].into_iter().all(|at| machine.claim(at, 0x1_0000)));
    [CONFIG, OTHER, pending(0), pending(1)].into_iter().for_each(|at| machine.publish(at, 0x1_0000, true));
    let gic = Gic::discover(ModelHw::new(machine.clone()), &described.layout()).unwrap();
    [CONFIG, OTHER, pending(0), pending(1)].into_iter().for_each(|at| machine.free(at, 0x1_0000, 0x1000));
    machine.assert_clean();
    (0..CPUS as u16).for_each(|cpu| gic.init_cpu(CpuId(cpu)).unwrap());
    interrupts_arrive(&Bench { machine, gic }, &[0, 1, 2]);
}
