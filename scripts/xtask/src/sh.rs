//! Running other programs. Their output is shown only if they fail; what needs a network is retried.

use std::io::{IsTerminal, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::fail::{Doing, Failure, Outcome};

/// Prints that a step begins.
pub fn say(text: impl std::fmt::Display) {
    println!("  {text}");
    let _ = std::io::stdout().flush();
}

/// Whether there is a program of this name on the PATH.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Runs `command` and returns its standard output. If it fails, the end of its output is in the failure's message.
pub fn quiet(command: &mut Command) -> Outcome<String> {
    let output = patient(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let tail: Vec<&str> = said.lines().rev().take(60).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(Failure::new(format!("{} ({})\n{}", shown(command), output.status, tail.join("\n"))))
}

/// Like [`quiet`], with up to three attempts and pauses between them, for commands that need a network.
pub fn retried(what: &str, mut make: impl FnMut() -> Command) -> Outcome<String> {
    let mut pause = Duration::from_secs(2);
    for attempt in 1.. {
        match quiet(&mut make()) {
            Ok(out) => return Ok(out),
            Err(failure) if attempt < 3 => {
                let reason = failure.text.lines().last().unwrap_or_default().to_owned();
                say(format_args!("{what}: attempt {attempt} failed ({reason}), again in {} s", pause.as_secs()));
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(failure) => return Err(Failure::new(format!("{what} failed three times: {}", failure.text))),
        }
    }
    unreachable!("the loop returns")
}

/// Runs `command` with xtask's standard streams, so that the user sees its progress.
pub fn shown_live(command: &mut Command) -> Outcome {
    let status = command.status().doing(shown(command))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("{} ({status})", shown(command)))) }
}

/// The command as one types it in a shell.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// One word, quoted for a shell if necessary.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+.,:/@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Waits for `command`. Meanwhile counts the seconds on a terminal, or prints a line every 20 seconds elsewhere.
fn patient(command: &mut Command) -> Outcome<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.doing(shown(command))?;
    let name = command.get_program().to_string_lossy().into_owned();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let ticker = std::thread::spawn(move || {
        let start = Instant::now();
        let live = std::io::stdout().is_terminal();
        let beat = Duration::from_secs(if live { 1 } else { 20 });
        let mut wrote = false;
        while ended.recv_timeout(beat) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let seconds = start.elapsed().as_secs();
            if live {
                print!("\r    {name}: {seconds} s ");
            } else {
                println!("    {name}: still running after {seconds} s");
            }
            let _ = std::io::stdout().flush();
            wrote = true;
        }
        if live && wrote {
            print!("\r{:40}\r", "");
        }
    });
    let output = child.wait_with_output().doing(shown(command));
    drop(done);
    let _ = ticker.join();
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("qemu");
        command.args(["-append", "a b", "it's", "-smp", "4"]);
        assert_eq!(shown(&command), r"qemu -append 'a b' 'it'\''s' -smp 4");
    }

    #[test]
    fn the_output_of_a_failing_command_is_in_the_failure() {
        let failure = quiet(Command::new("sh").args(["-c", "echo broken; exit 3"])).unwrap_err();
        assert!(failure.text.contains("broken"));
    }
}
