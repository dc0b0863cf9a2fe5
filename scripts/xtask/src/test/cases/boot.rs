//! Booting to user space with different numbers of CPUs and sizes of memory.

use crate::domu::TreeEdit;
use crate::qemu::Machine;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: true, run };
    vec![
        case("boot-smp-1", "dom0 on one CPU", |lab| boots(lab, 1, "2G")),
        case("boot-smp-2", "dom0 on two CPUs", |lab| boots(lab, 2, "2G")),
        case("boot-smp-8", "dom0 on eight CPUs", |lab| boots(lab, 8, "2G")),
        case("boot-mem-512M", "dom0 in 512 MiB", |lab| boots(lab, 4, "512M")),
        case("boot-mem-8G", "dom0 in 8 GiB", |lab| boots(lab, 4, "8G")),
        Case { name: "boot-keys", shows: "Ctrl-A, the debug keys, and typing to dom0", bare: false, run: keys },
        Case { name: "boot-hidden", shows: "dom0_pci_hide= leaves an empty slot", bare: false, run: hidden },
        Case {
            name: "boot-redistributors",
            shows: "a CPU without a redistributor stays off",
            bare: false,
            run: redistributors,
        },
        Case {
            name: "boot-odd-tree",
            shows: "dom0 on a machine that is described as boards are: long names, a region for each redistributor, ...",
            bare: false,
            run: odd_tree,
        },
        case("boot-limits", "dom0_mem= and dom0_max_vcpus= are kept", limits),
    ]
}

/// Checks that dom0 has all CPUs of the machine and most of its memory.
fn boots(lab: &Lab, smp: u32, mem: &str) -> Verdict {
    let machine = Machine { smp, mem: mem.into(), ..lab.linux("boot", "") };
    let transcript = lab.linux_run(&machine, 150)?;
    let cpus = transcript.number("cpus")?;
    if cpus != u64::from(smp) {
        return Err(format!("dom0 has {cpus} CPUs, the machine {smp}"));
    }
    let whole = match mem.split_at(mem.len() - 1) {
        (number, "G") => number.parse::<u64>().unwrap_or(0) << 20,
        (number, _) => number.parse::<u64>().unwrap_or(0) << 10,
    };
    // Linux reserves some, and counts the initramfs as used; EL2 needs little.
    let (has, wants) = (transcript.number("memory")?, whole * 8 / 10);
    if has < wants { Err(format!("dom0 has {has} KiB of {whole} KiB, less than four fifths")) } else { Ok(()) }
}

/// The distance of redistributors on `virt` with a GICv4.
const REDISTRIBUTOR: u64 = 0x4_0000;

/// Describes redistributors for three of four CPUs.
fn redistributors(lab: &Lab) -> Verdict {
    let edits = vec![TreeEdit::Redistributors(3 * REDISTRIBUTOR)];
    let transcript = lab.linux_run(&Machine { edits, ..lab.linux("fio", "100") }, 150)?;
    for says in ["CPU3: no redistributor: stays off", "3 CPUs online", "dom0: 3 vCPUs"] {
        if !transcript.lines.iter().any(|(_, line)| line.contains(says)) {
            return Err(format!("no line `{says}`"));
        }
    }
    match transcript.said("job").count() {
        5 => Ok(()),
        jobs => Err(format!("{jobs} jobs ended, not 5")),
    }
}

/// Boots with a tree that has what QEMU's has not, and boards have.
fn odd_tree(lab: &Lab) -> Verdict {
    let edits = vec![TreeEdit::Odd(4)];
    let transcript = lab.linux_run(&Machine { edits, mem: "6G".into(), ..lab.linux("boot", "") }, 150)?;
    let line = |says: &str| {
        let found = transcript.lines.iter().find(|(_, line)| line.contains(says)).map(|(_, line)| line.as_str());
        found.ok_or_else(|| format!("no line `{says}`"))
    };
    line("/pcie@10000000: its configuration space has room for fewer buses: the others are not used")?;
    line("characters@9000800: disabled: its registers share a page with registers that the hypervisor keeps")?;
    // The machine says that its GIC reaches 4 GiB only, so the start of the pool has at most 8 hexadecimal digits.
    let pool = line("pool at [0x")?.split("pool at [0x").nth(1).and_then(|range| range.split(',').next());
    if pool.is_none_or(|start| start.len() > 8) {
        return Err(format!("the hypervisor's memory is at 0x{}, above 4 GiB", pool.unwrap_or_default()));
    }
    // dom0's redistributors are in no region, since none has room for two.
    match transcript.number("cpus")? {
        4 => Ok(()),
        cpus => Err(format!("dom0 has {cpus} CPUs, the machine 4")),
    }
}

/// Checks that dom0 sees no function in the disk's slot, but the host bridge.
fn hidden(lab: &Lab) -> Verdict {
    let machine = Machine { hv: "dom0_pci_hide=0000:00:01.0".into(), ..lab.linux("devices", "") };
    let transcript = lab.linux_run(&machine, 90)?;
    let functions: Vec<&str> = transcript.said("pci").filter_map(|line| line.split(' ').next()).collect();
    if functions == ["0000:00:00.0"] { Ok(()) } else { Err(format!("dom0 sees {functions:?}")) }
}

/// Types to a shell of dom0, to the debug keys, and to the shell again.
fn keys(lab: &Lab) -> Verdict {
    let mut machine = lab.linux("", "");
    machine.append = machine.append.replace(" dw.test=", "");
    let transcript = lab.watch(&machine, 90, |session, line| {
        // The sum shows that a shell has read the line; the pasted comment is longer than every FIFO on the way.
        let paste = format!("echo sum-$((40+2)) # {}\n", "x".repeat(300));
        let typed = match line {
            line if line.starts_with("A shell of the test initramfs") => paste.as_str(),
            "sum-42" => "\x01\x01\x01hdivx\x01\x01\x01\necho sum-$((50+3))\n",
            "sum-53" => "poweroff -f\n",
            _ => return Ok(()),
        };
        session.type_in(typed).map_err(|failure| failure.text)
    })?;
    if !matches!(transcript.end, crate::session::End::Off) {
        return Err("the shell did not power off".into());
    }
    let shown = |what: &str| transcript.lines.iter().any(|(_, line)| line.contains(what));
    for what in ["  x  exits by reason", "dom0: 4 vCPUs", "ITS0 device", "vPE 0, home", "exit sysreg:"] {
        if !shown(what) {
            return Err(format!("no debug key printed `{what}`"));
        }
    }
    Ok(())
}

fn limits(lab: &Lab) -> Verdict {
    if matches!(lab.boot, crate::qemu::Boot::Bare) {
        return Ok(());
    }
    let machine = Machine { hv: "dom0_mem=768M dom0_max_vcpus=2".into(), ..lab.linux("boot", "") };
    let transcript = lab.linux_run(&machine, 150)?;
    match (transcript.number("cpus")?, transcript.number("memory")?) {
        (2, 600_000..=786_432) => Ok(()),
        (cpus, memory) => Err(format!("dom0 has {cpus} CPUs and {memory} KiB; 2 and at most 768 MiB were asked for")),
    }
}
