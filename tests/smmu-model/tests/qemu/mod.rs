//! The targets that scripts run on: the model in its QEMU configuration, and QEMU itself through `-qtest`.

#[path = "../../../gic-model/tests/qemu/qtest.rs"]
mod qtest;

use qtest::{PATIENCE, Qtest};
use smmu_model::{Config, Machine};
use std::time::{Duration, Instant};

pub const SMMU: u64 = 0x0905_0000;
/// StreamIDs of the two devices: slots 3 and 4 of bus 0.
pub const STREAMS: [u64; 2] = [0x18, 0x20];

const ECAM: u64 = 0x40_1000_0000;
/// Addresses of the devices' registers.
const BARS: [u64; 2] = [0x1000_0000, 0x1010_0000];

pub trait Target {
    fn read32(&mut self, at: u64) -> u32;
    fn write32(&mut self, at: u64, value: u32);
    fn write64(&mut self, at: u64, value: u64);
    fn poke(&mut self, at: u64, bytes: &[u8]);
    fn peek(&mut self, at: u64, len: usize) -> Vec<u8>;
    /// A device (0 or 1) writes four zero bytes, or reads four bytes. (QEMU splits larger transactions that fault.)
    fn dma(&mut self, device: usize, address: u64, write: bool);
}

pub struct Model(pub Machine);

impl Model {
    /// Returns the model with a range of zeroed memory, as QEMU has it.
    pub fn new(memory: u64, size: usize) -> Model {
        let m = Machine::new(Config::qemu());
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
    fn dma(&mut self, device: usize, address: u64, write: bool) {
        let stream = STREAMS[device] as u32;
        let _ = if write {
            self.0.dma_write(stream, address, &[0; 4])
        } else {
            self.0.dma_read(stream, address, 4).map(|_| ())
        };
    }
}

pub struct Qemu(Qtest);

impl Qemu {
    /// Starts QEMU with two `edu` devices, and a CPU that sleeps: the devices need a clock that runs. Prints a message and
    /// returns `None` if QEMU is not installed.
    pub fn start() -> Option<Qemu> {
        let machine = "virt,virtualization=on,gic-version=3,iommu=smmuv3";
        let [first, second] = ["edu,addr=3,dma_mask=0xffffffffffff", "edu,addr=4,dma_mask=0xffffffffffff"];
        let flags = ["-M", machine, "-device", first, "-device", second];
        // wfi; b .-4
        let sleep: Vec<u8> = [0xd503_207f_u32, 0x17ff_ffff].iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut qemu = Qemu(Qtest::start("smmu-model", &flags, Some(&sleep))?);
        for (bar, stream) in BARS.into_iter().zip(STREAMS) {
            let function = ECAM + (stream << 12);
            assert_eq!(qemu.read32(function), 0x11e8_1234, "edu");
            qemu.write32(function + 0x10, bar as u32);
            // Memory space and bus master.
            qemu.write32(function + 4, 6);
            assert_eq!(qemu.read32(bar), 0x0100_00ed, "edu");
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
    fn write64(&mut self, at: u64, value: u64) {
        self.0.write64(at, value);
    }
    fn poke(&mut self, at: u64, bytes: &[u8]) {
        self.0.poke(at, bytes);
    }
    fn peek(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.0.peek(at, len)
    }
    fn dma(&mut self, device: usize, address: u64, write: bool) {
        // The registers of the engine: source, destination, count, command. Its buffer, of zeros, is at 0x4_0000.
        let (bar, buffer) = (BARS[device], 0x4_0000);
        let (from, to) = if write { (buffer, address) } else { (address, buffer + 8) };
        self.write64(bar + 0x80, from);
        self.write64(bar + 0x88, to);
        self.write64(bar + 0x90, 4);
        self.write64(bar + 0x98, if write { 3 } else { 1 });
        let deadline = Instant::now() + PATIENCE;
        while self.0.read64(bar + 0x98) & 1 != 0 {
            assert!(Instant::now() < deadline, "the device does not finish");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
