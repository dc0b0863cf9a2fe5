//! `bench sched`: exceptions to EL2 and latency of dom0's disk I/O for each combination of sched=, vwfi= and direct=.
//!
//! Exceptions are counted from outside on QEMU's clock of instructions: that is exact, but says nothing about waiting, as idle
//! time passes at once. The number of timer interrupts in the window varies, so the least of the rounds is taken, as in the
//! tests. Latency is in time of the host. Its absolute value depends on the host, so each round also measures a bare Linux, and
//! the table has the median over the rounds of the ratio to it.

use crate::fail::{Failure, Outcome};
use crate::paths;
use crate::qemu::{Boot, Disk};
use crate::test::Lab;
use crate::test::cases::exits::Run;
use crate::test::linux::Transcript;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Exceptions.
    Counts,
    /// Times.
    Latency,
    /// Both.
    All,
}

/// A combination of options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    sched: &'static str,
    vwfi: &'static str,
    direct: &'static str,
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for direct in ["on", "off"] {
        for sched in ["null", "credit"] {
            cells.extend(["native", "trap", "auto"].map(|vwfi| Cell { sched, vwfi, direct }));
        }
    }
    cells
}

impl Cell {
    fn words(self) -> String {
        format!("sched={} vwfi={} direct={}", self.sched, self.vwfi, self.direct)
    }
}

/// The 50th, 99th and 99.9th percentile of the latency of reads, in microseconds.
type Percentiles = [f64; 3];

/// Duration of the reads, in seconds.
const SECONDS: &str = "4";

fn lab(name: &str, boot: Boot) -> Outcome<Lab> {
    let dir = paths::target().join("bench/sched").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).map_err(|why| Failure::new(format!("creating {}: {why}", dir.display())))?;
    Ok(Lab { dir, boot, long: false, gicv41: None })
}

/// Counts exceptions to EL2 for each I/O.
fn exits(cell: Cell) -> Outcome<f64> {
    let words = cell.words();
    let lab = lab("counts", Boot::Doorward)?;
    let (counts, _) = Run::counted("cell", &words, "4k,1,1").go(&lab).map_err(Failure::new)?;
    Ok(counts.total() as f64 / counts.ios as f64)
}

fn percentiles(boot: Boot, hv: &str) -> Outcome<Percentiles> {
    let lab = lab("latency", boot)?;
    let mut machine = lab.linux("percentiles", SECONDS);
    machine.hv = hv.into();
    machine.disk = Disk::Scratch(paths::disk());
    let transcript = lab.linux_run(&machine, 120).map_err(Failure::new)?;
    let line = transcript.said("percentiles").next().unwrap_or_default();
    let field = |key| Transcript::field(line, key).ok_or_else(|| Failure::new(format!("no {key} in `{line}`")));
    Ok([field("p50")?, field("p99")?, field("p999")?])
}

/// The median of each column.
fn medians(rows: &[Percentiles]) -> Percentiles {
    [0, 1, 2].map(|column| {
        let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    })
}

/// Measures and prints the table.
pub fn table(what: What, rounds: usize) -> Outcome {
    let (cells, rounds) = (cells(), rounds.max(1));
    let mut counts: Vec<Option<f64>> = vec![None; cells.len()];
    if what != What::Latency {
        for _ in 1..=rounds {
            for (cell, least) in cells.iter().zip(&mut counts) {
                let exits = exits(*cell)?;
                *least = Some(least.map_or(exits, |least| least.min(exits)));
            }
        }
    }
    let mut ratios: Vec<Vec<Percentiles>> = vec![Vec::new(); cells.len()];
    let mut bare = Vec::new();
    let rounds = if what == What::Counts { 0 } else { rounds };
    for round in 1..=rounds {
        let alone = percentiles(Boot::Bare, "")?;
        println!("  round {round}, bare Linux: {alone:.0?} us");
        bare.push(alone);
        for (cell, ratios) in cells.iter().zip(&mut ratios) {
            let ours = percentiles(Boot::Doorward, &cell.words())?;
            println!("  round {round}, {}: {ours:.0?} us", cell.words());
            ratios.push([0, 1, 2].map(|column| ours[column] / alone[column]));
        }
    }
    println!("\n| sched | vwfi | direct | exceptions per I/O | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|---|");
    for ((cell, count), ratios) in cells.iter().zip(counts).zip(&ratios) {
        let count = count.map_or(String::new(), |count| format!("{count:.3}"));
        let times = if ratios.is_empty() {
            [const { String::new() }; 3]
        } else {
            medians(ratios).map(|ratio| format!("{ratio:.2}"))
        };
        println!("| {} | {} | {} | {count} | {} |", cell.sched, cell.vwfi, cell.direct, times.join(" | "));
    }
    if !bare.is_empty() {
        let [half, most, nearly_all] = medians(&bare);
        println!("\n1.00 is bare Linux: {half:.0}, {most:.0} and {nearly_all:.0} us on this host.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_is_measured_once_and_medians_are_by_column() {
        let words: std::collections::BTreeSet<String> = cells().into_iter().map(Cell::words).collect();
        assert_eq!(words.len(), 12);
        assert_eq!(medians(&[[1.0, 9.0, 3.0], [2.0, 8.0, 5.0], [3.0, 7.0, 4.0]]), [2.0, 8.0, 4.0]);
    }
}
