//! CPUs whose GIC interface lacks what the redistributors support.

use super::testing::{Bench, DEV, Guest, ITS0, interface, key};
use super::v4::{SgiConfig, V4Error, Why};
use super::{GicError, Interface};
use crate::ids::CpuId;
use gic_model::{Config, Version};
use std::vec::Vec;

const CPUS: usize = 4;
/// The CPU whose interface lacks something.
const ODD: CpuId = CpuId(3);

fn with_odd(config: Config, version: Version) -> Config {
    config.each_cpu(|n, cpu| {
        if n == ODD.index() {
            cpu.interface = version;
        }
    })
}

#[test]
fn without_virtual_lpis_on_one_cpu_at_boot_no_guest_gets_a_vpe() {
    for config in [Config::v4_0(CPUS), Config::v4_1(CPUS, 1)] {
        let Bench { machine, gic } = Bench::up(with_odd(config, Version::V3));
        assert_eq!(gic.v4().unwrap().create_vm(14), Err(V4Error::Interface));
        // Device interrupts are taken as physical LPIs, on that CPU as well.
        gic.map_device(ITS0, DEV, 3).unwrap();
        let lpi = gic.alloc_lpi().unwrap();
        gic.configure_lpi(lpi, 0x80, true);
        gic.map_physical(key(ITS0, 1), lpi, ODD).unwrap();
        machine.msi(DEV.0, 1);
        machine.advance_us(100);
        assert_eq!(machine.host_ack(ODD.index()), Some(lpi.0));
        machine.assert_clean();
    }
}

#[test]
fn a_cpu_that_joins_later_and_takes_no_virtual_lpis_is_refused_and_guests_go_on() {
    let g = Guest::new(Config::v4_1(CPUS, 1), 1);
    g.map(ITS0, 1, 0);
    let _ = g.gic.take_out(ODD, CpuId(0)).unwrap();
    let lacking = Interface::new(1, true);
    assert_eq!(g.gic.join(ODD, lacking), Err(GicError::Interface(ODD, "LPIs")));
    assert_eq!(g.gic.join(ODD, Interface::new(1, false)), Err(GicError::Interface(ODD, "SGIs")));
    assert_eq!(g.gic.join(ODD, Interface::new(3, false)), Ok(()));
    let r = g.enter(0, 2);
    g.msi(ITS0, 1);
    assert_eq!(g.guest(2), [1]);
    let _ = g.leave(r, Why::Preempt);
    assert!(g.gic.has_virtual_sgis());
    assert!(g.v4().create_vm(14).is_ok());
    g.machine.assert_clean();
}

#[test]
fn virtual_sgis_are_used_only_if_the_interface_of_every_cpu_takes_them() {
    let on = SgiConfig { enabled: true, group1: true, priority: 0xa0 };
    let g = Guest::new(with_odd(Config::v4_1(CPUS, 1), Version::V4_0), 2);
    assert!(g.gic.facts().vsgi && !g.gic.has_virtual_sgis());
    assert_eq!(g.v4().configure_sgis(g.vpes[0], 1 << 1, |_| on), Err(V4Error::NoSuchSgi(0)));
    assert_eq!(g.v4().send_sgi(g.vpes[0], 1), Err(V4Error::NoSuchSgi(1)));
    assert!(g.v4().pending_sgis(g.vpes[0]).is_err());
    // Virtual LPIs reach all CPUs.
    g.map(ITS0, 1, 0);
    let r = g.enter(0, ODD.0);
    g.msi(ITS0, 1);
    assert_eq!(g.guest(ODD.index()), [1]);
    let _ = g.leave(r, Why::Preempt);
    g.machine.assert_clean();
}

#[test]
fn what_the_machine_does_not_use_no_cpu_has_to_take() {
    let none = Interface::new(1, true);
    let gic = Bench::up(Config::gicv3(CPUS)).gic;
    assert_eq!(gic.join(ODD, none), Ok(()));
    let g = Guest::new(Config::v4_0(CPUS), 1);
    assert_eq!(g.gic.join(ODD, Interface::new(1, false)), Ok(()), "GICv4.0 has no virtual SGIs");
    assert_eq!(interface(&Config::v4_1(1, 1).cpus[0]), Interface::new(3, false));
}

#[test]
fn virtual_sgis_are_used_only_if_the_frame_with_their_register_can_be_mapped() {
    for maps in [true, false] {
        let Bench { machine, mut gic } = Bench::up(Config::v4_1(CPUS, 2));
        let mut frames = Vec::new();
        gic.map_sgi_frames(|frame| {
            frames.push((frame.base.0, frame.size));
            if maps { Ok(()) } else { Err("no table") }
        });
        let expected: Vec<_> = machine.config().its.iter().map(|its| (its.base + 0x2_0000, 0x1_0000)).collect();
        assert_eq!((frames, gic.has_virtual_sgis()), (expected, maps));
    }
    // GICv4.0 has no such frame.
    let Bench { mut gic, .. } = Bench::up(Config::v4_0(CPUS));
    gic.map_sgi_frames(|_| Err::<(), _>("an access to a frame that is not there"));
}
