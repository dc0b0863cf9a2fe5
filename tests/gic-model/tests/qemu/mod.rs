//! The targets that scripts run on: the model in its QEMU configuration, and QEMU itself through `-qtest`.

mod qtest;

use gic_model::Machine;
use qtest::{PATIENCE, Qtest};
use std::time::{Duration, Instant};

pub const GICD: u64 = 0x0800_0000;
pub const ITS: u64 = 0x0808_0000;
pub const GICR: u64 = 0x080a_0000;
pub const CPUS: usize = 2;

pub const fn rd(cpu: usize) -> u64 {
    GICR + cpu as u64 * 0x4_0000
}

pub trait Target {
    fn read32(&mut self, at: u64) -> u32;
    fn write32(&mut self, at: u64, value: u32);
    fn read64(&mut self, at: u64) -> u64;
    fn write64(&mut self, at: u64, value: u64);
    fn poke(&mut self, at: u64, bytes: &[u8]);
    fn peek(&mut self, at: u64, len: usize) -> Vec<u8>;
    /// Acknowledges and ends an interrupt on a CPU, as hypervisor or as guest. Returns 1023 if there is none.
    fn acknowledge(&mut self, cpu: usize, who: Who) -> u64;
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    Host = 1,
    Guest = 2,
}

pub struct Model(pub Machine);

impl Model {
    /// Returns the model with a range of zeroed memory, as QEMU has it.
    pub fn new(memory: u64, size: usize) -> Model {
        let m = Machine::new(gic_model::Config::qemu(CPUS));
        assert!(m.claim(memory, size));
        m.publish(memory, size, true);
        Model(m)
    }
}

impl Target for Model {
    fn read32(&mut self, at: u64) -> u32 {
        self.0.read32(at)
    }
    fn write32(&mut self, at: u64, value: u32) {
        self.0.write32(at, value);
    }
    fn read64(&mut self, at: u64) -> u64 {
        self.0.read64(at)
    }
    fn write64(&mut self, at: u64, value: u64) {
        self.0.write64(at, value);
    }
    fn poke(&mut self, at: u64, bytes: &[u8]) {
        for (n, b) in bytes.iter().enumerate() {
            self.0.store8(at + n as u64, *b);
        }
        self.0.publish(at, bytes.len(), true);
    }
    fn peek(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.0.acquire(at, len, true);
        (0..len as u64).map(|n| self.0.load8(at + n)).collect()
    }
    fn acknowledge(&mut self, cpu: usize, who: Who) -> u64 {
        let taken = if who == Who::Host { self.0.host_ack(cpu) } else { self.0.guest_ack(cpu) };
        taken.unwrap_or(1023).into()
    }
}

pub struct Qemu(Qtest);

impl Qemu {
    /// Starts QEMU with stopped CPUs or, if `running`, with [`AGENT`] on the CPUs. Prints a message and returns `None`
    /// if QEMU is not installed.
    pub fn start(running: bool) -> Option<Qemu> {
        let flags = ["-M", "virt,virtualization=on,gic-version=4", "-smp", &CPUS.to_string()];
        let program = running.then(agent);
        let mut qemu = Qemu(Qtest::start("gic-model", &flags, program.as_deref())?);
        let deadline = Instant::now() + PATIENCE;
        for cpu in 0..if running { CPUS } else { 0 } {
            while qemu.read32(mailbox(cpu) + 16) != 0x51 {
                assert!(Instant::now() < deadline, "CPU{cpu} does not run");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Some(qemu)
    }
}

impl Target for Qemu {
    fn read32(&mut self, at: u64) -> u32 {
        self.0.read32(at)
    }
    fn write32(&mut self, at: u64, value: u32) {
        self.0.write32(at, value);
    }
    fn read64(&mut self, at: u64) -> u64 {
        self.0.read64(at)
    }
    fn write64(&mut self, at: u64, value: u64) {
        self.0.write64(at, value);
    }
    fn poke(&mut self, at: u64, bytes: &[u8]) {
        self.0.poke(at, bytes);
    }
    fn peek(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.0.peek(at, len)
    }
    fn acknowledge(&mut self, cpu: usize, who: Who) -> u64 {
        self.write32(mailbox(cpu), who as u32);
        let deadline = Instant::now() + PATIENCE;
        while self.read32(mailbox(cpu)) != 0 {
            assert!(Instant::now() < deadline, "CPU{cpu} does not answer");
        }
        self.read64(mailbox(cpu) + 8)
    }
}

/// Mailbox of the agent on a CPU: a request (`Who`) at 0, the acknowledged INTID at 8, a word that says that the agent
/// runs at 16.
const fn mailbox(cpu: usize) -> u64 {
    0x4700_0000 + 0x1000 * cpu as u64
}

fn agent() -> Vec<u8> {
    let mut bytes: Vec<u8> = AGENT.iter().flat_map(|(word, _)| word.to_le_bytes()).collect();
    bytes.resize(0x800 + 0x400, 0);
    // The vector for an HVC from EL1 branches to label 6.
    bytes.extend(0x17ff_fd36_u32.to_le_bytes());
    bytes
}

/// A program for EL2 of each CPU. It enables the physical and the virtual CPU interface, then acknowledges and ends
/// interrupts on request, for a guest at EL1. CPU 0 starts CPU 1. `vectors` is at offset 0x800. After about half a
/// minute without a request the program powers the machine off.
#[rustfmt::skip]
const AGENT: &[(u32, &str)] = &[
    (0xd538_00a0, "0: mrs x0, mpidr_el1"),
    (0x9240_1c00, "and x0, x0, #0xff"),
    (0xd2a8_e014, "movz x20, #0x4700, lsl #16"),
    (0x8b00_3294, "add x20, x20, x0, lsl #12"),
    (0x1000_3f81, "adr x1, vectors"),
    (0xd51c_c001, "msr vbar_el2, x1"),
    (0xd280_01e1, "mov x1, #0xf"),
    (0xd51c_c9a1, "msr ICC_SRE_EL2, x1"),
    (0xd503_3fdf, "isb"),
    (0xd280_00e1, "mov x1, #7"),
    (0xd518_cca1, "msr ICC_SRE_EL1, x1"),
    (0xd2b0_0001, "movz x1, #0x8000, lsl #16"),
    (0xb27d_0421, "orr x1, x1, #0x18"),
    (0xd51c_1101, "msr hcr_el2, x1"),
    (0xd503_3fdf, "isb"),
    (0xd280_0021, "mov x1, #1"),
    (0xd51c_cb01, "msr ICH_HCR_EL2, x1"),
    (0xd2bf_0001, "movz x1, #0xf800, lsl #16"),
    (0xb27f_0021, "orr x1, x1, #2"),
    (0xd51c_cbe1, "msr ICH_VMCR_EL2, x1"),
    (0xd280_1fe1, "mov x1, #0xff"),
    (0xd518_4601, "msr ICC_PMR_EL1, x1"),
    (0xd280_0021, "mov x1, #1"),
    (0xd518_cce1, "msr ICC_IGRPEN1_EL1, x1"),
    (0xd503_3fdf, "isb"),
    (0xb500_00e0, "cbnz x0, 1f"),
    (0xd2b8_8000, "movz x0, #0xc400, lsl #16"),
    (0xf280_0060, "movk x0, #3"),
    (0xd280_0021, "mov x1, #1"),
    (0x10ff_fc62, "adr x2, 0b"),
    (0xaa1f_03e3, "mov x3, xzr"),
    (0xd400_0003, "smc #0"),
    (0x5280_0a21, "1: mov w1, #0x51"),
    (0xb900_1281, "str w1, [x20, #16]"),
    (0xd2c0_0035, "2: movz x21, #1, lsl #32"),
    (0xf100_06b5, "7: subs x21, x21, #1"),
    (0x5400_0320, "b.eq 8f"),
    (0xb940_0281, "ldr w1, [x20]"),
    (0x34ff_ffa1, "cbz w1, 7b"),
    (0x7100_083f, "cmp w1, #2"),
    (0x5400_0080, "b.eq 3f"),
    (0xd538_cc02, "mrs x2, ICC_IAR1_EL1"),
    (0xd518_cc22, "msr ICC_EOIR1_EL1, x2"),
    (0x1400_000e, "b 4f"),
    (0xd518_461f, "3: msr ICC_PMR_EL1, xzr"),
    (0xd503_3fdf, "isb"),
    (0x1000_00a3, "adr x3, 5f"),
    (0xd51c_4023, "msr elr_el2, x3"),
    (0xd280_78a3, "mov x3, #0x3c5"),
    (0xd51c_4003, "msr spsr_el2, x3"),
    (0xd69f_03e0, "eret"),
    (0xd538_cc02, "5: mrs x2, ICC_IAR1_EL1"),
    (0xd518_cc22, "msr ICC_EOIR1_EL1, x2"),
    (0xd400_0002, "hvc #0"),
    (0xd280_1fe3, "6: mov x3, #0xff"),
    (0xd518_4603, "msr ICC_PMR_EL1, x3"),
    (0xd503_3fdf, "isb"),
    (0xf900_0682, "4: str x2, [x20, #8]"),
    (0xd503_3fbf, "dmb sy"),
    (0xb900_029f, "str wzr, [x20]"),
    (0x17ff_ffe6, "b 2b"),
    (0xd2b0_8000, "8: movz x0, #0x8400, lsl #16"),
    (0xf280_0100, "movk x0, #8"),
    (0xd400_0003, "smc #0"),
];
