//! A domain that points the DMA engine of its device at everything, and writes to all of its PCI bus.
//!
//! The guest `edu` reports what it sees itself. The harness looks at the rest of the machine through QEMU (`look`): what must not
//! have changed, and where the word is that the guest has stored elsewhere again and again.
//!
//! The time is that of the instructions (`-icount`): the device begins a DMA 100 ms after it is told to, which pass at once when
//! all CPUs sleep.

mod look;

use std::cell::RefCell;

use super::{Script, is_refusal, not_built, refusals, typed};
use crate::domu::{DomU, TreeEdit};
use crate::qemu::Machine;
use crate::session::NEXT;
use crate::test::cases::{domains, guests};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};
use look::{Look, MEM, Snapshot};

/// The device.
pub(super) const EDU: &str = "0000:00:08.0";
/// Its requester ID.
const EDU_RID: u16 = 8 << 3;

/// The flags for the device. Its engine has 64 bits of address.
pub(super) fn flags() -> [String; 2] {
    ["-device".into(), "edu,addr=8,dma_mask=0xffffffffffffffff".into()]
}

/// DMAs and writes to configuration space, and the same with `--long`.
const ATTACK: (u32, u32) = (5_000, 50_000);
const ATTACK_LONG: (u32, u32) = (1_000_000, 1_000_000);

/// The cases of this topic.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("domu-hostile", "random DMAs and configuration writes of a domU change nothing but its own memory", domu),
        case("dom0-dma", "random DMAs of a device of dom0 do not reach EL2's memory", dom0),
    ]
}

/// A machine for an attack, on the clock of instructions.
fn machine(machine: Machine) -> Machine {
    let qmp = Some(std::env::temp_dir().join(format!("doorward-qmp-{}", std::process::id())));
    // QEMU gives a DMA to GITS_TRANSLATER the DeviceID 0, and so the device gets it, for the hypervisor.
    let edits = vec![TreeEdit::Device0(EDU_RID)];
    let mut machine = Machine { mem: format!("{MEM}M"), qmp, edits, ..machine };
    machine.extra.extend(flags());
    machine.extra.extend(["-icount".to_owned(), "shift=0,sleep=off".to_owned()]);
    machine
}

fn attack(lab: &Lab) -> (u32, u32) {
    if lab.long { ATTACK_LONG } else { ATTACK }
}

/// Seconds that are enough for the attack.
fn seconds(lab: &Lab) -> u64 {
    if lab.long { 3600 } else { 120 }
}

/// The machine before and after the attack.
#[derive(Default)]
struct Snapshots(RefCell<Vec<Snapshot>>);

impl Snapshots {
    fn take(&self, look: &Look<'_>) -> Verdict {
        self.0.borrow_mut().push(look.snapshot()?);
        Ok(())
    }

    /// Checks that what must not change has not; `functions`: the configuration space of other functions, too.
    fn compare(&self, functions: bool) -> Verdict {
        let snapshots = self.0.borrow();
        let [before, after] = &snapshots[..] else { return Err("the machine was not looked at twice".into()) };
        before.compare_image(after)?;
        if functions { before.compare_functions(after) } else { Ok(()) }
    }
}

fn domu(lab: &Lab) -> Verdict {
    let (dmas, writes) = attack(lab);
    let witness = DomU { cpus: 1, append: "witness".into(), ..domains::guest(lab, "guest-edu")? };
    let (pci, append) = (vec![EDU.to_owned()], format!("messages dmas={dmas} config={writes}"));
    let attacker = DomU { pci, pci_allow_no_reset: true, append, ..witness.clone() };
    let hv = "dom0_max_vcpus=1".to_owned();
    let machine = machine(Machine { hv, smp: 3, domus: vec![attacker, witness], ..lab.linux("after", "50") });
    let look = Look::new(lab, &machine)?;
    let snapshots = Snapshots::default();
    let mut script = Script::new()
        .when(&["(d1) GUEST READY edu", "(d2) GUEST READY witness", "DW-TEST: idle"], |session| {
            snapshots.take(&look)?;
            typed(session, NEXT)
        })
        .types("(dom1 has the keyboard)", "g")
        .when(&["GUEST DONE edu"], |session| {
            look.search()?;
            snapshots.take(&look)?;
            typed(session, NEXT)
        })
        .types("(dom2 has the keyboard)", "g")
        .moves_on("GUEST PASS witness")
        .types("(the hypervisor has the keyboard", "i")
        .moves_on(" failed transactions, ")
        .types("(dom0 has the keyboard)", "\r");
    let transcript = lab.watch(&machine, seconds(lab), |session, line| {
        not_built(line)?;
        look.line(line);
        script.line(session, line)
    })?;
    script.finish()?;
    lab.judge_end(&transcript)?;
    lab.judge_test(&transcript.of(0))?;
    look.only_one_page()?;
    snapshots.compare(true)?;
    count(lab, &transcript, "dom1")
}

fn dom0(lab: &Lab) -> Verdict {
    let (dmas, _) = attack(lab);
    let append = format!("dom0 messages dmas={dmas}");
    let machine = machine(Machine { smp: 1, append, ..guests::machine(lab, "guest-edu")? });
    let look = Look::new(lab, &machine)?;
    let snapshots = Snapshots::default();
    let mut script = Script::new()
        .when(&["GUEST READY edu"], |session| {
            snapshots.take(&look)?;
            typed(session, "g")
        })
        .when(&["GUEST DONE edu"], |session| {
            look.search()?;
            snapshots.take(&look)?;
            typed(session, NEXT)
        })
        .types("(the hypervisor has the keyboard", "i")
        .moves_on(" failed transactions, ")
        .types("(dom0 has the keyboard)", "g")
        .when(&["GUEST PASS edu"], |_| Ok(()));
    let transcript = lab.watch(&machine, seconds(lab), |session, line| {
        not_built(line)?;
        look.line(line);
        script.line(session, line)
    })?;
    script.finish()?;
    lab.judge_end(&transcript)?;
    look.only_in_its_own()?;
    snapshots.compare(false)?;
    count(lab, &transcript, "dom0")
}

/// Checks what was counted: that the attack did all kinds of DMA, and that each that must fail did, for this domain.
fn count(lab: &Lab, transcript: &Transcript, domain: &str) -> Verdict {
    let find = |text: &str| transcript.lines.iter().map(|(_, line)| line.trim()).find(|line| line.contains(text));
    let done = find("GUEST DONE edu ").ok_or("the guest did not finish")?;
    println!("   {done}");
    let number = |key| Transcript::field::<u64>(done, key).ok_or_else(|| format!("the guest did not count {key}"));
    for key in ["inside", "stores", "loads", "messages", "dropped"] {
        if number(key)? == 0 {
            return Err(format!("no DMA of the kind `{key}`"));
        }
    }
    let (expected, own) = (number("stores")? + number("loads")?, number("own")?);
    if (own != 0) != (domain == "dom0") {
        return Err(format!("{own} DMAs to memory that is the domain's and not watched"));
    }
    let failed = find(" failed transactions, ").ok_or("the hypervisor did not count failed transactions")?;
    println!("   {failed}");
    if !failed.ends_with(" 0 errors") {
        return Err(format!("an SMMU has reported errors: {failed}"));
    }
    let words = failed.split_whitespace().collect::<Vec<_>>();
    let failed = words.windows(2).find(|pair| pair[1] == "failed").and_then(|pair| pair[0].parse::<u64>().ok());
    if failed.is_none_or(|failed| failed < expected) {
        return Err(format!("{failed:?} failed transactions, at least {expected} expected"));
    }
    refusals(transcript, &[domain])?;
    lab.complaints_but(is_refusal)
}
