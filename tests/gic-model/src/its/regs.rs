//! The frames of an ITS (IHI 0069, 12.18 and 12.19).

use super::{Its, Latched};
use crate::config::{self, ItsNumber, TableKind};
use crate::machine::State;
use crate::memory::{Snoop, Use};
use crate::redist::snoop;

const CTLR: &str = "12.19 GITS_CTLR";
const CBASER: &str = "12.19 GITS_CBASER";
const CWRITER: &str = "12.19 GITS_CWRITER";
const BASER: &str = "12.19 GITS_BASER<n>";
const TRANSLATER: &str = "12.19 GITS_TRANSLATER";
const SGIR: &str = "12.19 GITS_SGIR";

const VALID: u64 = 1 << 63;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Returns the value of a Page_Size field after `asked` was written to it. `pages` are the supported sizes in KiB.
pub(crate) fn page_code(pages: &[u32], asked: u64) -> u64 {
    let code = |kib: u32| u64::from(kib.trailing_zeros() / 2 - 1);
    match asked {
        asked if pages.iter().any(|p| code(*p) == asked) => asked,
        _ => pages.last().map_or(0, |p| code(*p)),
    }
}

impl Its {
    /// Returns the value of a `GITS_BASER<n>` after `written` was written to it. Type and Entry_Size are read-only, and
    /// page size and shareability change only to values that the ITS supports.
    pub(crate) fn baser_readback(cfg: &config::Its, n: usize, written: u64) -> u64 {
        let Some(Some(b)) = cfg.basers.get(n) else { return 0 };
        let kind: u64 = match b.kind {
            TableKind::Device => 1,
            TableKind::Vpe => 2,
            TableKind::Collection => 4,
        };
        let page = page_code(&b.pages, (written >> 8) & 3);
        let keep = VALID
            | (u64::from(b.indirect) << 62)
            | 7 << 59
            | 7 << 53
            | ADDRESS
            | if cfg.shareable { 3 << 10 } else { 0 }
            | 0xff;
        (written & keep) | kind << 56 | u64::from(b.entry_size - 1) << 48 | page << 8
    }

    /// Size of the command queue in bytes.
    pub(crate) fn queue_size(&self) -> u64 {
        ((self.cbaser & 0xff) + 1) * 4096
    }

    pub(crate) fn queue_base(&self) -> u64 {
        self.cbaser & 0x000f_ffff_ffff_f000
    }

    pub(crate) fn queue_snoop(&self) -> Snoop {
        snoop(self.cbaser >> 10)
    }
}

impl State {
    pub(crate) fn its_read(&mut self, its: usize, offset: u64, wide: bool) -> u64 {
        match offset >> 16 {
            0 => {}
            1 => {
                self.flag(
                    TRANSLATER,
                    format!("read of the translation frame of ITS{its}, whose registers are write-only"),
                );
                return 0;
            }
            _ => return 0,
        }
        let cfg = &self.cfg.its[its];
        let i = &self.its[its];
        let value = match offset & !4 {
            0x8 => cfg.typer(),
            0x80 => i.cbaser,
            0x88 => i.cwriter,
            0x90 if i.looks_full => (i.cwriter + 32) % i.queue_size(),
            0x90 => i.creadr | u64::from(i.stalled),
            0x100..0x140 => i.basers[(offset as usize & !4) / 8 - 0x20],
            _ => {
                if !self.narrow_only("12.18 GITS", offset, wide) {
                    return 0;
                }
                let i = &self.its[its];
                return match offset {
                    0x0 => {
                        let quiescent = !self.busy(its);
                        // Before GICv4.1 the value is UNKNOWN while the ITS is enabled.
                        let unknown = i.enabled && self.cfg.timing.quiesce == 0 && !self.cfg.its[its].vmapp;
                        u64::from(i.enabled)
                            | u64::from(i.imde) << 1
                            | u64::from(i.number) << 4
                            | u64::from(quiescent || unknown) << 31
                    }
                    0x4 => self.cfg.its[its].iidr.into(),
                    0x18 => self.cfg.its[its].mpidr.into(),
                    0xffe8 => self.arch_rev().into(),
                    _ => 0,
                };
            }
        };
        State::half(value, offset)
    }

    pub(crate) fn its_write(&mut self, its: usize, offset: u64, value: u64, wide: bool) {
        match offset {
            0x1_0040 => return self.cpu_msi(its, value as u32),
            0x1_0000..0x2_0000 => {
                return self.flag(TRANSLATER, format!("write to the reserved offset {offset:#x} of ITS{its}"));
            }
            0x2_0020 => {
                if !wide {
                    return self.flag(SGIR, format!("GITS_SGIR of ITS{its} written with a 32-bit access"));
                }
                return self.send_vsgi(its, value);
            }
            0x2_0000.. => return self.flag(SGIR, format!("write to the reserved offset {offset:#x} of ITS{its}")),
            _ => {}
        }
        let i = &self.its[its];
        match offset & !4 {
            0x80 => {
                let merged = State::merge(i.cbaser, offset, value, wide);
                self.write_cbaser(its, merged);
            }
            0x88 if offset & 4 == 0 => self.write_cwriter(its, value),
            0x100..0x140 => {
                let n = (offset as usize & !4) / 8 - 0x20;
                let merged = State::merge(i.basers[n], offset, value, wide);
                self.write_baser(its, n, merged);
            }
            0x0 if offset == 0 && self.narrow_only(CTLR, offset, wide) => self.write_its_ctlr(its, value as u32),
            // CREADR and the identification registers are read-only.
            _ => {}
        }
    }

    /// Handles a CPU's store to GITS_TRANSLATER.
    fn cpu_msi(&mut self, its: usize, event: u32) {
        match self.cfg.its[its].cpu_device {
            Some(device) => self.translate(its, device, event),
            None => self.flag(
                TRANSLATER,
                format!("a CPU wrote event {event} to GITS_TRANSLATER of ITS{its}: CPUs have no DeviceID"),
            ),
        }
    }

    /// Whether the ITS is enabled or not yet quiescent.
    fn busy(&self, its: usize) -> bool {
        let i = &self.its[its];
        let detained = i.imde && self.cfg.its[its].imde_keeps_busy;
        i.enabled || detained || i.never_quiescent || self.now < i.quiescent_at
    }

    fn write_cbaser(&mut self, its: usize, value: u64) {
        if self.busy(its) {
            return self
                .flag(CBASER, format!("GITS_CBASER of ITS{its} written while the ITS is enabled or not quiescent"));
        }
        if value & 0xf000 != 0 {
            self.flag(CBASER, format!("GITS_CBASER of ITS{its} has a queue that is not 64 KiB aligned ({value:#x})"));
        }
        let sharing = if self.cfg.its[its].shareable { 3 << 10 } else { 0 };
        let keep = VALID | 7 << 59 | 7 << 53 | 0x000f_ffff_ffff_f000 | sharing | 0xff;
        let i = &mut self.its[its];
        i.cbaser = value & keep;
        i.creadr = 0;
        i.stalled = false;
        i.due = None;
    }

    fn write_baser(&mut self, its: usize, n: usize, value: u64) {
        if self.busy(its) {
            return self
                .flag(BASER, format!("GITS_BASER{n} of ITS{its} written while the ITS is enabled or not quiescent"));
        }
        self.its[its].basers[n] = Its::baser_readback(&self.cfg.its[its], n, value);
    }

    fn write_its_ctlr(&mut self, its: usize, value: u32) {
        let busy = self.busy(its);
        let detained = self.its[its].imde && self.cfg.its[its].imde_keeps_busy;
        self.its[its].imde = self.cfg.its[its].virtual_lpis && value & 2 != 0;
        if detained && !self.its[its].imde {
            // What the bit held back takes its time from here on.
            self.its[its].quiescent_at = self.now + self.cfg.timing.quiesce;
        }
        let number = (value >> 4) as u8 & 0xf;
        if number != self.its[its].number && self.cfg.its[its].number == ItsNumber::Writable {
            if self.its[its].enabled {
                self.flag(CTLR, format!("GITS_CTLR.ITS_Number of ITS{its} changed while the ITS is enabled"));
            } else {
                self.its[its].number = number;
            }
        }
        let enable = value & 1 != 0;
        if enable && !self.its[its].enabled {
            if busy {
                self.flag(CTLR, format!("GITS_CTLR.Enabled of ITS{its} set before the ITS was quiescent"));
            }
            self.enable_its(its);
        } else if !enable && self.its[its].enabled {
            self.disable_its(its);
        }
    }

    fn enable_its(&mut self, its: usize) {
        let i = &self.its[its];
        let (base, size) = (i.queue_base(), i.queue_size());
        if i.cbaser & VALID == 0 {
            self.flag(CTLR, format!("GITS_CTLR.Enabled of ITS{its} set while GITS_CBASER.Valid is 0"));
        } else if !self.mem.is_allocated(base, size) {
            self.flag(CBASER, format!("the command queue of ITS{its} at {base:#x} is not allocated memory throughout"));
        } else {
            self.mem.attach_once(base, size, Use::Queue(its));
        }
        let number = self.its[its].number;
        let twin = |o: &usize| *o != its && !self.cfg.its[*o].vmovp && self.its[*o].enabled;
        if !self.cfg.its[its].vmovp
            && let Some(other) = (0..self.its.len()).filter(twin).find(|o| self.its[*o].number == number)
        {
            self.flag(CTLR, format!("ITS{its} enabled with ITS_Number {number}, which the enabled ITS{other} has too"));
        }
        for n in 0..8 {
            let value = self.its[its].basers[n];
            let old = self.its[its].latched[n].take();
            let same = old.is_some_and(|old| (old.value ^ value) & (VALID | ADDRESS) == 0);
            if old.is_some() && !same {
                self.forget_table(its, n);
            }
            if value & VALID != 0 {
                self.its[its].latched[n] = Some(Latched { value });
                self.check_table(its, n, same);
            }
        }
        self.check_shared_vpe_table(its);
        self.check_homes(its);
        self.its[its].enabled = true;
        self.start(its);
    }

    /// Records a violation if a vPE was moved while the ITS was disabled, so that the ITS still has its old home.
    fn check_homes(&mut self, its: usize) {
        for (vpe, vte) in self.its[its].vpes.clone() {
            if let Some(holder) =
                self.holder(vte.vpt).filter(|holder| *holder != vte.rd && !self.cfg.cpus[*holder].rvpeid)
            {
                self.flag(
                    CTLR,
                    format!(
                        "ITS{its} enabled with vPE {vpe} mapped to CPU{}, while it is resident on CPU{holder}",
                        vte.rd
                    ),
                );
            }
        }
    }

    fn disable_its(&mut self, its: usize) {
        let i = &mut self.its[its];
        i.enabled = false;
        i.due = None;
        i.quiescent_at = self.now + self.cfg.timing.quiesce;
        // The tables and the queue belong to software again. ITTs stay in use, since the device table refers to them.
        self.mem.detach_all(|u| match u {
            Use::Queue(n) | Use::Table(n, _) | Use::Level1(n, _) | Use::Level2(n, _) => n == its,
            _ => false,
        });
    }

    fn write_cwriter(&mut self, its: usize, value: u64) {
        let offset = value & 0xf_ffe0;
        let i = &self.its[its];
        let size = i.queue_size();
        if offset >= size {
            return self.flag(
                CWRITER,
                format!("GITS_CWRITER of ITS{its} set to {offset:#x}, beyond the queue of {size:#x} bytes"),
            );
        }
        let pushed = (offset + size - i.cwriter) % size;
        let room = (i.creadr + size - i.cwriter - 32) % size;
        if i.enabled && pushed > room {
            self.flag(
                CWRITER,
                format!(
                    "GITS_CWRITER of ITS{its} posts {} commands where {} fit: queue overflow",
                    pushed / 32,
                    room / 32
                ),
            );
        }
        let retry = value & 1 != 0 || !self.cfg.its[its].retry_needed;
        let i = &mut self.its[its];
        i.cwriter = offset;
        if i.stalled && retry {
            i.stalled = false;
            i.due = None;
        }
        self.start(its);
    }
}
