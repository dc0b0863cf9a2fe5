//! GICv4.1: virtual SGIs (GITS_SGIR, GICR_VSGIR, GICR_VSGIPENDR; 12.11 and 12.19).

use crate::machine::State;

const SGIR: &str = "12.19 GITS_SGIR";
const VSGIR: &str = "12.11 GICR_VSGIR";

impl State {
    /// Handles a write to GITS_SGIR.
    pub(crate) fn send_vsgi(&mut self, its: usize, value: u64) {
        let (vpe, sgi) = ((value >> 32) as u16, (value & 0xf) as usize);
        if value & !0x0000_ffff_0000_000f != 0 {
            self.flag(SGIR, format!("GITS_SGIR of ITS{its} written with RES0 bits set ({value:#x})"));
        }
        if !self.its[its].enabled {
            return self.flag(SGIR, format!("GITS_SGIR of ITS{its} written while the ITS is disabled"));
        }
        if !self.its[its].live_vpes.contains_key(&vpe) {
            return self.flag(SGIR, format!("GITS_SGIR of ITS{its} written for vPE {vpe}, which is not mapped there"));
        }
        if let Some(v) = self.vpes.get_mut(&vpe) {
            v.sgis[sgi].pending = true;
        }
        self.ring_if_not_resident(vpe);
    }

    pub(crate) fn configure_sgi(&mut self, vpe: u16, sgi: u8, enable: bool, group: bool, priority: u8) {
        if let Some(v) = self.vpes.get_mut(&vpe) {
            let s = &mut v.sgis[sgi as usize];
            (s.enable, s.group, s.priority) = (enable, group, priority);
        }
        self.ring_if_not_resident(vpe);
    }

    pub(crate) fn clear_sgi(&mut self, vpe: u16, sgi: u8) {
        if let Some(v) = self.vpes.get_mut(&vpe) {
            v.sgis[sgi as usize].pending = false;
        }
    }

    fn ring_if_not_resident(&mut self, vpe: u16) {
        if self.vpes.get(&vpe).is_some_and(|v| self.holder(v.vpt).is_none()) {
            self.ring_default(vpe);
        }
    }

    /// Handles a write to GICR_VSGIR.
    pub(crate) fn write_vsgir(&mut self, rd: usize, value: u64, wide: bool) {
        if !self.narrow_only(VSGIR, 0x80, wide) {
            return;
        }
        if self.now < self.rds[rd].vsgi.busy_until {
            return self.flag(VSGIR, format!("GICR_VSGIR written on CPU{rd} while GICR_VSGIPENDR.Busy is 1"));
        }
        if !self.cfg.cpus[rd].vsgi {
            return self.flag(VSGIR, format!("GICR_VSGIR written on CPU{rd}, whose GICR_TYPER.VSGI is 0"));
        }
        let vpe = value as u16;
        if value >> 16 != 0 {
            self.flag(VSGIR, format!("GICR_VSGIR written on CPU{rd} with RES0 bits set ({value:#x})"));
        }
        let Some((home, pending)) = self
            .vpes
            .get(&vpe)
            .map(|v| (v.rd, v.sgis.iter().enumerate().fold(0, |bits, (n, s)| bits | u16::from(s.pending) << n)))
        else {
            return self.flag(VSGIR, format!("GICR_VSGIR written on CPU{rd} for vPE {vpe}, which is not mapped"));
        };
        if self.cfg.cpus[home].group() != self.cfg.cpus[rd].group() {
            return self.flag(
                VSGIR,
                format!("GICR_VSGIR written on CPU{rd} for vPE {vpe} of CPU{home}, with which it shares no vPE table"),
            );
        }
        let busy_until = self.now + self.cfg.timing.busy;
        let query = &mut self.rds[rd].vsgi;
        (query.busy_until, query.pending) = (busy_until, pending);
    }

    pub(crate) fn read_vsgipendr(&mut self, rd: usize, wide: bool) -> u64 {
        if !self.narrow_only("12.11 GICR_VSGIPENDR", 0x88, wide) {
            return 0;
        }
        let query = &self.rds[rd].vsgi;
        // Pending is UNKNOWN while Busy is 1.
        if self.now < query.busy_until { 1 << 31 | 0xffff } else { query.pending.into() }
    }
}
