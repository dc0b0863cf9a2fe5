//! The random accesses, and the loop that makes them.

#[path = "work.rs"]
mod work;

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use guest_rt::exception::{Outcome, probe};
use guest_rt::its::{self, Its, Table};
use guest_rt::{cpu, gic, mrs, off, say, smccc};

/// Accesses of a single vCPU, if the seed gives no number.
const ACTS: u64 = 40_000;
const STEPS: u64 = 10;
/// The number of SGIs, or of INT commands, in a flood.
const FLOOD: u64 = 256;

static MEMORY: Table<0x4_0000> = Table::new();
/// A domU has no ITS.
static HAS_ITS: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU32 = AtomicU32::new(0);
static PROGRESS: [AtomicU64; cpu::MAX] = [const { AtomicU64::new(0) }; cpu::MAX];
static SEED: AtomicU64 = AtomicU64::new(0);
static REDISTRIBUTORS: [AtomicU64; cpu::MAX] = [const { AtomicU64::new(0) }; cpu::MAX];
static VCPUS: AtomicU32 = AtomicU32::new(1);
/// The bit of the seed that makes the guest end at random moments.
const ENDS: u64 = 1 << 63;

/// An xorshift generator.
pub struct Dice(u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 11) % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn of(&mut self, choices: &[u64]) -> u64 {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A value that is likely to hit a boundary.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => !(1 << self.below(64)),
            4 => self.below(256),
            5 => self.address(),
            6 => self.address() | self.roll() & 0xf800_0000_0000_0fff,
            _ => self.roll(),
        }
    }

    /// An address: of this guest, of the hypervisor, of a device, or without memory.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0..=3 => MEMORY.address() + self.below(0x4_0000),
            4 => 0x4020_0000 + self.below(0x100_0000),
            5 => 0x0800_0000 + self.below(0x200_0000),
            6 => self.roll() & 0xf_ffff_ffff,
            _ => self.roll() & 0xff_ffff_ffff_ffff,
        }
    }
}

/// Makes one load or store of any size. Three of four are aligned: the rest takes an alignment fault in stage 1.
pub fn touch(dice: &mut Dice, at: u64) {
    let size = dice.below(4);
    let at = if dice.one_in(4) { at } else { at & !((1 << size) - 1) };
    let value = dice.value();
    let store = dice.one_in(2);
    probe(|| {
        // SAFETY: `at` is a register of an emulated device or an address without memory; the access is the test.
        unsafe {
            match (size, store) {
                (0, false) => asm!("ldrb {0:w}, [{1}]", out(reg) _, in(reg) at),
                (1, false) => asm!("ldrh {0:w}, [{1}]", out(reg) _, in(reg) at),
                (2, false) => asm!("ldr {0:w}, [{1}]", out(reg) _, in(reg) at),
                (_, false) => asm!("ldr {0}, [{1}]", out(reg) _, in(reg) at),
                (0, true) => asm!("strb {0:w}, [{1}]", in(reg) value, in(reg) at),
                (1, true) => asm!("strh {0:w}, [{1}]", in(reg) value, in(reg) at),
                (2, true) => asm!("str {0:w}, [{1}]", in(reg) value, in(reg) at),
                (_, true) => asm!("str {0}, [{1}]", in(reg) value, in(reg) at),
            }
        }
    });
}

/// Makes an access in a form that has no syndrome.
pub fn touch_oddly(dice: &mut Dice, at: u64) {
    let at = at & !0xf;
    let (a, b) = (dice.value(), dice.value());
    let form = dice.below(8);
    probe(|| {
        // SAFETY: as in `touch`.
        unsafe {
            match form {
                0 => asm!("stp {0}, {1}, [{2}]", in(reg) a, in(reg) b, in(reg) at),
                1 => asm!("ldp {0}, {1}, [{2}]", out(reg) _, out(reg) _, in(reg) at),
                2 => asm!("stp {0:w}, {1:w}, [{2}, #-8]!", in(reg) a, in(reg) b, inout(reg) at + 8 => _),
                3 => asm!("ldr {0:w}, [{1}], #4", out(reg) _, inout(reg) at => _),
                4 => asm!("str {0:w}, [{1}, #4]!", in(reg) a, inout(reg) at => _),
                5 => asm!(".inst 0x3dc00000", in("x0") at), // ldr q0, [x0]
                6 => asm!(".inst 0x885f7c01", in("x0") at, out("x1") _), // ldxr w1, [x0]
                _ => asm!("dc zva, {0}", in(reg) at),
            }
        }
    });
}

fn distributor(dice: &mut Dice) {
    const REGISTERS: &[u64] = &[
        0x0, 0x4, 0x8, 0xc, 0x10, 0x40, 0x48, 0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x800, 0xc00,
        0xd00, 0xe00, 0xf00, 0xf10, 0xf20, 0x6000, 0x6100, 0x8000, 0xffd0, 0xffe8,
    ];
    let offset = if dice.one_in(3) { dice.below(0x1_0000) } else { dice.of(REGISTERS) + dice.below(0x100) };
    touch(dice, gic::GICD + offset);
}

fn redistributor(dice: &mut Dice) {
    const REGISTERS: &[u64] = &[
        0x0, 0x4, 0x8, 0xc, 0x14, 0x40, 0x48, 0x70, 0x74, 0x78, 0x7c, 0xa0, 0xb0, 0xc0, 0xffe8, 0x1_0080, 0x1_0100,
        0x1_0180, 0x1_0200, 0x1_0280, 0x1_0300, 0x1_0380, 0x1_0400, 0x1_0418, 0x1_0c00, 0x1_0c04, 0x1_0d00, 0x1_0e00,
    ];
    let n = dice.below(u64::from(VCPUS.load(Ordering::Relaxed))) as usize;
    let base = REDISTRIBUTORS[n].load(Ordering::Relaxed);
    // There may be no device past the last redistributor.
    let offset = if dice.one_in(3) { dice.below(0x4_0000) } else { dice.of(REGISTERS) };
    touch(dice, base + offset);
}

/// Enables the ITS, mostly with a short command queue. A move of GITS_CWRITER lets all that is left of earlier commands be
/// executed again; with 2048 of them, EL2 would hardly do anything else.
fn its_on(dice: &mut Dice) {
    let _ = if dice.one_in(8) { Its::on() } else { Its::on_with_short_ring() };
}

fn its(dice: &mut Dice) {
    const REGISTERS: &[u64] =
        &[0x0, 0x4, 0x8, 0xc, 0x80, 0x84, 0x88, 0x8c, 0x90, 0x100, 0x108, 0x110, 0x118, 0x1_0040, 0xffe8];
    let offset = if dice.one_in(3) { dice.below(0x2_0000) } else { dice.of(REGISTERS) };
    touch(dice, its::base() + offset);
    if dice.one_in(16) {
        // Enable the ITS again, so that it reads commands.
        let _ = probe(|| its_on(dice));
    }
}

/// Writes a command at an address inside the queue.
pub fn write_command(at: u64, words: [u64; 4]) {
    for (n, word) in words.iter().enumerate() {
        // SAFETY: the caller has checked that the queue is this guest's.
        unsafe { ((at + 8 * n as u64) as *mut u64).write_volatile(*word) };
    }
}

fn commands(dice: &mut Dice) {
    const OPCODES: &[u64] = &[
        0x01, 0x03, 0x04, 0x05, 0x08, 0x08, 0x09, 0x09, 0x0a, 0x0a, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x21, 0x22,
        0x25, 0x29, 0x2a, 0x2b, 0x2d, 0x00, 0xff,
    ];
    let _ = probe(|| {
        let ring = guest_rt::mmio::read64(its::base() + 0x80);
        let at = ring & 0x000f_ffff_ffff_f000;
        let size = ((ring & 0xff) + 1) * 0x1000;
        let mut write = guest_rt::mmio::read64(its::base() + 0x88) & 0xf_ffe0;
        // Write only to this guest's queue: another address may be the stack.
        if !guest_rt::its::is_ring(at) || size > 0x1_0000 || write >= size {
            return;
        }
        let flood = dice.one_in(64);
        let (count, one) = if flood { (FLOOD, dice.below(8)) } else { (1 + dice.below(8), 0) };
        for _ in 0..count {
            if flood {
                write_command(at + write, [0x03, one, 0, 0]);
                write = (write + 32) % size;
                continue;
            }
            let device = if dice.one_in(4) { dice.value() & 0xffff_ffff } else { dice.of(&[0, 0, 0, 8, 0x10]) };
            let event = if dice.one_in(4) { dice.value() & 0xffff_ffff } else { dice.below(40) };
            let lpi = if dice.one_in(4) { dice.value() & 0xffff_ffff } else { 8192 + dice.below(64) };
            let collection = if dice.one_in(4) { dice.value() & 0xffff } else { dice.below(5) };
            let target = if dice.one_in(4) { dice.value() & 0x000f_ffff_ffff_0000 } else { dice.below(5) << 16 };
            let table = if dice.one_in(4) { dice.value() & 0x000f_ffff_ffff_ffff } else { dice.address() & !0xff };
            let valid = u64::from(!dice.one_in(4)) << 63;
            let opcode = dice.of(OPCODES);
            let words = match opcode {
                0x08 => {
                    let bits = if dice.one_in(4) { dice.below(64) } else { dice.below(7) };
                    [opcode | device << 32, bits, valid | table, 0]
                }
                0x09 => [opcode, 0, valid | target | collection, 0],
                0x05 | 0x0e | 0x0d => [opcode, collection, target | collection, dice.below(5) << 16],
                _ if dice.one_in(16) => [dice.roll(), dice.roll(), dice.roll(), dice.roll()],
                _ => [opcode | device << 32, event | lpi << 32, collection, 0],
            };
            write_command(at + write, words);
            write = (write + 32) % size;
        }
        guest_rt::mmio::write64(its::base() + 0x88, write);
    });
}

/// Accesses a system register by random encoding, except those that this guest depends on.
fn system_register(dice: &mut Dice) {
    let (op0, op1, crn, crm, op2) = match dice.below(4) {
        // The feature space, debug, IMPLEMENTATION DEFINED, timers.
        0 => (3, dice.below(4), 0, dice.below(16), dice.below(8)),
        1 => (2, dice.below(8), dice.below(16), dice.below(16), dice.below(8)),
        2 => (3, dice.below(8), dice.of(&[9, 11, 14, 15]), dice.below(16), dice.below(8)),
        _ => (3, dice.below(8), dice.below(16), dice.below(16), dice.below(8)),
    };
    let read = dice.one_in(2);
    // Writes to EL1's translation, vectors, stack and state, or to self-hosted debug, would only end the guest.
    let own = op0 == 3 && op1 == 0 && matches!(crn, 1..=6 | 10 | 12 | 13);
    let user = op0 == 3 && op1 == 3 && matches!(crn, 4 | 13);
    let debug = op0 == 2 && op1 == 0;
    if !read && (own || user || debug) {
        return;
    }
    let base = if read { 0xd530_0000u64 } else { 0xd510_0000 };
    let word = base | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5;
    let value = dice.value();
    execute(word as u32, value);
}

/// Executes one instruction with X0 = `value`.
fn execute(word: u32, value: u64) -> Outcome {
    #[repr(C, align(64))]
    struct Code(core::cell::UnsafeCell<[[u32; 16]; cpu::MAX]>);
    // SAFETY: each vCPU uses its own element.
    unsafe impl Sync for Code {}
    static CODE: Code = Code(core::cell::UnsafeCell::new([[0; 16]; cpu::MAX]));
    const RET: u32 = 0xd65f_03c0;
    let at = CODE.0.get() as u64 + cpu::this().index() as u64 * 64;
    probe(|| {
        // SAFETY: the vCPU's own line of code: one instruction that works on X0 only, and a return.
        unsafe {
            (at as *mut u32).write_volatile(word);
            (at as *mut u32).add(1).write_volatile(RET);
            asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", "blr {0}",
                 in(reg) at, inout("x0") value => _, out("x30") _, clobber_abi("C"))
        };
    })
}

fn call(dice: &mut Dice) {
    const FUNCTIONS: &[u64] = &[
        0x8400_0000,
        0x8400_0003,
        0xc400_0003,
        0x8400_0004,
        0xc400_0004,
        0x8400_0005,
        0x8400_0006,
        0x8400_0007,
        0x8400_000a,
        0x8400_000b,
        0xc400_000d,
        0xc400_000e,
        0x8400_0010,
        0xc400_0014,
        0x8000_0000,
        0x8000_0001,
        0x8600_ff01,
    ];
    let function = if dice.one_in(2) { dice.of(FUNCTIONS) } else { dice.value() };
    // Calls that legally end or stop the guest. CPU_ON is refused, as every vCPU is on.
    const ENDS: &[u64] = &[0x8400_0001, 0xc400_0001, 0x8400_0002, 0x8400_0008, 0x8400_0009, 0x8400_0012, 0xc400_0012];
    if ENDS.contains(&(function & 0xffff_ffff)) {
        return;
    }
    let (a, b, c) = (dice.value(), dice.value(), dice.value());
    if dice.one_in(2) {
        smccc::hvc(function, a, b, c);
    } else {
        smccc::smc(function, a, b, c);
    }
}

fn sgi(dice: &mut Dice) {
    if dice.one_in(32) {
        // A flood: to all others, or to some.
        let value = dice.below(16) << 24 | if dice.one_in(2) { 1 << 40 } else { dice.below(16) };
        (0..FLOOD).for_each(|_| guest_rt::msr!("s3_0_c12_c11_5", value));
        return;
    }
    let value = if dice.one_in(3) { dice.value() } else { dice.below(16) << 24 | dice.below(16) };
    match dice.below(3) {
        0 => guest_rt::msr!("s3_0_c12_c11_5", value),
        1 => guest_rt::msr!("s3_0_c12_c11_6", value),
        _ => guest_rt::msr!("s3_0_c12_c11_7", value),
    }
}

fn interrupts(dice: &mut Dice) {
    // Acknowledge and end, acknowledge only, or end an INTID that was not acknowledged.
    match dice.below(6) {
        0 => _ = mrs!("s3_0_c12_c8_0"),
        1 => guest_rt::msr!("s3_0_c12_c12_1", dice.below(1100)),
        2 => guest_rt::msr!("s3_0_c12_c11_1", dice.below(1100)),
        _ => {
            if let Some(intid) = gic::acknowledge() {
                gic::end(intid);
            }
        }
    }
}

fn timer(dice: &mut Dice) {
    match dice.below(6) {
        0 => guest_rt::msr!("cntp_ctl_el0", dice.value()),
        1 => guest_rt::msr!("cntp_cval_el0", dice.value()),
        2 => guest_rt::msr!("cntp_tval_el0", dice.value()),
        3 => guest_rt::msr!("cntv_tval_el0", dice.below(100_000)),
        4 => guest_rt::msr!("cntv_ctl_el0", dice.below(4)),
        _ => _ = mrs!("cntp_ctl_el0"),
    }
}

fn elsewhere(dice: &mut Dice) {
    // Holes, addresses beyond all memory, and device frames that are not there.
    const HOLE: u64 = 0x3f80_0000;
    let at = match dice.below(3) {
        0 => HOLE + dice.below(0x1000),
        1 => 0x30_0000_0000 + (dice.roll() & 0xf_ffff_f000),
        _ => gic::GICD + 0x1_0000 + dice.below(0x7_0000),
    };
    if dice.one_in(4) { touch_oddly(dice, at) } else { touch(dice, at) }
}

/// The number of accesses for each vCPU.
fn acts() -> u64 {
    let vcpus = u64::from(VCPUS.load(Ordering::Relaxed));
    match (cpu::seed() & !ENDS) >> 32 {
        // With more vCPUs than CPUs, the hypervisor's locks are contended.
        0 => ACTS / (vcpus * vcpus),
        thousands => thousands * 1000 / vcpus,
    }
}

/// Accesses made so far by all vCPUs.
fn done() -> u64 {
    PROGRESS.iter().map(|progress| progress.load(Ordering::Acquire)).sum()
}

fn chaos() {
    let index = cpu::this().index();
    let mut dice =
        Dice(SEED.load(Ordering::Relaxed).wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
    let acts = acts();
    let ends = cpu::seed() & ENDS != 0;
    for act in 0..acts {
        if ends {
            crate::calls::end(&mut dice);
        }
        match dice.below(22) {
            0 | 1 => distributor(&mut dice),
            2 | 3 => redistributor(&mut dice),
            4..=7 if !HAS_ITS.load(Ordering::Relaxed) => elsewhere(&mut dice),
            4 => its(&mut dice),
            5..=7 => commands(&mut dice),
            8 | 9 => system_register(&mut dice),
            10 => call(&mut dice),
            11 => sgi(&mut dice),
            12 => interrupts(&mut dice),
            13 => timer(&mut dice),
            14 if HAS_ITS.load(Ordering::Relaxed) => crate::devices::sweep(&mut dice),
            14 | 15 => elsewhere(&mut dice),
            16 => crate::walk::walk(&mut dice),
            17 => work::act(&mut dice),
            18 => crate::calls::architecture(&mut dice),
            19 => crate::narrow::act(&mut dice),
            20 => crate::ports::act(&mut dice),
            _ => crate::console::act(&mut dice),
        }
        PROGRESS[index].store(act + 1, Ordering::Release);
        if index == 0 && act % (acts / STEPS) == 0 {
            say!("GUEST NOTE chaos {act} of {acts}");
        }
    }
    DONE.fetch_add(1, Ordering::AcqRel);
}

fn other() -> ! {
    gic::cpu_on(0);
    chaos();
    loop {
        core::hint::spin_loop();
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    let seed = match cpu::seed() & 0xffff_ffff {
        0 => cpu::now() | 1,
        seed => seed,
    };
    SEED.store(seed, Ordering::Relaxed);
    let mut vcpus = 0;
    for (slot, r) in REDISTRIBUTORS.iter().zip(gic::redistributors()) {
        slot.store(r.base, Ordering::Relaxed);
        vcpus += 1;
    }
    VCPUS.store(vcpus, Ordering::Relaxed);
    say!("GUEST START chaos seed={seed:#x} vcpus={vcpus}");
    gic::distributor_on();
    let properties = MEMORY.address();
    for n in 0..128 {
        // SAFETY: memory that only the GIC reads.
        unsafe { ((properties + n) as *mut u8).write_volatile(0xa1) };
    }
    for (n, r) in gic::redistributors().take(cpu::MAX).enumerate() {
        gic::lpis_on(r, properties, 14, MEMORY.address() + 0x1_0000 + (n as u64 % 3) * 0x1_0000);
    }
    if probe(|| _ = guest_rt::mmio::read32(its::base())) == Outcome::Ran {
        HAS_ITS.store(true, Ordering::Relaxed);
        let _ = Its::on_with_short_ring();
    }
    crate::walk::prepare();
    crate::narrow::prepare();
    crate::ports::prepare();
    gic::cpu_on(1 << 27 | 1 << 30);
    for index in 1..vcpus as usize {
        let answer = cpu::start(index, other);
        if answer != 0 {
            say!("GUEST FAIL chaos: CPU_ON of vCPU{index} returned {answer}");
            off()
        }
    }
    chaos();
    let mut before = 0;
    while !cpu::wait(cpu::LONG, || DONE.load(Ordering::Acquire) == vcpus) {
        if done() == before {
            for (n, progress) in PROGRESS.iter().take(vcpus as usize).enumerate() {
                say!("GUEST FAIL chaos: vCPU{n} stopped at access {}", progress.load(Ordering::Relaxed));
            }
            off()
        }
        before = done();
    }
    // Calls still work after all that.
    say!("GUEST PASS chaos seed={seed:#x} acts={} version={:#x}", done(), smccc::hvc(0x8400_0000, 0, 0, 0));
    off()
}
