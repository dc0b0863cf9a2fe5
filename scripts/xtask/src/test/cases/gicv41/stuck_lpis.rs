//! LPIs that an earlier owner of the machine has left enabled and that cannot be disabled. The owner is this harness: before the
//! CPUs start it gives each redistributor tables and enables its LPIs.

use std::path::Path;

use crate::domu::TreeEdit;
use crate::fail::Outcome;
use crate::qmp::Qmp;
use crate::qtest::Qtest;
use crate::session::Event;
use crate::test::linux::Transcript;
use crate::test::{Lab, Verdict};

use super::forbidden::{GICR, GICR_STRIDE};

const CPUS: u64 = 4;

// Registers of a redistributor.
const CTLR: u64 = 0;
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;

const ENABLE_LPIS: u32 = 1;
/// Inner shareable, write-back.
const CACHED: u64 = 1 << 10 | 7 << 7;
/// 14 INTID bits: 8192 LPIs.
const ID_BITS: u64 = 13;

/// The tables: the common configuration, then a pending table for each CPU.
const TABLES: u64 = 0xa000_0000;
const TABLE: u64 = 0x1_0000;

const STAY: &str = "arm-gicv3.x-lpis-stay=on";

/// The tables are in reserved memory: they are used further, and interrupts are direct.
pub fn reserved(lab: &Lab) -> Verdict {
    let transcript = boot(lab, "reserved", vec![TreeEdit::Reserve(TABLES, (1 + CPUS) * TABLE)])?;
    let config = format!("the tables are used further, with the configuration at {TABLES:#x}");
    expect(&transcript, &[&config, "(14 INTID bits)", "direct injection by GICv4.1", "4 CPUs online"])?;
    let irqs = transcript.number("irqs")?;
    println!("   {irqs} interrupts of the disk");
    if irqs == 0 { Err("dom0 took no interrupt of the disk".into()) } else { Ok(()) }
}

/// The tables are where they may be overwritten: the machine runs without LPIs, and the disk with a wired interrupt.
pub fn lost(lab: &Lab) -> Verdict {
    let transcript = boot(lab, "lost", Vec::new())?;
    expect(&transcript, &["no LPIs on this machine: dom0 gets no ITS and no MSIs", "4 CPUs online"])
}

fn expect(transcript: &Transcript, lines: &[&str]) -> Verdict {
    match lines.iter().find(|says| !transcript.lines.iter().any(|(_, line)| line.contains(*says))) {
        None => Ok(()),
        Some(says) => Err(format!("no line `{says}`")),
    }
}

/// Boots dom0 with I/O.
fn boot(lab: &Lab, what: &str, edits: Vec<TreeEdit>) -> Result<Transcript, String> {
    let text = |failure: crate::fail::Failure| failure.text;
    let socket = |kind: &str| std::env::temp_dir().join(format!("doorward-{what}-{kind}-{}", std::process::id()));
    let (qtest, qmp) = (socket("qtest"), socket("qmp"));
    let mut machine = lab.gicv41(lab.linux("fio", "100"))?;
    machine.edits = edits;
    machine.qmp = Some(qmp.clone());
    machine.extra.extend(["-S", "-global", STAY].map(str::to_owned));
    machine.extra.extend(Qtest::flags(&qtest));
    let mut session = lab.start(&machine, 150)?;
    let started = leave_enabled(&qtest).and_then(|()| Qmp::connect(&qmp)?.monitor("cont").map(drop));
    let _ = std::fs::remove_file(&qtest);
    let _ = std::fs::remove_file(&qmp);
    started.map_err(text)?;
    let mut lines = Vec::new();
    let end = loop {
        match session.next() {
            Event::Line(line) => lines.push((session.started.elapsed(), line)),
            Event::Ended(end) => break end,
        }
    };
    let transcript = Transcript { lines, end };
    lab.judge(&transcript)?;
    Ok(transcript)
}

/// Enables the LPIs of all redistributors, with tables that are zero.
fn leave_enabled(socket: &Path) -> Outcome {
    let mut qtest = Qtest::connect(socket)?;
    for cpu in 0..CPUS {
        let redistributor = GICR + cpu * GICR_STRIDE;
        qtest.write64(redistributor + PROPBASER, TABLES | CACHED | ID_BITS)?;
        qtest.write64(redistributor + PENDBASER, (TABLES + (1 + cpu) * TABLE) | CACHED)?;
        qtest.write32(redistributor + CTLR, ENABLE_LPIS)?;
    }
    Ok(())
}
