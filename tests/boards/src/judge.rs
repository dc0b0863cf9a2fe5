//! One board: whether its tree is accepted, and whether dom0's tree is right.

use doorward::build::fdt::edit::{Dom0Plan, build_dom0_fdt, vgicr_place};
use doorward::build::layout::plan_dom0_memory;
use doorward::ids::{Mpidr, Pa};
use doorward::platform::{Machine, fdt};
use doorward::util::range::{Range, pages_around};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

use crate::loader;
use crate::references::{References, is_available};

/// dom0's memory in bytes.
const DOM0: u64 = 128 << 20;
/// The size of EL2's pool in bytes.
const POOL: u64 = 32 << 20;

/// What became of a board.
#[derive(Default)]
pub struct Verdict {
    /// Why it is refused.
    pub refused: Option<String>,
    /// What the log says when it is accepted.
    pub warnings: Vec<String>,
    /// What is wrong with dom0's tree.
    pub wrong: Vec<String>,
    /// dom0's tree.
    pub dom0: Vec<u8>,
}

/// Judges the tree that a kernel ships for a board.
pub fn judge(blob: &[u8]) -> Verdict {
    let mut verdict = Verdict::default();
    let loaded = match loader::load(blob) {
        Ok(loaded) => loaded,
        Err(problem) => return Verdict { refused: Some(format!("(boot loader: {problem})")), ..verdict },
    };
    let machine = match fdt::read(&loaded) {
        Ok(machine) => machine,
        Err(error) => return Verdict { refused: Some(error.to_string()), ..verdict },
    };
    verdict.warnings = machine.warnings.iter().map(ToString::to_string).collect();
    verdict.warnings.extend(machine.left_out.iter().map(|part| format!("too many {}", part.plural())));
    if let Err(error) = build(&loaded, &machine, &mut verdict) {
        verdict.refused = Some(error);
    }
    verdict
}

fn build(loaded: &[u8], machine: &Machine, verdict: &mut Verdict) -> Result<(), String> {
    machine.kernel().map_err(|error| error.to_string())?;
    let modules: Vec<Range> = machine.modules.iter().map(|module| module.range).collect();
    let banks = plan_dom0_memory(machine, &modules, DOM0);
    if banks.is_empty() {
        return Err("dom0: no memory".into());
    }
    let vcpus: Vec<Mpidr> = machine.cpus.iter().filter(|cpu| cpu.enabled).map(|cpu| cpu.mpidr).collect();
    // EL2's pool is at the top of memory.
    let top = machine.memory.iter().max_by_key(|bank| bank.size).ok_or("no memory")?;
    let pool = Range::new(Pa(top.end().0 - POOL), POOL);
    let gicr = vgicr_place(machine, vcpus.len(), pool).map_err(|error| format!("dom0: {error}"))?;
    let plan = Dom0Plan {
        vcpus: &vcpus,
        memory: &banks,
        gicr,
        absent_itss: &[],
        given_bars: &[],
        given_devices: &[],
        ports: None,
        bootargs: "quiet",
        initrd: None,
    };
    let dom0 = build_dom0_fdt(loaded, machine, &plan).map_err(|error| format!("dom0: {error}"))?;
    fdt::for_each_device(loaded, |_| ()).map_err(|error| format!("dom0: devices: {error}"))?;
    check(loaded, &dom0, machine, &plan, &mut verdict.wrong);
    verdict.dom0 = dom0;
    Ok(())
}

/// Checks dom0's tree: what EL2 keeps is not in it, it has dom0's memory and CPUs, and nothing in it dangles that does not
/// dangle in the host's.
fn check(host: &[u8], dom0: &[u8], machine: &Machine, plan: &Dom0Plan<'_>, wrong: &mut Vec<String>) {
    let host = DeviceTree::from_fdt(&Fdt::new_unchecked(host));
    if fdt::parse(dom0).is_err() {
        wrong.push("it is damaged".into());
        return;
    }
    let tree = DeviceTree::from_fdt(&Fdt::new_unchecked(dom0));
    let all = [true, false].map(|all| {
        let before = References::of(&host).dangling(&host, all);
        let mut after = References::of(&tree).dangling(&tree, all);
        after.retain(|reference| !before.contains(reference));
        after
    });
    let [all, enabled] = all;
    wrong.extend(enabled.iter().map(|reference| format!("dangles: {reference}")));
    let disabled = all.iter().filter(|reference| !enabled.contains(reference));
    wrong.extend(disabled.map(|reference| format!("dangles in a disabled node: {reference}")));

    visit(&tree.root, "", &mut |path, node| {
        for word in ["arm,smmu-v3", "arm,armv8-pmuv3", "numa-distance-map-v1"] {
            if node.is_compatible(word) {
                wrong.push(format!("is there: {path}"));
            }
        }
    });
    let of_kind = |kind: &[u8]| {
        let mut count = 0;
        visit(&tree.root, "", &mut |_, node| {
            count += usize::from(node.property("device_type").is_some_and(|value| value.value() == kind));
        });
        count
    };
    let counts = [of_kind(b"memory\0"), of_kind(b"cpu\0")];
    if counts != [plan.memory.len(), plan.vcpus.len()] {
        wrong.push(format!("{counts:?} nodes of memory and CPUs"));
    }

    // A device whose registers share a page with what EL2 keeps is not mapped.
    let mut kept: Vec<Range> = vec![machine.gic.dist];
    kept.extend(&machine.gic.redists);
    kept.extend(machine.gic.itss.iter().map(|its| its.control));
    kept.extend(machine.smmus.iter().map(|smmu| smmu.regs));
    kept.extend(machine.uart.map(|uart| uart.regs));
    let kept: Vec<Range> = kept.into_iter().map(pages_around).collect();
    let mut consoles = 0;
    let listed = fdt::for_each_device(dom0, |device| {
        let is_console =
            machine.uart.is_some_and(|uart| device.regs.first().map(|regs| regs.base) == Some(uart.regs.base));
        let is_emulated = ["arm,gic-v3", "arm,gic-v4", "arm,gic-v3-its"].iter().any(|word| device.is_compatible(word));
        if is_console {
            consoles += 1;
            if !["arm,pl011", "arm,sbsa-uart"].iter().any(|word| device.is_compatible(word)) {
                wrong.push(format!("a console that is no PL011: {}", device.path));
            }
        } else if !is_emulated && device.regs.iter().any(|regs| kept.iter().any(|kept| kept.overlaps(*regs))) {
            wrong.push(format!("in a page that EL2 keeps: {}", device.path));
        }
    });
    if let Err(error) = listed {
        wrong.push(format!("its devices: {error}"));
    }
    // EL2 emulates none without an interrupt.
    let wanted = usize::from(machine.uart.is_some_and(|uart| uart.irq.is_some()));
    if consoles != wanted {
        wrong.push(format!("{consoles} consoles"));
    }
}

/// Calls `each` with every available node and its path.
fn visit(node: &DeviceTreeNode, path: &str, each: &mut dyn FnMut(&str, &DeviceTreeNode)) {
    each(path, node);
    for child in node.children().filter(|child| is_available(child)) {
        visit(child, &format!("{path}/{}", child.name()), each);
    }
}
