//! Machines that the hypervisor must refuse: it prints one error message, then parks, or powers off with `onpanic=off`.

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
        case("refuse-off", "with onpanic=off the machine is powered off", |lab| {
            let machine = Machine { kernel: None, initrd: None, hv: "onpanic=off".into(), ..Machine::default() };
            switched_off(lab, machine)
        }),
        case("refuse-off-xen", "the same if xen,xen-bootargs has the option", |lab| {
            let hv = "quiet".to_owned();
            let own_words = Some("onpanic=off".to_owned());
            switched_off(lab, Machine { kernel: None, initrd: None, hv, own_words, ..Machine::default() })
        }),
    ]
}

/// Checks that the error message is printed once and contains each of `words`.
pub fn refused(lab: &Lab, machine: Machine, words: &[&str]) -> Verdict {
    let transcript = lab.watch(&machine, 20, |_, _| Ok(()))?;
    let messages: Vec<&str> =
        transcript.lines.iter().filter_map(|(_, line)| line.trim().strip_prefix("doorward: fatal: ")).collect();
    match messages[..] {
        [message] => {
            println!("   {message}");
            match words.iter().find(|word| !message.contains(**word)) {
                None => Ok(()),
                Some(word) => Err(format!("`{message}` does not contain `{word}`")),
            }
        }
        [] => Err(format!("no error message; see {}", lab.dir.join("console.log").display())),
        _ => Err(format!("{} error messages: {}", messages.len(), messages.join(" | "))),
    }
}

/// Checks that QEMU ends by itself.
pub fn switched_off(lab: &Lab, machine: Machine) -> Verdict {
    let mut session = lab.start(&machine, 20)?;
    while let Event::Line(_) = session.next() {}
    match session.exit_code() {
        Some(0) => Ok(()),
        _ => Err("the machine did not power off".into()),
    }
}
