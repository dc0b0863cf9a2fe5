//! Machines that the hypervisor must refuse: one sentence on the console, then it parks, or switches off with `onpanic=off`.

use crate::qemu::Machine;
use crate::session::Event;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("refuse-el1", "entry at EL1", |lab| {
            refused(lab, Machine { properties: "gic-version=3".into(), ..Machine::default() }, &["EL1"])
        }),
        case("refuse-gicv2", "a GICv2", |lab| {
            refused(
                lab,
                Machine { properties: "virtualization=on,gic-version=2".into(), ..Machine::default() },
                &["GIC"],
            )
        }),
        case("refuse-no-kernel", "no kernel module", |lab| {
            refused(lab, Machine { kernel: None, initrd: None, ..Machine::default() }, &["kernel"])
        }),
        case("refuse-off", "with onpanic=off the machine is switched off", |lab| {
            let machine = Machine { kernel: None, initrd: None, hv: "onpanic=off".into(), ..Machine::default() };
            switched_off(lab, machine)
        }),
    ]
}

/// The sentence comes, once, and holds each of `words`.
pub fn refused(lab: &Lab, machine: Machine, words: &[&str]) -> Verdict {
    let transcript = lab.watch(&machine, 20, |_, _| Ok(()))?;
    let sentences: Vec<&str> =
        transcript.lines.iter().filter_map(|(_, line)| line.trim().strip_prefix("doorward: fatal: ")).collect();
    match sentences[..] {
        [sentence] => {
            println!("   {sentence}");
            match words.iter().find(|word| !sentence.contains(**word)) {
                None => Ok(()),
                Some(word) => Err(format!("`{sentence}` does not say `{word}`")),
            }
        }
        [] => Err(format!("no sentence; see {}", lab.dir.join("console.log").display())),
        _ => Err(format!("{} sentences: {}", sentences.len(), sentences.join(" | "))),
    }
}

/// QEMU ends by itself, soon after the sentence.
fn switched_off(lab: &Lab, machine: Machine) -> Verdict {
    let mut session = lab.start(&machine, 20)?;
    while let Event::Line(_) = session.next() {}
    match session.exit_code() {
        Some(0) => Ok(()),
        _ => Err("the machine was still on".into()),
    }
}
