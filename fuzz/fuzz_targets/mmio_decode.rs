//! The decoder of loads and stores does not panic for any syndrome, instruction and register values, and it plans accesses
//! only in the page of the fault. The walk to the instruction ends after five reads, whatever registers and tables hold. The same
//! input goes to the emulation of system registers and to firmware calls.
//!
//! `cargo +nightly fuzz run mmio_decode -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::arch::esr::{self, Esr};
use doorward::arch::speculation::Protections;
use doorward::console::ring::Ring;
use doorward::dev::arch_calls;
use doorward::dev::pl011::Vpl011;
use doorward::dev::psci;
use doorward::dev::vtimer::VTimer;
use doorward::ids::Ipa;
use doorward::run::decode::mmio::{self, Op, Refused, Registers};
use doorward::run::decode::{aarch32, inject, sysreg, walk};
use std::sync::Arc;

#[path = "../input.rs"]
mod input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

struct Input {
    esr: u64,
    far: u64,
    hpfar: u64,
    instruction: Option<u32>,
    x: [u64; 31],
    sp: u64,
    big_endian: bool,
    /// Whether the base register holds the faulting address: random values would hardly ever match.
    aim: bool,
    raw: u64,
    pstate: u64,
}

impl Input {
    fn read(bytes: &[u8]) -> Input {
        let mut from = input::Input(bytes);
        let flags = from.byte();
        Input {
            esr: from.word(),
            far: from.word(),
            hpfar: from.word(),
            instruction: (flags & 1 != 0).then(|| from.word() as u32),
            sp: from.word(),
            big_endian: flags & 2 != 0,
            aim: flags & 4 != 0,
            raw: from.word(),
            pstate: from.word(),
            x: std::array::from_fn(|_| from.word()),
        }
    }
}

struct Regs<'a>(&'a Input);

impl Registers for Regs<'_> {
    fn x(&self, n: u8) -> u64 {
        if self.0.aim { self.0.far } else { self.0.x.get(usize::from(n)).copied().unwrap_or(0) }
    }
    fn sp(&self) -> u64 {
        if self.0.aim { self.0.far } else { self.0.sp }
    }
    fn big_endian(&self) -> bool {
        self.0.big_endian
    }
}

struct Port<'a> {
    input: &'a Input,
    timer: VTimer,
    mdscr: u64,
}

impl sysreg::SysRegPort for Port<'_> {
    fn guest_id(&self, _: u8, _: u8, _: u8, op2: u8) -> Option<u64> {
        (op2 < 4).then_some(self.input.raw)
    }
    fn send_sgi(&mut self, _: sysreg::SgiKind, _: u64) {}
    fn deactivate(&mut self, intid: doorward::ids::Intid) {
        assert!(intid.0 < 1 << 24);
    }
    fn counter(&self) -> u64 {
        self.input.far
    }
    fn timer(&mut self) -> &mut VTimer {
        &mut self.timer
    }
    fn timer_changed(&mut self) {
        let now = self.input.far;
        assert!(!(self.timer.level(now) && self.timer.deadline(now).is_some()));
    }
    fn mdscr(&self) -> u64 {
        self.mdscr
    }
    fn set_mdscr(&mut self, value: u64) {
        assert_eq!(value & !0xb001, 0);
        self.mdscr = value;
    }
    fn set_way(&mut self) {}
}

/// Decodes one access, and makes one call.
pub fn run(bytes: &[u8]) {
    let input = Input::read(bytes);
    let esr = Esr(input.esr);
    let abort = esr.data_abort();
    let ipa = esr::ipa(input.hpfar, input.far);
    let regs = Regs(&input);
    match mmio::decode(&abort, input.far, ipa, input.instruction, &regs) {
        Ok(plan) => {
            for access in plan.accesses() {
                let inside = access.at.0 & 0xfff;
                assert_eq!(access.at.0 & !0xfff, ipa.0 & !0xfff);
                assert!(inside + u64::from(access.bytes) <= 0x1000);
                assert!(matches!(access.bytes, 1 | 2 | 4 | 8));
                match access.op {
                    Op::Write(value) => assert!(access.bytes == 8 || value >> (8 * access.bytes) == 0),
                    Op::Read(load) => {
                        assert!(load.rt() < 32);
                        let _ = load.value(input.raw);
                    }
                }
                uart(access.at, access.bytes, access.op, input.raw);
            }
        }
        Err(Refused::Changed) => assert!(input.instruction.is_some()),
        Err(Refused::NotAnAccess | Refused::Unsupported) => {}
    }

    let at = inject::At { pc: input.far, pstate: input.pstate, vbar_el1: input.raw, sctlr_el1: input.sp };
    for entry in [inject::undef(&at, esr), inject::data_abort(&at, input.far, &abort)] {
        assert_eq!(entry.pstate & 0x3df, 0x3c5, "EL1h, masked, AArch64");
        assert_eq!((entry.elr_el1, entry.spsr_el1), (input.far, input.pstate));
    }

    let [sctlr, tcr, ttbr0, ttbr1, mmfr0, mmfr1, mmfr2, ..] = input.x;
    let regime = walk::Regime { sctlr, tcr, ttbr0, ttbr1, mmfr0, mmfr1, mmfr2 };
    let mut reads = 0;
    let found = walk::fetch(&regime, input.far, input.big_endian, |at| {
        assert_eq!((at.0 % 8, at.0 >> 48), (0, 0));
        reads += 1;
        Some((input.x[reads % 31] | 3).to_ne_bytes())
    });
    assert!(reads <= 5 && found.map_or(0, |ipa| ipa.0 >> 48) == 0);
    let after = aarch32::after_instruction(input.pstate);
    assert_eq!((after ^ input.pstate) & !(3 << 25 | 0x3f << 10), 0);

    let mut port = Port { input: &input, timer: VTimer::new(), mdscr: 0 };
    let _ = sysreg::emulate(esr.sys_reg(), input.raw, &mut port);
    let call = [input.x[0], input.x[1], input.x[2], input.x[3]];
    let _ = psci::call(call);
    for protections in [Protections::BEST, Protections::WORST] {
        let _ = arch_calls::call(call, arch_calls::Cpus { protections, ssbs: input.raw & 1 != 0 });
    }
}

fn uart(at: Ipa, bytes: u8, op: Op, raw: u64) {
    let mut port = Vpl011::new(Arc::new(Ring::new(8)));
    for n in 0..40 {
        let _ = port.push_input(n);
    }
    match op {
        Op::Write(value) => port.write(at.0 & 0xfff, bytes, value),
        Op::Read(_) => _ = port.read(at.0 & 0xfff, bytes),
    }
    port.write(raw & 0xfff, bytes, raw);
    (0..10).for_each(|_| port.write(0, bytes, raw));
    port.update_transmit();
    assert!(port.room() <= 32);
    let _ = port.irq_level();
}
