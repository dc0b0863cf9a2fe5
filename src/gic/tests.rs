//! Bring-up and physical interrupts, on the executable GIC.

use super::testing::{Bench, Described, ModelHw};
use super::*;
use crate::ids::EventKey;
use crate::ids::{CpuId, ItsId};
use crate::ids::{DeviceId, EventId};
use gic_model::{Config, Delivery, Machine};

const DEV: DeviceId = DeviceId(0x10);
const ITS: ItsId = ItsId(0);

#[test]
fn every_kind_of_machine_comes_up_without_a_violation() {
    for config in
        [Config::qemu(4), Config::gicv3(4), Config::v4_0(4), Config::its_list(4, 3), Config::qemu(2).noncoherent()]
    {
        let bench = Bench::up(config);
        assert!(bench.gic.facts().lpis > 0);
    }
}

#[test]
fn an_msi_reaches_the_cpu_that_its_event_is_mapped_to() {
    for config in [Config::gicv3(4), Config::v4_0(4), Config::qemu(4), Config::v4_0(4).noncoherent()] {
        let Bench { machine, gic } = Bench::up(config);
        gic.map_device(ITS, DEV, 5).unwrap();
        let lpi = gic.alloc_lpi().unwrap();
        gic.configure_lpi(lpi, 0x80, true);
        gic.map_physical(EventKey::new(ITS, DEV, EventId(3)), lpi, CpuId(2)).unwrap();
        machine.msi(DEV.0, 3);
        machine.advance_us(100);
        assert_eq!(machine.host_ack(2), Some(lpi.0));
        assert_eq!(machine.take_deliveries(), [Delivery::Host { cpu: 2, intid: lpi.0 }]);
        gic.move_physical(EventKey::new(ITS, DEV, EventId(3)), CpuId(1)).unwrap();
        machine.msi(DEV.0, 3);
        machine.advance_us(100);
        assert_eq!((machine.host_ack(2), machine.host_ack(1)), (None, Some(lpi.0)));
        gic.unmap_device(ITS, DEV).unwrap();
        gic.free_lpi(lpi);
        machine.assert_clean();
    }
}

#[test]
fn itss_of_a_list_get_different_numbers_even_if_virtual_lpis_are_not_used() {
    let config = Config::its_list(2, 3);
    let (described, machine) = (Described::new(&config), Machine::new(config));
    let layout = Layout { virtual_lpis_wanted: false, ..described.layout() };
    let gic = Gic::discover(ModelHw::new(machine.clone()), &layout).unwrap();
    assert!(!gic.facts().virtual_lpis);
    assert_eq!(gic.facts().itss().map(|its| its.number).collect::<Vec<_>>(), [0, 1, 2]);
    machine.assert_clean();
}
