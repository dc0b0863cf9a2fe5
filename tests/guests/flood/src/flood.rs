//! dom0: one act again and again, each of which makes EL2 do as much work as one store can.
//!
//! The seed of the image says which act ([`ACTS`]). After each time one line: `GUEST FLOOD commands=N from_us=T us=T end`, with the
//! number of commands (or stores), the time of the first store, and how long all took. vCPU 1 is started by the acts `cwriter` and
//! `group1` only.

use crate::console::Console;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_rt::gic::{self, Redistributor};
use guest_rt::its::{self, Its, LARGEST_RING, Table};
use guest_rt::meter::now_us;
use guest_rt::mmio::{read32, read64, write32, write64};
use guest_rt::{cpu, off, say};

const TABLE: usize = 0x1_0000;
static PROPERTIES: Table<TABLE> = Table::new();
static PENDING: [Table<TABLE>; 2] = [const { Table::new() }; 2];
static EVENTS: Table<TABLE> = Table::new();
static RING: Table<LARGEST_RING> = Table::new();
/// 128 commands.
static SHORT_RING: Table<4096> = Table::new();

const FIRST_LPI: u32 = 8192;
/// The LPIs of a domain.
const LPIS: u64 = 8192;
/// MSI-X has at most 2048 vectors.
const EVENT_BITS: u32 = 11;
const FULL: u32 = 1 << EVENT_BITS;
const DEVICE: u32 = 0;
/// Devices that are mapped and unmapped.
const DEVICES: u32 = 12;
/// Enabled, priority 0xa0.
const ENABLED: u8 = 0xa1;
const DISABLED: u8 = 0xa0;

/// The acts, by seed.
const ACTS: [fn(&Flood) -> !; 9] =
    [move_all, map_collection, map_devices, unmap_full_device, invalidate, enable_lpis, cwriter, group1, ports];

/// The redistributors of the two vCPUs.
struct Flood {
    first: Redistributor,
    second: Redistributor,
}

/// Runs `act`, which returns the number of commands, for ever.
fn again(mut act: impl FnMut() -> u64) -> ! {
    loop {
        let from = now_us();
        let commands = act();
        let took = now_us() - from;
        if took == 0 {
            say!("GUEST FAIL flood: {commands} commands took no time");
            off()
        }
        say!("GUEST FLOOD commands={commands} from_us={from} us={took} end");
    }
}

fn fill(table: u64, bytes: u64, value: u8) {
    for byte in 0..bytes {
        // SAFETY: inside a table of this guest, whose redistributor reads it at a store to its registers only.
        unsafe { ((table + byte) as *mut u8).write_volatile(value) };
    }
}

/// One bit for each INTID, from 0 on.
fn all_pending(table: u64) {
    fill(table, 1 << (gic::id_bits() - 3), 0xff);
}

impl Flood {
    /// Enables LPIs on both vCPUs, and maps all events of a device to vCPU 0.
    fn map<const BYTES: usize>(&self, ring: &'static Table<BYTES>) -> Its {
        fill(PROPERTIES.address(), LPIS, DISABLED);
        for (r, pending) in [self.first, self.second].into_iter().zip(&PENDING) {
            gic::lpis_on(r, PROPERTIES.address(), gic::id_bits(), pending.address());
        }
        let mut its = Its::with_ring(ring);
        its.map_device(DEVICE, EVENT_BITS, EVENTS.address());
        let target = its.target(self.first);
        its.map_collection(0, target);
        for event in 0..FULL {
            its.map_event(DEVICE, event, FIRST_LPI + event, 0);
        }
        its
    }
}

/// All LPIs of vCPU 0 are pending and disabled, so each MOVALL moves all of them to the other vCPU or back, and none is delivered.
fn move_all(flood: &Flood) -> ! {
    let mut its = full_ring_of_move_all(flood);
    again(|| its.execute_full_ring())
}

fn full_ring_of_move_all(flood: &Flood) -> Its {
    let pending = PENDING[0].address();
    all_pending(pending);
    gic::lpis_on_with_pending(flood.first, PROPERTIES.address(), gic::id_bits(), pending);
    let mut its = Its::with_ring(&RING);
    let targets = [its.target(flood.first), its.target(flood.second)];
    its.fill(|slot| its::move_all(targets[slot % 2], targets[(slot + 1) % 2]));
    its
}

/// 127 MAPC, each of which moves all events to the other vCPU.
fn map_collection(flood: &Flood) -> ! {
    let mut its = flood.map(&SHORT_RING);
    let targets = [its.target(flood.first), its.target(flood.second)];
    its.fill(|slot| its::map_collection(0, targets[slot % 2]));
    again(|| its.execute_full_ring())
}

/// MAPD of devices that are not mapped, and then of the same without V.
fn map_devices(_: &Flood) -> ! {
    let mut its = Its::with_ring(&SHORT_RING);
    its.fill(|slot| {
        let (round, device) = (slot as u32 / DEVICES, slot as u32 % DEVICES);
        its::map_device(device, EVENT_BITS, (round % 2 == 0).then_some(EVENTS.address()))
    });
    again(|| its.execute_full_ring())
}

/// MAPD, a MAPTI for each event, MAPD without V.
fn unmap_full_device(flood: &Flood) -> ! {
    const ROUND: u32 = FULL + 2;
    let mut its = flood.map(&RING);
    its.fill(|slot| match slot as u32 % ROUND {
        0 => its::map_device(DEVICE, EVENT_BITS, None),
        1 => its::map_device(DEVICE, EVENT_BITS, Some(EVENTS.address())),
        n => its::map_event(DEVICE, n - 2, FIRST_LPI + n - 2, 0),
    });
    again(|| its.execute_full_ring())
}

/// INVALL with changed configuration bytes.
fn invalidate(flood: &Flood) -> ! {
    let mut its = flood.map(&SHORT_RING);
    its.fill(|_| its::invalidate_all(0));
    let mut byte = DISABLED;
    again(|| {
        byte ^= 1;
        fill(PROPERTIES.address(), LPIS, byte);
        its.execute_full_ring()
    })
}

/// GICR_CTLR.EnableLPIs off and on again, with all configuration bytes changed and all LPIs pending, and GITS_CTLR.Enabled off and
/// on.
fn enable_lpis(flood: &Flood) -> ! {
    const ROUNDS: u64 = 16;
    const CTLR: u64 = 0;
    let _its = flood.map(&SHORT_RING);
    let pending = PENDING[0].address();
    let mut byte = DISABLED;
    again(|| {
        for _ in 0..ROUNDS {
            write32(flood.first.base + CTLR, read32(flood.first.base + CTLR) & !1);
            // The vCPU takes no interrupt, so nothing is delivered.
            byte = if byte == ENABLED { DISABLED } else { ENABLED };
            fill(PROPERTIES.address(), LPIS, byte);
            all_pending(pending);
            gic::lpis_on_with_pending(flood.first, PROPERTIES.address(), gic::id_bits(), pending);
            write32(its::base() + CTLR, 0);
            write32(its::base() + CTLR, 1);
        }
        4 * ROUNDS
    })
}

/// Full queues of MOVALL, which the other vCPU prolongs all the time.
fn cwriter(flood: &Flood) -> ! {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    fn push() -> ! {
        const CREADR: u64 = 0x90;
        const CWRITER: u64 = 0x88;
        loop {
            // As far as the queue can be filled.
            let behind = (read64(its::base() + CREADR) & 0xf_ffe0).wrapping_sub(32) & 0xf_ffe0;
            write64(its::base() + CWRITER, behind);
            WRITES.fetch_add(1, Ordering::Relaxed);
        }
    }
    let _its = full_ring_of_move_all(flood);
    if cpu::start(1, push) != 0 {
        say!("GUEST FAIL flood: vCPU1 does not start");
        off()
    }
    const LINES_US: u64 = 100_000;
    let mut before = 0;
    again(|| {
        let until = now_us() + LINES_US;
        while now_us() < until {}
        // vCPU 1 may never come back from its first store.
        let writes = WRITES.load(Ordering::Relaxed);
        let some = writes - before;
        before = writes;
        some
    })
}

/// GICD_CTLR.EnableGrp1 off and on again, while the other vCPU is in its guest all the time.
fn group1(_: &Flood) -> ! {
    const ROUNDS: u64 = 4;
    const CTLR: u64 = 0;
    const ENABLE_GRP1: u32 = 1 << 1;
    static RUNS: AtomicU64 = AtomicU64::new(0);
    fn spin() -> ! {
        loop {
            RUNS.store(1, Ordering::Relaxed);
        }
    }
    if cpu::start(1, spin) != 0 || !cpu::wait(cpu::LONG, || RUNS.load(Ordering::Relaxed) != 0) {
        say!("GUEST FAIL flood: vCPU1 does not start");
        off()
    }
    again(|| {
        for _ in 0..ROUNDS {
            let on = read32(gic::GICD + CTLR);
            write32(gic::GICD + CTLR, on & !ENABLE_GRP1);
            write32(gic::GICD + CTLR, on);
        }
        2 * ROUNDS
    })
}

/// Full transmit queues of the ports of the console device: buffers of 64 KiB, and chains of many buffers of one byte.
fn ports(_: &Flood) -> ! {
    let Some(device) = Console::find() else {
        say!("GUEST FAIL flood: there is no console device");
        off()
    };
    device.start();
    let mut small = 0;
    again(|| {
        small ^= 1;
        (0..Console::PORTS).for_each(|port| device.fill(port, small == 0));
        (0..Console::PORTS).for_each(|port| device.notify(port));
        (0..Console::PORTS).for_each(|port| device.wait(port));
        Console::PORTS * Console::SIZE
    })
}

pub fn run() -> ! {
    gic::distributor_on();
    let mut redistributors = gic::redistributors();
    let (Some(first), Some(second)) = (redistributors.next(), redistributors.next()) else {
        say!("GUEST FAIL flood: it needs two vCPUs");
        off()
    };
    match ACTS.get(cpu::seed() as usize) {
        Some(act) => act(&Flood { first, second }),
        None => {
            say!("GUEST FAIL flood: there is no act {}", cpu::seed());
            off()
        }
    }
}
