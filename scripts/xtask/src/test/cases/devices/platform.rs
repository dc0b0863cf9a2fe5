//! Platform devices of domUs, which their partial device trees name: a Linux with QEMU's real-time clock, and nodes that name what
//! cannot be given away.

use std::path::PathBuf;

use super::{not_built, typed};
use crate::domu::DomU;
use crate::paths;
use crate::qemu::Machine;
use crate::test::cases::domains;
use crate::test::{Case, Lab, Verdict};
use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// The cases of this topic.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "domu-platform",
            "a domU has QEMU's real-time clock, whose alarms reach it also after a reset; dom0 has not",
            clock,
        ),
        case("refuse-platform", "each partial device tree that asks for what cannot be given away is refused", refused),
    ]
}

/// The real-time clock of QEMU's `virt`: its path, and the address of its page.
const CLOCK: (&str, u64) = ("/pl031@9010000", 0x901_0000);
const PAGE: u64 = 0x1000;
/// The number of its SPI, from the first one on, and its trigger: level-sensitive.
const CLOCK_SPI: [u32; 3] = [0, 2, 4];
/// Alarms in each life of the domU.
const ALARMS: u64 = 2;

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

/// A node for the device at `path`, whose page at `page` is seen at `at`.
fn device(path: &str, page: u64, at: u64, forced: bool) -> DeviceTreeNode {
    let mut device = DeviceTreeNode::new_unchecked(path.trim_start_matches('/'));
    set(&mut device, "xen,path", path);
    let cells = [page, PAGE, at].map(|number| [(number >> 32) as u32, number as u32]);
    set(&mut device, "xen,reg", &cells.concat()[..]);
    set(&mut device, "reg", &cells[..2].concat()[..]);
    if forced {
        set(&mut device, "xen,force-assign-without-iommu", &[0u32; 0][..]);
    }
    device
}

/// The clock, as Linux wants it described (`boards/qemu-virt/pl031.dts` says the same).
fn described_clock() -> Vec<DeviceTreeNode> {
    let (path, page) = CLOCK;
    let mut clock = device(path, page, page, true);
    set(&mut clock, "compatible", &["arm,pl031", "arm,primecell"][..]);
    set(&mut clock, "interrupts", CLOCK_SPI);
    set(&mut clock, "clocks", 2u32);
    set(&mut clock, "clock-names", "apb_pclk");
    let mut source = DeviceTreeNode::new_unchecked("clk24mhz");
    set(&mut source, "compatible", "fixed-clock");
    set(&mut source, "#clock-cells", 0u32);
    set(&mut source, "clock-frequency", 24_000_000u32);
    set(&mut source, "phandle", 2u32);
    vec![source, clock]
}

/// Writes a partial tree with these nodes to a file of this case.
fn partial(lab: &Lab, name: &str, nodes: Vec<DeviceTreeNode>) -> Result<PathBuf, String> {
    let mut tree = DeviceTree::new();
    let mut gic = DeviceTreeNode::new_unchecked("gic");
    set(&mut gic, "#interrupt-cells", 3u32);
    set(&mut gic, "interrupt-controller", &[0u32; 0][..]);
    set(&mut gic, "phandle", 1u32);
    tree.root.add_child(gic);
    let mut passthrough = DeviceTreeNode::new_unchecked("passthrough");
    set(&mut passthrough, "compatible", "simple-bus");
    set(&mut passthrough, "#address-cells", 2u32);
    set(&mut passthrough, "#size-cells", 2u32);
    set(&mut passthrough, "ranges", &[0u32; 0][..]);
    set(&mut passthrough, "interrupt-parent", 1u32);
    nodes.into_iter().for_each(|node| passthrough.add_child(node));
    tree.root.add_child(passthrough);
    let file = lab.dir.join(format!("{name}.dtb"));
    std::fs::write(&file, tree.to_dtb()).map_err(|error| format!("writing {}: {error}", file.display()))?;
    Ok(file)
}

fn clock(lab: &Lab) -> Verdict {
    let dtb = Some(partial(lab, "clock", described_clock())?);
    let append = format!("console=ttyAMA0 dw.test=clock dw.arg={ALARMS}");
    let domu = DomU { initrd: Some(paths::initramfs()), dtb, mem: 384, append, ..DomU::default() };
    let mut machine = Machine { hv: "dom0_max_vcpus=1".into(), smp: 2, domus: vec![domu], ..lab.linux("clock", "") };
    // When the domU has ended, a line ends dom0.
    machine.append += " dw.wait";
    let (mut waits, mut ended, mut typed_in) = (false, false, false);
    let transcript = lab.watch(&machine, 120, |session, line| {
        not_built(line)?;
        waits |= line.starts_with("DW-TEST: waits");
        ended |= line.contains("dom1: powered off");
        if waits && ended && !typed_in {
            typed_in = true;
            return typed(session, "\r");
        }
        Ok(())
    })?;
    lab.judge(&transcript)?;
    let (dom0, domu) = (transcript.of(0), transcript.of(1));
    lab.judge_test(&domu)?;
    let clocks = dom0.said("clocks").next().ok_or("dom0 said nothing of clocks")?;
    if clocks != "0 disabled" {
        return Err(format!("dom0 sees the clock: {clocks}"));
    }
    let lives: Vec<&str> = domu.said("alarms").collect();
    println!("   alarms and interrupts of each life of the domU: {}", lives.join(", "));
    let expected = format!("{ALARMS} interrupts {ALARMS}");
    if lives != [expected.as_str(); 2] {
        return Err(format!("not {ALARMS} interrupts for so many alarms in two lives: {lives:?}"));
    }
    Ok(())
}

/// What a node names, with the sentence about it.
struct Mistake {
    node: DeviceTreeNode,
    says: &'static str,
}

fn mistakes() -> Vec<Mistake> {
    let (path, page) = CLOCK;
    let mut bent = device(path, page, page, true);
    set(&mut bent, "xen,reg", [0u32, page as u32 + 4, 0, PAGE as u32, 0, page as u32]);
    let mut other_line = device(path, page, page, true);
    set(&mut other_line, "interrupts", [0u32, 7, 4]);
    [
        (device("/nothing@0", 0, 0, true), "/passthrough/nothing@0: there is no device /nothing@0, or it is disabled"),
        (device(path, 0x4000_0000, page, true), "xen,reg: [0x40000000, 0x40001000) is memory"),
        (device(path, 0x905_0000, page, true), "xen,reg: [0x9050000, 0x9051000) has registers of EL2"),
        (device(path, page, 0x800_0000, true), "xen,reg: the domain has something else at 0x8000000"),
        (device("/virtio_mmio@a000000", 0xa00_0000, 0xa00_0000, true), "has registers of /virtio_mmio@a000"),
        (bent, "xen,reg: expected whole pages: "),
        (other_line, "INTID 39 is not one of /pl031@9010000"),
        (
            device(path, page, page, false),
            "no SMMU limits its DMA, and xen,force-assign-without-iommu does not allow that",
        ),
    ]
    .into_iter()
    .map(|(node, says)| Mistake { node, says })
    .collect()
}

/// dom0, and a domU for each mistake: none of these is built, each for its own reason, and dom0 keeps the clock.
fn refused(lab: &Lab) -> Verdict {
    let good = domains::guest(lab, "guest-again")?;
    let mut machine = Machine { hv: "dom0_max_vcpus=1".into(), smp: 2, ..lab.linux("clock", "") };
    let mistakes = mistakes();
    for (number, mistake) in (1..).zip(&mistakes) {
        let dtb = Some(partial(lab, &format!("mistake-{number}"), vec![mistake.node.clone()])?);
        machine.domus.push(DomU { dtb, cpus: 1, ..good.clone() });
    }
    let transcript = lab.linux_run(&machine, 60)?;
    for (number, mistake) in (1..).zip(&mistakes) {
        let start = format!("dom{number} `domU{number}`: not built: /passthrough/");
        let lines: Vec<&str> =
            transcript.lines.iter().map(|(_, line)| line.trim()).filter(|line| line.contains(&start)).collect();
        let [line] = lines[..] else { return Err(format!("{} lines with `{start}`, not one", lines.len())) };
        println!("   {line}");
        if !line.contains(mistake.says) {
            return Err(format!("dom{number} was not refused because `{}`", mistake.says));
        }
    }
    match transcript.said("clocks").next() {
        Some("1") => Ok(()),
        other => Err(format!("the clock is given to no domU, but dom0 does not have it: {other:?}")),
    }
}
