//! `bench gic`: what the verbs of the GIC driver cost, in instructions, and whether that grows with the number of vPEs.
//!
//! The counting is done by `benches/gic` under valgrind, on this machine and without QEMU. Instructions are the host's, not an
//! AArch64's; what counts is that a row is flat.

use std::collections::BTreeMap;
use std::process::Command;

use crate::fail::{Failure, Outcome};
use crate::setup::tools;
use crate::{paths, sh};

/// The version of `gungraun` in Cargo.toml; the runner has to be of the same.
const RUNNER: &str = "0.20.0";

/// As `benches/gic` numbers them.
const VPES: [u32; 3] = [1, 64, 16384];
const GENERATIONS: [(&str, &str); 2] = [("v40", "GICv4.0"), ("v41", "GICv4.1")];
const VERBS: [(&str, &str); 6] = [
    ("enter", "enter"),
    ("leave", "leave, to block"),
    ("doorbell", "doorbell: whose is it"),
    ("vmovp", "enter after one VMOVP"),
    ("vmapti", "map an event: one VMAPTI"),
    ("device_64", "map a device with 64 events"),
];

/// A row is flat if its largest count is no further above its smallest.
const PER_CENT: u64 = 3;

/// Counts by verb, generation and place in [`VPES`].
type Counts = BTreeMap<(String, String, usize), u64>;

/// Counts, prints the table and judges it.
pub fn run() -> Outcome {
    tools::valgrind()?;
    let runner = tools::cargo("gungraun-runner", RUNNER)?;
    sh::say("counting instructions under valgrind");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["bench", "--quiet", "--package", "doorward", "--features", "bench", "--bench", "gic"]);
    command.env("GUNGRAUN_RUNNER", runner).env("GUNGRAUN_COLOR", "never").current_dir(paths::root());
    let counts = read(&sh::quiet(&mut command)?);
    let (table, bent) = judge(&counts)?;
    print!("{table}");
    if bent.is_empty() {
        println!("flat: no row differs by more than {PER_CENT} %");
        Ok(())
    } else {
        Err(Failure::new(format!("not flat: {}", bent.join("; "))))
    }
}

/// From lines such as `gic::gic::enter v40_0:(…)` and `  Instructions:   157|N/A   (…)`.
fn read(text: &str) -> Counts {
    let mut counts = Counts::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("gic::gic::") {
            current = name.split_once(':').and_then(|(name, _)| {
                let (verb, place) = name.split_once(' ')?;
                let (generation, nth) = place.rsplit_once('_')?;
                Some((verb.to_owned(), generation.to_owned(), nth.parse().ok()?))
            });
        } else if let Some(value) = line.trim_start().strip_prefix("Instructions:") {
            let digits = value.trim_start().split('|').next().unwrap_or_default().trim();
            if let (Some(key), Ok(count)) = (current.take(), digits.parse()) {
                counts.insert(key, count);
            }
        }
    }
    counts
}

/// The table, and what is not flat in it.
fn judge(counts: &Counts) -> Outcome<(String, Vec<String>)> {
    let (mut head, mut rule) = ("| instructions, with so many vPEs |".to_owned(), "|---|".to_owned());
    for (_, generation) in GENERATIONS {
        for vpes in VPES {
            head += &format!(" {generation}: {vpes} |");
            rule += "---|";
        }
    }
    let (mut table, mut bent) = (format!("{head}\n{rule}\n"), Vec::new());
    for (verb, says) in VERBS {
        table += &format!("| {says} |");
        for (key, generation) in GENERATIONS {
            let mut row = Vec::new();
            for nth in 0..VPES.len() {
                let count = counts.get(&(verb.to_owned(), key.to_owned(), nth));
                row.push(*count.ok_or_else(|| Failure::new(format!("`{verb}` was not counted on {generation}")))?);
            }
            row.iter().for_each(|count| table += &format!(" {count} |"));
            let (least, most) = (row.iter().min().copied().unwrap_or(0), row.iter().max().copied().unwrap_or(0));
            if most * 100 > least * (100 + PER_CENT) {
                bent.push(format!("{says} on {generation} takes {least} to {most}"));
            }
        }
        table.push('\n');
    }
    Ok((table, bent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(of: impl Fn(&str, &str, usize) -> u64) -> String {
        let mut text = String::new();
        for (verb, _) in VERBS {
            for (generation, _) in GENERATIONS {
                for (nth, vpes) in VPES.iter().enumerate() {
                    text += &format!("gic::gic::{verb} {generation}_{nth}:(machine(Generation :: X, {vpes}))\n");
                    text += &format!("  Instructions:   {}|157   (No change)\n", of(verb, generation, nth));
                    text += "  L1 Hits:    209|209     (No change)\n";
                }
            }
        }
        text
    }

    #[test]
    fn a_table_without_slope_is_flat() {
        let (table, bent) = judge(&read(&output(|_, _, nth| 100 + nth as u64))).unwrap();
        assert!(bent.is_empty());
        assert!(table.contains("| enter | 100 | 101 | 102 | 100 | 101 | 102 |"), "{table}");
    }

    #[test]
    fn one_row_that_rises_is_named() {
        let rises = |verb: &str, generation: &str, nth: usize| {
            if (verb, generation, nth) == ("vmovp", "v41", 2) { 104 } else { 100 }
        };
        let (_, bent) = judge(&read(&output(rises))).unwrap();
        assert_eq!(bent, ["enter after one VMOVP on GICv4.1 takes 100 to 104"]);
    }

    #[test]
    fn what_was_not_counted_is_no_success() {
        let text = output(|_, _, _| 100);
        let short: Vec<&str> = text.lines().take(20).collect();
        assert!(judge(&read(&short.join("\n"))).is_err());
    }
}
