//! A guest that does anything with its ITS and its GIC makes EL2 allocate nothing: all that it can use is reserved.
//!
//! The virtual ITS, the virtual GIC and the driver are the real ones, on the executable GIC. The guest's commands are
//! random. Only allocations of EL2's own code are counted.

use super::*;
use crate::gic::testing::{Bench, ITS0};
use crate::gic::{DeviceQuota, MIN_EVENT_BITS};
use crate::ids::{DeviceIds, Intid, Mpidr};
use crate::mm::counting::{allocations, outside};
use crate::util::progress::Progress;
use crate::vgic::{Trigger, testing as guest};
use crate::vits::fake::encode::{self, Words};
use crate::vits::{OnError, Quota, Vits, VitsConfig};
use gic_model::Config;

const VCPUS: u16 = 3;
/// The devices that the guest may map.
const IDS: [DeviceIds; 2] = [
    DeviceIds { first: DeviceId(0x800), last: DeviceId(0x87f) },
    DeviceIds { first: DeviceId(0x2000), last: DeviceId(0x2fff) },
];
const QUOTA: Quota =
    Quota { devices: 6, events: 40, itt_entries: 512, min_event_bits: MIN_EVENT_BITS, device_event_bits: 6 };
/// The command queue in the guest's memory.
const QUEUE: u64 = 0x20_0000;
const QUEUE_BYTES: u64 = 0x1000;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;

/// The guest's side of the virtual GIC. What it does is not EL2's.
struct Outside<'a>(&'a guest::Machine);

impl Port for Outside<'_> {
    fn kick(&self, vcpu: VcpuId) {
        outside(|| self.0.kick(vcpu));
    }
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        outside(|| self.0.read_guest(ipa, buf))
    }
    fn owns_spi(&self, intid: Intid) -> bool {
        self.0.owns_spi(intid)
    }
    fn spi_set_enabled(&self, intid: Intid, on: bool) {
        outside(|| self.0.spi_set_enabled(intid, on));
    }
    fn spi_set_trigger(&self, intid: Intid, trigger: Trigger) {
        outside(|| self.0.spi_set_trigger(intid, trigger));
    }
    fn spi_route(&self, intid: Intid, vcpu: VcpuId) {
        outside(|| self.0.spi_route(intid, vcpu));
    }
    fn spi_set_pending(&self, intid: Intid, on: bool) {
        outside(|| self.0.spi_set_pending(intid, on));
    }
    fn spi_is_pending(&self, intid: Intid) -> bool {
        outside(|| self.0.spi_is_pending(intid))
    }
    fn ppi_line(&self, vcpu: VcpuId, intid: Intid) -> bool {
        outside(|| self.0.ppi_line(vcpu, intid))
    }
    fn spi_deactivate(&self, intid: Intid) {
        outside(|| self.0.spi_deactivate(intid));
    }
    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid) {
        outside(|| self.0.ppi_deactivate(vcpu, intid));
    }
    fn group1_enabled(&self, on: bool) {
        outside(|| self.0.group1_enabled(on));
    }
    fn lpis_enabled(&self, vcpu: VcpuId, on: bool, pendbaser: u64, propbaser: u64) {
        outside(|| self.0.lpis_enabled(vcpu, on, pendbaser, propbaser));
    }
    fn recall(&self, vcpu: VcpuId) {
        outside(|| self.0.recall(vcpu));
    }
    fn is_settled(&self) -> bool {
        self.0.is_settled()
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn command(&mut self) -> Words {
        let device = match self.below(4) {
            // A sweep over all that there are, and some that there are not.
            0 => self.below(0x4000) as u32,
            1 => 0x800 + self.below(0x80) as u32,
            _ => 0x2000 + self.below(6) as u32,
        };
        let (event, vintid, collection) = (self.below(70) as u32, 8192 + self.below(64) as u32, self.below(5) as u16);
        let vcpu = self.below(u64::from(VCPUS) + 1);
        match self.below(14) {
            0..3 => encode::mapd(device, 1 + self.below(8) as u8),
            3 => encode::unmapd(device),
            4 => encode::mapc(collection, vcpu),
            5 => encode::unmapc(collection),
            6..9 => encode::mapti(device, event, vintid, collection),
            9 => encode::movi(device, event, collection),
            10 => encode::discard(device, event),
            11 => encode::invall(collection),
            12 => encode::movall(vcpu, self.below(3)),
            _ => match self.below(3) {
                0 => encode::int(device, event),
                1 => encode::clear(device, event),
                _ => encode::inv(device, event),
            },
        }
    }
}

/// Runs the guest with a vPE for each vCPU for which `direct` is true. Returns how often EL2 allocated, and how many
/// commands it executed.
fn run(direct: impl Fn(u16) -> bool, seed: u64) -> (usize, u64) {
    let Bench { machine, gic } = Bench::up(Config::qemu(usize::from(VCPUS)));
    gic.reserve_devices(ITS0, DomId(0), &IDS, DeviceQuota { devices: QUOTA.devices, events: QUOTA.itt_entries })
        .unwrap();
    let v4 = gic.v4().unwrap();
    let vm = v4.create_vm(14).unwrap();
    let vcpus = (0..VCPUS).map(|n| (CpuId(n), direct(n).then(|| v4.add_vpe(vm, CpuId(n)).unwrap()))).collect();
    let paths = LpiPaths {
        vm: Some(vm),
        vcpus,
        devices: Vec::from([IDS.to_vec()]),
        lpis: LpiQuota::reserve(&gic, 128).unwrap(),
    };
    let guest = guest::Machine::with_affinities((0..VCPUS).map(|n| Mpidr(n.into())).collect());
    (0..VCPUS).for_each(|n| guest.enable_lpis(VcpuId(n), &[]));
    let routes = Routes::new(gic.facts().lpis);
    let port = Outside(&guest);
    let backend = LpiBackend {
        gic: &gic,
        vgic: &guest.vgic,
        port: &port,
        domain: DomId(0),
        paths: &paths,
        routes: &routes,
        until: u64::MAX,
    };
    let vits = Vits::new(VitsConfig {
        domain: DomId(0),
        its: ITS0,
        device_bits: 16,
        event_bits: 16,
        collection_bits: 3,
        id_bits: 14,
        quota: QUOTA,
        on_error: OnError::Skip,
    })
    .unwrap();
    let finish = || while vits.run(&backend, 5) == Progress::More {};
    let bring_up = || {
        let _ = vits.write(&backend, CBASER, 8, 1 << 63 | QUEUE);
        let _ = vits.write(&backend, CWRITER, 8, 0);
        let _ = vits.write(&backend, 0, 4, 1);
        finish();
    };
    bring_up();
    let (mut dice, mut writer, mut made) = (Dice(seed), 0, 0);
    for _ in 0..600 {
        for _ in 0..1 + dice.below(16) {
            let bytes: Vec<u8> = dice.command().iter().flat_map(|word| word.to_le_bytes()).collect();
            guest.poke(QUEUE + writer, &bytes);
            writer = (writer + 32) % QUEUE_BYTES;
        }
        let (act, vcpu, value) = (dice.below(40), VcpuId(dice.below(VCPUS.into()) as u16), dice.below(u64::MAX));
        made += allocations(|| {
            let _ = vits.write(&backend, CWRITER, 8, writer);
            finish();
            match act {
                0 => {
                    let _ = vits.reset();
                    finish();
                }
                1 => _ = vits.write(&backend, 0, 4, value & 1),
                2..5 => guest.vgic.dist_write(&port, vcpu, value & 0xfffc, 4, value >> 16),
                5..8 => {
                    let mut cursor = guest.vgic.redist_write(&port, vcpu, vcpu, value & 0x1_fffc, 4, value >> 20);
                    while let Some(next) = cursor {
                        cursor = guest.vgic.read_tables(&port, vcpu, next);
                    }
                }
                8 => _ = vits.lpis_enabled(vcpu),
                _ => {}
            }
            finish();
        });
        if act < 2 {
            writer = 0;
            bring_up();
        }
        assert_eq!(vits.read(CREADR, 8), writer, "the guest's commands are executed");
    }
    let commands = vits.counters().commands;
    machine.assert_clean();
    (made, commands)
}

#[test]
fn no_act_of_a_guest_allocates() {
    for (seed, direct) in [(1, [true; 3]), (2, [false; 3]), (3, [true, false, true])] {
        let (made, commands) = run(|n| direct[usize::from(n)], seed);
        assert!(commands > 3000, "{commands}");
        assert_eq!(made, 0, "vPEs: {direct:?}");
    }
}
