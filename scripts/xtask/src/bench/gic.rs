//! `bench gic`: counts the instructions of the GIC driver's verbs and checks that they do not grow with the number of vPEs.
//!
//! `benches/gic` runs under valgrind on this machine, without QEMU. It counts instructions of the host, not of AArch64, so rows
//! are compared with themselves only.

use std::collections::BTreeMap;
use std::process::Command;

use crate::fail::{Failure, Outcome};
use crate::setup::tools;
use crate::{paths, sh};

/// The version of the runner: the same as that of `gungraun` in Cargo.toml.
const RUNNER: &str = "0.20.0";

/// In the order of `benches/gic`.
const VPES: [u32; 3] = [1, 64, 16384];
const GENERATIONS: [(&str, &str); 2] = [("v40", "GICv4.0"), ("v41", "GICv4.1")];
const VERBS: [(&str, &str); 6] = [
    ("enter", "enter"),
    ("leave", "leave, to block"),
    ("doorbell", "look up a doorbell"),
    ("vmovp", "enter after one VMOVP"),
    ("vmapti", "map an event: one VMAPTI"),
    ("device_64", "map a device with 64 events"),
];

/// A row is flat if its largest count exceeds its smallest by no more than this.
const PER_CENT: u64 = 3;

/// Counts by verb, generation and index in [`VPES`].
type Counts = BTreeMap<(String, String, usize), u64>;

/// Runs the benchmark, prints the table and checks that its rows are flat.
pub fn run() -> Outcome {
    tools::valgrind()?;
    let runner = tools::cargo("gungraun-runner", RUNNER)?;
    sh::say("counting instructions under valgrind");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["bench", "--quiet", "--package", "doorward", "--features", "bench", "--bench", "gic"]);
    command.env("GUNGRAUN_RUNNER", runner).env("GUNGRAUN_COLOR", "never").current_dir(paths::root());
    let counts = read(&sh::quiet(&mut command)?);
    let (table, steep) = judge(&counts)?;
    print!("{table}");
    if steep.is_empty() {
        println!("flat: no row differs by more than {PER_CENT} %");
        Ok(())
    } else {
        Err(Failure::new(format!("not flat: {}", steep.join("; "))))
    }
}

/// Reads counts from lines such as `gic::gic::enter v40_0:(…)` and `  Instructions:   157|N/A   (…)`.
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

/// The table, and the rows that are not flat.
fn judge(counts: &Counts) -> Outcome<(String, Vec<String>)> {
    let (mut head, mut rule) = ("| instructions, with so many vPEs |".to_owned(), "|---|".to_owned());
    for (_, generation) in GENERATIONS {
        for vpes in VPES {
            head += &format!(" {generation}: {vpes} |");
            rule += "---|";
        }
    }
    let (mut table, mut steep) = (format!("{head}\n{rule}\n"), Vec::new());
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
                steep.push(format!("{says} on {generation} takes {least} to {most}"));
            }
        }
        table.push('\n');
    }
    Ok((table, steep))
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
    fn a_table_whose_counts_do_not_grow_is_flat() {
        let (table, steep) = judge(&read(&output(|_, _, nth| 100 + nth as u64))).unwrap();
        assert!(steep.is_empty());
        assert!(table.contains("| enter | 100 | 101 | 102 | 100 | 101 | 102 |"), "{table}");
    }

    #[test]
    fn a_row_that_grows_is_reported() {
        let rises = |verb: &str, generation: &str, nth: usize| {
            if (verb, generation, nth) == ("vmovp", "v41", 2) { 104 } else { 100 }
        };
        let (_, steep) = judge(&read(&output(rises))).unwrap();
        assert_eq!(steep, ["enter after one VMOVP on GICv4.1 takes 100 to 104"]);
    }

    #[test]
    fn a_missing_count_is_an_error() {
        let text = output(|_, _, _| 100);
        let short: Vec<&str> = text.lines().take(20).collect();
        assert!(judge(&read(&short.join("\n"))).is_err());
    }
}
