//! Description of the machine that the model stands for.
//!
//! A [`Config`] is plain data. A test takes one that describes a real machine and changes the fields it is about.

/// Architecture version of the GIC as a whole. Single redistributors and ITSs can have fewer features; see their
/// fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// GICv3: physical LPIs only.
    V3,
    /// GICv4.0: virtual LPIs, one doorbell per event, vPEs identified by the address of their VPT.
    V4_0,
    /// GICv4.1: vPEs identified by vPEID, default doorbells, virtual SGIs.
    V4_1,
}

/// The state that MSIs, guests and doorbells see between a command and its SYNC or VSYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// Commands take effect everywhere as they are consumed (QEMU).
    Immediate,
    /// Translations, collections, homes of vPEs and cached configuration stay the old ones until the SYNC, VSYNC or
    /// GICR_SYNCR that covers the change. Configuration is cached as early as the architecture allows.
    Worst,
    /// As `Worst`, except that single changes, chosen pseudo-randomly from this seed, are seen early.
    Random(u64),
}

/// Durations in nanoseconds of the machine's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// One register access.
    pub access: u64,
    /// One `relax`.
    pub relax: u64,
    /// One ITS command.
    pub command: u64,
    /// Time for which GICR_VPENDBASER.Dirty is 1 after Valid was set.
    pub dirty_in: u64,
    /// Time for which GICR_VPENDBASER.Dirty is 1 after Valid was cleared.
    pub dirty_out: u64,
    /// Time for which GICR_SYNCR.Busy and GICR_VSGIPENDR.Busy are 1.
    pub busy: u64,
    /// Time from GITS_CTLR.Enabled = 0 to GITS_CTLR.Quiescent = 1.
    pub quiesce: u64,
    /// Time for which GICR_CTLR.RWP and GICD_CTLR.RWP are 1.
    pub rwp: u64,
}

impl Timing {
    /// Everything is complete when the access returns (QEMU).
    pub const INSTANT: Timing =
        Timing { access: 50, relax: 500, command: 0, dirty_in: 0, dirty_out: 0, busy: 0, quiesce: 0, rwp: 0 };
    /// Durations of the order of magnitude measured on servers, where a scan of the VPT takes 0.1 to 2 us.
    pub const SERVER: Timing = Timing {
        access: 100,
        relax: 200,
        command: 150,
        dirty_in: 1500,
        dirty_out: 1000,
        busy: 400,
        quiesce: 2000,
        rwp: 300,
    };
}

/// Values of GICR_PROPBASER and GICR_PENDBASER on a CPU where earlier software has left LPIs enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LpisAtReset {
    /// GICR_PROPBASER. The model does not allocate the tables: [`claim`](crate::Machine::claim) the memory if it is
    /// RAM.
    pub propbaser: u64,
    /// GICR_PENDBASER.
    pub pendbaser: u64,
}

/// One CPU and its redistributor.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Aff3.Aff2.Aff1.Aff0, as in GICR_TYPER\[63:32\].
    pub affinity: u32,
    /// Address of the RD frame.
    pub gicr: u64,
    /// GICR_TYPER.Processor_Number.
    pub processor_number: u16,
    /// GICR_TYPER.Last.
    pub last: bool,
    /// GICR_TYPER.VLPIS. The redistributor has four frames instead of two.
    pub vlpis: bool,
    /// GICR_TYPER.RVPEID. The redistributor is GICv4.1.
    pub rvpeid: bool,
    /// GICR_TYPER.Dirty. GICR_VPENDBASER.Dirty is also 1 after Valid was set.
    pub dirty: bool,
    /// GICR_TYPER.DirectLPI.
    pub direct_lpi: bool,
    /// GICR_CTLR.IR. GICR_INVLPIR, GICR_INVALLR and GICR_SYNCR exist without DirectLPI.
    pub ir: bool,
    /// GICR_CTLR.CES. EnableLPIs can be cleared.
    pub ces: bool,
    /// GICR_TYPER.CommonLPIAff.
    pub common_lpi_aff: u8,
    /// GICR_TYPER.VSGI. Used with `rvpeid` only.
    pub vsgi: bool,
    /// GICR_TYPER.MPAM.
    pub mpam: bool,
    /// Whether this redistributor accepts shareable attributes.
    pub shareable: bool,
    /// Version of the GIC CPU interface, which software reads in ID_AA64PFR0_EL1.GIC and ICH_VTR_EL2.nV4.
    pub interface: Version,
    /// Whether the redistributor is powered at reset. If not, its registers, except those that identify it and
    /// GICR_WAKER, read as zero and ignore writes until [`power_on`](crate::Machine::power_on), as on GIC-600 and
    /// GIC-700.
    pub powered_at_reset: bool,
    /// The tables of LPIs that are enabled at reset, if they are.
    pub lpis_at_reset: Option<LpisAtReset>,
    /// GICR_VPROPBASER and GICR_VPENDBASER as earlier software has left them.
    pub residency_at_reset: Option<(u64, u64)>,
}

/// The kind of table of a `GITS_BASER<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// GITS_BASER.Type 1.
    Device,
    /// GITS_BASER.Type 2.
    Vpe,
    /// GITS_BASER.Type 4.
    Collection,
}

/// An implemented `GITS_BASER<n>`.
#[derive(Clone, Debug)]
pub struct Baser {
    /// GITS_BASER.Type.
    pub kind: TableKind,
    /// Size of an entry in bytes.
    pub entry_size: u32,
    /// Supported page sizes in KiB (4, 16, 64). A page size that is not supported reads back as the last of these.
    pub pages: Vec<u32>,
    /// Whether Indirect can be set.
    pub indirect: bool,
}

/// What the redistributors support in GICR_VPROPBASER on GICv4.1.
#[derive(Clone, Debug)]
pub struct VpeTable {
    /// Size of an entry in bytes, a multiple of 8.
    pub entry_size: u32,
    /// Supported page sizes in KiB (4, 16, 64). A page size that is not supported reads back as the last of these.
    pub pages: Vec<u32>,
    /// Whether Indirect can be set.
    pub indirect: bool,
}

/// Behaviour of GITS_CTLR.ITS_Number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItsNumber {
    /// The field is RES0, since GITS_TYPER.VMOVP is 1.
    None,
    /// Software writes the field.
    Writable,
    /// The field has a fixed value.
    Fixed(u8),
}

/// One ITS.
#[derive(Clone, Debug)]
pub struct Its {
    /// Address of the control frame. The translation frame follows it and, with `vsgi`, the virtual frame.
    pub base: u64,
    /// GITS_IIDR.
    pub iidr: u32,
    /// GITS_TYPER.Virtual.
    pub virtual_lpis: bool,
    /// Size of an ITT entry in bytes.
    pub itt_entry_size: u32,
    /// Number of EventID bits.
    pub event_bits: u32,
    /// Number of DeviceID bits.
    pub device_bits: u32,
    /// Number of ICID bits if `cil` is set. Without it there are 16.
    pub collection_bits: u32,
    /// GITS_TYPER.CIL.
    pub cil: bool,
    /// GITS_TYPER.PTA. RDbase is an address.
    pub pta: bool,
    /// GITS_TYPER.HCC, the number of collections that the ITS holds itself.
    pub hcc: u8,
    /// GITS_TYPER.VMOVP. A VMOVP on one ITS moves the vPE for all ITSs.
    pub vmovp: bool,
    /// GITS_TYPER.MPAM.
    pub mpam: bool,
    /// GITS_TYPER.VSGI.
    pub vsgi: bool,
    /// GITS_TYPER.VMAPP. The ITS has the commands of GICv4.1.
    pub vmapp: bool,
    /// GITS_TYPER.SVPET.
    pub svpet: u8,
    /// GITS_TYPER.nID. Individual doorbells for events are not supported.
    pub nid: bool,
    /// GITS_MPIDR.
    pub mpidr: u32,
    /// GITS_CTLR.ITS_Number.
    pub number: ItsNumber,
    /// GITS_BASER0 to 7.
    pub basers: Vec<Option<Baser>>,
    /// Whether the ITS accepts shareable attributes.
    pub shareable: bool,
    /// A stall ends only when GITS_CWRITER is written with Retry = 1. Without this flag every write of it ends a stall.
    pub retry_needed: bool,
    /// GITS_CTLR.Enabled at reset.
    pub enabled_at_reset: bool,
    /// GITS_CTLR.ImDe at reset. The bit exists on GICv4 only, where its meaning is IMPLEMENTATION DEFINED.
    pub imde_at_reset: bool,
    /// An ITS does not become quiescent while GITS_CTLR.ImDe is 1.
    pub imde_keeps_busy: bool,
    /// DeviceID of MSIs that CPUs write to GITS_TRANSLATER. If `None`, such a write is a violation.
    pub cpu_device: Option<u32>,
}

/// Description of a machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The architecture version.
    pub version: Version,
    /// Address of the Distributor.
    pub gicd: u64,
    /// GICD_IIDR and GICR_IIDR.
    pub iidr: u32,
    /// GICD_CTLR.DS. Without it software is Non-secure: bit 1 of GICD_CTLR is EnableGrp1A, and bit 0 is EnableGrp1,
    /// whose writes are ignored while affinity routing is enabled, as on Graviton.
    pub ds: bool,
    /// GICD_TYPER.ITLinesNumber.
    pub it_lines: u32,
    /// Number of INTID bits.
    pub intid_bits: u32,
    /// GICD_TYPER.num_LPIs. 0 means all LPIs that `intid_bits` allows.
    pub num_lpis: u32,
    /// Number of vPEID bits if GICD_TYPER2.VIL is 1.
    pub vpeid_bits: Option<u32>,
    /// GICD_TYPER2.nASSGIcap. Used with `ds` only, since the bit is RES0 with two Security states.
    pub nassgicap: bool,
    /// GICv4.1: what GICR_VPROPBASER supports.
    pub vpe_table: VpeTable,
    /// The CPUs and their redistributors.
    pub cpus: Vec<Cpu>,
    /// The ITSs.
    pub its: Vec<Its>,
    /// Address and size in bytes of the memory from which `alloc` allocates.
    pub ram: (u64, u64),
    /// How long operations take.
    pub timing: Timing,
    /// Which changes are seen before their synchronisation.
    pub staleness: Staleness,
    /// Pending bits are always in the tables in memory (QEMU). Without this flag, they are only there when the GIC had
    /// to write them.
    pub write_through: bool,
    /// GICv4.0: a doorbell also rings for an event that is pending already (QEMU). Without this flag, it rings only
    /// when the event becomes pending.
    pub ring_when_pending: bool,
    /// GICv4.1: the redistributor takes VGrp0En and VGrp1En from the write that clears Valid. Interrupts of a group that
    /// is disabled there do not set PendingLast and ring no doorbell.
    pub samples_groups_on_leave: bool,
    /// GICv4.1: unmapping a vPE leaves cached configuration of its vLPIs, which only an invalidation removes.
    pub unmapping_keeps_cache: bool,
    /// GICv4.0: a redistributor drops virtual LPIs beyond its GICR_VPROPBASER.IDbits even while no vPE is resident.
    pub drops_beyond_idbits: bool,
    /// GICv4.0: value of IDAI at the end of each residency. `None` alternates between 0 and 1.
    pub idai: Option<bool>,
}

impl Config {
    /// QEMU's `virt,virtualization=on,gic-version=4`: GICv4.0, where everything takes effect at once.
    #[must_use]
    pub fn qemu(cpus: usize) -> Config {
        let mut c = Config::base(Version::V4_0, 0x0800_0000, 0x080a_0000, cpus);
        c.ram = (0x4000_0000, 0x2000_0000);
        c.iidr = 0x43b;
        c.ds = true;
        c.it_lines = 8;
        c.cpus.iter_mut().enumerate().for_each(|(n, p)| {
            p.affinity = ((n as u32 / 16) << 8) | (n as u32 % 16);
            p.direct_lpi = false;
            p.dirty = false;
            p.common_lpi_aff = 1;
        });
        c.its = vec![Its {
            iidr: 0x43b,
            itt_entry_size: 12,
            event_bits: 16,
            device_bits: 16,
            collection_bits: 16,
            cil: true,
            pta: false,
            cpu_device: Some(0),
            ..Its::v4_0(0x0808_0000)
        }];
        c.its[0].basers.iter_mut().flatten().for_each(|b| b.indirect = true);
        c.its[0].retry_needed = false;
        c.timing = Timing::INSTANT;
        c.staleness = Staleness::Immediate;
        c.write_through = true;
        c.ring_when_pending = true;
        c.drops_beyond_idbits = false;
        c.idai = Some(false);
        c
    }

    /// A plain GICv3 server: LPIs and DirectLPI, no virtual LPIs.
    #[must_use]
    pub fn gicv3(cpus: usize) -> Config {
        let mut c = Config::base(Version::V3, 0x2f00_0000, 0x2f10_0000, cpus);
        let mut its = Its::v4_0(0x2f02_0000);
        its.virtual_lpis = false;
        its.vmovp = false;
        its.basers[2] = None;
        c.its = vec![its];
        c
    }

    /// A strict GICv4.0 with one ITS: everything takes time and stays stale for as long as is allowed.
    #[must_use]
    pub fn v4_0(cpus: usize) -> Config {
        let mut c = Config::base(Version::V4_0, 0x2f00_0000, 0x2f10_0000, cpus);
        c.its = vec![Its::v4_0(0x2f02_0000)];
        c
    }

    /// GICv4.0 with several ITSs that all need each VMOVP (GITS_TYPER.VMOVP = 0), as on Hisilicon's servers.
    #[must_use]
    pub fn its_list(cpus: usize, count: usize) -> Config {
        let mut c = Config::v4_0(cpus);
        c.its = (0..count as u64)
            .map(|n| Its { vmovp: false, number: ItsNumber::Writable, ..Its::v4_0(0x2d00_0000 + n * 0x10_0000) })
            .collect();
        c
    }

    /// A strict GICv4.1 with `its` ITSs. All redistributors and ITSs are in one affinity group.
    #[must_use]
    pub fn v4_1(cpus: usize, its: usize) -> Config {
        let mut c = Config::base(Version::V4_1, 0x2f00_0000, 0x2f10_0000, cpus);
        c.vpeid_bits = Some(16);
        c.nassgicap = true;
        c.cpus.iter_mut().for_each(|p| {
            p.rvpeid = true;
            p.vsgi = true;
            p.common_lpi_aff = 1;
        });
        c.its = (0..its as u64).map(|n| Its::v4_1(0x2d00_0000 + n * 0x10_0000)).collect();
        c
    }

    /// Returns the machine where only the first `count` CPUs have a powered redistributor at reset.
    #[must_use]
    pub fn powered(self, count: usize) -> Config {
        self.each_cpu(|n, p| p.powered_at_reset = n < count)
    }

    /// Graviton3 as seen on c7g.metal: GICv4.1, one ITS, two groups of redistributors 16 GiB apart, the second with
    /// Aff3 = 1, SVPET = 1 (so that the second group needs a vPE table of its own), no GICR_TYPER.Last.
    #[must_use]
    pub fn graviton3(cpus: usize) -> Config {
        let mut c = Config::v4_1(cpus, 1);
        c.gicd = 0xb8_0000_0000;
        c.it_lines = 30;
        let half = cpus.div_ceil(2);
        for (n, p) in c.cpus.iter_mut().enumerate() {
            let (run, k) = if n < half { (0, n) } else { (1, n - half) };
            p.gicr = if run == 0 { 0xb8_0014_0000 } else { 0xbc_0014_0000 } + k as u64 * 0x4_0000;
            p.affinity = (run << 24) | ((k as u32) << 8);
            p.last = false;
        }
        c.its = vec![Its {
            itt_entry_size: 4,
            device_bits: 18,
            event_bits: 16,
            collection_bits: 8,
            cil: true,
            mpam: true,
            nid: true,
            pta: false,
            ..Its::v4_1(0xbc_0010_0000)
        }];
        c
    }

    fn base(version: Version, gicd: u64, gicr: u64, cpus: usize) -> Config {
        let frames = if version == Version::V3 { 2 } else { 4 };
        Config {
            version,
            gicd,
            iidr: 0x0300_043b,
            ds: false,
            it_lines: 30,
            intid_bits: 16,
            num_lpis: 0,
            vpeid_bits: None,
            nassgicap: false,
            vpe_table: VpeTable { entry_size: 8, pages: vec![4, 16, 64], indirect: true },
            cpus: (0..cpus)
                .map(|n| Cpu {
                    affinity: ((n as u32 / 4) << 8) | (n as u32 % 4),
                    gicr: gicr + n as u64 * frames * 0x1_0000,
                    processor_number: n as u16,
                    last: n + 1 == cpus,
                    vlpis: version != Version::V3,
                    rvpeid: false,
                    dirty: version != Version::V3,
                    direct_lpi: true,
                    ir: false,
                    ces: true,
                    common_lpi_aff: 0,
                    vsgi: false,
                    mpam: false,
                    shareable: true,
                    interface: version,
                    powered_at_reset: true,
                    lpis_at_reset: None,
                    residency_at_reset: None,
                })
                .collect(),
            its: Vec::new(),
            ram: (0x40_0000_0000, 0x4000_0000),
            timing: Timing::SERVER,
            staleness: Staleness::Worst,
            write_through: false,
            ring_when_pending: false,
            samples_groups_on_leave: true,
            unmapping_keeps_cache: true,
            drops_beyond_idbits: true,
            idai: None,
        }
    }

    /// Returns the machine after applying `change` to each CPU.
    #[must_use]
    pub fn each_cpu(mut self, mut change: impl FnMut(usize, &mut Cpu)) -> Config {
        self.cpus.iter_mut().enumerate().for_each(|(n, p)| change(n, p));
        self
    }

    /// Returns the machine after applying `change` to each ITS.
    #[must_use]
    pub fn each_its(mut self, mut change: impl FnMut(usize, &mut Its)) -> Config {
        self.its.iter_mut().enumerate().for_each(|(n, i)| change(n, i));
        self
    }

    /// Returns the machine with a GIC that does not snoop: shareability attributes read back as 0.
    #[must_use]
    pub fn noncoherent(self) -> Config {
        self.each_cpu(|_, p| p.shareable = false).each_its(|_, i| i.shareable = false)
    }

    /// Returns the machine with all operations taking effect at once.
    #[must_use]
    pub fn instant(mut self) -> Config {
        self.timing = Timing::INSTANT;
        self.staleness = Staleness::Immediate;
        self
    }

    /// Returns the machine with another staleness.
    #[must_use]
    pub fn stale(mut self, staleness: Staleness) -> Config {
        self.staleness = staleness;
        self
    }

    /// Returns the machine with `hole` unused bytes after each redistributor.
    #[must_use]
    pub fn with_holes(self, hole: u64) -> Config {
        self.each_cpu(|n, p| p.gicr += n as u64 * hole)
    }
}

impl Its {
    fn v4_0(base: u64) -> Its {
        let table = |kind, indirect| Some(Baser { kind, entry_size: 8, pages: vec![4, 16, 64], indirect });
        Its {
            base,
            iidr: 0x0201_743b,
            virtual_lpis: true,
            itt_entry_size: 8,
            event_bits: 16,
            device_bits: 16,
            collection_bits: 16,
            cil: false,
            pta: true,
            hcc: 0,
            vmovp: true,
            mpam: false,
            vsgi: false,
            vmapp: false,
            svpet: 0,
            nid: false,
            mpidr: 0,
            number: ItsNumber::None,
            basers: vec![
                table(TableKind::Device, true),
                table(TableKind::Collection, false),
                table(TableKind::Vpe, true),
                None,
                None,
                None,
                None,
                None,
            ],
            shareable: true,
            retry_needed: true,
            enabled_at_reset: false,
            imde_at_reset: false,
            imde_keeps_busy: true,
            cpu_device: None,
        }
    }

    fn v4_1(base: u64) -> Its {
        Its { vsgi: true, vmapp: true, svpet: 1, nid: true, ..Its::v4_0(base) }
    }

    /// GITS_TYPER (IHI 0069, 12.19).
    #[must_use]
    pub fn typer(&self) -> u64 {
        let bit = |b: bool, at: u32| u64::from(b) << at;
        1 | bit(self.virtual_lpis, 1)
            | u64::from(self.itt_entry_size - 1) << 4
            | u64::from(self.event_bits - 1) << 8
            | u64::from(self.device_bits - 1) << 13
            | bit(self.pta, 19)
            | u64::from(self.hcc) << 24
            | if self.cil { u64::from(self.collection_bits - 1) << 32 | 1 << 36 } else { 0 }
            | bit(self.vmovp, 37)
            | bit(self.mpam, 38)
            | bit(self.vsgi, 39)
            | bit(self.vmapp, 40)
            | u64::from(self.svpet) << 41
            | bit(self.nid, 43)
    }
}

impl Cpu {
    /// GICR_TYPER (IHI 0069, 12.11).
    #[must_use]
    pub fn typer(&self) -> u64 {
        let bit = |b: bool, at: u32| u64::from(b) << at;
        1 | bit(self.vlpis, 1)
            | bit(self.vlpis && self.dirty, 2)
            | bit(self.direct_lpi, 3)
            | bit(self.last, 4)
            | bit(self.mpam, 6)
            | bit(self.rvpeid, 7)
            | u64::from(self.processor_number) << 8
            | u64::from(self.common_lpi_aff) << 24
            | bit(self.vsgi, 26)
            | u64::from(self.affinity) << 32
    }

    /// ID_AA64PFR0_EL1.GIC: 1 for GICv3 and GICv4.0, 3 for GICv4.1.
    #[must_use]
    pub fn id_gic(&self) -> u64 {
        if self.interface == Version::V4_1 { 3 } else { 1 }
    }

    /// ICH_VTR_EL2.nV4: the CPU interface does not take virtual interrupts from a redistributor.
    #[must_use]
    pub fn nv4(&self) -> bool {
        self.interface == Version::V3
    }

    /// Size of the redistributor's frames in bytes.
    #[must_use]
    pub fn frames_size(&self) -> u64 {
        if self.vlpis { 0x4_0000 } else { 0x2_0000 }
    }

    /// Affinity group of the redistributor. Redistributors with equal values must share LPI and vPE tables.
    #[must_use]
    pub fn group(&self) -> u32 {
        affinity_prefix(self.affinity, self.common_lpi_aff)
    }
}

/// Returns an affinity with all levels zeroed that CommonLPIAff or SVPET (`levels`) does not name. For 0, none is
/// named.
pub(crate) fn affinity_prefix(affinity: u32, levels: u8) -> u32 {
    match levels {
        0 => 0,
        n => affinity & !(u32::MAX.checked_shr(8 * u32::from(n)).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identification_registers_of_qemu_and_graviton3_equal_the_real_ones() {
        assert_eq!(Config::qemu(1).its[0].typer(), 0x3f_0001_efb3);
        assert_eq!(Config::qemu(1).cpus[0].typer(), 0x0100_0013);
        assert_eq!(Config::qemu(2).cpus[1].typer(), 0x1_0100_0113);
        assert_eq!(Config::graviton3(4).its[0].typer(), 0x0bf7_0002_2f33);
    }

    #[test]
    fn affinity_groups_follow_the_affinity_levels() {
        assert_eq!(affinity_prefix(0x0102_0304, 0), 0);
        assert_eq!(affinity_prefix(0x0102_0304, 1), 0x0100_0000);
        assert_eq!(affinity_prefix(0x0102_0304, 2), 0x0102_0000);
        assert_eq!(affinity_prefix(0x0102_0304, 3), 0x0102_0300);
    }
}
