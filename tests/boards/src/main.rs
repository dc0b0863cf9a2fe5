//! Runs the device trees of real boards through the reader and the maker of dom0's tree, on the host: `cargo xtask boards`.
//!
//! [`loader`] adds what a boot loader adds. [`judge`] says whether the tree is accepted, and checks dom0's tree, for which
//! [`references`] finds what dangles. The last part of the output is compared with the committed file.

mod judge;
mod loader;
mod reasons;
mod references;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use judge::Verdict;
use reasons::Reasons;

/// How many boards are named for one sentence.
const NAMED: usize = 4;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (folder, file, rest) = match &words[..] {
        [folder, file, rest @ ..] => (PathBuf::from(folder), file, rest),
        _ => {
            eprintln!("usage: boards FOLDER REASONS [--write-dom0 FOLDER] [--all] [--any-number]");
            return ExitCode::from(2);
        }
    };
    match run(&folder, file, rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("boards: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(folder: &Path, file: &str, rest: &[String]) -> Result<bool, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let reasons = Reasons::of(&text).ok_or(format!("{file}: it names no least number of boards"))?;
    let out = rest.iter().position(|word| word == "--write-dom0").and_then(|at| rest.get(at + 1)).map(PathBuf::from);
    let every = rest.iter().any(|word| word == "--all");

    let mut files = Vec::new();
    list(folder, &mut files).map_err(|error| format!("{}: {error}", folder.display()))?;
    files.sort();
    let mut all: Vec<(String, Verdict)> = Vec::new();
    for path in &files {
        let blob = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if !blob.windows(10).any(|words| words == b"arm,gic-v3") {
            continue;
        }
        let name = path.strip_prefix(folder).unwrap_or(path).with_extension("");
        let verdict = judge::judge(&blob);
        if let Some(out) = &out {
            let place = out.join(&name).with_extension("dtb");
            let made =
                std::fs::create_dir_all(place.with_file_name("")).and_then(|()| std::fs::write(&place, &verdict.dom0));
            made.map_err(|error| format!("{}: {error}", place.display()))?;
        }
        all.push((name.display().to_string(), verdict));
    }
    if all.is_empty() {
        return Err(format!("{}: no device tree with a GICv3", folder.display()));
    }

    let accepted: Vec<&(String, Verdict)> = all.iter().filter(|(_, verdict)| verdict.refused.is_none()).collect();
    let warned = accepted.iter().filter(|(_, verdict)| !verdict.warnings.is_empty()).count();
    let mut refused: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let (mut warnings, mut wrong) = (refused.clone(), refused.clone());
    for (name, verdict) in &all {
        verdict.refused.iter().for_each(|sentence| refused.entry(sentence).or_default().push(name));
        verdict.warnings.iter().for_each(|sentence| warnings.entry(sentence).or_default().push(name));
        verdict.wrong.iter().for_each(|sentence| wrong.entry(sentence).or_default().push(name));
    }
    table("accepted with a warning", &warnings, every);
    table("refused", &refused, true);
    table("wrong in dom0's tree", &wrong, every);

    let unexplained: Vec<&&str> = refused.keys().filter(|sentence| !reasons.has(sentence)).collect();
    unexplained.iter().for_each(|sentence| println!("refused without a reason in {file}: {sentence}"));
    println!(
        "{} device trees with a GICv3: {} accepted, {warned} of them with warnings; {} refused; {} things wrong in dom0's trees",
        all.len(),
        accepted.len(),
        all.len() - accepted.len(),
        wrong.len()
    );
    let enough = accepted.len() >= reasons.least || rest.iter().any(|word| word == "--any-number");
    if !enough {
        println!("fewer than {} are accepted", reasons.least);
    }
    Ok(enough && unexplained.is_empty() && wrong.is_empty())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "dtb") {
            files.push(path);
        }
    }
    Ok(())
}

fn table(title: &str, rows: &BTreeMap<&str, Vec<&str>>, every: bool) {
    if rows.is_empty() {
        return;
    }
    println!("{title}:");
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|(_, boards)| std::cmp::Reverse(boards.len()));
    let shown = if every { rows.len() } else { rows.len().min(60) };
    for (sentence, boards) in &rows[..shown] {
        let more = if boards.len() > NAMED { ", ..." } else { "" };
        println!("{:>6}  {sentence}  ({}{more})", boards.len(), boards[..boards.len().min(NAMED)].join(", "));
    }
    if shown < rows.len() {
        println!("        {} more (--all)", rows.len() - shown);
    }
}
