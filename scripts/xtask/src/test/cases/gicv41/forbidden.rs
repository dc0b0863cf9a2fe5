//! Does what the architecture forbids, and checks that the machine reports it: a case that requires no report means nothing on a
//! machine that reports none. The CPUs are stopped; all accesses come from the qtest socket.

use std::path::PathBuf;

use crate::fail::{Doing, Outcome};
use crate::qemu::{Boot, Disk, Machine};
use crate::qtest::Qtest;
use crate::test::{Lab, Verdict};

pub(super) const GICR: u64 = 0x080a_0000;
pub(super) const GICR_STRIDE: u64 = 0x4_0000;
const ITS: u64 = 0x0b00_0000;
const ITS_STRIDE: u64 = 0x4_0000;

// Offsets in a redistributor's frames.
const INVLPIR: u64 = 0xa0;
const INVALLR: u64 = 0xb0;
const VPROPBASER: u64 = 0x2_0070;
const VPENDBASER: u64 = 0x2_0078;
const VSGIR: u64 = 0x2_0080;

// Offsets in an ITS's frames.
const CTLR: u64 = 0;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const BASER: u64 = 0x100;
const SGIR: u64 = 0x2_0020;

const VALID: u64 = 1 << 63;
const DOORBELL: u64 = 1 << 62;
const GROUP1: u64 = 1 << 58;
/// In GITS_BASER: pages of 64 KiB.
const BASER_64K: u64 = 2 << 8;
/// In GICR_VPROPBASER: pages of 64 KiB.
const VPROP_64K: u64 = 2 << 53;

/// Guest memory, 1 MiB for each ITS: the command queue, then the three tables, then the rest.
const MEMORY: u64 = 0x4100_0000;
const QUEUE: u64 = 0;
const TABLES: u64 = 0x1_0000;
const ITT: u64 = 0x8_0000;
/// Virtual tables of the vPEs, and another vPE table.
const VIRTUAL: u64 = 0x4200_0000;
const OTHER_TABLE: u64 = 0x4300_0000;

const NO_DOORBELL: u64 = 1023;

/// A machine with stopped CPUs.
struct Stopped {
    qtest: Qtest,
    log: PathBuf,
    /// How much of the log has been looked at.
    seen: usize,
    /// The next command of each ITS.
    next: Vec<u64>,
}

impl Stopped {
    fn table(its: usize, n: u64) -> u64 {
        MEMORY + ((its as u64) << 20) + TABLES + n * 0x1_0000
    }

    fn its(its: usize) -> u64 {
        ITS + its as u64 * ITS_STRIDE
    }

    /// Gives each ITS its tables and queue, and the number `index`, and enables it.
    fn set_up(&mut self) -> Outcome {
        for its in 0..self.next.len() {
            let at = Self::its(its);
            for n in 0..3 {
                self.qtest.write64(at + BASER + n * 8, VALID | BASER_64K | Self::table(its, n))?;
            }
            // 16 pages of 4 KiB.
            self.qtest.write64(at + CBASER, VALID | 15 | (MEMORY + ((its as u64) << 20) + QUEUE))?;
            self.qtest.write32(at + CTLR, (its as u32) << 4)?;
            self.qtest.write32(at + CTLR, (its as u32) << 4 | 1)?;
        }
        Ok(())
    }

    fn redist(&mut self, cpu: u64, register: u64, value: u64) -> Outcome {
        self.qtest.write64(GICR + cpu * GICR_STRIDE + register, value)
    }

    fn command(&mut self, its: usize, words: [u64; 4]) -> Outcome {
        let queue = MEMORY + ((its as u64) << 20) + QUEUE;
        for (n, word) in (0..).zip(words) {
            self.qtest.write64(queue + self.next[its] * 32 + n * 8, word)?;
        }
        self.next[its] += 1;
        self.qtest.write64(Self::its(its) + CWRITER, self.next[its] * 32)
    }

    /// VMAPP on ITS 0; `flags` are Alloc (bit 8) and PTZ (bit 9).
    fn vmapp(&mut self, vpe: u64, flags: u64, doorbell: u64, valid: bool) -> Outcome {
        self.vmapp_on(0, vpe, flags, doorbell, valid)
    }

    fn vmapp_on(&mut self, its: usize, vpe: u64, flags: u64, doorbell: u64, valid: bool) -> Outcome {
        let (pending, configuration) = (VIRTUAL + vpe * 0x2_0000, VIRTUAL + vpe * 0x2_0000 + 0x1_0000);
        let valid = if valid { VALID } else { 0 };
        self.command(its, [0x29 | flags | configuration, vpe << 32 | doorbell, valid, pending | 15])
    }

    /// A command with nothing but a vPEID.
    fn vpe_command(&mut self, opcode: u64, vpe: u64) -> Outcome {
        self.command(0, [opcode, vpe << 32, 0, 0])
    }

    /// VMOVP with DB set to CPU 1.
    fn vmovp(&mut self, its: usize, vpe: u64, doorbell: u64, sequence: u64, list: u64) -> Outcome {
        self.command(its, [0x22 | sequence << 32, vpe << 32 | list, VALID | 1 << 16, doorbell])
    }

    /// VMAPTI of DeviceID 0.
    fn vmapti(&mut self, event: u64, vpe: u64, intid: u64, doorbell: u64) -> Outcome {
        self.command(0, [0x2a, vpe << 32 | event, doorbell << 32 | intid, 0])
    }

    /// What the log says since the last call.
    fn news(&mut self) -> Outcome<String> {
        let log = std::fs::read_to_string(&self.log).doing(format_args!("reading {}", self.log.display()))?;
        let news = log.get(self.seen..).unwrap_or_default().to_owned();
        self.seen = log.len();
        Ok(news)
    }

    /// Does `act`, and checks that the machine reports it by a line with `says`, or does not report it if `says` is empty.
    fn act(&mut self, says: &str, act: impl FnOnce(&mut Self) -> Outcome) -> Verdict {
        act(self).map_err(|failure| failure.text)?;
        let news = self.news().map_err(|failure| failure.text)?;
        match says {
            "" if news.is_empty() => Ok(()),
            "" => Err(format!("what is allowed is reported: {news}")),
            says if news.contains(says) => Ok(()),
            says => Err(format!("no report with `{says}`, but: {news}")),
        }
    }
}

/// Starts a machine with `flags` and `its` ITSs, and plays.
fn on_machine(lab: &Lab, its: usize, flags: &[&str], play: impl FnOnce(&mut Stopped) -> Verdict) -> Verdict {
    let log = lab.dir.join("guest.log");
    let _ = std::fs::remove_file(&log);
    let socket = std::env::temp_dir().join(format!("doorward-qtest-{}", std::process::id()));
    let mut machine = Machine { boot: Boot::Loader, disk: Disk::None, smp: 2, ..Machine::default() };
    machine.mem = "512M".into();
    machine.log = Some(log.clone());
    machine.properties += &format!(",x-its-count={its}");
    machine.extra.push("-S".into());
    machine.extra.extend(flags.iter().map(|&flag| flag.to_owned()));
    machine.extra.extend(Qtest::flags(&socket));
    let session = lab.start(&lab.gicv41(machine)?, 60)?;
    let verdict = Qtest::connect(&socket).map_err(|failure| failure.text).and_then(|qtest| {
        let mut stopped = Stopped { qtest, log, seen: 0, next: vec![0; its] };
        stopped.act("", Stopped::set_up)?;
        play(&mut stopped)
    });
    drop(session);
    let _ = std::fs::remove_file(&socket);
    verdict
}

pub fn run(lab: &Lab) -> Verdict {
    on_machine(lab, 1, &[], tables_and_commands)?;
    on_machine(lab, 1, &[], residency)?;
    on_machine(lab, 1, &["-global", "arm-gicv3.x-dirty-ns=1000", "-global", "arm-gicv3.x-busy-ns=1000"], haste)?;
    on_machine(lab, 1, &["-global", "arm-gicv3.x-vlpi-needs-power=on"], |m| {
        let table = VALID | VPROP_64K | Stopped::table(0, 2);
        m.act("is lost", |m| m.redist(1, VPROPBASER, table))?;
        m.act("", |m| m.redist(1, VPROPBASER, 0))
    })?;
    on_machine(lab, 2, &["-global", "arm-gicv3-its.x-vmovp=off"], lists)
}

/// Gives both redistributors the vPE table of the ITS.
fn share_table(m: &mut Stopped) -> Outcome {
    (0..2).try_for_each(|cpu| m.redist(cpu, VPROPBASER, VALID | VPROP_64K | Stopped::table(0, 2)))
}

fn tables_and_commands(m: &mut Stopped) -> Verdict {
    m.act("GICR_VPROPBASER.Valid is 0", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("no entry in the vPE table of redistributor", |m| m.vmapp(1, 1 << 8, NO_DOORBELL, true))?;
    m.act("", |m| m.vmapp(1, 1 << 8, NO_DOORBELL, false))?;
    m.act("", share_table)?;
    m.act("changed while its Valid is 1", |m| m.redist(0, VPROPBASER, VALID | VPROP_64K | OTHER_TABLE))?;
    m.act("", |m| m.redist(0, VPROPBASER, 0))?;
    m.act("have different vPE tables", |m| m.redist(0, VPROPBASER, VALID | VPROP_64K | OTHER_TABLE))?;
    m.act("", |m| m.redist(0, VPROPBASER, 0))?;
    m.act("", share_table)?;

    m.act("with V=0 of vPE 0x1, which is not mapped", |m| m.vmapp(1, 1 << 8, NO_DOORBELL, false))?;
    m.act("with Alloc=0", |m| m.vmapp(1, 0, 8192, true))?;
    m.act("which is mapped already", |m| m.vmapp(1, 1 << 8, 8192, true))?;
    m.act("with Alloc=0, and it remains mapped", |m| m.vmapp(1, 0, 8192, false))?;
    m.act("", |m| m.vmapp(1, 1 << 8, 8192, true))?;
    m.act("out of range", |m| m.vmapp(0x2000, 1 << 8, NO_DOORBELL, true))?;
    m.act("not 1023 and not a valid LPI", |m| m.vmapp(2, 1 << 8, 50, true))?;
    m.act("PTZ=1", |m| {
        m.qtest.write64(VIRTUAL + 3 * 0x2_0000 + 1024, 1)?;
        m.vmapp(3, 3 << 8, NO_DOORBELL, true)
    })?;

    m.act("invalid VTE", |m| m.vmovp(0, 9, NO_DOORBELL, 0, 0))?;
    m.act("with default doorbell 8193", |m| m.vmovp(0, 1, 8193, 0, 0))?;
    for opcode in [0x23, 0x25, 0x2d, 0x2e] {
        m.act("invalid VTE", |m| m.vpe_command(opcode, 9))?;
        m.act("", |m| m.vpe_command(opcode, 1))?;
    }

    m.act("", |m| m.command(0, [0x08, 4, VALID | MEMORY | ITT, 0]))?;
    m.act("vPE 0x9 is not mapped", |m| m.vmapti(0, 9, 8192, NO_DOORBELL))?;
    m.act("GITS_TYPER.nID is 1", |m| m.vmapti(0, 1, 8192, 8194))?;
    m.act("is mapped already", |m| m.vmapti(0, 1, 8193, NO_DOORBELL))?;
    m.act("", |m| m.vmapti(1, 1, 8194, NO_DOORBELL))?;

    m.act("invalid VTE", |m| m.qtest.write64(ITS + SGIR, 9 << 32 | 3))?;
    m.act("", |m| m.qtest.write64(ITS + SGIR, 1 << 32 | 3))?;
    m.act("while the ITS is disabled", |m| {
        m.qtest.write32(ITS + CTLR, 0)?;
        m.qtest.write64(ITS + SGIR, 1 << 32 | 3)
    })?;
    m.act("GICR_INVLPIR: vPE 0x9 is not mapped", |m| m.redist(0, INVLPIR, VALID | 9 << 32 | 8192))?;
    m.act("GICR_INVALLR: vPE 0x9 is not mapped", |m| m.redist(0, INVALLR, VALID | 9 << 32))?;
    m.act("vPE 0x9 is not mapped", |m| m.qtest.write32(GICR + VSGIR, 9))
}

fn residency(m: &mut Stopped) -> Verdict {
    m.act("", share_table)?;
    m.act("", |m| m.vmapp(1, 1 << 8, 8192, true))?;
    m.act("made resident and not mapped", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 2))?;
    m.act("has no entry in the vPE table", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 0x2000))?;
    m.act("", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("changed while Valid is 1", |m| m.redist(0, VPENDBASER, VALID | 1))?;
    m.act("written while a vPE is resident", |m| m.redist(0, VPROPBASER, 0))?;
    m.act("while it is on", |m| m.redist(1, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("which is resident on redistributor", |m| m.vmovp(0, 1, 8192, 0, 0))?;
    m.act("by the write that clears Valid", |m| m.redist(0, VPENDBASER, DOORBELL))?;
    m.act("", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("", |m| m.redist(0, VPENDBASER, DOORBELL | GROUP1 | 1))?;
    m.act("", |m| m.redist(1, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("with V=0 of vPE 0x1, which is resident", |m| m.vmapp(1, 1 << 8, 8192, false))
}

/// The virtual clock stands still, so Dirty and Busy stay 1.
fn haste(m: &mut Stopped) -> Verdict {
    m.act("", share_table)?;
    m.act("", |m| m.vmapp(1, 1 << 8, 8192, true))?;
    m.act("", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("written while Dirty is 1", |m| m.redist(0, VPENDBASER, DOORBELL | GROUP1 | 1))?;
    m.act("which is resident on redistributor", |m| m.vmovp(0, 1, 8192, 0, 0))?;
    m.act("written while Dirty is 1", |m| m.redist(0, VPENDBASER, VALID | GROUP1 | 1))?;
    m.act("", |m| m.redist(1, INVALLR, VALID | 1 << 32))?;
    m.act("while GICR_SYNCR.Busy is 1", |m| m.redist(1, INVALLR, VALID | 1 << 32))?;
    m.act("", |m| m.qtest.write32(GICR + VSGIR, 1))?;
    m.act("while GICR_VSGIPENDR.Busy is 1", |m| m.qtest.write32(GICR + VSGIR, 1))
}

/// Two ITSs that need each VMOVP.
fn lists(m: &mut Stopped) -> Verdict {
    // The second ITS shares the vPE table of the first, and has its share of the CPUs.
    m.act("", |m| {
        m.qtest.write32(Stopped::its(1) + CTLR, 1 << 4)?;
        m.qtest.write64(Stopped::its(1) + BASER + 16, VALID | BASER_64K | Stopped::table(0, 2))?;
        m.qtest.write32(Stopped::its(1) + CTLR, 1 << 4 | 1)
    })?;
    m.act("", share_table)?;
    for vpe in [1, 2] {
        m.act("", |m| m.vmapp(vpe, 1 << 8, 8191 + vpe, true))?;
        m.act("with Alloc=1, but it is mapped", |m| m.vmapp_on(1, vpe, 1 << 8, 8191 + vpe, true))?;
    }
    m.act("with ITSList 0x2 on ITS number 0", |m| m.vmovp(0, 1, 8192, 1, 0b10))?;
    m.act("but it is mapped on ITS number 1", |m| m.vmovp(0, 1, 8192, 2, 0b01))?;
    m.act("", |m| m.vmovp(0, 1, 8192, 3, 0b11))?;
    m.act("but another ITS has vPE 0x1", |m| m.vmovp(1, 2, 8193, 3, 0b11))?;
    m.act("they wait for ever", |m| m.vmovp(1, 2, 8193, 4, 0b11))
}
