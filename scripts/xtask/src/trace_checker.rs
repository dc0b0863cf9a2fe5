//! Checks the order of ITS commands and register writes in QEMU's trace: errors that QEMU tolerates and a real ITS does not.
//!
//! QEMU executes each command at once, so a missing VSYNC, a vPE that becomes resident before its VMOVP, or a command that the
//! architecture calls an error has no visible effect (IHI 0069, chapters 5 and 8). The trace has each command and each write to
//! a redistributor in order. [`Checker`] keeps the state of the tables and reports what is wrong.

use std::collections::{BTreeMap, BTreeSet};

/// The trace events to switch on.
pub const EVENTS: [&str; 2] = ["gicv3_its_cmd_*", "gicv3_redist_write"];

/// GICR_VPENDBASER.
const VPENDBASER: u64 = 0x2_0078;
const VALID: u64 = 1 << 63;
/// Physical address of the pending table in GICR_VPENDBASER.
const TABLE: u64 = 0x000f_ffff_ffff_0000;

/// So many commands may follow a change of a virtual event before its VSYNC, as changes come in batches.
const BATCH: u64 = 128;

/// The state of a vPE's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// VMAPP was sent.
    Mapped,
    /// VSYNC followed VMAPP.
    Synced,
    /// VINVALL was sent.
    Invalidated,
    /// VSYNC followed VINVALL: the vPE may become resident.
    Ready,
}

#[derive(Debug)]
struct Vpe {
    stage: Stage,
    table: u64,
    bits: u64,
    home: u64,
    /// A VMOVP was sent and not yet synchronised.
    moving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Physical,
    Virtual { vpe: u64 },
}

/// The state of all tables while a trace is read.
#[derive(Debug, Default)]
pub struct Checker {
    line: u64,
    commands: u64,
    vpes: BTreeMap<u64, Vpe>,
    devices: BTreeSet<u64>,
    events: BTreeMap<(u64, u64), Event>,
    collections: BTreeSet<u64>,
    /// By redistributor: the pending table of the vPE that is resident there.
    resident: BTreeMap<u64, u64>,
    /// Virtual events that changed since the last VSYNC, with the command and its number.
    open: BTreeMap<(u64, u64), (&'static str, u64)>,
    /// The errors, each with the line of the trace.
    pub wrong: Vec<String>,
    /// How often each command was seen, and how often a vPE became resident.
    pub seen: BTreeMap<String, u64>,
}

impl Checker {
    /// Handles one line of QEMU's log.
    pub fn line(&mut self, line: &str) {
        self.line += 1;
        if let Some((event, text)) = line.strip_prefix("gicv3_its_cmd_").and_then(|rest| rest.split_once(' ')) {
            self.commands += 1;
            *self.seen.entry(event.to_owned()).or_default() += 1;
            self.command(event, &Fields(text));
        } else if let Some(text) = line.strip_prefix("gicv3_redist_write ") {
            let fields = Fields(text);
            if fields.get("offset") == VPENDBASER {
                self.residency(fields.get("redistributor"), fields.get("data"));
            }
        }
    }

    /// Handles the end of the trace.
    pub fn finish(&mut self) {
        let open: Vec<_> =
            self.open.iter().map(|((d, e), (what, _))| format!("{what} of event {e:#x} of device {d:#x}")).collect();
        for what in open {
            self.note(format!("{what} was never followed by VSYNC"));
        }
        let moving: Vec<_> = self.vpes.iter().filter(|(_, vpe)| vpe.moving).map(|(id, _)| *id).collect();
        for id in moving {
            self.note(format!("VMOVP of vPE {id:#x} was never followed by VSYNC"));
        }
    }

    fn note(&mut self, what: String) {
        // The first few are enough.
        if self.wrong.len() < 20 {
            self.wrong.push(format!("line {}: {what}", self.line));
        }
    }

    fn command(&mut self, name: &str, f: &Fields<'_>) {
        let (device, event) = (f.get("DeviceID"), f.get("EventID"));
        match name {
            "vmapp" if f.get("V") == 1 => {
                let (id, home) = (f.get("vPEID"), f.get("RDbase"));
                if self.vpes.contains_key(&id) {
                    self.note(format!("VMAPP of vPE {id:#x}, which is mapped"));
                }
                let vpe = Vpe {
                    stage: Stage::Mapped,
                    // The trace has the command's field, without the low 16 bits of the address.
                    table: f.get("VPT_addr") << 16,
                    bits: f.get("VPT_size") + 1,
                    home,
                    moving: false,
                };
                self.vpes.insert(id, vpe);
            }
            "vmapp" => {
                let id = f.get("vPEID");
                if self.events.values().any(|event| *event == Event::Virtual { vpe: id }) {
                    self.note(format!("VMAPP V=0 of vPE {id:#x} before its events were discarded"));
                }
                match self.vpes.remove(&id) {
                    None => self.note(format!("VMAPP V=0 of vPE {id:#x}, which is not mapped")),
                    Some(vpe) if self.resident.values().any(|table| *table == vpe.table) => {
                        self.note(format!("VMAPP V=0 of vPE {id:#x}, which is resident"));
                    }
                    Some(_) => {}
                }
            }
            "vmovp" => {
                let (id, home) = (f.get("vPEID"), f.get("RDbase"));
                match self.vpes.get_mut(&id) {
                    None => self.note(format!("VMOVP of vPE {id:#x}, which is not mapped")),
                    Some(vpe) => {
                        (vpe.home, vpe.moving) = (home, true);
                        let table = vpe.table;
                        if self.resident.values().any(|resident| *resident == table) {
                            self.note(format!("VMOVP of vPE {id:#x}, which is resident"));
                        }
                    }
                }
            }
            "vinvall" => {
                let id = f.get("vPEID");
                match self.vpes.get_mut(&id) {
                    None => self.note(format!("VINVALL of vPE {id:#x}, which is not mapped")),
                    Some(vpe) if vpe.stage == Stage::Mapped => {
                        self.note(format!("VINVALL of vPE {id:#x} before VMAPP's VSYNC"))
                    }
                    Some(vpe) if vpe.stage == Stage::Synced => vpe.stage = Stage::Invalidated,
                    Some(_) => {}
                }
            }
            "vsync" => {
                // The trace does not name the vPE of a VSYNC, so a VSYNC of the wrong vPE goes unnoticed here.
                for vpe in self.vpes.values_mut() {
                    vpe.moving = false;
                    vpe.stage = match vpe.stage {
                        Stage::Mapped => Stage::Synced,
                        Stage::Invalidated => Stage::Ready,
                        other => other,
                    };
                }
                self.open.clear();
            }
            "vmapti" | "vmapi" => {
                let id = f.get("vPEID");
                let vintid = if name == "vmapti" { f.get("vINTID") } else { event };
                self.unmapped("VMAPTI", device, event);
                match self.vpes.get(&id) {
                    None => self.note(format!("VMAPTI of event {event:#x} to vPE {id:#x}, which is not mapped")),
                    Some(vpe) if vintid >> vpe.bits != 0 => {
                        let bits = vpe.bits;
                        self.note(format!(
                            "VMAPTI with vINTID {vintid:#x} beyond the table of vPE {id:#x} ({bits} bits)"
                        ));
                    }
                    Some(_) => {}
                }
                self.events.insert((device, event), Event::Virtual { vpe: id });
                self.open.insert((device, event), ("VMAPTI", self.commands));
            }
            "vmovi" => match self.events.get(&(device, event)) {
                Some(Event::Virtual { .. }) => {
                    let id = f.get("vPEID");
                    if !self.vpes.contains_key(&id) {
                        self.note(format!("VMOVI of event {event:#x} to vPE {id:#x}, which is not mapped"));
                    }
                    self.events.insert((device, event), Event::Virtual { vpe: id });
                    self.open.insert((device, event), ("VMOVI", self.commands));
                }
                other => self.note(format!("VMOVI of event {event:#x} of device {device:#x}, which is {other:?}")),
            },
            "mapti" | "mapi" => {
                self.unmapped("MAPTI", device, event);
                if !self.collections.contains(&f.get("ICID")) {
                    self.note(format!(
                        "MAPTI of event {event:#x} to collection {:#x}, which is not mapped",
                        f.get("ICID")
                    ));
                }
                self.events.insert((device, event), Event::Physical);
            }
            "discard" => match self.events.remove(&(device, event)) {
                None => self.note(format!("DISCARD of event {event:#x} of device {device:#x}, which is not mapped")),
                Some(Event::Virtual { .. }) => {
                    self.open.insert((device, event), ("DISCARD", self.commands));
                }
                Some(Event::Physical) => {}
            },
            "inv" | "int" | "clear" | "movi" => match self.events.get(&(device, event)) {
                None => self.note(format!("{name} of event {event:#x} of device {device:#x}, which is not mapped")),
                Some(Event::Virtual { .. }) if name == "movi" => {
                    self.note(format!("MOVI of event {event:#x} of device {device:#x}, which is virtual"));
                }
                Some(Event::Virtual { .. }) if name == "inv" => {
                    self.open.insert((device, event), ("INV", self.commands));
                }
                Some(_) => {}
            },
            "mapd" if f.get("V") == 1 => {
                if self.devices.contains(&device) && self.events.keys().any(|(owner, _)| *owner == device) {
                    self.note(format!("MAPD of device {device:#x} while events of it are mapped"));
                }
                self.devices.insert(device);
            }
            "mapd" => {
                if self
                    .events
                    .iter()
                    .any(|((owner, _), event)| *owner == device && matches!(event, Event::Virtual { .. }))
                {
                    self.note(format!("MAPD V=0 of device {device:#x} while virtual events of it are mapped"));
                }
                self.events.retain(|(owner, _), _| *owner != device);
                self.devices.remove(&device);
            }
            "mapc" if f.get("V") == 1 => {
                self.collections.insert(f.get("ICID"));
            }
            "mapc" => {
                self.collections.remove(&f.get("ICID"));
            }
            "unknown" => self.note("an unknown command".into()),
            _ => {}
        }
        let late: Vec<_> = self
            .open
            .iter()
            .filter(|(_, (_, at))| self.commands - at > BATCH)
            .map(|(key, what)| (*key, what.0))
            .collect();
        for ((device, event), what) in late {
            self.open.remove(&(device, event));
            self.note(format!("{what} of event {event:#x} of device {device:#x}: no VSYNC within {BATCH} commands"));
        }
    }

    fn unmapped(&mut self, what: &str, device: u64, event: u64) {
        if !self.devices.contains(&device) {
            self.note(format!("{what} for device {device:#x}, which is not mapped"));
        }
        if let Some(old) = self.events.get(&(device, event)) {
            let old = *old;
            self.note(format!("{what} of event {event:#x} of device {device:#x}, which is mapped already: {old:?}"));
        }
    }

    fn residency(&mut self, redistributor: u64, data: u64) {
        if data & VALID == 0 {
            self.resident.remove(&redistributor);
            return;
        }
        *self.seen.entry("resident".into()).or_default() += 1;
        let table = data & TABLE;
        if self.resident.contains_key(&redistributor) {
            self.note(format!("GICR_VPENDBASER of redistributor {redistributor:#x} written with Valid over Valid"));
        }
        if let Some((other, _)) = self.resident.iter().find(|(_, resident)| **resident == table) {
            let other = *other;
            self.note(format!("a vPE made resident on redistributor {redistributor:#x} and on {other:#x}"));
        }
        self.resident.insert(redistributor, table);
        let found = self.vpes.iter().find(|(_, vpe)| vpe.table == table);
        match found.map(|(id, vpe)| (*id, vpe.stage, vpe.home, vpe.moving)) {
            None => self.note(format!("a vPE with its table at {table:#x} made resident, and no such vPE is mapped")),
            Some((id, _, _, true)) => self.note(format!("vPE {id:#x} made resident before VMOVP's VSYNC")),
            Some((id, stage, home, false)) => {
                if stage != Stage::Ready {
                    self.note(format!(
                        "vPE {id:#x} made resident at {stage:?}: VMAPP, VSYNC, VINVALL, VSYNC come first"
                    ));
                }
                // RDbase is the number of the redistributor, or that number shifted as in the command.
                if home != redistributor && home != redistributor << 16 {
                    self.note(format!(
                        "vPE {id:#x} made resident on redistributor {redistributor:#x}, and the ITS has it on {home:#x}"
                    ));
                }
            }
        }
    }
}

/// `NAME VALUE` pairs in a line of the trace; values are decimal or `0x…`.
struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn get(&self, name: &str) -> u64 {
        let mut words = self.0.split_whitespace();
        let value = words.by_ref().find(|word| *word == name).and_then(|_| words.next()).unwrap_or("0");
        match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap_or(0),
            None => value.parse().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPED: &[&str] = &[
        "gicv3_its_cmd_vmapp GICv3 ITS: command VMAPP vPEID 0x1 RDbase 0x2 V 1 VPT_addr 0x40b7 VPT_size 0xd",
        "gicv3_its_cmd_vsync GICv3 ITS: command VSYNC",
        "gicv3_its_cmd_vinvall GICv3 ITS: command VINVALL vPEID 0x1",
        "gicv3_its_cmd_vsync GICv3 ITS: command VSYNC",
        "gicv3_its_cmd_mapd GICv3 ITS: command MAPD DeviceID 0x8 Size 0x5 ITT_addr 0x40c00000 V 1",
    ];
    const ENTER: &str =
        "gicv3_redist_write GICv3 redistributor 0x2 write: offset 0x20078 data 0xa000000040b70000 size 8 secure 0";
    const LEAVE: &str =
        "gicv3_redist_write GICv3 redistributor 0x2 write: offset 0x20078 data 0x2000000040b70000 size 8 secure 0";
    const MAP: &str = "gicv3_its_cmd_vmapti GICv3 ITS: command VMAPI DeviceID 0x8 EventID 0x3 vPEID 0x1 vINTID 0x2003 Dbell_pINTID 0x2100";
    const SYNC: &str = "gicv3_its_cmd_vsync GICv3 ITS: command VSYNC";
    const MOVE: &str = "gicv3_its_cmd_vmovp GICv3 ITS: command VMOVP vPEID 0x1 RDbase 0x3";
    const DISCARD: &str = "gicv3_its_cmd_discard GICv3 ITS: command DISCARD DeviceID 0x8 EventID 0x3";

    fn check(lines: &[&[&str]]) -> Vec<String> {
        let mut checker = Checker::default();
        lines.iter().flat_map(|lines| lines.iter()).for_each(|line| checker.line(line));
        checker.finish();
        checker.wrong
    }

    #[test]
    fn the_right_order_is_accepted() {
        assert_eq!(check(&[MAPPED, &[ENTER, MAP, SYNC, LEAVE, DISCARD, SYNC]]), [""; 0]);
    }

    #[test]
    fn residency_before_the_mapping_is_synchronised_is_reported() {
        assert!(check(&[&MAPPED[..3], &[ENTER]])[0].contains("made resident at Invalidated"));
    }

    #[test]
    fn a_missing_vsync_is_reported() {
        assert!(check(&[MAPPED, &[MAP]])[0].contains("never followed by VSYNC"));
        assert!(check(&[MAPPED, &[MAP, SYNC, DISCARD]])[0].contains("DISCARD of event 0x3"));
    }

    #[test]
    fn residency_on_another_redistributor_than_the_its_has_is_reported() {
        assert!(check(&[MAPPED, &[MOVE, SYNC, ENTER]])[0].contains("the ITS has it on 0x3"));
        assert!(check(&[MAPPED, &[MOVE, ENTER]])[0].contains("before VMOVP's VSYNC"));
        assert!(check(&[MAPPED, &[ENTER, MOVE, SYNC]])[0].contains("which is resident"));
    }

    #[test]
    fn commands_that_the_architecture_calls_errors_are_reported() {
        assert!(check(&[MAPPED, &[DISCARD]])[0].contains("which is not mapped"));
        assert!(check(&[MAPPED, &[MAP, SYNC, MAP, SYNC]])[0].contains("mapped already"));
        assert!(check(&[&MAPPED[4..], &[MAP, SYNC]])[0].contains("vPE 0x1, which is not mapped"));
    }

    #[test]
    fn valid_written_over_valid_is_reported() {
        assert!(check(&[MAPPED, &[ENTER, ENTER]])[0].contains("Valid over Valid"));
    }
}
