//! vCPUs as threads, which stay in their guests until they are kicked, while other threads inject, move, reroute and
//! disable interrupts and read registers.
//!
//! Each sender waits until its interrupt was acknowledged before it sends the next. If an interrupt or a kick is lost,
//! or threads deadlock, a sender waits until the deadline of the test.

use super::testing::sgi1r;
use super::*;
use crate::ids::{Intid, Ipa, Mpidr, VIntid, VcpuId};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SPI: u32 = 40;
const LINE: u32 = 41;
const SGI: u32 = 3;
const LPI: u32 = 8192;
/// Two vCPUs run. The third one is always at EL2; register accesses are made in its name.
const RUNNING: u16 = 2;
const AT_EL2: VcpuId = VcpuId(2);
const ROUNDS: u64 = 400;

struct Threads {
    vgic: Vgic,
    kicked: [AtomicBool; 3],
    taken: [AtomicU64; 4],
    finished: AtomicU32,
    deadline: Instant,
}

fn slot(intid: u32) -> usize {
    match intid {
        SPI => 0,
        LINE => 1,
        SGI => 2,
        _ => 3,
    }
}

impl Threads {
    fn yield_now(&self) {
        assert!(Instant::now() < self.deadline, "an interrupt was lost, or the threads deadlock");
        std::thread::yield_now();
    }

    fn await_taken(&self, intid: u32, before: u64) {
        while self.taken[slot(intid)].load(Ordering::SeqCst) == before {
            self.yield_now();
        }
    }

    fn taken(&self, intid: u32) -> u64 {
        self.taken[slot(intid)].load(Ordering::SeqCst)
    }

    fn running(&self) -> bool {
        self.finished.load(Ordering::SeqCst) < 4
    }

    /// Runs a vCPU: in its guest, it acknowledges and ends what is listed, and leaves only for a kick or a maintenance
    /// interrupt.
    fn run(&self, vcpu: VcpuId) {
        let mut image = LrImage::new(4);
        while self.running() {
            self.vgic.flush(self, vcpu, &mut image);
            while self.running() && !self.kicked[vcpu.index()].swap(false, Ordering::SeqCst) {
                let used = usize::from(image.used);
                for value in image.lr[..used].iter_mut().filter(|v| **v & lr::PENDING != 0) {
                    *value &= !lr::PENDING;
                    let intid = lr::intid(*value);
                    if intid == LINE {
                        // The handler makes the device lower its line.
                        self.vgic.inject_spi(self, Intid(LINE), Signal::Level(false));
                    }
                    self.taken[slot(intid)].fetch_add(1, Ordering::SeqCst);
                }
                let maintenance = image.lr[..used].iter().any(|v| v & lr::EOI != 0) || image.hcr & lr::HCR_NPIE != 0;
                if maintenance {
                    break;
                }
                self.yield_now();
            }
            self.vgic.sync(self, vcpu, &mut image);
        }
    }

    fn send(&self, each: impl Fn(u64)) {
        (0..ROUNDS).for_each(each);
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}

impl Port for Threads {
    fn kick(&self, vcpu: VcpuId) {
        self.kicked[vcpu.index()].store(true, Ordering::SeqCst);
    }
    fn read_guest(&self, _: Ipa, _: &mut [u8]) -> bool {
        false
    }
    fn owns_spi(&self, _: Intid) -> bool {
        false
    }
    fn spi_set_enabled(&self, _: Intid, _: bool) {}
    fn spi_set_trigger(&self, _: Intid, _: Trigger) {}
    fn spi_route(&self, _: Intid, _: VcpuId) {}
    fn spi_set_pending(&self, _: Intid, _: bool) {}
    fn spi_deactivate(&self, _: Intid) {}
    fn spi_is_pending(&self, _: Intid) -> bool {
        false
    }
    fn ppi_line(&self, _: VcpuId, _: Intid) -> bool {
        true
    }
    fn ppi_deactivate(&self, _: VcpuId, _: Intid) {}
    fn group1_enabled(&self, _: bool) {}
    fn lpis_enabled(&self, _: VcpuId, _: bool, _: u64, _: u64) {}
    /// Waits for the vCPU, as the run loop does before it enters the guest of the one that has recalled it.
    fn recall(&self, vcpu: VcpuId) {
        let Some(cpu) = self.vgic.vcpu(vcpu) else { return };
        let epoch = cpu.epoch.load(Ordering::SeqCst);
        self.kick(vcpu);
        while epoch & 1 != 0 && cpu.epoch.load(Ordering::SeqCst) == epoch && self.running() {
            self.yield_now();
        }
    }
    fn is_settled(&self) -> bool {
        true
    }
}

fn start() -> Threads {
    let config = VgicConfig {
        vcpus: (0..3).map(Mpidr).collect(),
        spis: 32,
        id_bits: 14,
        has_lpis: true,
        list_registers: 4,
        priority_bits: 5,
    };
    let threads = Threads {
        vgic: Vgic::new(config).unwrap(),
        kicked: Default::default(),
        taken: Default::default(),
        finished: AtomicU32::new(0),
        deadline: Instant::now() + Duration::from_secs(120),
    };
    let vgic = &threads.vgic;
    vgic.dist_write(&threads, AT_EL2, 0, 4, 3);
    vgic.dist_write(&threads, AT_EL2, 0x84, 4, 0xffff_ffff);
    vgic.dist_write(&threads, AT_EL2, 0xc08, 4, 2 << 16);
    vgic.dist_write(&threads, AT_EL2, 0x104, 4, 0xffff_ffff);
    for vcpu in (0..3).map(VcpuId) {
        vgic.redist_write(&threads, AT_EL2, vcpu, 0x1_0080, 4, 0xffff_ffff);
        vgic.redist_write(&threads, AT_EL2, vcpu, 0x1_0100, 4, 0xffff_ffff);
        vgic.redist_write(&threads, AT_EL2, vcpu, 0x70, 8, 13);
        vgic.redist_write(&threads, AT_EL2, vcpu, 0x78, 8, 1 << 62);
        let mut cursor = vgic.redist_write(&threads, AT_EL2, vcpu, 0, 4, 1);
        while let Some(at) = cursor {
            cursor = vgic.read_tables(&threads, vcpu, at);
        }
    }
    vgic.set_lpi_config(&threads, VIntid(LPI), 0xa1);
    threads
}

#[test]
fn no_interrupt_is_lost_when_cpus_inject_move_and_disable_concurrently() {
    let threads = start();
    let (t, vgic) = (&threads, &threads.vgic);
    std::thread::scope(|scope| {
        for vcpu in (0..RUNNING).map(VcpuId) {
            scope.spawn(move || t.run(vcpu));
        }
        // An edge interrupt that is rerouted, disabled and read while it is pending.
        scope.spawn(move || {
            t.send(|round| {
                let before = t.taken(SPI);
                vgic.inject_spi(t, Intid(SPI), Signal::Edge);
                vgic.dist_write(t, AT_EL2, 0x6000 + u64::from(SPI) * 8, 8, round & 1);
                vgic.dist_write(t, AT_EL2, 0x184, 4, 1 << 8);
                let _ = vgic.dist_read(t, AT_EL2, 0x204, 4);
                vgic.dist_write(t, AT_EL2, 0x104, 4, 1 << 8);
                let _ = vgic.dist_read(t, AT_EL2, 0x304, 4);
                t.await_taken(SPI, before);
            });
        });
        // A level interrupt whose line is high until its handler has run.
        scope.spawn(move || {
            t.send(|round| {
                let before = t.taken(LINE);
                vgic.dist_write(t, AT_EL2, 0x6000 + u64::from(LINE) * 8, 8, round & 1);
                vgic.inject_spi(t, Intid(LINE), Signal::Level(true));
                t.await_taken(LINE, before);
            });
        });
        // An SGI to the two vCPUs in turn.
        scope.spawn(move || {
            t.send(|round| {
                let before = t.taken(SGI);
                vgic.send_sgi(t, AT_EL2, sgi1r(SGI, Mpidr(round & 1)), SgiGroup::One);
                let _ = vgic.redist_read(t, AT_EL2, VcpuId((round & 1) as u16), 0x1_0300, 4);
                t.await_taken(SGI, before);
            });
        });
        // An LPI that moves to the other vCPU while it is pending, and is disabled for a while.
        scope.spawn(move || {
            t.send(|round| {
                let (here, there) = (VcpuId((round & 1) as u16), VcpuId((round & 1 ^ 1) as u16));
                let before = t.taken(LPI);
                assert!(vgic.inject_lpi(t, here, VIntid(LPI)));
                vgic.move_lpi(t, here, there, VIntid(LPI));
                vgic.set_lpi_config(t, VIntid(LPI), 0xa0);
                vgic.set_lpi_config(t, VIntid(LPI), 0xa1);
                let _ = vgic.move_all_lpis(t, there, here, 0);
                t.await_taken(LPI, before);
            });
        });
    });
    let taken = threads.taken.map(|t| t.into_inner());
    // A level whose line falls after it was listed again may be acknowledged twice. The others are acknowledged as
    // often as they were sent.
    assert_eq!([taken[0], taken[2], taken[3]], [ROUNDS; 3]);
    assert!(taken[1] >= ROUNDS);
}
