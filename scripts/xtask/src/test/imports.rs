//! The import order of the house, checked on the text: a room names only rooms below it.
//!
//! Rooms that stand side by side may use each other in one direction. Comments do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Verdict;
use crate::paths;

/// From the top; rooms in one row stand side by side.
const ROWS: [&[&str]; 8] = [
    &["run", "control", "build", "domain", "host", "vcpu", "dev"],
    &["vits", "pci", "smmu", "sched"],
    &["vgic"],
    &["gic"],
    &["console", "trace", "platform", "mm"],
    &["sync", "mmio", "util"],
    &["arch"],
    &["ids"],
];

/// Rooms that came out of one and still use each other both ways.
const UNSETTLED: [&str; 7] = ["run", "control", "build", "domain", "host", "vcpu", "dev"];

/// Who names whom, with one place for each.
type Uses = BTreeMap<(String, String), String>;

/// Scans `src/`.
pub fn check() -> Verdict {
    let root = paths::root();
    let mut uses = Uses::new();
    let mut strangers = BTreeSet::new();
    for file in sources(&root.join("src")) {
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        let Some(room) = room(&name) else { continue };
        if row(&room).is_none() {
            strangers.insert(room.clone());
        }
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{name}: {error}"))?;
        for (line, other) in named(&text) {
            uses.entry((room.clone(), other)).or_insert_with(|| format!("{name}:{line}"));
        }
    }
    if let Some(room) = strangers.first() {
        return Err(format!("src/{room} has no place in the import order"));
    }
    let wrong = judge(&uses);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The room a file belongs to; the library's root and the image belong to none.
fn room(name: &str) -> Option<String> {
    let inner = name.strip_prefix("src/")?;
    let first = inner.split('/').next()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(room, "lib" | "main" | "boot")).then(|| room.to_owned())
}

fn row(room: &str) -> Option<usize> {
    ROWS.iter().position(|rooms| rooms.contains(&room))
}

/// The rooms that a file names as `crate::ROOM`, with line numbers.
fn named(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for rest in code.split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split(',').map(str::trim).collect(),
                None => vec![rest],
            };
            for name in names {
                let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if row(&name).is_some() {
                    found.push((number + 1, name));
                }
            }
        }
    }
    found
}

/// The sentences about what is wrong.
fn judge(uses: &Uses) -> Vec<String> {
    let mut wrong = Vec::new();
    for ((from, to), place) in uses {
        let (Some(upper), Some(lower)) = (row(from), row(to)) else { continue };
        if lower < upper {
            wrong.push(format!("{place}: {from} uses {to}, which is above it"));
        } else if from < to
            && lower == upper
            && !UNSETTLED.contains(&from.as_str())
            && let Some(back) = uses.get(&(to.clone(), from.clone()))
        {
            wrong.push(format!("{place} and {back}: {from} and {to} use each other"));
        }
    }
    wrong
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(pairs: &[(&str, &str)]) -> Uses {
        pairs.iter().map(|(a, b)| ((a.to_string(), b.to_string()), "x.rs:1".to_owned())).collect()
    }

    #[test]
    fn a_room_that_names_one_above_it_is_wrong() {
        assert_eq!(judge(&uses(&[("gic", "vgic")])).len(), 1);
        assert!(judge(&uses(&[("vgic", "gic"), ("run", "ids")])).is_empty());
    }

    #[test]
    fn side_by_side_one_direction_is_enough() {
        assert!(judge(&uses(&[("mm", "platform")])).is_empty());
        assert_eq!(judge(&uses(&[("mm", "platform"), ("platform", "mm")])).len(), 1);
    }

    #[test]
    fn groups_and_paths_are_seen_and_comments_are_not() {
        let text = "use crate::{ids, mm::Frame};\n// crate::vits\nlet x = crate::gic::y();\n";
        let names = named(text);
        assert_eq!(names, [(1, "ids".into()), (1, "mm".into()), (3, "gic".into())]);
    }
}
