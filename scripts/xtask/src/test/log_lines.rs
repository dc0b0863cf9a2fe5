//! The check of log lines: what runs for guests logs at a limited rate only.
//!
//! The rule: in all rooms but those in [`FREE`], production code uses neither the crate `log` nor `console::line`, but
//! `log_limited!`. The exceptions are functions, each with the reason why no guest makes it log without end. The check reads
//! tokens, so it also looks into the arguments of macros. What is compiled for tests only does not count.

use std::collections::BTreeSet;
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Verdict;
use super::imports;

/// Rooms that may log. `console` is the log. The others run when the machine or a domain is started or ended, at the wish of
/// its owner or with the back-off of resets, but not at an exit of a guest.
const FREE: [&str; 5] = ["main", "console", "platform", "build", "control"];

/// (file, function, why no guest can make it log without end).
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/run/smccc.rs", "psci", "dom0 has powered off or reset the machine: it is the last line"),
    ("src/host/mod.rs", "bring_up", "once for each CPU that a debug key takes back into service"),
    ("src/host/mod.rs", "prepare", "once for each CPU that comes into service"),
    ("src/host/mod.rs", "log_free_memory", "once for each domain that is built or taken down"),
    ("src/gic/bringup.rs", "*", "while the machine starts"),
    ("src/gic/driver.rs", "map_sgi_frames", "while the machine starts"),
    ("src/gic/its/service.rs", "bring_up", "while the machine starts"),
    ("src/gic/its/queue.rs", "declare_dead", "once for each ITS"),
    ("src/smmu/iommu.rs", "start", "while the machine starts"),
];

const LOG_MACROS: [&str; 9] = ["error", "warn", "info", "debug", "trace", "print", "println", "eprint", "eprintln"];

/// Reads `src/` and checks it.
pub fn check() -> Verdict {
    judge(&imports::production_files()?, EXCEPTIONS)
}

/// A use of the log: the function that contains it, and its line.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    function: String,
    line: usize,
}

fn judge(files: &[(String, String)], exceptions: &[(&str, &str, &str)]) -> Verdict {
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for (file, text) in files {
        if imports::room(file).is_some_and(|room| FREE.contains(&room)) {
            continue;
        }
        let tokens = TokenStream::from_str(text).map_err(|error| format!("{file}: {error}"))?;
        let mut uses = Vec::new();
        find(tokens, "", &mut uses);
        for Use { function, line } in uses {
            let excepted = |&(name, of, _): &(&str, &str, &str)| name == file && (of == function || of == "*");
            match exceptions.iter().position(excepted) {
                Some(index) => _ = needed.insert(index),
                None => wrong.push(format!("{file}:{line}: {function} logs at no limited rate: use log_limited!")),
            }
        }
    }
    for (index, (file, function, _)) in exceptions.iter().enumerate() {
        if !needed.contains(&index) {
            wrong.push(format!("{file}: {function} does not log: its exception is not needed"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Finds the uses of the log in these tokens, which are part of `function`.
fn find(tokens: TokenStream, function: &str, uses: &mut Vec<Use>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let ident = |at: usize| match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        _ => String::new(),
    };
    let punct = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
    let path = |at: usize| punct(at + 1, ':') && punct(at + 2, ':');
    let mut function = function.to_owned();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Punct(p) if p.as_char() == '#' && is_test(tokens.get(at + 1)) => {
                // The item ends with its braces or a semicolon.
                while let Some(token) = tokens.get(at) {
                    let braces = matches!(token, TokenTree::Group(g) if g.delimiter() == Delimiter::Brace);
                    if braces || punct(at, ';') {
                        break;
                    }
                    at += 1;
                }
            }
            TokenTree::Ident(word) => {
                let word = word.to_string();
                let is_macro = LOG_MACROS.contains(&word.as_str()) && punct(at + 1, '!') && !punct(at + 2, '=');
                let is_line = word == "console" && path(at) && names_line(&tokens, at + 3);
                let is_log = word == "log" && path(at) && ident(at + 3) != "LevelFilter";
                if is_log || is_macro && !punct(at.wrapping_sub(1), ':') || is_line {
                    uses.push(Use { function: function.clone(), line: token.span().start().line });
                }
                if word == "fn" && !ident(at + 1).is_empty() {
                    function = ident(at + 1);
                }
            }
            TokenTree::Group(group) => find(group.stream(), &function, uses),
            _ => {}
        }
        at += 1;
    }
}

/// Whether the path goes on with `line`, or with braces that contain it.
fn names_line(tokens: &[TokenTree], at: usize) -> bool {
    let is_line = |token: &TokenTree| matches!(token, TokenTree::Ident(ident) if ident == "line");
    match tokens.get(at) {
        Some(TokenTree::Group(group)) => group.stream().into_iter().any(|token| is_line(&token)),
        Some(token) => is_line(token),
        None => false,
    }
}

/// Whether this is the bracket of `#[test]` or of a `cfg` that requires `test`.
fn is_test(token: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(group)) = token else { return false };
    let text = group.stream().to_string().replace(' ', "");
    text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut uses = Vec::new();
        find(TokenStream::from_str(text).unwrap(), "", &mut uses);
        uses.into_iter().map(|found| format!("{}:{}", found.function, found.line)).collect()
    }

    #[test]
    fn every_way_to_log_is_found_with_its_function_and_line() {
        assert_eq!(lines("fn a() {\n log::warn!(\"x\") }\nfn b() { if c { warn!(\"x\") } }"), ["a:2", "b:3"]);
        assert_eq!(lines("use log::info;"), [":1"]);
        assert_eq!(lines("use crate::console::{self, line};"), [":1"]);
        assert_eq!(lines("impl A { fn a() { console::line(x) } fn b() { c(|| log::log!(X)) } }"), ["a:1", "b:1"]);
        assert_eq!(
            lines("fn a() { matches!(b, c if { log::debug!(\"x\"); true }) }"),
            ["a:1"],
            "in a macro's arguments"
        );
    }

    #[test]
    fn limited_lines_comments_strings_and_tests_do_not_count() {
        assert_eq!(
            lines("fn a() { log_limited!(Warn; \"log::warn!\"); /* log::warn!() */ b.error(); }"),
            [] as [&str; 0]
        );
        assert_eq!(lines("fn a() { let error = b; if error != c {} console::guest_write(d) }"), [] as [&str; 0]);
        assert_eq!(lines("#[cfg(test)] mod tests { fn a() { log::warn!() } }"), [] as [&str; 0]);
        assert_eq!(lines("#[cfg(test)] use log::warn; #[cfg(test)] mod tests;"), [] as [&str; 0]);
        assert_eq!(lines("#[cfg(not(test))] fn a() { log::warn!() }"), ["a:1"]);
    }

    #[test]
    fn a_room_that_runs_for_guests_needs_an_exception_and_an_exception_needs_a_log_line() {
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let files =
            [file("src/vgic/a.rs", "fn a() { log::warn!() }"), file("src/build/b.rs", "fn b() { log::warn!() }")];
        assert!(judge(&files, &[]).unwrap_err().starts_with("src/vgic/a.rs:1: a logs"));
        assert_eq!(judge(&files, &[("src/vgic/a.rs", "a", "")]), Ok(()));
        assert!(judge(&files, &[("src/vgic/a.rs", "*", ""), ("src/vgic/a.rs", "b", "")]).is_err());
    }
}
