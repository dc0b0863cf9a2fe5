//! What dom0 keeps of a CPU that it shares with a domU that asks for a reset at once, in each of its lives.
//!
//! A domU with a RAM disk and a cap is built anew at its own expense: dom0 measures for how much of 2.5 seconds it has the CPU and
//! how long it is without it. A small domU without a cap is delayed. Both may log one line of each kind in a second, and both can be
//! ended by hand. The time is that of the instructions (`-icount`), so the load of the host does not matter.

use crate::domu::DomU;
use crate::qemu::Machine;
use crate::session::{NEXT, Session};
use crate::test::{Case, Lab, Verdict};

use super::flood::{self, CLOCK, LONGEST_GAP_US, Measured, SLICE_US};
use super::{domains, guests};

/// Size of the RAM disk in MiB, and the cap of the domU that has it in percent of the CPU. To copy the RAM disk takes several
/// slices, and the domU is restarted while dom0 measures.
const RAMDISK: (u64, u32) = (32, 10);
/// The same with `--long`. A domU runs for its whole cap in one go: 30 % of a period is less than two slices.
const RAMDISK_LONG: (u64, u32) = (256, 30);

/// How much less of the CPU dom0 may have than the cap leaves it, as a part of the CPU: the switches, and what exceeds the cap in
/// the last of its periods.
const TOLERANCE: f64 = 0.03;

/// The most lives of the small domU in six seconds, until it has been ended: the first three begin without a delay, the others
/// 100, 200, 400, 800, 1600 and 3200 ms after the end of the one before.
const MOST_LIVES: usize = 9;

/// The kinds of lines that a reset causes.
const KINDS: [&str; 2] = [" dom1: reset", " dom1: restarted"];

/// The most lines of one kind until the domU has been ended: one in each second that has begun.
const MOST_LINES: usize = 6;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let shows = "a domU that is reset over and over takes no time of dom0, is delayed, and floods no log";
    vec![Case { name: "sched-resets", shows, bare: false, run: resets }]
}

fn resets(lab: &Lab) -> Verdict {
    let machine = guests::machine(lab, "guest-resets")?;
    let kernel = machine.kernel.clone().unwrap_or_default();
    let small = DomU { kernel, mem: 16, ..DomU::default() };
    let (ramdisk, cap) = if lab.long { RAMDISK_LONG } else { RAMDISK };
    let file = lab.dir.join("ramdisk");
    std::fs::write(&file, vec![0xa5; (ramdisk << 20) as usize]).map_err(|error| error.to_string())?;
    let large = DomU { initrd: Some(file.clone()), mem: ramdisk + 32, cap: Some(cap), ..small.clone() };

    let mut wrong = Vec::new();
    let measured = run(lab, &machine, large, &mut wrong);
    let _ = std::fs::remove_file(file);
    let least = 1.0 - f64::from(cap) / 100.0 - TOLERANCE;
    let Measured { share, .. } = measured?;
    if share < least {
        wrong.push(format!("cap {cap}: dom0 had {:.1} % of the CPU, less than {:.1} %", 100.0 * share, 100.0 * least));
    }
    run(lab, &machine, small, &mut wrong)?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// One run with this domU. Returns what dom0 has measured, and adds what is wrong.
fn run(lab: &Lab, machine: &Machine, domu: DomU, wrong: &mut Vec<String>) -> Result<Measured, String> {
    let what = format!("{} MiB, cap {}", domu.mem, domu.cap.unwrap_or(100));
    let capped = domu.cap.is_some();
    let machine = Machine {
        smp: 1,
        hv: format!("sched=credit sched_credit_tslice_ms={} dom0_max_vcpus=1", SLICE_US / 1000),
        domus: vec![domu],
        extra: CLOCK.map(str::to_owned).to_vec(),
        ..machine.clone()
    };
    let (mut dom0, mut ended, mut gone) = (None, false, false);
    let transcript = lab.watch(&machine, 120, |session: &mut Session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        let measures = dom0.is_none();
        dom0 = dom0.or(flood::measured(line));
        // Then it is ended by hand, at any moment of a life or of a delay.
        let keys = match line.trim_end() {
            _ if measures && dom0.is_some() => NEXT,
            "(dom1 has the keyboard)" => NEXT,
            line if line.starts_with("(the hypervisor has the keyboard;") => "nK",
            _ => "",
        };
        gone |= line.contains(" info host: free memory: ") && dom0.is_some() && ended;
        ended |= line.contains(" dom1: crashed");
        if gone {
            session.kill();
        }
        session.type_in(keys).map_err(|failure| failure.text)
    })?;
    let lines = |text: &str| transcript.lines.iter().filter(|(_, line)| line.contains(text)).count();
    let lives = lines("GUEST RESETS");
    let Some(measured) = dom0 else { return Err(format!("{what}: dom0 did not measure: {:?}", transcript.end)) };
    let Measured { share, gap_us } = measured;
    println!(
        "   {what}: {lives} lives; dom0 has {:.1} % of the CPU, is without it for {gap_us} us at most",
        100.0 * share
    );
    if gap_us > LONGEST_GAP_US {
        wrong.push(format!("{what}: dom0 was without a CPU for {gap_us} us, more than {LONGEST_GAP_US}"));
    }
    if lives < 2 || !capped && lives > MOST_LIVES {
        wrong.push(format!("{what}: {lives} lives, not 2 to {MOST_LIVES}"));
    }
    if !gone {
        wrong.push(format!("{what}: it could not be ended by hand: {:?}", transcript.end));
    }
    // dom0's guest allocates nothing, so as much is free as before the domU was built.
    let mut free = transcript.lines.iter().filter_map(|(_, line)| domains::free(line));
    if let (Some(before), Some(after)) = (free.next(), free.next_back())
        && before != after
    {
        wrong.push(format!("{what}: free before it was built: {before}, after it has ended: {after}"));
    }
    for kind in KINDS {
        let count = lines(kind);
        if !(1..=MOST_LINES).contains(&count) {
            wrong.push(format!("{what}: {count} lines with `{kind}`, not 1 to {MOST_LINES}"));
        }
    }
    lab.complaints()?;
    Ok(measured)
}
