//! The check of imports: rooms import only rooms below them, and no files import each other in a circle.
//!
//! A room is a top-level folder or file of `src`. Rooms in one row stand side by side and may use each other in one
//! direction. Circles are looked for among all files, within a room as well as across rooms. Only production code counts:
//! what `#[cfg(test)]` covers may import anything. [`tree`] reads the files, [`uses`] finds what they import.
//!
//! [`needed_by`] answers another question by the same means: which rooms the tests of one room need to be built.

mod cfg;
mod tree;
mod uses;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use super::Verdict;
use crate::paths;
use tree::{Scope, Tree};
use uses::Uses;

/// The rooms from the top; those in one row stand side by side.
const ROWS: [&[&str]; 14] = [
    &["main"],
    &["run"],
    &["control"],
    &["build"],
    &["domain"],
    &["host"],
    &["vcpu"],
    &["dev", "vits", "virtio", "pci", "sched", "smmu"],
    &["vgic"],
    &["gic"],
    &["console", "trace", "platform", "mm"],
    &["sync", "mmio", "util"],
    &["arch"],
    &["ids"],
];

/// Reads `src/` and checks it.
pub fn check() -> Verdict {
    let root = paths::root();
    let mut sources = BTreeMap::new();
    read(&root.join("src"), "src", &mut sources).map_err(|error| format!("src: {error}"))?;
    judge(&sources)
}

/// The files of production code, with their text.
pub fn production_files() -> Result<Vec<(String, String)>, String> {
    let mut sources = BTreeMap::new();
    read(&paths::root().join("src"), "src", &mut sources).map_err(|error| format!("src: {error}"))?;
    let tree = Tree::parse(&sources, Scope::Production)?;
    let files: BTreeSet<&str> = tree.files().collect();
    let text = |file: &str| sources.get(file).cloned().unwrap_or_default();
    Ok(files.into_iter().map(|file| (file.to_owned(), text(file))).collect())
}

/// The rooms `wanted` and all that a test build of the library needs with them. Rooms are whole: what a room's tests import is needed
/// with the room. `sources` are the files of the checkout, by name.
pub fn needed_by(wanted: &[&str], sources: &BTreeMap<String, String>) -> Result<BTreeSet<String>, String> {
    let uses = uses::find(&Tree::parse(sources, Scope::WithTests)?);
    let rooms: BTreeSet<(&str, &str)> = uses.keys().filter_map(|(from, to)| Some((room(from)?, room(to)?))).collect();
    let mut needed = BTreeSet::new();
    let mut open = wanted.to_vec();
    while let Some(room) = open.pop() {
        if needed.insert(room.to_owned()) {
            open.extend(rooms.iter().filter(|(from, _)| *from == room).map(|(_, to)| *to));
        }
    }
    Ok(needed)
}

/// Reads every Rust file below `folder` under the name that it has from the root of the checkout.
fn read(folder: &Path, name: &str, sources: &mut BTreeMap<String, String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = format!("{name}/{}", path.file_name().unwrap_or_default().display());
        if path.is_dir() {
            read(&path, &name, sources)?;
        } else if name.ends_with(".rs") {
            sources.insert(name, std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Checks the files of a library (`src/lib.rs`) and its program (`src/main.rs`).
fn judge(sources: &BTreeMap<String, String>) -> Verdict {
    let tree = Tree::parse(sources, Scope::Production)?;
    let uses = uses::find(&tree);
    let unknown: BTreeSet<&str> = tree.files().filter_map(room).filter(|room| row(room).is_none()).collect();
    let upward = upward(&uses);
    let mutual = mutual(&uses);
    let circles = circles(&uses);
    if unknown.is_empty() && upward.is_empty() && mutual.is_empty() && circles.is_empty() {
        return Ok(());
    }
    let mut report = format!(
        "{} imports of a room above, {} pairs of rooms that import each other, {} circles of files ({} files)\n",
        upward.len(),
        mutual.len(),
        circles.len(),
        circles.iter().map(BTreeSet::len).sum::<usize>(),
    );
    for room in unknown {
        report += &format!("src/{room} has no place in the order of rooms\n");
    }
    for line in upward.iter().chain(&mutual) {
        let _ = writeln!(report, "{line}");
    }
    for (number, circle) in circles.iter().enumerate() {
        report += &describe(number + 1, circle, &uses);
    }
    Err(report)
}

/// The room that a file belongs to. The library's root is in none; what is beside `main.rs` in the program is in `main`.
pub fn room(file: &str) -> Option<&str> {
    let first = file.strip_prefix("src/")?.split('/').next()?;
    match first.strip_suffix(".rs").unwrap_or(first) {
        "lib" => None,
        "boot" => Some("main"),
        room => Some(room),
    }
}

fn row(room: &str) -> Option<usize> {
    ROWS.iter().position(|rooms| rooms.contains(&room))
}

/// The imports that point to a room above, a line for each pair of files.
fn upward(uses: &Uses) -> Vec<String> {
    let mut lines = Vec::new();
    for ((from, to), import) in uses {
        if let (Some(a), Some(b)) = (room(from), room(to))
            && let (Some(upper), Some(lower)) = (row(a), row(b))
            && lower < upper
        {
            lines.push(format!("{from}:{}: {a} imports {b}, which is above it: {}", import.line, import.what(to)));
        }
    }
    lines
}

/// The pairs of rooms in one row that import each other.
fn mutual(uses: &Uses) -> Vec<String> {
    let mut pairs: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for ((from, to), import) in uses {
        if let (Some(a), Some(b)) = (room(from), room(to))
            && a != b
            && row(a) == row(b)
        {
            pairs.entry((a, b)).or_insert_with(|| format!("{from}:{} ({})", import.line, import.what(to)));
        }
    }
    let both = pairs.iter().filter(|((a, b), _)| a < b);
    both.filter_map(|((a, b), place)| {
        let back = pairs.get(&(b, a))?;
        Some(format!("{a} and {b} import each other: {place}, {back}"))
    })
    .collect()
}

/// The circles: sets of files each of which reaches every other one by imports.
fn circles(uses: &Uses) -> Vec<BTreeSet<&str>> {
    let graph: DiGraphMap<&str, ()> = uses.keys().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let mut circles: Vec<BTreeSet<&str>> =
        tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1).map(BTreeSet::from_iter).collect();
    circles.sort();
    circles
}

/// A circle with all the imports inside it, one line for each pair of files.
fn describe(number: usize, circle: &BTreeSet<&str>, uses: &Uses) -> String {
    let rooms: BTreeSet<&str> = circle.iter().filter_map(|file| room(file)).collect();
    let rooms = Vec::from_iter(rooms).join(", ");
    let mut text = format!("circle {number}: {} files in {rooms}\n", circle.len());
    for ((from, to), import) in uses {
        if circle.contains(from.as_str()) && circle.contains(to.as_str()) {
            text += &format!("  {from}:{} -> {}\n", import.line, import.what(to));
        }
    }
    text
}
