//! `symbolize`: prints a panic record with functions and lines below its addresses.
//!
//! The image is position-independent, and the record has its load address (`image base 0x…`). Every hexadecimal number of the log
//! that is an address within the image is looked up: the frames of a backtrace, and also ELR in an exception record.

use std::path::PathBuf;

use crate::fail::{Doing, Failure, Outcome};
use crate::paths;

/// Print a log with functions and lines below the addresses of a panic record
#[derive(clap::Args)]
#[command(after_help = "Fails if the log holds no panic record (`image base 0x…`), or the ELF file cannot be read.")]
pub struct Options {
    /// The log
    #[arg(value_name = "LOG")]
    file: PathBuf,
    /// The ELF file of the image that wrote the log [default: target/doorward.elf]
    #[arg(long, value_name = "FILE")]
    elf: Option<PathBuf>,
}

/// The verb.
pub fn verb(options: &Options) -> Outcome {
    let elf = options.elf.clone().unwrap_or_else(paths::elf);
    let file = options.file.display();
    let log = std::fs::read(&options.file).doing(format_args!("reading {file}"))?;
    let log = String::from_utf8_lossy(&log);
    let symbols = addr2line::Loader::new(&elf)
        .map_err(|error| Failure::new(format!("{}: {error}; build the image that the log is from", elf.display())))?;
    let data = std::fs::read(&elf).doing(format_args!("reading {}", elf.display()))?;
    let size = image_size(&data).ok_or_else(|| Failure::new(format!("{} has no loadable segment", elf.display())))?;
    if !log.lines().any(|line| base(line).is_some()) {
        return Err(Failure::new(format!("{file}: no `image base 0x…`, so no panic record")));
    }
    print!("{}", annotate(&log, size, |offset| describe(&symbols, offset)));
    Ok(())
}

/// The size of the image in memory.
fn image_size(elf: &[u8]) -> Option<u64> {
    use object::{Object as _, ObjectSegment as _};
    let file = object::File::parse(elf).ok()?;
    file.segments().map(|segment| segment.address() + segment.size()).max()
}

/// The function at an offset, with file and line if the debug information has them; one entry for each inlined caller.
fn describe(symbols: &addr2line::Loader, offset: u64) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(mut frames) = symbols.find_frames(offset) {
        while let Ok(Some(frame)) = frames.next() {
            let name =
                frame.function.as_ref().and_then(|function| function.demangle().ok().map(|name| name.into_owned()));
            let place = frame.location.as_ref().and_then(|place| Some((place.file?, place.line.unwrap_or(0))));
            match (name, place) {
                (Some(name), Some((file, line))) => found.push(format!("{name} at {}:{line}", shortened(file))),
                (Some(name), None) => found.push(name),
                (None, Some((file, line))) => found.push(format!("{}:{line}", shortened(file))),
                (None, None) => {}
            }
        }
    }
    if found.is_empty() {
        found.extend(symbols.find_symbol(offset).map(|name| addr2line::demangle_auto(name.into(), None).into_owned()));
    }
    found
}

/// A path without that of the checkout.
fn shortened(file: &str) -> &str {
    let root = paths::root();
    file.strip_prefix(&*root.to_string_lossy()).map_or(file, |rest| rest.trim_start_matches('/'))
}

/// The load address that a line names.
fn base(line: &str) -> Option<u64> {
    let hex = line.split_once("image base 0x")?.1;
    let digits: String = hex.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// The log, with a line after each line that holds addresses of the image.
fn annotate(log: &str, size: u64, describe: impl Fn(u64) -> Vec<String>) -> String {
    // The load address may be at the end of the record, so the first one found is used from the start.
    let mut image = log.lines().find_map(base).unwrap_or(0);
    let mut out = String::new();
    for line in log.lines() {
        out += line.trim_end_matches('\r');
        out += "\n";
        if let Some(new) = base(line) {
            image = new;
        }
        for address in addresses(line).into_iter().filter(|address| *address != image) {
            if let Some(offset) = address.checked_sub(image).filter(|offset| *offset < size) {
                for words in describe(offset) {
                    out += &format!("        {address:#x}: {words}\n");
                }
            }
        }
    }
    out
}

/// The numbers in a line that are written as `0x…`.
fn addresses(line: &str) -> Vec<u64> {
    let parts = line.split("0x").skip(1);
    parts
        .filter_map(|part| {
            let digits: String =
                part.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '_').filter(|c| *c != '_').collect();
            u64::from_str_radix(&digits, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_within_the_image_are_looked_up_and_others_are_not() {
        let log = "doorward: panic: oops\nimage base 0x40200000\nelr 0x40201000 far 0x9000000\n";
        let out = annotate(log, 0x10_0000, |offset| vec![format!("f+{offset:#x}")]);
        assert_eq!(out, format!("{log}        0x40201000: f+0x1000\n"));
    }

    #[test]
    fn other_addresses_on_the_line_with_the_load_address_are_looked_up() {
        let out = annotate("CPU2, image base 0x40200000, ELR 0x40203a10\n", 0x10_0000, |_| vec!["f".into()]);
        assert!(out.ends_with("        0x40203a10: f\n"), "{out}");
        assert_eq!(out.lines().count(), 2, "the load address itself is not looked up");
    }

    #[test]
    fn a_load_address_at_the_end_of_the_record_is_used() {
        let out = annotate("lr 0x80001000\nimage base 0x80000000\n", 0x2000, |_| vec!["g".into()]);
        assert!(out.contains("0x80001000: g"));
    }
}
