//! Bring-up of ITSs with unusual properties, and of ITSs that fail.

use crate::gic::Gic;
use crate::gic::ItsError;
use crate::gic::table::TableError;
use crate::gic::testing::key;
use crate::gic::testing::{Bench, DEV, Described, ITS0, ModelHw, reserve};
use crate::ids::{CpuId, DeviceId, EventId, ItsId, Lpi, Pa, VIntid, VpeId};
use crate::mmio::Hw;
use gic_model::{Config, Fault, ItsNumber, Machine, TableKind};
use std::collections::BTreeSet;
use std::string::{String, ToString};
use std::vec::Vec;

const VALID: u64 = 1 << 63;
const SHAREABILITY: u64 = 3 << 10;

/// The driver on a machine on which register reads are changed.
fn amended(config: &Config, read64: impl Fn(Pa, u64) -> u64 + 'static) -> Gic<ModelHw> {
    let machine = Machine::new(config.clone());
    Gic::discover(ModelHw::amended(machine, read64), &Described::new(config).layout()).unwrap()
}

/// The GITS_BASER of an ITS for a kind of table.
fn baser(machine: &Machine, its: usize, kind: TableKind) -> u64 {
    let config = &machine.config().its[its];
    let n =
        config.basers.iter().position(|b| b.as_ref().is_some_and(|b| b.kind == kind)).expect("a table of this kind");
    machine.read64(config.base + 0x100 + 8 * n as u64)
}

fn without(kind: TableKind) -> impl FnMut(usize, &mut gic_model::Its) {
    move |_, its| its.basers.retain(|b| b.as_ref().is_some_and(|b| b.kind != kind))
}

fn virtual_lpis(gic: &Gic<impl Hw + Clone>) -> Vec<bool> {
    gic.facts().itss().map(|its| its.virtual_lpis).collect()
}

#[test]
fn every_error_has_a_message_of_its_own() {
    let (dev, ev, vpe) = (DeviceId(1), EventId(2), VpeId(3));
    let all = [
        ItsError::NoSuchIts(ITS0),
        ItsError::Dead,
        ItsError::Timeout,
        ItsError::NoSuchDevice(dev),
        ItsError::DeviceMapped(dev),
        ItsError::DeviceRange(dev),
        ItsError::EventBits(4),
        ItsError::EventRange(ev),
        ItsError::EventMapped(ev),
        ItsError::EventState(ev),
        ItsError::LpiRange(Lpi(5)),
        ItsError::VIntidRange(VIntid(6)),
        ItsError::NoSuchVpe(vpe),
        ItsError::OtherVm(vpe),
        ItsError::NotVirtual,
        ItsError::CpuOffline(CpuId(7)),
        ItsError::NoMemory,
        ItsError::Register,
        ItsError::NotQuiescent,
        ItsError::Table(TableError::ReadBack),
    ];
    let sentences: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(sentences.len(), all.len());
    assert!(sentences.iter().all(|s| s.contains(' ')));
}

#[test]
fn an_its_that_was_left_enabled_is_disabled_before_its_tables_are_changed() {
    for config in [Config::v4_0(2), Config::its_list(2, 2), Config::v4_1(2, 2)] {
        let bench = Bench::up(config.each_its(|_, its| its.enabled_at_reset = true));
        bench.gic.map_device(ITS0, DEV, 5).unwrap();
        bench.machine.assert_clean();
    }
}

#[test]
fn an_its_that_does_not_become_quiescent_is_neither_changed_nor_used() {
    let config = Config::v4_0(2).each_its(|_, its| its.enabled_at_reset = true);
    let machine = Machine::new(config.clone());
    machine.inject(Fault::NeverQuiescent { its: 0 });
    let gic = Gic::discover(ModelHw::new(machine.clone()), &Described::new(&config).layout()).unwrap();
    assert_eq!(gic.facts().its(ITS0), None);
    assert!(!gic.facts().virtual_lpis);
    assert_eq!(gic.map_device(ITS0, DEV, 5), Err(ItsError::NoSuchIts(ITS0)));
    machine.assert_clean();
}

#[test]
fn the_facts_of_an_its_are_those_of_its_registers() {
    let widths = |config| {
        let bench = Bench::up(config);
        let its = *bench.gic.facts().its(ITS0).unwrap();
        (its.event_bits, its.device_bits)
    };
    assert_eq!(widths(Config::qemu(2)), (16, 16));
    assert_eq!(widths(Config::graviton3(2)), (16, 18));
    assert_eq!(widths(Config::v4_0(2).each_its(|_, its| (its.event_bits, its.device_bits) = (5, 8))), (5, 8));
    // 256 flat pages of 4 KiB with entries of 8 bytes have room for 17 bits.
    let small = Config::v4_0(2).each_its(|_, its| {
        its.device_bits = 20;
        its.basers.iter_mut().flatten().for_each(|b| (b.pages, b.indirect) = (vec![4], false));
    });
    assert_eq!(widths(small), (16, 17));
}

#[test]
fn itss_and_redistributors_of_different_sockets_have_vpe_tables_of_their_own() {
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    let socket = |n: usize| (n as u32 % 2) << 24;
    // How many vPE tables the ITSs use, and how many there are in all.
    let tables = |levels: u8| {
        let config = Config::v4_1(4, 4)
            .each_cpu(|n, cpu| (cpu.affinity, cpu.common_lpi_aff) = (socket(n) | n as u32, levels))
            .each_its(|n, its| (its.mpidr, its.svpet) = (socket(n), levels));
        let bench = Bench::up(config);
        let (machine, config) = (&bench.machine, bench.machine.config());
        let of_itss: BTreeSet<u64> = (0..4).map(|n| baser(machine, n, TableKind::Vpe) & ADDRESS).collect();
        let of_cpus = config.cpus.iter().map(|cpu| machine.read64(cpu.gicr + 0x2_0070) & ADDRESS);
        (of_itss.len(), of_itss.iter().copied().chain(of_cpus).collect::<BTreeSet<_>>().len())
    };
    assert_eq!(tables(1), (2, 2), "one for each socket");
    assert_eq!(tables(0), (4, 5), "no ITS shares, and all redistributors share with each other");
    // With two levels (Aff3 and Aff2) it is the same, because sockets differ in Aff3 only.
    assert_eq!(tables(2), (2, 2));
}

#[test]
fn the_seventeenth_its_is_used_without_virtual_lpis() {
    let mut config = Config::v4_0(2);
    let its = config.its[0].clone();
    config.its = (0..17).map(|n| gic_model::Its { base: 0x2d00_0000 + n * 0x10_0000, ..its.clone() }).collect();
    let bench = Bench::up(config);
    let all = virtual_lpis(&bench.gic);
    assert_eq!(all, [[true; 16].as_slice(), &[false]].concat());
    bench.gic.map_device(ItsId(16), DEV, 5).unwrap();
    bench.machine.assert_clean();
}

#[test]
fn no_vpe_table_is_made_if_virtual_lpis_are_not_wanted() {
    let config = Config::v4_0(2);
    let (described, machine) = (Described::new(&config), Machine::new(config));
    let layout = crate::gic::Layout { virtual_lpis_wanted: false, ..described.layout() };
    let gic = Gic::discover(ModelHw::new(machine.clone()), &layout).unwrap();
    assert!(gic.v4().is_none());
    assert_eq!(baser(&machine, 0, TableKind::Vpe) & VALID, 0);
    assert_ne!(baser(&machine, 0, TableKind::Device) & VALID, 0);
}

#[test]
fn an_its_without_a_vpe_table_has_no_virtual_lpis() {
    let bench = Bench::up(Config::v4_0(2).each_its(without(TableKind::Vpe)));
    assert_eq!(virtual_lpis(&bench.gic), [false]);
    assert!(bench.gic.v4().is_none());
}

#[test]
fn of_two_itss_with_the_same_fixed_number_only_one_has_virtual_lpis() {
    let numbered = |numbers: [u8; 3]| {
        let mut config = Config::its_list(2, 3);
        (config.its.iter_mut().zip(numbers)).for_each(|(its, n)| its.number = ItsNumber::Fixed(n));
        let (described, machine) = (Described::new(&config), Machine::new(config));
        let gic = Gic::discover(ModelHw::new(machine), &described.layout()).unwrap();
        (virtual_lpis(&gic), gic.facts().itss().map(|its| its.number).collect::<Vec<_>>())
    };
    assert_eq!(numbered([3, 0, 1]), (vec![true; 3], vec![3, 0, 1]));
    assert_eq!(numbered([5, 5, 2]).0, [true, false, true]);
}

#[test]
fn collections_that_are_kept_in_the_its_need_no_table() {
    let config = Config::gicv3(4).each_its(without(TableKind::Collection)).each_its(|_, its| its.hcc = 4);
    let bench = Bench::up(config);
    let (gic, lpi) = (&bench.gic, bench.gic.alloc_lpi().unwrap());
    gic.configure_lpi(lpi, 0x80, true);
    gic.map_device(ITS0, DEV, 5).unwrap();
    gic.map_physical(key(ITS0, 1), lpi, CpuId(3)).unwrap();
    bench.machine.msi(DEV.0, 1);
    bench.machine.advance_us(100);
    assert_eq!(bench.machine.host_ack(3), Some(lpi.0));
    bench.machine.assert_clean();
}

#[test]
fn a_collection_table_has_room_for_all_cpus_and_the_collections_in_the_its() {
    let pages = |hcc| {
        let config = Config::gicv3(200).each_its(|_, its| {
            its.hcc = hcc;
            let table = its.basers.iter_mut().flatten().find(|b| b.kind == TableKind::Collection).unwrap();
            (table.pages, table.entry_size) = (vec![4], 32);
        });
        let bench = Bench::discovered(config).unwrap();
        (baser(&bench.machine, 0, TableKind::Collection) & 0xff) + 1
    };
    // 128 entries to a page.
    assert_eq!([0, 56, 57, 184, 185].map(pages), [2, 2, 3, 3, 4]);
}

#[test]
fn a_cpu_without_room_in_the_collection_table_is_refused() {
    let config = Config::gicv3(4).each_its(without(TableKind::Collection)).each_its(|_, its| its.hcc = 3);
    let bench = Bench::discovered(config).unwrap();
    (0..3).for_each(|cpu| bench.gic.init_cpu(CpuId(cpu)).unwrap());
    assert!(bench.gic.init_cpu(CpuId(3)).is_err());
    bench.machine.assert_clean();
}

#[test]
fn table_attributes_follow_the_platform_and_what_the_its_accepts() {
    // Whether the platform describes the ITS as coherent, and whether the ITS accepts shareable attributes.
    for (described_so, accepted) in [(true, true), (true, false), (false, true), (false, false)] {
        let config = Config::v4_0(2).each_its(|_, its| its.shareable = accepted);
        let (mut described, machine) = (Described::new(&config), Machine::new(config));
        described.say_coherent(described_so);
        let gic = Gic::discover(ModelHw::new(machine.clone()), &described.layout()).unwrap();
        reserve(&gic);
        let coherent = described_so && accepted;
        assert_eq!(gic.facts().its(ITS0).unwrap().coherent, coherent);
        let cbaser = machine.read64(machine.config().its[0].base + 0x80);
        let tables = [TableKind::Device, TableKind::Vpe, TableKind::Collection].map(|kind| baser(&machine, 0, kind));
        for register in [cbaser, tables[0], tables[1], tables[2]] {
            assert_eq!((register & VALID != 0, register & SHAREABILITY != 0), (true, coherent), "{register:#x}");
            // InnerCache: non-cacheable if it is not shareable, else read-allocate, write-allocate, write-back.
            assert_eq!(register >> 59 & 7, if coherent { 7 } else { 1 }, "{register:#x}");
        }
        (0..2).for_each(|cpu| gic.init_cpu(CpuId(cpu)).unwrap());
        gic.map_device(ITS0, DEV, 5).unwrap();
        machine.assert_clean();
    }
}

#[test]
fn an_its_whose_cbaser_is_not_kept_is_not_used() {
    const CBASER: u64 = 0x80;
    let refused: [fn(Pa, u64) -> u64; 2] = [
        |at, value| if at.0 & 0xffff == CBASER { value & !VALID } else { value },
        |at, value| if at.0 & 0xffff == CBASER { value ^ 0x10_0000 } else { value },
    ];
    for read64 in refused {
        assert_eq!(amended(&Config::gicv3(2), read64).facts().its(ITS0), None);
    }
    assert!(amended(&Config::gicv3(2), |_, value| value).facts().its(ITS0).is_some());
}

#[test]
fn an_its_whose_vpe_table_register_is_not_kept_has_no_virtual_lpis() {
    // The model's GITS_BASER2 is that of the vPE table; its size is not kept.
    let gic = amended(&Config::v4_0(2), |at, value| if at.0 & 0xffff == 0x110 { value & !0xff | 0x11 } else { value });
    assert_eq!(virtual_lpis(&gic), [false]);
    let machine = gic.hw.0.clone();
    assert_eq!(baser(&machine, 0, TableKind::Vpe) & VALID, 0, "Valid is cleared again");
    assert_ne!(baser(&machine, 0, TableKind::Device) & VALID, 0);
}

#[test]
fn a_table_whose_register_is_not_kept_is_freed() {
    let gic = amended(&Config::v4_0(2), |at, value| if at.0 & 0xffff == 0x110 { value & !0xff | 0x11 } else { value });
    let refused = gic.hw.0.allocations().len();
    let absent = amended(&Config::v4_0(2).each_its(without(TableKind::Vpe)), |_, value| value);
    assert_eq!(refused, absent.hw.0.allocations().len());
}
