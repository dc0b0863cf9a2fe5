//! Counts the instructions of the GICv4 verbs, with different numbers of vPEs.
//!
//! Each verb is run once under valgrind on a machine with 1, 64 and 16384 vPEs, always for the last vPE that was added.
//! The machine ([`hw`]) answers at once and takes a few instructions for each access, so the count is mostly the
//! driver's. `cargo xtask bench gic` runs this and checks that no row grows with the number of vPEs.

#![allow(missing_docs, reason = "gungraun generates functions and constants")]

mod hw;

use doorward::gic::v4::{InterruptGroups, PendingLast, Resident, Why};
use doorward::gic::{Gic, V4};
use doorward::ids::{CpuId, DeviceId, EventId, EventKey, ItsId, Lpi, VIntid, VpeId};
use gungraun::prelude::*;
use hw::{Generation, Instant};
use std::hint::black_box;

/// The CPU at which the measured vPE lives, and the one that it is moved to.
const HOME: CpuId = CpuId(3);
const AWAY: CpuId = CpuId(hw::CPUS - 1);
/// What a guest usually has enabled.
const GROUPS: InterruptGroups = InterruptGroups { group0: false, group1: true };
const ITS: ItsId = ItsId(0);

/// The number of vPEs of a VM. Each VM has a device, and each vPE one event of it.
const VCPUS: u32 = 64;
const ID_BITS: u8 = 14;
/// The device whose mapping is measured, with 64 vectors.
const NEW_DEVICE: DeviceId = DeviceId(0x7fff);
const VECTOR_BITS: u8 = 6;

/// At least as many commands as fit the driver's ring.
const RING: u32 = 2048;

/// A GIC in use, and the vPE that is measured.
struct Machine {
    gic: Gic<Instant>,
    vpe: VpeId,
    /// A device of its VM, with an event that is not mapped.
    device: DeviceId,
    free: EventId,
    doorbell: Lpi,
}

impl Machine {
    fn v4(&self) -> V4<'_, Instant> {
        self.gic.v4().expect("virtual LPIs")
    }
}

const fn vlpi(n: u32) -> VIntid {
    VIntid(Lpi::FIRST + n)
}

/// A machine with so many vPEs. It is leaked, because its removal is not to be measured.
fn machine(generation: Generation, vpes: u32) -> &'static Machine {
    let gic = hw::discover(generation);
    let v4 = gic.v4().expect("virtual LPIs");
    let (mut last, mut device) = (None, DeviceId(0));
    for n in 0..vpes.div_ceil(VCPUS) {
        let vm = v4.create_vm(ID_BITS).expect("a VM");
        device = DeviceId(n);
        gic.map_device(ITS, device, VECTOR_BITS + 1).expect("a device");
        for m in 0..VCPUS.min(vpes - n * VCPUS) {
            let vpe = v4.add_vpe(vm, HOME).expect("a vPE");
            v4.map_event(EventKey::new(ITS, device, EventId(m)), vpe, vlpi(m)).expect("an event");
            last = Some(vpe);
        }
    }
    let vpe = last.expect("a vPE");
    // Once round the command ring: the first store to a page takes instructions of the machine, not of the driver.
    (0..RING / 2).for_each(|_| gic.set_pending(EventKey::new(ITS, device, EventId(0))).expect("INT and VSYNC"));
    let doorbell = (Lpi::FIRST..).map(Lpi).take(1 << 16).find(|l| gic.doorbell(*l) == Some(vpe)).expect("its doorbell");
    Box::leak(Box::new(Machine { gic, vpe, device, free: EventId(VCPUS), doorbell }))
}

fn resident(generation: Generation, vpes: u32) -> (&'static Machine, Resident) {
    let machine = machine(generation, vpes);
    (machine, machine.v4().enter(machine.vpe, HOME, GROUPS).expect("resident"))
}

#[library_benchmark]
#[benches::v40(args = [(Generation::V40, 1), (Generation::V40, 64), (Generation::V40, 16384)], setup = machine)]
#[benches::v41(args = [(Generation::V41, 1), (Generation::V41, 64), (Generation::V41, 16384)], setup = machine)]
fn enter(m: &'static Machine) -> Resident {
    m.v4().enter(black_box(m.vpe), HOME, GROUPS).expect("resident")
}

#[library_benchmark]
#[benches::v40(args = [(Generation::V40, 1), (Generation::V40, 64), (Generation::V40, 16384)], setup = resident)]
#[benches::v41(args = [(Generation::V41, 1), (Generation::V41, 64), (Generation::V41, 16384)], setup = resident)]
fn leave((m, resident): (&'static Machine, Resident)) -> PendingLast {
    m.v4().leave(resident, Why::Block)
}

#[library_benchmark]
#[benches::v40(args = [(Generation::V40, 1), (Generation::V40, 64), (Generation::V40, 16384)], setup = machine)]
#[benches::v41(args = [(Generation::V41, 1), (Generation::V41, 64), (Generation::V41, 16384)], setup = machine)]
fn doorbell(m: &'static Machine) -> Option<VpeId> {
    m.gic.doorbell(black_box(m.doorbell))
}

// `enter` on another CPU than the vPE's home.
#[library_benchmark]
#[benches::v40(args = [(Generation::V40, 1), (Generation::V40, 64), (Generation::V40, 16384)], setup = machine)]
#[benches::v41(args = [(Generation::V41, 1), (Generation::V41, 64), (Generation::V41, 16384)], setup = machine)]
fn vmovp(m: &'static Machine) -> Resident {
    m.v4().enter(black_box(m.vpe), AWAY, GROUPS).expect("moved")
}

#[library_benchmark]
#[benches::v40(args = [(Generation::V40, 1), (Generation::V40, 64), (Generation::V40, 16384)], setup = machine)]
#[benches::v41(args = [(Generation::V41, 1), (Generation::V41, 64), (Generation::V41, 16384)], setup = machine)]
fn vmapti(m: &'static Machine) {
    m.v4().map_event(EventKey::new(ITS, black_box(m.device), m.free), m.vpe, vlpi(m.free.0)).expect("mapped");
}

#[library_benchmark]
#[benches::v40(args = [(Generation::V40, 1), (Generation::V40, 64), (Generation::V40, 16384)], setup = machine)]
#[benches::v41(args = [(Generation::V41, 1), (Generation::V41, 64), (Generation::V41, 16384)], setup = machine)]
fn device_64(m: &'static Machine) {
    m.gic.map_device(ITS, black_box(NEW_DEVICE), VECTOR_BITS).expect("a device");
    let mut batch = m.gic.batch(ITS).expect("an ITS");
    for n in 0..1 << VECTOR_BITS {
        batch.map_virtual(NEW_DEVICE, EventId(n), m.vpe, vlpi(0x100 + n)).expect("an event");
    }
    batch.finish().expect("mapped");
}

library_benchmark_group!(name = gic, benchmarks = [enter, leave, doorbell, vmovp, vmapti, device_64]);
main!(library_benchmark_groups = gic);
