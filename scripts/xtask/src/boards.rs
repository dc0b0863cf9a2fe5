//! `boards`: runs the device trees of real boards through the reader and the maker of dom0's tree.
//!
//! The trees are those that Debian's newest arm64 kernel ships, so a kernel of today adds boards and oddities by itself. The
//! program `tests/boards` does the work, on the host. It fails if fewer trees are accepted than `tests/boards.md` says, if one is
//! refused without a reason in that file, or if something is wrong in one of dom0's trees.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fail::{Failure, Outcome};
use crate::{paths, setup, sh};

/// The file with the least number of boards, and a reason for each refusal.
const REASONS: &str = "tests/boards.md";

/// Run the device trees of all boards that Debian's newest kernel has through the reader
#[derive(clap::Args)]
#[command(after_help = "\
Downloads the package with the device trees (4 MB) to the cache unless it has the newest one, or a folder is named.
Prints which trees are refused by which sentence, which are accepted with a warning, and what is wrong in dom0's.
The last line is the sum. Exit code 1 if fewer are accepted than tests/boards.md says, if a refusal has no reason
there, or if something in a tree for dom0 is wrong. Takes a minute or two.")]
pub struct Options {
    /// Read the device trees in this folder instead of Debian's
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Write the trees that dom0 gets to this folder
    #[arg(long, value_name = "FOLDER")]
    write_dom0: Option<PathBuf>,
}

/// The verb.
pub fn verb(options: &Options) -> Outcome {
    let folder = match &options.folder {
        Some(folder) => absolute(folder)?,
        None => setup::ensure_boards()?,
    };
    sh::say(format_args!("device trees in {}", folder.display()));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "-q", "--profile", "boards", "-p", "boards", "--"]).arg(&folder).arg(REASONS);
    if options.folder.is_some() {
        command.arg("--any-number");
    }
    if let Some(out) = &options.write_dom0 {
        command.arg("--write-dom0").arg(absolute(out)?);
    }
    let status = command.current_dir(paths::root()).status();
    let status = status.map_err(|error| Failure::new(format!("{}: {error}", sh::shown(&command))))?;
    if status.success() { Ok(()) } else { Err(Failure::silent(1)) }
}

/// The program runs in the root of the checkout.
fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}
