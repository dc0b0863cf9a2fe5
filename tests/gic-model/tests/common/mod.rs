//! A small driver for tests of the model. Its register values and commands are written in hexadecimal from the manual.

#![allow(dead_code, reason = "each test file uses its own part")]

use gic_model::{Config, ItsNumber, Machine};

pub const LPI: u32 = 8192;
pub const VALID: u64 = 1 << 63;
/// Inner shareable, inner RaWaWb.
pub const SHARED: u64 = 1 << 10;
/// 16-bit INTIDs.
pub const ID_BITS: u64 = 16;

pub struct Bench {
    pub m: Machine,
    pub c: Config,
    pub propbase: u64,
}

pub fn rd_base(c: &Config, cpu: usize) -> u64 {
    c.cpus[cpu].gicr
}

/// Value of GICR_VPROPBASER on GICv4.1 for a flat table of one 64 KiB page.
pub fn vpropbaser41(table: u64) -> u64 {
    VALID | 2 << 53 | table | SHARED | 7 << 7
}

impl Bench {
    /// Returns a machine in its reset state.
    pub fn raw(config: Config) -> Bench {
        let m = Machine::new(config);
        let c = m.config();
        Bench { m, c, propbase: 0 }
    }

    /// Returns a machine with the Distributor, the LPIs of all CPUs and all ITSs enabled, and collection n on CPU n.
    pub fn up(config: Config) -> Bench {
        let mut b = Bench::raw(config);
        b.m.write32(b.c.gicd, 0x12);
        b.propbase = b.memory(0x1_0000, 0x1_0000);
        for cpu in 0..b.c.cpus.len() {
            b.lpis_on(cpu);
        }
        for its in 0..b.c.its.len() {
            b.its_on(its);
        }
        b
    }

    /// As `up`, on GICv4.1: with one flat vPE table for each affinity group of redistributors. GITS_BASER2 of each ITS
    /// has the table of the group of CPU 0.
    pub fn up41(config: Config) -> Bench {
        let mut b = Bench::raw(config);
        b.m.write32(b.c.gicd, 0x12);
        b.propbase = b.memory(0x1_0000, 0x1_0000);
        let mut tables: Vec<(u32, u64)> = Vec::new();
        for cpu in 0..b.c.cpus.len() {
            b.lpis_on(cpu);
            let group = b.c.cpus[cpu].group();
            let known = tables.iter().find(|t| t.0 == group).map(|t| t.1);
            let table = known.unwrap_or_else(|| b.memory(0x1_0000, 0x1_0000));
            if known.is_none() {
                tables.push((group, table));
            }
            b.m.write64(b.vlpi(cpu) + 0x70, vpropbaser41(table) | if known.is_none() { 1 << 52 } else { 0 });
        }
        for its in 0..b.c.its.len() {
            b.m.write64(b.c.its[its].base + 0x110, VALID | tables[0].1 | SHARED | 7 << 59 | 2 << 8);
            b.its_on(its);
        }
        b
    }

    /// Allocates memory and publishes its zeros.
    pub fn memory(&self, size: usize, align: usize) -> u64 {
        let at = self.m.alloc(size, align).expect("memory");
        self.m.publish(at, size, true);
        at
    }

    pub fn lpis_on(&self, cpu: usize) {
        let rd = rd_base(&self.c, cpu);
        self.m.write32(rd + 0x14, 0);
        self.m.write64(rd + 0x70, self.propbase | SHARED | 7 << 7 | (ID_BITS - 1));
        let pend = self.memory(0x1_0000, 0x1_0000);
        self.m.write64(rd + 0x78, pend | SHARED | 7 << 7);
        self.m.write32(rd, 1);
    }

    /// Enables an ITS with one 64 KiB page for each table, which has 8192 entries, and a 64 KiB queue.
    pub fn its_on(&self, its: usize) {
        let base = self.c.its[its].base;
        if self.c.its[its].number == ItsNumber::Writable {
            self.m.write32(base, (its as u32) << 4);
        }
        for n in 0..8u64 {
            let reg = base + 0x100 + 8 * n;
            let kind = self.m.read64(reg) >> 56 & 7;
            if kind == 0 || (kind == 2 && self.c.its[its].vmapp) {
                continue;
            }
            let table = self.memory(0x1_0000, 0x1_0000);
            self.m.write64(reg, VALID | table | SHARED | 7 << 59 | 2 << 8);
        }
        self.its_go(its);
    }

    pub fn its_go(&self, its: usize) {
        let base = self.c.its[its].base;
        let queue = self.memory(0x1_0000, 0x1_0000);
        self.m.write64(base + 0x80, VALID | queue | SHARED | 7 << 59 | 0xf);
        self.m.write64(base + 0x88, 0);
        let number = self.m.read32(base) & 0xf0;
        self.m.write32(base, number | 1);
        for cpu in 0..self.c.cpus.len() {
            self.run(its, &[mapc(cpu as u16, self.rdbase(its, cpu)), sync(self.rdbase(its, cpu))]);
        }
    }

    pub fn rdbase(&self, its: usize, cpu: usize) -> u64 {
        if self.c.its[its].pta { rd_base(&self.c, cpu) } else { u64::from(self.c.cpus[cpu].processor_number) << 16 }
    }

    /// Posts commands without waiting for them.
    pub fn post(&self, its: usize, commands: &[[u64; 4]]) {
        let base = self.c.its[its].base;
        let queue = self.m.read64(base + 0x80) & 0x000f_ffff_ffff_f000;
        let mut at = self.m.read64(base + 0x88);
        for words in commands {
            for (n, word) in words.iter().enumerate() {
                self.m.store64(queue + at + 8 * n as u64, *word);
            }
            self.m.publish(queue + at, 32, true);
            at = (at + 32) % 0x1_0000;
        }
        self.m.write64(base + 0x88, at);
    }

    /// Whether all posted commands are consumed within a millisecond.
    pub fn drained(&self, its: usize) -> bool {
        let base = self.c.its[its].base;
        let start = self.m.now_us();
        while self.m.now_us() - start < 1000 {
            if self.m.read64(base + 0x90) == self.m.read64(base + 0x88) {
                return true;
            }
            self.m.relax();
        }
        false
    }

    /// Posts commands and waits for them.
    pub fn run(&self, its: usize, commands: &[[u64; 4]]) {
        self.post(its, commands);
        assert!(self.drained(its), "ITS{its} hangs: {:?}", self.m.violations());
    }

    pub fn set_config(&self, lpi: u32, byte: u8) {
        let at = self.propbase + u64::from(lpi - LPI);
        self.m.store8(at, byte);
        self.m.publish(at, 1, true);
    }

    /// Maps a device with 32 events on an ITS and returns the address of its ITT.
    pub fn device(&self, its: usize, device: u32) -> u64 {
        let itt = self.memory(4096, 4096);
        self.run(its, &[mapd(device, 4, itt)]);
        itt
    }

    /// Fails unless exactly one violation was recorded, in this section.
    #[track_caller]
    pub fn expect(&self, section: &str) {
        let found = self.m.take_violations();
        assert!(
            found.len() == 1 && found[0].section == section,
            "expected one violation of {section}, found {found:#?}"
        );
    }

    /// Fails unless at least one violation was recorded, the first in this section.
    #[track_caller]
    pub fn expect_first(&self, section: &str) {
        let found = self.m.take_violations();
        assert!(
            found.first().is_some_and(|v| v.section == section),
            "expected a violation of {section} first, found {found:#?}"
        );
    }
}

fn dev(device: u32, opcode: u64) -> u64 {
    u64::from(device) << 32 | opcode
}

pub fn mapd(device: u32, size: u64, itt: u64) -> [u64; 4] {
    [dev(device, 0x08), size, VALID | itt, 0]
}
pub fn unmapd(device: u32) -> [u64; 4] {
    [dev(device, 0x08), 0, 0, 0]
}
pub fn mapc(icid: u16, rdbase: u64) -> [u64; 4] {
    [0x09, 0, VALID | rdbase | u64::from(icid), 0]
}
pub fn unmapc(icid: u16) -> [u64; 4] {
    [0x09, 0, u64::from(icid), 0]
}
pub fn mapti(device: u32, event: u32, lpi: u32, icid: u16) -> [u64; 4] {
    [dev(device, 0x0a), u64::from(lpi) << 32 | u64::from(event), icid.into(), 0]
}
pub fn mapi(device: u32, event: u32, icid: u16) -> [u64; 4] {
    [dev(device, 0x0b), event.into(), icid.into(), 0]
}
pub fn movi(device: u32, event: u32, icid: u16) -> [u64; 4] {
    [dev(device, 0x01), event.into(), icid.into(), 0]
}
pub fn int(device: u32, event: u32) -> [u64; 4] {
    [dev(device, 0x03), event.into(), 0, 0]
}
pub fn clear(device: u32, event: u32) -> [u64; 4] {
    [dev(device, 0x04), event.into(), 0, 0]
}
pub fn inv(device: u32, event: u32) -> [u64; 4] {
    [dev(device, 0x0c), event.into(), 0, 0]
}
pub fn invall(icid: u16) -> [u64; 4] {
    [0x0d, 0, icid.into(), 0]
}
pub fn discard(device: u32, event: u32) -> [u64; 4] {
    [dev(device, 0x0f), event.into(), 0, 0]
}
pub fn movall(from: u64, to: u64) -> [u64; 4] {
    [0x0e, 0, from, to]
}
pub fn sync(rdbase: u64) -> [u64; 4] {
    [0x05, 0, rdbase, 0]
}

// ---- virtual commands

fn vpe_word(vpe: u16, low: u32) -> u64 {
    u64::from(vpe) << 32 | u64::from(low)
}

/// VMAPP of GICv4.0 with 14-bit vINTIDs.
pub fn vmapp(vpe: u16, rdbase: u64, vpt: u64) -> [u64; 4] {
    [0x29, vpe_word(vpe, 0), VALID | rdbase, vpt | 13]
}
pub fn vunmapp(vpe: u16) -> [u64; 4] {
    [0x29, vpe_word(vpe, 0), 0, 0]
}
/// VMAPP of GICv4.1 with 14-bit vINTIDs. `flags`: Alloc is 0x100, PTZ is 0x200.
pub fn vmapp41(vpe: u16, rdbase: u64, vpt: u64, vconf: u64, doorbell: u32, flags: u64) -> [u64; 4] {
    [0x29 | flags | vconf, vpe_word(vpe, doorbell), VALID | rdbase, vpt | 13]
}
pub fn vunmapp41(vpe: u16, flags: u64) -> [u64; 4] {
    [0x29 | flags, vpe_word(vpe, 0), 0, 0]
}
pub fn vmapti(device: u32, event: u32, vpe: u16, vintid: u32, doorbell: u32) -> [u64; 4] {
    [dev(device, 0x2a), vpe_word(vpe, event), u64::from(doorbell) << 32 | u64::from(vintid), 0]
}
pub fn vmapi(device: u32, event: u32, vpe: u16, doorbell: u32) -> [u64; 4] {
    [dev(device, 0x2b), vpe_word(vpe, event), u64::from(doorbell) << 32, 0]
}
pub fn vmovi(device: u32, event: u32, vpe: u16, doorbell: Option<u32>) -> [u64; 4] {
    let low = doorbell.map_or(0, |d| u64::from(d) << 32 | 1);
    [dev(device, 0x21), vpe_word(vpe, event), low, 0]
}
pub fn vmovp(sequence: u16, list: u16, vpe: u16, rdbase: u64) -> [u64; 4] {
    [u64::from(sequence) << 32 | 0x22, vpe_word(vpe, list.into()), rdbase, 0]
}
/// VMOVP of GICv4.1 with DB = 1.
pub fn vmovp41(vpe: u16, rdbase: u64, doorbell: u32) -> [u64; 4] {
    [0x22, vpe_word(vpe, 0), VALID | rdbase, doorbell.into()]
}
pub fn vsync(vpe: u16) -> [u64; 4] {
    [0x25, vpe_word(vpe, 0), 0, 0]
}
pub fn vinvall(vpe: u16) -> [u64; 4] {
    [0x2d, vpe_word(vpe, 0), 0, 0]
}
pub fn invdb(vpe: u16) -> [u64; 4] {
    [0x2e, vpe_word(vpe, 0), 0, 0]
}
/// VSGI that enables an SGI in group 1 with priority 0x80.
pub fn vsgi(vpe: u16, sgi: u64) -> [u64; 4] {
    [0x0080_0523 | sgi << 32, vpe_word(vpe, 0), 0, 0]
}
pub fn vsgi_clear(vpe: u16, sgi: u64) -> [u64; 4] {
    [0x0223 | sgi << 32, vpe_word(vpe, 0), 0, 0]
}

pub const DIRTY: u64 = 1 << 60;
pub const PENDING_LAST: u64 = 1 << 61;
pub const IDAI: u64 = 1 << 62;
pub const DOORBELL: u64 = 1 << 62;
pub const GROUP1: u64 = 1 << 58;

impl Bench {
    /// Allocates a virtual configuration table for 14-bit INTIDs, all disabled.
    pub fn vconf(&self) -> u64 {
        self.memory(0x2000, 0x1_0000)
    }

    /// Allocates a virtual pending table for 14-bit INTIDs.
    pub fn vpt(&self) -> u64 {
        self.memory(0x1_0000, 0x1_0000)
    }

    pub fn set_vconfig(&self, vconf: u64, vintid: u32, byte: u8) {
        let at = vconf + u64::from(vintid - LPI);
        self.m.store8(at, byte);
        self.m.publish(at, 1, true);
    }

    pub fn vlpi(&self, cpu: usize) -> u64 {
        rd_base(&self.c, cpu) + 0x2_0000
    }

    pub fn vpendbaser(&self, cpu: usize) -> u64 {
        self.m.read64(self.vlpi(cpu) + 0x78)
    }

    pub fn wait_dirty(&self, cpu: usize) {
        let start = self.m.now_us();
        while self.vpendbaser(cpu) & DIRTY != 0 {
            assert!(self.m.now_us() - start < 1000, "Dirty stays 1: {:?}", self.m.violations());
            self.m.relax();
        }
    }

    /// GICv4.0: makes a vPE resident and waits until its VPT is scanned.
    pub fn enter(&self, cpu: usize, vpt: u64, vconf: u64) {
        self.enter_with(cpu, vpt, vconf, PENDING_LAST | IDAI);
    }

    pub fn enter_with(&self, cpu: usize, vpt: u64, vconf: u64, flags: u64) {
        self.m.write64(self.vlpi(cpu) + 0x70, vconf | SHARED | 7 << 7 | 13);
        self.m.write64(self.vlpi(cpu) + 0x78, VALID | flags | vpt | SHARED | 7 << 7);
        self.wait_dirty(cpu);
        // The scan takes time even where Dirty does not show it.
        self.m.advance_us(3);
    }

    /// Ends a residency and returns GICR_VPENDBASER.
    pub fn leave(&self, cpu: usize) -> u64 {
        self.leave_with(cpu, 0)
    }

    pub fn leave_with(&self, cpu: usize, flags: u64) -> u64 {
        self.wait_dirty(cpu);
        // On GICv4.1 PendingLast and Doorbell are UNKNOWN while Valid is 1.
        let unknown = if self.c.cpus[cpu].rvpeid { PENDING_LAST | DOORBELL } else { PENDING_LAST };
        let value = self.vpendbaser(cpu) & !(VALID | unknown);
        self.m.write64(self.vlpi(cpu) + 0x78, value | flags);
        self.wait_dirty(cpu);
        self.vpendbaser(cpu)
    }

    /// GICv4.1: makes a vPE resident and waits until its VPT is scanned.
    pub fn enter41(&self, cpu: usize, vpe: u16) {
        self.m.write64(self.vlpi(cpu) + 0x78, VALID | GROUP1 | u64::from(vpe));
        self.wait_dirty(cpu);
    }
}
