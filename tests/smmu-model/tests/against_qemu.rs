//! Comparison of the model in its QEMU configuration with QEMU itself.
//!
//! The same script of register writes, commands, tables and transactions runs on both: on the model through its methods,
//! on `qemu-system-aarch64 -M virt,iommu=smmuv3` through `-qtest`, where two `edu` devices make the transactions.
//! Registers, the event queue and the memory to which devices may have written are compared. Without QEMU in the PATH
//! the tests print a message and pass.
//!
//! # Known differences
//!
//! The scripts avoid them.
//!
//! | what | QEMU 10.0 | the model | the manual (IHI 0070) |
//! |---|---|---|---|
//! | a full event queue | GERROR.EVENTQ_ABT_ERR | toggles OVFLG | overflow (7.4) |
//! | StreamID beyond L1STD.Span | C_BAD_STE | C_BAD_STREAMID | C_BAD_STREAMID (5.1.1) |
//! | IPA of an event, bits 11 to 0 | as in the address | 0 | reserved (7.3) |
//! | a read of a write-only page that is cached | allowed | F_PERMISSION | F_PERMISSION |
//! | acknowledged CMDQ_ERR | goes on with the next write of SMMU_CMDQ_PROD | goes on at once | goes on at once (7.1) |
//! | reserved fields of commands | ignored | recorded, CERROR_ILL | either (4.1.5) |
//! | illegal STE, broken break-before-make, and what else software must not do | nothing | recorded | - |

mod qemu;

use qemu::{Model, Qemu, SMMU, STREAMS, Target};
use std::sync::Mutex;

/// Memory for the SMMU's structures. It is zero at the start.
const MEMORY: u64 = 0x4800_0000;
const SIZE: usize = 0x10_0000;
const STREAM_TABLE: u64 = MEMORY;
const ARRAY: u64 = MEMORY + 0x1000;
const COMMANDS: u64 = MEMORY + 0x2000;
const EVENTS: u64 = MEMORY + 0x3000;
const TABLES: u64 = MEMORY + 0x4000;
/// Pages that devices write to.
const TARGETS: u64 = MEMORY + 0x8_0000;

const IPA: u64 = 0x1_4000_0000;

/// What a script has observed, in order.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn note(&mut self, what: impl Into<String>, value: impl std::fmt::Debug) {
        self.0.push((what.into(), format!("{value:x?}")));
    }

    /// Makes a transaction, and records where it has written and the event that it has caused.
    fn dma(&mut self, t: &mut dyn Target, device: usize, address: u64, write: bool) {
        for page in 0..4 {
            t.poke(TARGETS + page * 0x1000, &[0xff; 0x20]);
        }
        t.dma(device, address, write);
        let written: Vec<u64> = (0..4)
            .flat_map(|page| (0..0x20).step_by(4).map(move |o| TARGETS + page * 0x1000 + o))
            .filter(|at| t.peek(*at, 4) == [0; 4])
            .collect();
        let what = format!("device {device} {} {address:#x}", if write { "writes" } else { "reads" });
        self.note(format!("{what}: written"), written);
        self.events(t, &what);
    }

    /// Records the events in the queue, and takes them out.
    fn events(&mut self, t: &mut dyn Target, what: &str) {
        let (prod, cons) = (t.read32(SMMU + 0x1_00a8), t.read32(SMMU + 0x1_00ac));
        self.note(format!("{what}: SMMU_EVENTQ_PROD"), prod);
        let mut at = cons;
        while at & 0xf != prod & 0xf {
            let bytes = t.peek(EVENTS + u64::from(at & 7) * 32, 32);
            let mut words: Vec<u64> =
                bytes.chunks(8).map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes"))).collect();
            // QEMU also fills the reserved bits below the page in the field IPA.
            if (0x10..=0x13).contains(&(words[0] as u8)) {
                words[3] &= !0xfff;
            }
            self.note(format!("{what}: event"), words);
            at = (at + 1) & 0xf;
        }
        t.write32(SMMU + 0x1_00ac, (prod & 1 << 31) | at);
    }
}

fn words(t: &mut dyn Target, at: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    t.poke(at, &bytes);
}

/// Issues commands and a SYNC.
fn commands(t: &mut dyn Target, list: &[[u64; 2]]) {
    let mut at = t.read32(SMMU + 0x98);
    for c in list.iter().chain([&[0x46, 0]]) {
        words(t, COMMANDS + u64::from(at & 0x3f) * 16, c);
        at = (at + 1) & 0x7f;
    }
    t.write32(SMMU + 0x98, at);
}

const fn cfgi_ste(device: usize) -> [u64; 2] {
    [3 | STREAMS[device] << 32, 1]
}

fn ste_at(device: usize) -> u64 {
    ARRAY + STREAMS[device] * 64
}

/// Sets a device's STE in the order of the manual.
fn attach(t: &mut dyn Target, device: usize, ste: [u64; 4]) {
    words(t, ste_at(device), &[0]);
    commands(t, &[cfgi_ste(device)]);
    words(t, ste_at(device) + 8, &ste[1..]);
    commands(t, &[cfgi_ste(device)]);
    words(t, ste_at(device), &ste[..1]);
    commands(t, &[cfgi_ste(device)]);
}

/// Stage 2 with 39 bits of input from level 1, S2PS = 40 bits, S2R.
const fn stage2(vmid: u64, root: u64) -> [u64; 4] {
    [0xd, 0, vmid | 25 << 32 | 1 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 2 << 48 | 1 << 51 | 1 << 58, root]
}

const PAGE: u64 = 0x7ff;

/// The descriptor of level 3 for a page of IPA.
fn page(n: u64) -> u64 {
    TABLES + 0x2000 + n * 8
}

fn bring_up(t: &mut dyn Target) {
    t.write32(SMMU + 0x28, 0xd75);
    t.write32(SMMU + 0x2c, 2);
    words(t, STREAM_TABLE, &[ARRAY | 7]);
    t.write64(SMMU + 0x80, STREAM_TABLE);
    t.write32(SMMU + 0x88, 1 << 16 | 6 << 6 | 8);
    t.write64(SMMU + 0x90, COMMANDS | 6);
    t.write32(SMMU + 0x98, 0);
    t.write32(SMMU + 0x9c, 0);
    t.write64(SMMU + 0xa0, EVENTS | 3);
    t.write32(SMMU + 0x1_00a8, 0);
    t.write32(SMMU + 0x1_00ac, 0);
    t.write32(SMMU + 0x20, 0xc);
    commands(t, &[[4, 31], [0x30, 0]]);
    words(t, TABLES + (IPA >> 30) * 8, &[(TABLES + 0x1000) | 3]);
    words(t, TABLES + 0x1000, &[(TABLES + 0x2000) | 3]);
    words(t, page(0), &[TARGETS | PAGE, (TARGETS + 0x1000) | PAGE]);
    t.write32(SMMU + 0x20, 0xd);
}

/// Runs a script on both and compares what it observed. `clean`: the model must not have recorded a violation.
fn compare(clean: bool, script: impl Fn(&mut dyn Target, &mut Seen)) {
    // Run one QEMU at a time, to leave CPU time to other tests.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(mut qemu) = Qemu::start() else { return };
    let mut model = Model::new(MEMORY, SIZE);
    let (mut theirs, mut ours) = (Seen::default(), Seen::default());
    script(&mut qemu, &mut theirs);
    script(&mut model, &mut ours);
    for (n, (ours, theirs)) in ours.0.iter().zip(&theirs.0).enumerate() {
        assert_eq!(ours, theirs, "observation {n}: the model (left) and QEMU (right); {:#?}", model.0.violations());
    }
    assert_eq!(ours.0.len(), theirs.0.len());
    assert!(!ours.0.is_empty());
    if clean {
        model.0.assert_clean();
    }
}

#[test]
fn registers_at_reset_and_after_enabling_are_the_same() {
    compare(true, |t, seen| {
        for offset in [0x0, 0x4, 0xc, 0x14, 0x1c, 0x20, 0x24, 0x44, 0x50, 0x54, 0x60, 0x64] {
            seen.note(format!("{offset:#x} at reset"), t.read32(SMMU + offset));
        }
        bring_up(t);
        for offset in [0x20, 0x24, 0x28, 0x2c, 0x60, 0x80, 0x84, 0x88, 0x90, 0x94, 0x98, 0x9c, 0xa0, 0xa4] {
            seen.note(format!("{offset:#x}"), t.read32(SMMU + offset));
        }
    });
}

#[test]
fn transactions_are_translated_in_the_same_way() {
    compare(true, |t, seen| {
        seen.dma(t, 0, TARGETS, true);
        bring_up(t);
        attach(t, 0, stage2(7, TABLES));
        seen.dma(t, 0, IPA + 8, true);
        seen.dma(t, 0, IPA + 0x1010, true);
        seen.dma(t, 1, TARGETS, true);
        attach(t, 1, [9, 0, 0, 0]);
        seen.dma(t, 1, TARGETS + 0x2000, true);
        attach(t, 1, [1, 0, 0, 0]);
        seen.dma(t, 1, TARGETS, true);
        // A block.
        words(t, TABLES + 0x1008, &[(TARGETS & !0x1f_ffff) | 0x7fd]);
        seen.dma(t, 0, IPA + 0x20_0000 + (TARGETS & 0x1f_ffff) + 0x3018, true);
    });
}

#[test]
fn faults_are_recorded_in_the_same_way() {
    compare(true, |t, seen| {
        bring_up(t);
        attach(t, 0, stage2(7, TABLES));
        let rest =
            [1 << 40 | PAGE, TARGETS | (PAGE & !(1 << 10)), TARGETS | (PAGE & !(2 << 6)), TARGETS | (PAGE & !(1 << 6))];
        words(t, page(2), &rest);
        for n in 2..7 {
            seen.dma(t, 0, IPA + n * 0x1000 + 8, true);
            if n != 5 {
                seen.dma(t, 0, IPA + n * 0x1000 + 8, false);
            }
        }
        // Without S2R nothing is recorded.
        let mut quiet = stage2(8, TABLES);
        quiet[2] &= !(1 << 58);
        attach(t, 1, quiet);
        seen.dma(t, 1, IPA + 0x6000, true);
        // With S2AFFD the access flag does not matter.
        let mut lax = stage2(9, TABLES);
        lax[2] |= 1 << 53;
        attach(t, 1, lax);
        seen.dma(t, 1, IPA + 0x3000, true);
    });
}

#[test]
fn bad_streams_and_stes_are_recorded_in_the_same_way() {
    compare(false, |t, seen| {
        bring_up(t);
        seen.dma(t, 0, TARGETS, true);
        for bits in [3 << 46, 1 << 57, 3 << 38, 40 << 32] {
            let mut bad = stage2(7, TABLES);
            let clear = if bits >> 32 < 0x40 { 0x3f << 32 } else { 0 };
            bad[2] = (bad[2] & !clear) | bits;
            attach(t, 0, bad);
            seen.dma(t, 0, IPA, true);
        }
        words(t, STREAM_TABLE, &[0]);
        commands(t, &[[4, 31]]);
        seen.dma(t, 0, TARGETS, true);
    });
}

#[test]
fn stale_entries_are_used_until_the_same_invalidations() {
    compare(true, |t, seen| {
        bring_up(t);
        attach(t, 0, stage2(7, TABLES));
        attach(t, 1, stage2(8, TABLES));
        let changes: [(usize, [u64; 2]); 7] = [
            (0, [0x28 | 7 << 32, 0]),
            (1, [0x28 | 8 << 32, 0]),
            (0, [0x2a | 7 << 32, IPA | 1]),
            (0, [0x2a | 7 << 32, IPA]),
            (0, [0x2a | 7 << 32 | 1 << 12, (IPA - 0x1000) | 1 << 10]),
            (0, [0x2a | 7 << 32, IPA | 1 << 10 | 3 << 8]),
            (0, [0x30, 0]),
        ];
        for (device, command) in changes {
            words(t, page(0), &[TARGETS | PAGE]);
            seen.dma(t, device, IPA, true);
            words(t, page(0), &[0]);
            seen.dma(t, device, IPA, true);
            commands(t, &[[0x28 | 9 << 32, 0], [0x2a | 7 << 32, (IPA + 0x1000) | 1], [4, 31]]);
            seen.dma(t, device, IPA, true);
            commands(t, &[command]);
            seen.dma(t, device, IPA, true);
        }
        words(t, page(0), &[TARGETS | PAGE]);
        seen.dma(t, 0, IPA, true);
        words(t, ste_at(0), &[1]);
        seen.dma(t, 0, IPA, true);
        commands(t, &[cfgi_ste(1), [0x30, 0]]);
        seen.dma(t, 0, IPA, true);
        commands(t, &[cfgi_ste(0)]);
        seen.dma(t, 0, IPA, true);
    });
}

#[test]
fn errors_of_commands_and_a_full_event_queue_are_the_same() {
    compare(false, |t, seen| {
        bring_up(t);
        let prod = t.read32(SMMU + 0x98);
        commands(t, &[[0x30, 0], [0x31, 0]]);
        for offset in [0x60, 0x64, 0x9c] {
            seen.note(format!("{offset:#x} after an illegal command"), t.read32(SMMU + offset));
        }
        words(t, COMMANDS + u64::from(prod + 1) * 16, &[0x46, 0]);
        t.write32(SMMU + 0x64, 1);
        // QEMU continues with the next write of SMMU_CMDQ_PROD.
        commands(t, &[]);
        for offset in [0x60, 0x64] {
            seen.note(format!("{offset:#x} after its acknowledgement"), t.read32(SMMU + offset));
        }
        seen.note("consumer", t.read32(SMMU + 0x9c) & 0xf_ffff);
        for _ in 0..8 {
            t.dma(0, TARGETS, true);
        }
        seen.events(t, "full");
        t.dma(0, TARGETS, true);
        seen.events(t, "after it was full");
    });
}

#[test]
fn bypass_and_abort_without_the_smmu_are_the_same() {
    compare(true, |t, seen| {
        seen.dma(t, 0, TARGETS, true);
        t.write32(SMMU + 0x44, 1 << 31 | 1 << 20);
        seen.note("SMMU_GBPA", t.read32(SMMU + 0x44));
        seen.dma(t, 0, TARGETS, true);
        t.write32(SMMU + 0x44, 1 << 31);
        seen.dma(t, 0, TARGETS, true);
        bring_up(t);
        attach(t, 0, stage2(7, TABLES));
        seen.dma(t, 0, IPA, true);
        t.write32(SMMU + 0x20, 0xc);
        seen.dma(t, 0, TARGETS, true);
    });
}
