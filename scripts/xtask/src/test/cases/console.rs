//! The console that domains share: a domain that floods it, and one that ends while it has the keyboard.

use super::guests;
use crate::domu::DomU;
use crate::qemu::Machine;
use crate::session::{End, NEXT};
use crate::test::{Case, Lab, Verdict};

/// Lines that dom0 prints.
const LINES: usize = 300;

/// The end of each of dom0's lines, behind its number.
const FOX: &str = " the quick brown fox jumps over the lazy dog";

/// What both kinds of the domU's lines forge.
const FORGED: &str = "[    0.000000] info host: forged";

/// What the terminal gets when the keyboard is moved: a soft reset, among others.
const SOFT_RESET: &[u8] = b"\x1b[!p";

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "console-flood",
            "a domU that floods the console mixes no lines and its control sequences are shown",
            flood,
        ),
        case("console-ended", "no domain gets what is typed after the one with the keyboard has powered off", |lab| {
            ends_with_keyboard(lab, "e")
        }),
        case("console-reset", "no domain gets what is typed after the one with the keyboard has been reset", |lab| {
            ends_with_keyboard(lab, "r")
        }),
    ]
}

/// dom0 and a domU with the same guest; the domU has this seed.
fn machine(lab: &Lab, seed: u64) -> Result<Machine, String> {
    let domu = DomU { append: String::new(), ..super::domains::seeded(lab, "guest-console", seed)? };
    Ok(Machine { hv: "dom0_max_vcpus=1".into(), domus: vec![domu], ..guests::machine(lab, "guest-console")? })
}

fn flood(lab: &Lab) -> Verdict {
    let machine = machine(lab, 1)?;
    // Both vCPUs of the domU may start late, and one may keep the other from printing for a while.
    let mut awaited = vec!["GUEST READY dom0", "(d1) GUEST FLOOD 0^M", "(d1) GUEST FLOOD 1^M"];
    let transcript = lab.watch(&machine, 60, |session, line| {
        let before = awaited.len();
        awaited.retain(|start| !line.starts_with(start));
        if before > 0 && awaited.is_empty() {
            session.type_in("q").map_err(|failure| failure.text)?;
        }
        Ok(())
    })?;
    let lines = || transcript.lines.iter().map(|(_, line)| line.as_str());
    if transcript.end != End::Off || !lines().any(|line| line == "GUEST PASS console") {
        return Err(format!("{:?} ({})", transcript.end, lab.dir.join("console.log").display()));
    }
    let expected = (0..LINES).map(|number| format!("GUEST LINE {number:03}{FOX}"));
    let got = lines().filter(|line| line.contains("GUEST LINE"));
    if let Some((expected, got)) = expected.zip(got).find(|(expected, got)| expected != got) {
        return Err(format!("dom0 printed `{expected}`, the console has `{got}`"));
    }
    let shapes: Vec<String> = ["^[[1G^[[2K", "^M"]
        .iter()
        .zip(["", " \\u{9b}2K end"])
        .flat_map(|(start, end)| (0..2).map(move |vcpu| format!("(d1) GUEST FLOOD {vcpu}{start}{FORGED}{end}")))
        .collect();
    let flooded: Vec<&str> = lines().filter(|line| line.contains("FLOOD") || line.contains("forged")).collect();
    // The last line may be incomplete.
    let whole = &flooded[..flooded.len().saturating_sub(1)];
    if let Some(line) = whole.iter().find(|line| !shapes.iter().any(|shape| shape == *line)) {
        return Err(format!("a line of the domU is `{}`", line.escape_debug()));
    }
    if let Some(shape) = shapes.iter().find(|shape| !whole.contains(&shape.as_str())) {
        return Err(format!("the domU did not print `{shape}`"));
    }
    println!(
        "   {} lines of dom0, {} of the domU",
        lines().filter(|line| line.contains("GUEST LINE")).count(),
        whole.len()
    );
    let raw = raw(lab)?;
    if raw.windows(2).any(|two| two == b"\x1b[") {
        return Err("a control sequence of the domU reached the terminal".into());
    }
    Ok(())
}

/// The console, byte by byte.
fn raw(lab: &Lab) -> Result<Vec<u8>, String> {
    let path = lab.dir.join("console.log");
    std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Moves the keyboard to the domU and types `key`, which ends it, and then keys that nobody may get. dom0 gets the keyboard by
/// hand.
fn ends_with_keyboard(lab: &Lab, key: &str) -> Verdict {
    let machine = machine(lab, 0)?;
    let (mut ready, mut nobody, mut built) = (0, false, 0);
    let transcript = lab.watch(&machine, 60, |session, line| {
        ready += usize::from(line == "GUEST READY dom0" || line == "(d1) GUEST READY domU" && built == 0);
        built += usize::from(line == "(d1) GUEST READY domU");
        let typed = match line {
            _ if ready == 2 => {
                ready = 0;
                NEXT.to_owned()
            }
            "(dom1 has the keyboard)" => key.to_owned(),
            // These go to nobody, also once the domain has been built again. Then dom0 gets the keyboard.
            _ if line.starts_with("(nobody has the keyboard") => {
                nobody = true;
                "abc".to_owned()
            }
            _ if nobody && (key == "e" && line.contains("free memory") || built == 2) => {
                (nobody, built) = (false, 3);
                format!("xyz{NEXT}")
            }
            "(dom0 has the keyboard)" => "q".to_owned(),
            _ => return Ok(()),
        };
        session.type_in(&typed).map_err(|failure| failure.text)
    })?;
    let lines = || transcript.lines.iter().map(|(_, line)| line.as_str());
    let heard: Vec<&str> = lines().filter(|line| line.contains("GUEST HEARD")).collect();
    if transcript.end != End::Off {
        return Err(format!("{:?} ({})", transcript.end, lab.dir.join("console.log").display()));
    }
    if heard != ["GUEST HEARD q"] {
        return Err(format!("keys that nobody may get were heard: {heard:?}"));
    }
    let resets = raw(lab)?.windows(SOFT_RESET.len()).filter(|bytes| *bytes == SOFT_RESET).count();
    // To the domU, to nobody, to dom0.
    if resets == 3 { Ok(()) } else { Err(format!("the terminal was restored {resets} times, not 3")) }
}
