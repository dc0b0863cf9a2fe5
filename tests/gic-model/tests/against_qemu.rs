//! Comparison of the model in its QEMU configuration with QEMU itself.
//!
//! The same script of register writes, commands and MSIs runs on both: on the model through its methods, on
//! `qemu-system-aarch64 -M virt,gic-version=4 -S` through `-qtest`. Everything that can be observed without a running
//! CPU is compared: registers, the pending tables of redistributors and vPEs, PendingLast. To compare delivery, the
//! CPUs run a small program that acknowledges interrupts on request, at EL2 or EL1. Without QEMU in the PATH the tests
//! print a message and pass.
//!
//! # Known differences
//!
//! "Recorded" means that the model records a violation.
//!
//! | what | QEMU 10.0 | the model | the manual (IHI 0069) |
//! |---|---|---|---|
//! | VMAPTI to a vPE that is not mapped | accepted | recorded and ignored | a command error |
//! | VMAPTI or MAPTI over a mapped event | overwrites, the old pending bit stays | recorded, overwrites | UNPREDICTABLE |
//! | VMAPP V=1 of a mapped vPE | overwrites | recorded and ignored | UNPREDICTABLE |
//! | DISCARD of an event whose vPE is unmapped | fails and leaves the event mapped | the same, recorded | a command error |
//! | VMOVP, VMAPP V=0 of a resident vPE | executed silently | recorded | the vPE must not be resident |
//! | GITS_CREADR | writable while GICD_CTLR.DS is 1 | read-only | read-only |
//! | GITS_CREADR.Stalled after a retry | 1 until GITS_CBASER is written | 0 | 0 once commands are processed again |
//! | GITS_CWRITER beyond the queue | keeps the value, processes nothing | recorded and ignored | UNPREDICTABLE |
//! | no memory behind a table entry | stalls | recorded and ignored | either, IMPLEMENTATION DEFINED |
//! | registers of DirectLPI | read as zero, writes ignored | the same, recorded | RES0 without DirectLPI |
//! | RES0 bits of GITS_CBASER, GICR_PROPBASER, GICR_VPROPBASER | stored | 0 | RES0 |
//! | GITS_BASER.Page_Size 3 | reads back as 3 | reads back as 2 | reserved, treated as 2 |
//! | GICD_TYPER.NMI | depends on the CPU | 0 | - |
//!
//! The scripts avoid these differences, except for
//! [`erroneous_commands_have_the_same_effect_on_both`], which compares the state after erroneous commands.

mod common;
mod qemu;

use common::*;
use qemu::{CPUS, GICD, ITS, Model, Qemu, Target, Who, rd};
use std::sync::Mutex;

/// Memory for the GIC's tables and queue. It is zero at the start.
const MEMORY: u64 = 0x4800_0000;
const QUEUE: u64 = MEMORY;
const TABLES: [u64; 3] = [MEMORY + 0x1_0000, MEMORY + 0x2_0000, MEMORY + 0x3_0000];
const PROP: u64 = MEMORY + 0x4_0000;
const PEND: [u64; 2] = [MEMORY + 0x5_0000, MEMORY + 0x6_0000];
const VCONF: u64 = MEMORY + 0x7_0000;
const VPT: [u64; 3] = [MEMORY + 0x8_0000, MEMORY + 0x9_0000, MEMORY + 0xa_0000];
const ITT: u64 = MEMORY + 0xb_0000;
/// Memory for an ITT of 14 EventID bits.
const LARGE_ITT: u64 = MEMORY + 0xc_0000;
const SIZE: usize = 0x10_0000;

/// What a script has observed, in order.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn note(&mut self, what: impl Into<String>, value: u64) {
        self.0.push((what.into(), format!("{value:#x}")));
    }

    /// Records the LPIs that are pending in a table.
    fn table(&mut self, t: &mut dyn Target, what: String, table: u64) {
        let bytes = t.peek(table + 1024, 64);
        let set: Vec<usize> = (0..512).filter(|n| bytes[n / 8] >> (n % 8) & 1 == 1).map(|n| n + 8192).collect();
        self.0.push((what, format!("{set:?}")));
    }

    /// Records all state that can be observed without a CPU.
    fn state(&mut self, t: &mut dyn Target, when: &str) {
        for (cpu, table) in PEND.iter().enumerate() {
            self.table(t, format!("{when}: LPIs of CPU{cpu}"), *table);
            let frame = rd(cpu) + 0x2_0000;
            let vpend = t.read64(frame + 0x78);
            self.note(format!("{when}: GICR_VPENDBASER of CPU{cpu}"), vpend);
        }
        for (n, table) in VPT.iter().enumerate() {
            self.table(t, format!("{when}: vLPIs of vPE {n}"), *table);
        }
        let creadr = t.read64(ITS + 0x90);
        self.note(format!("{when}: GITS_CREADR"), creadr);
    }
}

fn commands(t: &mut dyn Target, list: &[[u64; 4]]) {
    let mut at = t.read64(ITS + 0x88);
    for words in list {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        t.poke(QUEUE + at, &bytes);
        at = (at + 32) % 0x1_0000;
    }
    t.write64(ITS + 0x88, at);
}

fn bring_up(t: &mut dyn Target) {
    t.write32(GICD, 0x12);
    for (cpu, pend) in PEND.iter().enumerate() {
        t.write32(rd(cpu) + 0x14, 0);
        t.write64(rd(cpu) + 0x70, PROP | SHARED | 7 << 7 | 13);
        t.write64(rd(cpu) + 0x78, pend | SHARED | 7 << 7);
        t.write32(rd(cpu), 1);
    }
    for (n, table) in (0..).zip(TABLES) {
        t.write64(ITS + 0x100 + 8 * n, VALID | table | SHARED | 7 << 59 | 2 << 8);
    }
    t.write64(ITS + 0x80, VALID | QUEUE | SHARED | 7 << 59 | 0xf);
    t.write64(ITS + 0x88, 0);
    t.write32(ITS, 1);
    commands(t, &[mapc(0, 0), mapc(1, 1 << 16), mapd(0, 4, ITT), mapd(9, 4, ITT + 0x1000)]);
    commands(t, &[mapd(10, 13, LARGE_ITT)]);
    for (n, vpt) in (0..).zip(VPT) {
        commands(t, &[vmapp(n, u64::from(n % 2) << 16, vpt), vsync(n), vinvall(n), vsync(n)]);
    }
}

/// Runs a script on both and compares what it observed. `clean`: the model must not have recorded a violation.
fn compare(script: impl Fn(&mut dyn Target, &mut Seen), clean: bool) {
    compare_on(false, script, clean);
}

fn compare_on(running: bool, script: impl Fn(&mut dyn Target, &mut Seen), clean: bool) {
    // Run one QEMU at a time, to leave CPU time to other tests.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(mut qemu) = Qemu::start(running) else { return };
    let mut model = Model::new(MEMORY, SIZE);
    let (mut theirs, mut ours) = (Seen::default(), Seen::default());
    script(&mut qemu, &mut theirs);
    script(&mut model, &mut ours);
    for (n, (ours, theirs)) in ours.0.iter().zip(&theirs.0).enumerate() {
        assert_eq!(ours.0, theirs.0, "the script took different paths");
        assert_eq!(ours.1, theirs.1, "observation {n}, {}: the model (left) and QEMU (right)", ours.0);
    }
    assert_eq!(ours.0.len(), theirs.0.len());
    assert!(!ours.0.is_empty());
    if clean {
        model.0.assert_clean();
    }
}

#[test]
fn both_have_the_same_identification_registers() {
    compare(
        |t, seen| {
            for (name, at, mask) in [
                ("GICD_CTLR", GICD, !0),
                ("GICD_TYPER", GICD + 4, !(1 << 9)),
                ("GICD_IIDR", GICD + 8, !0),
                ("GICD_TYPER2", GICD + 0xc, !0),
                ("GICD_PIDR2", GICD + 0xffe8, !0),
                ("GITS_IIDR", ITS + 4, !0),
                ("GITS_CTLR", ITS, !0),
                ("GITS_PIDR2", ITS + 0xffe8, !0),
                ("GICR_CTLR", rd(0), !0),
                ("GICR_IIDR", rd(0) + 4, !0),
                ("GICR_WAKER", rd(0) + 0x14, !0),
                ("GICR_PIDR2", rd(0) + 0xffe8, !0),
            ] {
                seen.note(name, u64::from(t.read32(at) & mask));
            }
            for (name, at) in [
                ("GITS_TYPER", ITS + 8),
                ("GICR_TYPER", rd(0) + 8),
                ("GICR_TYPER", rd(1) + 8),
                ("GICR_PROPBASER", rd(0) + 0x70),
                ("GICR_PENDBASER", rd(0) + 0x78),
                ("GICR_VPROPBASER", rd(0) + 0x2_0070),
                ("GICR_VPENDBASER", rd(0) + 0x2_0078),
                ("GITS_CBASER", ITS + 0x80),
                ("GITS_CWRITER", ITS + 0x88),
                ("GITS_CREADR", ITS + 0x90),
            ] {
                seen.note(name, t.read64(at));
                seen.note(format!("{name}, low half"), t.read32(at).into());
                seen.note(format!("{name}, high half"), t.read32(at + 4).into());
            }
            for n in 0..8 {
                seen.note(format!("GITS_BASER{n}"), t.read64(ITS + 0x100 + 8 * n));
            }
        },
        true,
    );
}

#[test]
fn both_store_the_same_register_bits() {
    compare(
        |t, seen| {
            for pattern in [0, VALID | 0x4800_0000, 0x0000_5a5a_a5a5_0000, 0x0fff_ffff_ffff_f2ff, 0x4000_0000_0000_0480]
            {
                for n in 0..8 {
                    t.write64(ITS + 0x100 + 8 * n, pattern);
                    seen.note(format!("GITS_BASER{n} after {pattern:#x}"), t.read64(ITS + 0x100 + 8 * n));
                }
            }
            for (page, want) in [(0u64, "4K"), (1, "16K"), (2, "64K")] {
                t.write64(ITS + 0x100, page << 8);
                seen.note(format!("GITS_BASER0 with pages of {want}"), t.read64(ITS + 0x100));
            }
            t.write32(ITS + 0x104, 0x8000_0000);
            seen.note("GITS_BASER0 by halves", t.read64(ITS + 0x100));
            t.write64(ITS + 0x80, 0x08ef_ffff_ffff_0cff);
            seen.note("GITS_CBASER", t.read64(ITS + 0x80));
            t.write64(ITS + 0x88, 0x60);
            seen.note("GITS_CWRITER", t.read64(ITS + 0x88));
            t.write64(ITS + 0x80, VALID | QUEUE);
            seen.note("GITS_CWRITER after GITS_CBASER", t.read64(ITS + 0x88));
            for frame in [rd(0), rd(0) + 0x2_0000] {
                for (offset, pattern) in [(0x70, 0x070f_ffff_ffff_ff8f), (0x78, 0x070f_ffff_ffff_0f80)] {
                    t.write64(frame + offset, pattern);
                    seen.note(format!("{:#x}", frame + offset), t.read64(frame + offset));
                }
            }
            t.write64(rd(1) + 0x2_0078, 0x7fff_ffff_ffff_ffff);
            seen.note("GICR_VPENDBASER, all but Valid", t.read64(rd(1) + 0x2_0078));
            for value in [0u32, 2, 0xffff_ffff, 0] {
                t.write32(rd(0) + 0x14, value);
                seen.note(format!("GICR_WAKER after {value:#x}"), t.read32(rd(0) + 0x14).into());
            }
        },
        false,
    );
}

#[test]
fn both_handle_physical_lpis_alike() {
    compare(
        |t, seen| {
            bring_up(t);
            seen.state(t, "up");
            commands(t, &[mapti(0, 1, LPI + 3, 0), mapi(10, LPI + 60, 1), int(10, LPI + 60)]);
            t.write32(ITS + 0x1_0040, 1);
            seen.state(t, "MSI");
            t.write32(ITS + 0x1_0040, 2);
            seen.state(t, "MSI of an event that is not mapped");
            commands(t, &[mapti(9, 5, LPI + 7, 1), int(9, 5)]);
            seen.state(t, "INT");
            commands(t, &[movi(0, 1, 1)]);
            seen.state(t, "MOVI of a pending LPI");
            commands(t, &[movall(1 << 16, 0)]);
            seen.state(t, "MOVALL");
            commands(t, &[clear(9, 5)]);
            seen.state(t, "CLEAR where the event is, not the LPI");
            commands(t, &[movi(9, 5, 0), clear(9, 5), discard(0, 1)]);
            seen.state(t, "CLEAR and DISCARD");
            t.write32(ITS + 0x1_0040, 1);
            seen.state(t, "MSI after DISCARD");
            commands(t, &[mapti(0, 1, LPI + 3, 0), int(0, 1)]);
            t.write32(rd(0), 0);
            seen.note("GICR_CTLR", t.read32(rd(0)).into());
            t.write32(rd(0), 1);
            seen.state(t, "LPIs off and on");
        },
        false,
    );
}

#[test]
fn both_handle_vpes_alike() {
    compare(
        |t, seen| {
            bring_up(t);
            let (v, db) = (LPI + 5, LPI + 40);
            t.poke(VCONF, &[0xa1; 64]);
            commands(t, &[vmapti(0, 1, 0, v, db), vsync(0), vmapi(10, LPI + 61, 1, 1023), int(10, LPI + 61)]);
            seen.state(t, "mapped");
            t.write32(ITS + 0x1_0040, 1);
            seen.state(t, "MSI to a vPE that is not resident");
            commands(t, &[vmovi(0, 1, 1, Some(db + 1)), vsync(1)]);
            seen.state(t, "VMOVI of a pending vLPI");
            let (props, pends) = (rd(1) + 0x2_0070, rd(1) + 0x2_0078);
            t.write64(props, VCONF | SHARED | 7 << 7 | 13);
            t.write64(pends, VALID | PENDING_LAST | VPT[1] | SHARED | 7 << 7);
            seen.state(t, "resident");
            commands(t, &[int(0, 1), clear(0, 1)]);
            seen.state(t, "cleared");
            let leave = t.read64(pends) & !(VALID | PENDING_LAST);
            t.write64(pends, leave);
            seen.state(t, "left with nothing pending");
            commands(t, &[vmovp(0, 0, 1, 0), vsync(1), int(0, 1)]);
            seen.state(t, "moved and pending, the doorbell rings at the new home");
            t.write64(rd(0) + 0x2_0070, VCONF | SHARED | 7 << 7 | 13);
            t.write64(rd(0) + 0x2_0078, VALID | PENDING_LAST | VPT[1] | SHARED | 7 << 7);
            seen.state(t, "resident at the new home");
            let leave = t.read64(rd(0) + 0x2_0078) & !(VALID | PENDING_LAST);
            t.write64(rd(0) + 0x2_0078, leave);
            seen.state(t, "left with a vLPI pending");
            commands(t, &[discard(0, 1), vsync(1), vunmapp(2), vsync(2)]);
            seen.state(t, "discarded");
        },
        true,
    );
}

/// A pending vLPI that is disabled does not show in PendingLast, and cached configuration is stale until INV.
#[test]
fn both_read_configuration_again_on_entry_inv_and_vinvall() {
    compare(
        |t, seen| {
            bring_up(t);
            commands(t, &[vmapti(0, 1, 0, LPI + 5, 1023), vsync(0)]);
            let (props, pends) = (rd(0) + 0x2_0070, rd(0) + 0x2_0078);
            let cycle = |t: &mut dyn Target, seen: &mut Seen, when: &str, inside: &[[u64; 4]], byte: u8| {
                t.write64(props, VCONF | SHARED | 7 << 7 | 13);
                t.write64(pends, VALID | PENDING_LAST | VPT[0] | SHARED | 7 << 7);
                t.poke(VCONF + 5, &[byte]);
                commands(t, inside);
                let leave = t.read64(pends) & !(VALID | PENDING_LAST);
                t.write64(pends, leave);
                seen.state(t, when);
            };
            cycle(t, seen, "pending and disabled", &[int(0, 1), vsync(0)], 0xa0);
            cycle(t, seen, "enabled without an invalidation", &[vsync(0)], 0xa1);
            cycle(t, seen, "read as enabled on entry", &[vsync(0)], 0xa1);
            cycle(t, seen, "disabled with INV", &[inv(0, 1), vsync(0)], 0xa0);
            cycle(t, seen, "enabled with INV", &[inv(0, 1), vsync(0)], 0xa1);
            cycle(t, seen, "disabled with VINVALL", &[vinvall(0), vsync(0)], 0xa0);
        },
        true,
    );
}

/// Commands with errors do not stall either of them, and have no effect.
#[test]
fn erroneous_commands_have_the_same_effect_on_both() {
    compare(
        |t, seen| {
            bring_up(t);
            commands(t, &[mapti(0, 1, LPI + 3, 0), vmapti(9, 1, 0, LPI + 5, 1023), vsync(0)]);
            for (n, command) in [
                int(0, 2),
                int(5, 1),
                int(0, 32),
                clear(9, 7),
                inv(9, 7),
                discard(0, 9),
                movi(0, 1, 77),
                movi(9, 1, 0),
                vmovi(0, 1, 0, None),
                mapti(0, 3, 50, 0),
                mapti(0, 33, LPI + 3, 0),
                mapti(5, 1, LPI + 3, 0),
                mapc(5, 9 << 16),
                mapd(9000, 4, ITT + 0x2000),
                mapd(7, 16, ITT + 0x2000),
                vmapti(9, 3, 0, LPI + 5, 50),
                vmapti(9, 33, 0, LPI + 5, 1023),
                vmovp(0, 0, 9, 0),
                vmovp(0, 0, 1, 9 << 16),
                vmapp(5, 9 << 16, VPT[0]),
                [0x23, 0, 0, 0],
                [0x2e, 0, 0, 0],
                [0x77, 0, 0, 0],
            ]
            .into_iter()
            .enumerate()
            {
                commands(t, &[command]);
                seen.state(t, &format!("error {n}"));
            }
            commands(t, &[int(0, 1), int(9, 1)]);
            seen.state(t, "the earlier mappings still work");
        },
        false,
    );
}

/// A pseudo-random sequence of legal operations.
#[test]
fn both_agree_after_each_of_a_thousand_random_operations() {
    compare(|t, seen| walk(t, seen, 0x2545_f491_4f6c_dd1d, 1000, false), true);
}

/// The same with CPUs that acknowledge interrupts, as hypervisor and as guest.
#[test]
fn both_deliver_the_same_interrupts() {
    compare_on(
        true,
        |t, seen| {
            walk(t, seen, 0x9e37_79b9_7f4a_7c15, 1000, true);
            for who in ["Host", "Guest"] {
                let taken = seen.0.iter().filter(|(what, n)| what.contains(who) && n != "0x3ff").count();
                assert!(taken >= 10, "{who} acknowledged only {taken} interrupts");
            }
        },
        true,
    );
}

#[test]
fn both_deliver_enabled_interrupts_by_priority() {
    compare_on(
        true,
        |t, seen| {
            bring_up(t);
            t.poke(PROP, &[0xa1, 0x41, 0xa0, 0x41, 0x21]);
            t.poke(VCONF, &[0xa1, 0x41, 0xa0, 0x41, 0x21]);
            for event in 0..5 {
                commands(t, &[mapti(0, event, LPI + event, 0), vmapti(9, event, 0, LPI + event, 1023), vsync(0)]);
                commands(t, &[int(0, event), int(9, event)]);
            }
            let all = |t: &mut dyn Target, seen: &mut Seen, when: &str| {
                for who in [Who::Host, Who::Guest] {
                    for _ in 0..6 {
                        seen.note(format!("{when}: {who:?}"), t.acknowledge(0, who));
                    }
                }
                seen.state(t, when);
            };
            t.write64(rd(0) + 0x2_0070, VCONF | SHARED | 7 << 7 | 13);
            t.write64(rd(0) + 0x2_0078, VALID | PENDING_LAST | VPT[0] | SHARED | 7 << 7);
            all(t, seen, "first");
            t.poke(PROP + 2, &[0xa1]);
            t.poke(VCONF + 2, &[0xa1]);
            all(t, seen, "enabled, not invalidated");
            commands(t, &[inv(0, 2), inv(9, 2), vsync(0)]);
            all(t, seen, "invalidated");
            t.write32(GICD, 0x10);
            commands(t, &[int(0, 0), int(9, 0), vsync(0)]);
            all(t, seen, "Group 1 disabled");
            t.write32(GICD, 0x12);
            all(t, seen, "Group 1 enabled again");
        },
        true,
    );
}

/// Mapping of an event in a random sequence.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    Free,
    Physical,
    Virtual,
}

fn walk(t: &mut dyn Target, seen: &mut Seen, mut seed: u64, steps: usize, acknowledge: bool) {
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 20) % n
    };
    bring_up(t);
    let priorities: Vec<u8> = (0..64).map(|_| (random(8) << 4) as u8 | 0x81).collect();
    t.poke(VCONF, &priorities);
    t.poke(PROP, &priorities);
    let mut events = [[Event::Free; 8]; 2];
    let mut home = [0usize, 1, 0];
    // The vPE that is resident on each CPU.
    let mut resident: [Option<usize>; CPUS] = [None; CPUS];
    for step in 0..steps {
        let d = random(2) as usize;
        let (device, event) = ([0, 9][d], random(8) as u32);
        let vpe = random(3) as usize;
        let number = LPI + 16 * d as u32 + event;
        let state = events[d][event as usize];
        let not_resident = !resident.contains(&Some(vpe));
        let what = match random(if acknowledge { 20 } else { 14 }) {
            0..3 if state == Event::Free => {
                events[d][event as usize] = Event::Physical;
                commands(t, &[mapti(device, event, number, random(2) as u16), sync(0)]);
                "MAPTI"
            }
            3..6 if state == Event::Free => {
                events[d][event as usize] = Event::Virtual;
                let doorbell = [1023, LPI + 48 + vpe as u32][random(2) as usize];
                commands(t, &[vmapti(device, event, vpe as u16, number, doorbell), vsync(vpe as u16)]);
                "VMAPTI"
            }
            0..3 if device == 0 => {
                t.write32(ITS + 0x1_0040, event);
                "MSI"
            }
            3..5 if state != Event::Free => {
                commands(t, &[int(device, event)]);
                "INT"
            }
            5 if state != Event::Free => {
                commands(t, &[clear(device, event)]);
                "CLEAR"
            }
            6 if state == Event::Physical => {
                commands(t, &[movi(device, event, random(2) as u16)]);
                "MOVI"
            }
            6 if state == Event::Virtual => {
                commands(t, &[vmovi(device, event, vpe as u16, None), vsync(vpe as u16)]);
                "VMOVI"
            }
            7 if state != Event::Free => {
                events[d][event as usize] = Event::Free;
                commands(t, &[discard(device, event), vsync(0), vsync(1), vsync(2)]);
                "DISCARD"
            }
            8 if not_resident => {
                home[vpe] = random(2) as usize;
                commands(t, &[vmovp(0, 0, vpe as u16, (home[vpe] as u64) << 16), vsync(vpe as u16)]);
                "VMOVP"
            }
            9..11 if not_resident && resident[home[vpe]].is_none() => {
                let frame = rd(home[vpe]) + 0x2_0000;
                resident[home[vpe]] = Some(vpe);
                t.write64(frame + 0x70, VCONF | SHARED | 7 << 7 | 13);
                t.write64(frame + 0x78, VALID | PENDING_LAST | VPT[vpe] | SHARED | 7 << 7);
                "enter"
            }
            11..13 => {
                let cpu = random(2) as usize;
                if resident[cpu].take().is_none() {
                    continue;
                }
                let register = rd(cpu) + 0x2_0078;
                let value = t.read64(register) & !(VALID | PENDING_LAST);
                t.write64(register, value);
                "leave"
            }
            13 => {
                let at = random(2) << 16;
                commands(t, &[movall(at, at ^ 1 << 16)]);
                "MOVALL"
            }
            who @ 14.. => {
                let (cpu, who) = (random(2) as usize, if who < 16 { Who::Host } else { Who::Guest });
                seen.note(format!("step {step}: {who:?} on CPU{cpu}"), t.acknowledge(cpu, who));
                "acknowledge"
            }
            _ => continue,
        };
        seen.state(t, &format!("step {step}, {what}"));
    }
}
