//! Description of the machine that the model stands for.
//!
//! A [`Config`] is plain data. A test takes one that describes a machine and changes the fields it is about.

/// What the SMMU uses while its caches may hold something older than memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// Nothing is cached. Invalidations take effect as they are consumed.
    Immediate,
    /// Stream table entries and translations are cached when a transaction uses them, and are used from then on until
    /// they are invalidated, which takes effect as the command is consumed (QEMU).
    OnUse,
    /// Everything that the SMMU could have cached at any time is cached, and the oldest of it is used until the SYNC
    /// after the invalidation.
    Worst,
    /// As `Worst`, except that for each use one of the possible values, old or new, is chosen pseudo-randomly from this
    /// seed.
    Random(u64),
}

/// Durations in nanoseconds of the machine's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// One register access.
    pub access: u64,
    /// One `relax`.
    pub relax: u64,
    /// One command other than a SYNC.
    pub command: u64,
    /// One SYNC.
    pub sync: u64,
    /// Time from a write of SMMU_CR0 or SMMU_IRQ_CTRL to its acknowledgement.
    pub acknowledge: u64,
    /// Time for which SMMU_GBPA.Update is 1.
    pub update: u64,
}

impl Timing {
    /// Everything is complete when the access returns (QEMU).
    pub const INSTANT: Timing = Timing { access: 50, relax: 500, command: 0, sync: 0, acknowledge: 0, update: 0 };
    /// Everything takes some accesses of a polling loop.
    pub const SERVER: Timing =
        Timing { access: 100, relax: 200, command: 150, sync: 1500, acknowledge: 1000, update: 700 };
}

/// State in which firmware has left the SMMU: enabled, with a linear stream table of which all entries bypass, and both
/// queues, of 256 commands and 128 events.
///
/// Table and queues lie one after the other in memory that is never allocated to a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Address of the stream table, within [`Config::ram`]. It is aligned to its size.
    pub memory: u64,
    /// Number of StreamID bits of the stream table.
    pub stream_bits: u32,
}

/// Description of a machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the registers. There are two pages of 64 KiB.
    pub base: u64,
    /// SMMU_IIDR.
    pub iidr: u32,
    /// SMMU_AIDR.ArchMinorRev.
    pub minor: u32,
    /// SMMU_IDR0.COHACC. Without it no access of the SMMU snoops the CPUs' caches.
    pub coherent: bool,
    /// SMMU_IDR0.ST_LEVEL: two-level stream tables are supported.
    pub two_level: bool,
    /// SMMU_IDR1.SIDSIZE.
    pub stream_bits: u32,
    /// SMMU_IDR0.S1P. Stage 1 is not modelled: an STE that uses it is a violation.
    pub stage1: bool,
    /// SMMU_IDR0.S2P.
    pub stage2: bool,
    /// Number of bits of the output address (SMMU_IDR5.OAS): 32, 36, 40, 42, 44, 48 or 52.
    pub output_bits: u32,
    /// SMMU_IDR5.GRAN16K and GRAN64K. Tables of these granules are not modelled: using them is a violation.
    pub large_granules: bool,
    /// SMMU_IDR0.VMID16.
    pub vmid16: bool,
    /// SMMU_IDR3.RIL: TLB invalidations by range and with a level.
    pub ranges: bool,
    /// SMMU_IDR3.BBML: what may be changed without break-before-make.
    pub bbml: u32,
    /// SMMU_IDR0.HYP.
    pub hyp: bool,
    /// SMMU_IDR0.MSI.
    pub msi: bool,
    /// SMMU_IDR0.SEV.
    pub sev: bool,
    /// SMMU_IDR0.STALL_MODEL: 0 or 1. Stalls are not modelled: an STE that asks for them is a violation.
    pub stall_model: u32,
    /// SMMU_IDR3.FWB.
    pub fwb: bool,
    /// SMMU_IDR1.CMDQS: log2 of the largest number of commands.
    pub command_bits: u32,
    /// SMMU_IDR1.EVENTQS: log2 of the largest number of events.
    pub event_bits: u32,
    /// Bits of SMMU_IDR0, SMMU_IDR1, SMMU_IDR3 and SMMU_IDR5 that the model does not act on.
    pub other_id_bits: [u32; 4],
    /// SMMU_GBPA at reset.
    pub gbpa: u32,
    /// The registers whose reset value is UNKNOWN are not zero at reset.
    pub unknown_reset_values: bool,
    /// The state in which firmware has left the SMMU, if it has used it.
    pub firmware: Option<Firmware>,
    /// Address and size in bytes of the memory from which `alloc` allocates.
    pub ram: (u64, u64),
    /// How long operations take.
    pub timing: Timing,
    /// What is used while caches may be older than memory.
    pub staleness: Staleness,
    /// The event queue's interrupt is raised for each record. Without it, only when the queue becomes non-empty.
    pub interrupt_for_each_event: bool,
}

impl Config {
    /// A strict SMMUv3.2 of a server, with all that the model has: everything takes time and stays stale for as long as
    /// is allowed.
    #[must_use]
    pub fn server() -> Config {
        Config {
            base: 0x2b40_0000,
            iidr: 0x4832_243b,
            minor: 2,
            coherent: true,
            two_level: true,
            stream_bits: 16,
            stage1: true,
            stage2: true,
            output_bits: 48,
            large_granules: false,
            vmid16: true,
            ranges: true,
            bbml: 0,
            hyp: true,
            msi: false,
            sev: true,
            stall_model: 0,
            fwb: false,
            command_bits: 10,
            event_bits: 9,
            other_id_bits: [0; 4],
            gbpa: 0x1000,
            unknown_reset_values: true,
            firmware: None,
            ram: (0x40_0000_0000, 0x4000_0000),
            timing: Timing::SERVER,
            staleness: Staleness::Worst,
            interrupt_for_each_event: false,
        }
    }

    /// The least that an SMMUv3.0 for stage 2 has: a linear stream table, 8-bit VMIDs, no invalidation by range, no
    /// stage 1, and accesses that do not snoop.
    #[must_use]
    pub fn small() -> Config {
        Config {
            minor: 0,
            coherent: false,
            two_level: false,
            stream_bits: 6,
            stage1: false,
            output_bits: 40,
            vmid16: false,
            ranges: false,
            hyp: false,
            sev: false,
            stall_model: 1,
            command_bits: 4,
            event_bits: 3,
            ..Config::server()
        }
    }

    /// QEMU's `virt,virtualization=on,iommu=smmuv3`.
    #[must_use]
    pub fn qemu() -> Config {
        Config {
            base: 0x0905_0000,
            iidr: 0,
            minor: 1,
            output_bits: 44,
            large_granules: true,
            ranges: true,
            bbml: 2,
            hyp: false,
            sev: false,
            stall_model: 1,
            command_bits: 19,
            event_bits: 19,
            // ASID16 and TERM_MODEL; XNX and HAD.
            other_id_bits: [1 << 12 | 1 << 26, 0, 1 << 4 | 1 << 2, 0],
            unknown_reset_values: false,
            ram: (0x4000_0000, 0x2000_0000),
            timing: Timing::INSTANT,
            staleness: Staleness::OnUse,
            interrupt_for_each_event: true,
            ..Config::server()
        }
    }

    /// Returns the machine with another staleness.
    #[must_use]
    pub fn stale(mut self, staleness: Staleness) -> Config {
        self.staleness = staleness;
        self
    }

    /// Returns the machine with all operations taking effect at once.
    #[must_use]
    pub fn instant(mut self) -> Config {
        self.timing = Timing::INSTANT;
        self.staleness = Staleness::Immediate;
        self
    }

    /// Returns the machine with an SMMU whose accesses do not snoop.
    #[must_use]
    pub fn noncoherent(mut self) -> Config {
        self.coherent = false;
        self
    }

    /// Returns the machine with linear stream tables only.
    #[must_use]
    pub fn linear(mut self) -> Config {
        self.two_level = false;
        self
    }

    /// Returns the machine as firmware leaves it that has used the SMMU for 256 streams.
    #[must_use]
    pub fn left_enabled(mut self) -> Config {
        self.firmware =
            Some(Firmware { memory: self.ram.0 + self.ram.1 - 0x10_0000, stream_bits: self.stream_bits.min(8) });
        self
    }

    /// SMMU_IDR0 (IHI 0070, 6.3.1).
    #[must_use]
    pub fn idr0(&self) -> u32 {
        let bit = |b: bool, at: u32| u32::from(b) << at;
        bit(self.stage2, 0)
            | bit(self.stage1, 1)
            | 2 << 2
            | bit(self.coherent, 4)
            | bit(self.hyp, 9)
            | bit(self.msi, 13)
            | bit(self.sev, 14)
            | bit(self.vmid16, 18)
            | 2 << 21
            | self.stall_model << 24
            | bit(self.two_level, 27)
            | self.other_id_bits[0]
    }

    /// SMMU_IDR1 (IHI 0070, 6.3.2).
    #[must_use]
    pub fn idr1(&self) -> u32 {
        self.stream_bits | self.event_bits << 16 | self.command_bits << 21 | self.other_id_bits[1]
    }

    /// SMMU_IDR3 (IHI 0070, 6.3.4).
    #[must_use]
    pub fn idr3(&self) -> u32 {
        u32::from(self.fwb) << 8 | u32::from(self.ranges) << 10 | self.bbml << 11 | self.other_id_bits[2]
    }

    /// SMMU_IDR5 (IHI 0070, 6.3.6).
    #[must_use]
    pub fn idr5(&self) -> u32 {
        let oas = match self.output_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            48 => 5,
            _ => 6,
        };
        oas | 1 << 4 | if self.large_granules { 3 << 5 } else { 0 } | self.other_id_bits[3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identification_registers_of_qemu_equal_the_real_ones() {
        let c = Config::qemu();
        assert_eq!((c.idr0(), c.idr1()), (0x0d44_101b, 0x0273_0010));
        assert_eq!((c.idr3(), c.idr5()), (0x1414, 0x74));
    }

    #[test]
    fn identification_registers_of_a_server_are_those_of_the_manual() {
        let c = Config::server();
        // S2P, S1P, TTF = AArch64, COHACC, HYP, SEV, VMID16, TTENDIAN = little, ST_LEVEL = 1.
        assert_eq!(c.idr0(), 0x0844_421b);
        assert_eq!((c.idr1(), c.idr3(), c.idr5()), (0x0149_0010, 0x400, 0x15));
        assert_eq!(Config::small().idr0(), 0x0140_0009);
    }
}
