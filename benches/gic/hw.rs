//! A GIC that completes everything at once: registers and memory keep what is written, except for the few bits that a
//! driver waits for. It delivers no interrupts; `tests/gic-model` does.

use doorward::gic::{DeviceQuota, Gic, ItsLayout, Layout};
use doorward::ids::{CpuId, DeviceId, DeviceIds, DomId, ItsId, Mpidr, Pa};
use doorward::mmio::{Coherence, Hw};
use std::cell::{Cell, OnceCell};
use std::rc::Rc;

/// The number of CPUs of a Graviton3.
pub const CPUS: u16 = 64;

const DIST: Pa = Pa(0x1000_0000);
const ITS: Pa = Pa(0x1010_0000);
const REDISTS: Pa = Pa(0x1100_0000);
const REDIST_SIZE: u64 = 0x4_0000;
const MEMORY: Pa = Pa(0x1_0000_0000);
const END: Pa = Pa(0x2_0000_0000);

const PAGE: u64 = 0x1000;
type Words = [Cell<u64>; 512];

/// Offsets (IHI 0069, 12.8 to 12.19) and reset values.
const PIDR2: u64 = 0xffe8;
const ARCH_REV_4: u32 = 0x40;
const GICD_TYPER: u64 = 0x4;
const GICR_TYPER: u64 = 0x8;
const GITS_CTLR: u64 = 0x0;
const GITS_TYPER: u64 = 0x8;
const GITS_CWRITER: u64 = 0x88;
const GITS_CREADR: u64 = 0x90;
const GITS_BASER: u64 = 0x100;
const QUIESCENT: u32 = 1 << 31;

/// 16 ID bits, LPIs, 32 SPIs.
const DIST_TYPER: u32 = 15 << 19 | 1 << 17 | 1;
/// Tables of devices, collections and vPEs, with entries of eight bytes.
const BASERS: [u64; 3] = [0x0107 << 48, 0x0407 << 48, 0x0207 << 48];

/// The generation of the GIC.
#[derive(Clone, Copy, Debug)]
pub enum Generation {
    /// GICv4.0 with DirectLPI, and an ITS like QEMU's.
    V40,
    /// GICv4.1, and an ITS like a Graviton3's.
    V41,
}

impl Generation {
    fn its_typer(self) -> u64 {
        match self {
            Generation::V40 => 0x003f_0001_efb3,
            Generation::V41 => 0x0bf7_0002_2f33,
        }
    }

    /// PLPIS, VLPIS, DirectLPI; for GICv4.1 also Dirty, RVPEID and VSGI.
    fn redist_typer(self, n: u64) -> u64 {
        let features = match self {
            Generation::V40 => 0x00_000b,
            Generation::V41 => 0x0400_008f,
        };
        let last = u64::from(n + 1 == u64::from(CPUS)) << 4;
        n << 32 | n << 8 | last | features
    }
}

/// The machine. Clones share its registers and memory.
#[derive(Clone)]
pub struct Instant(Rc<Space>);

/// The address space, with memory behind the pages that have been accessed.
struct Space {
    pages: Box<[OnceCell<Box<Words>>]>,
    next: Cell<u64>,
}

impl Instant {
    fn new(generation: Generation) -> Self {
        let pages = (0..END.0 / PAGE).map(|_| OnceCell::new()).collect();
        let hw = Instant(Rc::new(Space { pages, next: Cell::new(MEMORY.0) }));
        hw.write32(DIST.add(PIDR2), ARCH_REV_4);
        hw.write32(DIST.add(GICD_TYPER), DIST_TYPER);
        hw.store64(ITS.add(GITS_TYPER), generation.its_typer());
        hw.write32(ITS.add(GITS_CTLR), 0);
        for (n, baser) in (0..).zip(BASERS) {
            hw.store64(ITS.add(GITS_BASER + 8 * n), baser);
        }
        for (n, base) in (0..u64::from(CPUS)).map(|n| (n, REDISTS.add(n * REDIST_SIZE))) {
            hw.write32(base.add(PIDR2), ARCH_REV_4);
            hw.store64(base.add(GICR_TYPER), generation.redist_typer(n));
        }
        hw
    }

    #[inline]
    fn word(&self, at: Pa) -> &Cell<u64> {
        let page = &self.0.pages[(at.0 / PAGE) as usize];
        &page.get_or_init(|| Box::new([const { Cell::new(0) }; 512]))[(at.0 % PAGE / 8) as usize]
    }
}

impl Hw for Instant {
    fn read32(&self, at: Pa) -> u32 {
        (self.word(at).get() >> (8 * (at.0 & 4))) as u32
    }

    fn write32(&self, at: Pa, value: u32) {
        let value = if at == ITS.add(GITS_CTLR) && value & 1 == 0 { value | QUIESCENT } else { value };
        let (word, shift) = (self.word(at), 8 * (at.0 & 4));
        word.set(word.get() & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    fn read64(&self, at: Pa) -> u64 {
        self.word(at).get()
    }

    fn write64(&self, at: Pa, value: u64) {
        self.word(at).set(value);
        if at == ITS.add(GITS_CWRITER) {
            self.word(ITS.add(GITS_CREADR)).set(value);
        }
    }

    fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
        let start = self.0.next.get().next_multiple_of((align as u64).max(PAGE));
        let end = start + (size as u64).next_multiple_of(PAGE);
        self.0.next.set(end);
        (end <= END.0).then_some(Pa(start))
    }

    /// Memory is not reused: it would have to be zeroed.
    fn free(&self, _: Pa, _: usize, _: usize) {}

    fn load8(&self, at: Pa) -> u8 {
        (self.word(at).get() >> (8 * (at.0 % 8))) as u8
    }

    fn store8(&self, at: Pa, value: u8) {
        let (word, shift) = (self.word(at), 8 * (at.0 % 8));
        word.set(word.get() & !(0xff << shift) | u64::from(value) << shift);
    }

    fn load64(&self, at: Pa) -> u64 {
        self.word(at).get()
    }

    fn store64(&self, at: Pa, value: u64) {
        self.word(at).set(value);
    }

    fn publish(&self, _: Pa, _: usize, _: Coherence) {}
    fn acquire(&self, _: Pa, _: usize, _: Coherence) {}

    fn now_us(&self) -> u64 {
        0
    }

    fn relax(&self) {}
}

/// The driver on such a machine, with all CPUs brought up.
pub fn discover(generation: Generation) -> Gic<Instant> {
    let cpus: Vec<Mpidr> = (0..u32::from(CPUS)).map(Mpidr::from_packed).collect();
    let layout = Layout {
        dist: DIST,
        redists: &[(REDISTS, u64::from(CPUS) * REDIST_SIZE)],
        redists_listed: false,
        stride: None,
        cpus: &cpus,
        reserved: &[],
        boot_cpu: CpuId(0),
        itss: &[ItsLayout::new(ITS, true)],
        coherent: true,
        virtual_lpis_wanted: true,
    };
    let gic = Gic::discover(Instant::new(generation), &layout).expect("a GIC");
    (0..CPUS).for_each(|n| gic.init_cpu(CpuId(n)).expect("a CPU"));
    let ids = [DeviceIds { first: DeviceId(0), last: DeviceId(0x7fff) }];
    gic.reserve_devices(ItsId(0), DomId(0), &ids, DeviceQuota { devices: 512, events: 0x1_0000 }).expect("memory");
    gic
}
