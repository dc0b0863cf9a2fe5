//! The outcome of each mutant, kept from run to run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::tree;
use crate::fail::{Doing, Outcome};

/// The outcome of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A test failed or used up its processor time.
    Caught,
    /// The tests timed out.
    Timeout,
    /// All tests passed.
    Missed,
    /// It does not build.
    Unviable,
}

const ALL: [(Seen, &str); 4] =
    [(Seen::Caught, "caught"), (Seen::Timeout, "timeout"), (Seen::Missed, "missed"), (Seen::Unviable, "unviable")];

/// By name: the outcome and the commit.
#[derive(Default)]
pub struct Outcomes(BTreeMap<String, (Seen, String)>);

impl Outcomes {
    fn file() -> PathBuf {
        tree::folder().join("outcomes")
    }

    /// Reads the outcomes of earlier runs, with those that the last run wrote to `output`, even if it was interrupted.
    pub fn read(output: &Path) -> Outcome<Outcomes> {
        let kept = |file: &Path| {
            if file.exists() { std::fs::read_to_string(file).doing(file.display()) } else { Ok(String::new()) }
        };
        let mut all = Outcomes(kept(&Self::file())?.lines().filter_map(line).collect());
        let commit = kept(&running())?;
        if !commit.is_empty() {
            all.add(output, &commit)?;
            all.write()?;
            std::fs::remove_file(running()).doing(running().display())?;
        }
        Ok(all)
    }

    /// Writes the outcomes for later runs.
    pub fn write(&self) -> Outcome {
        let word = |seen| ALL.iter().find(|(s, _)| *s == seen).map_or("", |(_, word)| word);
        let lines = self.0.iter().map(|(name, (seen, commit))| format!("{} {commit} {name}\n", word(*seen)));
        std::fs::write(Self::file(), lines.collect::<String>()).doing(Self::file().display())
    }

    /// Adds the outcomes that cargo-mutants wrote.
    fn add(&mut self, output: &Path, commit: &str) -> Outcome {
        for (seen, word) in ALL {
            // The file is missing until a mutant has had this outcome.
            let text = std::fs::read_to_string(output.join(format!("{word}.txt"))).unwrap_or_default();
            self.0.extend(text.lines().map(|name| (name.to_owned(), (seen, commit.to_owned()))));
        }
        Ok(())
    }

    /// Drops the outcomes of mutants that no longer exist.
    pub fn keep(&mut self, names: &[String]) {
        self.0.retain(|name, _| names.contains(name));
    }

    /// The outcome of a mutant, if it was tried.
    pub fn get(&self, name: &str) -> Option<Seen> {
        self.0.get(name).map(|(seen, _)| *seen)
    }

    /// The mutants with this outcome.
    pub fn names(&self, seen: Seen) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(_, (s, _))| *s == seen).map(|(name, _)| name.as_str())
    }

    /// The number of mutants that were tried.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The commits that they were tried at.
    pub fn commits(&self) -> Vec<&str> {
        let commits: BTreeSet<&str> = self.0.values().map(|(_, commit)| commit.as_str()).collect();
        commits.into_iter().collect()
    }
}

/// The file that exists until the outcomes of a run have been added. It contains the commit.
fn running() -> PathBuf {
    tree::folder().join("running")
}

/// Records that a run begins.
pub fn begin(commit: &str) -> Outcome {
    // Remove the results of an earlier run.
    let _ = std::fs::remove_dir_all(tree::folder().join("mutants.out"));
    std::fs::write(running(), commit).doing(running().display())
}

fn line(line: &str) -> Option<(String, (Seen, String))> {
    let (word, rest) = line.split_once(' ')?;
    let (commit, name) = rest.split_once(' ')?;
    let (seen, _) = ALL.iter().find(|(_, w)| *w == word)?;
    Some((name.to_owned(), (*seen, commit.to_owned())))
}

/// The mutants that a Markdown list gives reasons for: a heading for each file, with lines `- `mutant`: reason` below. Mutants
/// are listed without line numbers, which change. A name that ends in `::*` stands for all names with that beginning.
pub struct Reasons(Vec<(String, String)>);

impl Reasons {
    /// Reads the list.
    pub fn of(text: &str) -> Reasons {
        let mut file = String::new();
        let mut all = Vec::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                file = heading.trim().to_owned();
            } else if let Some((what, _)) = line.strip_prefix("- `").and_then(|rest| rest.split_once("`: ")) {
                all.push((file.clone(), what.to_owned()));
            }
        }
        Reasons(all)
    }

    /// Whether there is a reason for a mutant.
    pub fn has(&self, name: &str) -> bool {
        let (at, what) = name.split_once(": ").unwrap_or(("", name));
        let file = at.split(':').next().unwrap_or_default();
        let fits = |listed: &str| match listed.strip_suffix("::*") {
            Some(start) => what.strip_prefix(start).is_some_and(|rest| rest.starts_with("::")),
            None => what == listed,
        };
        self.0.iter().any(|(in_file, listed)| in_file == file && fits(listed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let read = line("missed 0123abcde src/a.rs:1:2: replace + with - in f");
        assert_eq!(read, Some(("src/a.rs:1:2: replace + with - in f".into(), (Seen::Missed, "0123abcde".into()))));
        assert_eq!(line("nonsense"), None);
    }

    #[test]
    fn a_reason_is_found_whatever_the_line_number() {
        let reasons = Reasons::of(
            "# Survivors\n\n## src/a.rs\n\n- `replace + with * in f`: because.\n- `delete ! in A::*`: too.\n",
        );
        assert!(reasons.has("src/a.rs:77:3: replace + with * in f"));
        assert!(!reasons.has("src/a.rs:77:3: replace + with * in fg"));
        assert!(!reasons.has("src/b.rs:77:3: replace + with * in f"));
        assert!(reasons.has("src/a.rs:1:1: delete ! in A::b") && !reasons.has("src/a.rs:1:1: delete ! in B::a"));
    }
}
