//! Platform devices of domUs: what their partial device trees ask for, checked before any domain is built.
//!
//! The binding is Xen's for dom0less domains (Xen, `docs/misc/arm/passthrough.txt`): a boot module of kind
//! `multiboot,device-tree` has a node `/passthrough`, whose nodes are copied into the domU's tree. Of these nodes,
//!
//! * `xen,path` is the path of the device in the host's tree; its SPIs become the domU's, with the same numbers,
//! * `xen,reg` lists pages of its registers: host address, size, guest address,
//! * `xen,force-assign-without-iommu` allows a device whose DMA no SMMU limits.
//!
//! `/aliases` is copied, too. The phandle of a node `/gic` is that of the domU's GIC.
//!
//! dom0 does not get a device that has passed the checks, whether its domU can be built or not. A device is not reset when
//! its domain begins anew: there is no way that all devices have.

use super::BuildError;
use super::fdt::make::{self, Partial};
use super::fdt::node::{cell, cells_of, for_each, string};
use super::layout::domu;
use crate::ids::{Intid, Ipa, Pa, Streams};
use crate::mmio::Hw;
use crate::platform::fdt::{self, DeviceStreams};
use crate::platform::{DomainConfig, Machine, ModuleKind};
use crate::smmu::iommu::Iommu;
use crate::util::PAGE;
use crate::util::range::{Range, pages_around};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::{Node, Property};

/// The largest partial device tree, in bytes.
pub const LARGEST: u64 = 0x1_0000;
/// The numbers of SPIs that GICD registers of GICv3 have.
const SPIS: core::ops::Range<u32> = 32..1020;
/// `xen,reg`, `xen,path` and `xen,force-assign-without-iommu` are for EL2, and not copied.
const OURS: [&str; 3] = ["xen,reg", "xen,path", "xen,force-assign-without-iommu"];

/// What a domU gets.
#[derive(Debug, Default)]
pub struct Devices {
    /// What is copied into its device tree.
    pub tree: Partial,
    /// Registers, and where the domU sees them.
    pub regs: Vec<(Ipa, Range)>,
    /// SPIs.
    pub spis: Vec<Intid>,
    /// The streams of the devices' DMA.
    pub streams: Vec<Streams>,
}

impl Devices {
    /// The number of SPIs that the domU's GIC must have.
    #[must_use]
    pub fn spis_needed(&self) -> u32 {
        let highest = self.spis.iter().map(|spi| spi.0).max().unwrap_or(0);
        (highest + 1).saturating_sub(SPIS.start).next_multiple_of(32)
    }
}

/// The platform devices of all domUs.
#[derive(Default)]
pub struct PlatformDevices {
    /// What each domU gets, in the order of the machine's description, or why it gets nothing.
    domus: Vec<Result<Devices, BuildError>>,
    /// The paths of the devices in the host's tree, which dom0 does not get.
    pub paths: Vec<String>,
    /// The pages of their registers.
    pub regs: Vec<Range>,
    /// Their SPIs.
    pub spis: Vec<Intid>,
    /// The streams of their DMA.
    pub streams: Vec<Streams>,
}

impl PlatformDevices {
    /// Takes what domU number `index` of the machine's description gets.
    ///
    /// # Errors
    ///
    /// Why its devices cannot be given to it.
    pub fn take(&mut self, index: usize) -> Result<Devices, BuildError> {
        self.domus
            .get_mut(index)
            .map_or_else(|| Ok(Devices::default()), |slot| core::mem::replace(slot, Ok(Devices::default())))
    }
}

/// What the checks need to know of the machine.
pub struct HostTree<'a, H: Hw + Clone + 'static> {
    /// Its description.
    pub machine: &'a Machine,
    /// Its device tree.
    pub blob: &'a [u8],
    /// Its SMMUs.
    pub iommu: &'a Iommu<H>,
    /// The frames of registers that EL2 keeps.
    pub kept_frames: &'a [Range],
    /// The SPIs that EL2 keeps.
    pub kept_spis: &'a [Intid],
}

/// Checks the devices of all domUs. `load` returns the bytes of a boot module.
pub fn prepare<H: Hw + Clone>(
    host: &HostTree<'_, H>,
    load: impl Fn(Range) -> Result<Vec<u8>, BuildError>,
) -> PlatformDevices {
    let mut prepared = PlatformDevices::default();
    for config in &host.machine.domains {
        let devices = match config.module(ModuleKind::DeviceTree) {
            None => Ok(Devices::default()),
            Some(module) => read(host, config, module.range, &load, &mut prepared),
        };
        prepared.domus.push(devices);
    }
    prepared
}

fn because(node: &str, why: impl fmt::Display) -> BuildError {
    BuildError(format!("{node}: {why}"))
}

/// Reads and checks the partial tree of a domU.
fn read<H: Hw + Clone>(
    host: &HostTree<'_, H>,
    config: &DomainConfig,
    module: Range,
    load: &impl Fn(Range) -> Result<Vec<u8>, BuildError>,
    prepared: &mut PlatformDevices,
) -> Result<Devices, BuildError> {
    const MODULE: &str = "device tree module";
    if host.machine.rsdp.is_some() {
        return Err(because(MODULE, "the machine itself has no device tree"));
    }
    if module.size > LARGEST {
        return Err(because(MODULE, format_args!("larger than {} KiB", LARGEST >> 10)));
    }
    let blob = load(module)?;
    let tree = DeviceTree::from_fdt(&fdt::parse(&blob).map_err(|error| because(MODULE, error))?);
    let passthrough = tree.root.child("passthrough").ok_or_else(|| because(MODULE, "it has no /passthrough"))?;
    let gic = tree.root.child("gic").and_then(|gic| cell(gic, "phandle"));
    let mut devices = Devices::default();
    let mut wanted = Vec::new();
    collect(passthrough, "/passthrough", cell(&tree.root, "interrupt-parent"), cells_of(&tree.root), &mut wanted);
    for device in wanted {
        let (regs, spis, streams) = check(host, config, &device, gic, &devices, prepared)?;
        prepared.paths.push(device.host.clone());
        prepared.regs.extend(regs.iter().map(|&(_, range)| range));
        prepared.spis.extend(&spis);
        prepared.streams.extend(&streams);
        devices.regs.extend(regs);
        devices.spis.extend(spis);
        devices.streams.extend(streams);
    }
    devices.tree = Partial { gic, nodes: copied(&tree)? };
    Ok(devices)
}

/// The nodes that are copied, without what is for EL2.
fn copied(tree: &DeviceTree) -> Result<Vec<DeviceTreeNode>, BuildError> {
    let mut nodes: Vec<DeviceTreeNode> =
        ["passthrough", "aliases"].into_iter().filter_map(|name| tree.root.child(name)).cloned().collect();
    let mut clash = None;
    let mut strip = |node: &mut DeviceTreeNode| {
        for name in OURS {
            node.remove_property(name);
        }
        clash = clash.or(cell(node, "phandle").filter(|&phandle| make::is_own_phandle(phandle)));
    };
    for node in &mut nodes {
        strip(node);
        for_each(node, &mut strip);
    }
    match clash {
        Some(phandle) => {
            Err(because("/passthrough", format_args!("phandle {phandle:#x} is that of another node of the domain")))
        }
        None => Ok(nodes),
    }
}

/// A node that asks for a device.
struct Wanted<'a> {
    node: &'a DeviceTreeNode,
    /// Its path in the partial tree.
    path: String,
    /// The path of the device in the host's tree; empty if there is none.
    host: String,
    /// Cells of addresses and sizes on its bus.
    cells: (usize, usize),
    /// The phandle of its interrupt controller, if the partial tree says it.
    interrupt_parent: Option<u32>,
}

/// Finds the nodes that ask for a device, from `node` at `path` on.
fn collect<'a>(
    node: &'a DeviceTreeNode,
    path: &str,
    interrupt_parent: Option<u32>,
    cells: (usize, usize),
    to: &mut Vec<Wanted<'a>>,
) {
    let interrupt_parent = cell(node, "interrupt-parent").or(interrupt_parent);
    if node.property("xen,reg").is_some() || node.property("xen,path").is_some() {
        let host = string(node, "xen,path").unwrap_or_default().to_string();
        to.push(Wanted { node, path: path.to_string(), host, cells, interrupt_parent });
    }
    let below = cells_of(node);
    for child in node.children() {
        collect(child, &format!("{path}/{}", child.name()), interrupt_parent, below, to);
    }
}

/// What a domU gets of a device.
type Given = (Vec<(Ipa, Range)>, Vec<Intid>, Vec<Streams>);

/// Checks whether a device can be given to a domU, which has been given `mine` already.
fn check<H: Hw + Clone>(
    host: &HostTree<'_, H>,
    config: &DomainConfig,
    device: &Wanted<'_>,
    gic: Option<u32>,
    mine: &Devices,
    prepared: &PlatformDevices,
) -> Result<Given, BuildError> {
    let name = device.path.as_str();
    let bad = |why: &dyn fmt::Display| Err(because(name, why));
    if device.host.is_empty() {
        return bad(&"it has no xen,path");
    }
    let path = device.host.as_str();
    if prepared.paths.iter().any(|given| is_within(given, path) || is_within(path, given)) {
        return bad(&format_args!("{path} was given away before"));
    }
    let found = find(host, path).map_err(|error| because(name, error))?;
    let Some(found) = found else { return bad(&format_args!("there is no device {path}, or it is disabled")) };
    let regs = pages(device)?;
    for &(at, range) in &regs {
        if let Some(why) = registers_are_bad(host, &found, range, prepared) {
            return bad(&format_args!("xen,reg: {range} {why}"));
        }
        let taken = mine.regs.iter().map(|&(at, range)| (at, range.size)).chain(domain_has(config));
        let wanted = Range::new(Pa(at.0), range.size);
        if taken.into_iter().any(|(at, size)| Range::new(Pa(at.0), size).overlaps(wanted)) {
            return bad(&format_args!("xen,reg: the domain has something else at {at}"));
        }
    }
    for &spi in &found.spis {
        if !SPIS.contains(&spi.0) {
            return bad(&format_args!("{spi} of {path} is an extended SPI, which no domU has"));
        }
        if host.kept_spis.contains(&spi) {
            return bad(&format_args!("{spi} of {path} is one of EL2's"));
        }
        if config.vpl011 && spi == domu::UART_IRQ {
            return bad(&format_args!("{spi} of {path} is that of the domain's serial port"));
        }
        if let Some(other) = found.sharers.iter().find(|other| other.spis.contains(&spi)) {
            return bad(&format_args!("{spi} of {path} is also that of {}", other.path));
        }
    }
    if let Some(spi) = interrupts(device, gic).find(|spi| !found.spis.contains(spi)) {
        return bad(&format_args!("{spi} is not one of {path}"));
    }
    let streams = streams(host, device).map_err(|why| because(name, why))?;
    if let Some(given) = streams.iter().find(|&&own| prepared.streams.iter().any(|given| given.overlaps(own))) {
        return bad(&format_args!("{given} of {path} was given away before"));
    }
    Ok((regs, found.spis, streams))
}

/// Whether `path` is that of a node or of one below it.
fn is_within(path: &str, node: &str) -> bool {
    path.strip_prefix(node).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A device of the host.
#[derive(Default)]
struct Found {
    path: String,
    /// The pages of its registers.
    regs: Vec<Range>,
    spis: Vec<Intid>,
    /// Other devices that have something in these pages, or one of its interrupts.
    sharers: Vec<Found>,
}

/// Finds a device, with those that have to do with it.
fn find<H: Hw + Clone>(host: &HostTree<'_, H>, path: &str) -> Result<Option<Found>, BuildError> {
    let mut found: Option<Found> = None;
    let mut others = Vec::new();
    let read = fdt::for_each_device(host.blob, |device| {
        let this = Found {
            path: device.path.to_string(),
            regs: device.regs.iter().map(|&range| pages_around(range)).collect(),
            spis: device.spis.iter().map(|spi| spi.intid).collect(),
            sharers: Vec::new(),
        };
        if device.path == path {
            found = Some(this);
        } else if !is_within(device.path, path) {
            // What is below it goes with it; a device above it that has registers of its own does not.
            others.push(this);
        }
    });
    read.map_err(|error| BuildError(error.to_string()))?;
    Ok(found.map(|mut found| {
        found.sharers = others;
        found
    }))
}

/// Reads `xen,reg`.
fn pages(device: &Wanted<'_>) -> Result<Vec<(Ipa, Range)>, BuildError> {
    let bad = || because(&device.path, "xen,reg: expected whole pages: host address, size and guest address of each");
    let Some(property) = device.node.property("xen,reg") else { return Ok(Vec::new()) };
    let (address, size) = device.cells;
    let mut rest = property.value();
    let mut number = |cells: usize| {
        let (head, tail) = rest.split_at_checked(4 * cells)?;
        rest = tail;
        head.iter().try_fold(0u64, |number, &byte| (number >> 56 == 0).then_some(number << 8 | u64::from(byte)))
    };
    let mut pages = Vec::new();
    let count = property.value().len() / (4 * (2 * address + size)).max(1);
    for _ in 0..count {
        let entry = || Some((number(address)?, number(size)?, number(address)?));
        let (base, size, at) = {
            let mut entry = entry;
            entry()
        }
        .ok_or_else(bad)?;
        let whole = [base, size, at].iter().all(|number| number.is_multiple_of(PAGE));
        let fits = size != 0 && base.checked_add(size).is_some() && at.checked_add(size).is_some();
        if !whole || !fits {
            return Err(bad());
        }
        pages.push((Ipa(at), Range::new(Pa(base), size)));
    }
    if pages.is_empty() || !rest.is_empty() { Err(bad()) } else { Ok(pages) }
}

/// Why pages cannot be mapped for a domU.
fn registers_are_bad<H: Hw + Clone>(
    host: &HostTree<'_, H>,
    device: &Found,
    range: Range,
    prepared: &PlatformDevices,
) -> Option<String> {
    let machine = host.machine;
    let overlaps = |other: &Range| other.overlaps(range);
    if machine.memory.iter().chain(&machine.reserved).any(overlaps) {
        return Some("is memory".to_string());
    }
    if host.kept_frames.iter().any(overlaps) {
        return Some("has registers of EL2".to_string());
    }
    if machine.pci.iter().any(|pci| pci.ecam.overlaps(range) || pci.windows.iter().any(|window| overlaps(&window.cpu)))
    {
        return Some("is of a PCI host".to_string());
    }
    if prepared.regs.iter().any(overlaps) {
        return Some("was given away before".to_string());
    }
    if !device.regs.iter().any(|own| own.covers(range)) {
        return Some(format!("is not of {}", device.path));
    }
    let shared = |other: &&Found| other.regs.iter().any(|regs| regs.overlaps(range));
    device.sharers.iter().find(shared).map(|other| format!("has registers of {}, too", other.path))
}

/// What the domain has already at its addresses, with sizes.
fn domain_has(config: &DomainConfig) -> impl Iterator<Item = (Ipa, u64)> {
    let all = domu::occupied(config.cpus.into(), domu::ram_size(config), config.vpl011, !config.pci.is_empty());
    all.into_iter().map(|range| (Ipa(range.base.0), range.size))
}

/// The SPIs in the `interrupts` of a node that the domU's GIC takes.
fn interrupts(device: &Wanted<'_>, gic: Option<u32>) -> impl Iterator<Item = Intid> {
    let is_gic = device.interrupt_parent.is_none_or(|parent| Some(parent) == gic.or(Some(make::GIC)));
    let value = device.node.property("interrupts").map(|property| property.value().to_vec()).unwrap_or_default();
    let value = if is_gic { value } else { Vec::new() };
    let cells: Vec<u32> = value.as_chunks::<4>().0.iter().map(|&cell| u32::from_be_bytes(cell)).collect();
    let specifiers = cells.as_chunks::<3>().0.to_vec();
    specifiers.into_iter().filter(|spec| spec[0] == 0).map(|spec| Intid(spec[1].saturating_add(32)))
}

/// The streams of a device's DMA.
fn streams<H: Hw + Clone>(host: &HostTree<'_, H>, device: &Wanted<'_>) -> Result<Vec<Streams>, String> {
    const FORCE: &str = "xen,force-assign-without-iommu";
    let is_forced = device.node.property(FORCE).is_some();
    let unlimited = |why: &str| {
        if is_forced { Ok(Vec::new()) } else { Err(format!("{why}, and {FORCE} does not allow that")) }
    };
    match fdt::device_streams(host.blob, &device.host).map_err(|error| error.to_string())? {
        DeviceStreams::None => unlimited("no SMMU limits its DMA"),
        DeviceStreams::Unknown => unlimited("its iommus does not name an SMMUv3 and a StreamID"),
        DeviceStreams::Known(streams) => {
            match streams.iter().find(|streams| host.iommu.facts(streams.smmu).is_none()) {
                Some(streams) => unlimited(&format!("{} is in bypass and does not limit its DMA", streams.smmu)),
                None => Ok(streams.to_vec()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fdt::node::{node, set};
    use super::*;
    use crate::ids::{SmmuId, StreamId};
    use crate::platform::testing::{GICV4, edited, set as set_at};
    use crate::platform::{Module, fdt};
    use crate::smmu::model::{ModelHw, described};
    use arrayvec::ArrayString;
    use smmu_model::Config;
    use std::boxed::Box;
    use std::vec;

    const RTC: &str = "/pl031@9010000";
    const GPIO: &str = "/pl061@9030000";

    /// A node for the device at `path`, with its registers at `regs`: host address, size, guest address.
    fn device(name: &str, path: &str, regs: &[u64]) -> DeviceTreeNode {
        let mut device = node(name);
        if !path.is_empty() {
            set(&mut device, "xen,path", path);
        }
        if !regs.is_empty() {
            let cells: Vec<u32> = regs.iter().flat_map(|&number| [(number >> 32) as u32, number as u32]).collect();
            set(&mut device, "xen,reg", &cells[..]);
        }
        set(&mut device, "xen,force-assign-without-iommu", &[0u32; 0][..]);
        device
    }

    fn rtc() -> DeviceTreeNode {
        device("rtc@9010000", RTC, &[0x901_0000, 0x1000, 0x901_0000])
    }

    fn gpio() -> DeviceTreeNode {
        device("gpio@9030000", GPIO, &[0x903_0000, 0x1000, 0x905_0000])
    }

    fn partial(devices: Vec<DeviceTreeNode>) -> DeviceTree {
        let mut tree = DeviceTree::new();
        let mut passthrough = node("passthrough");
        set(&mut passthrough, "#address-cells", 2u32);
        set(&mut passthrough, "#size-cells", 2u32);
        devices.into_iter().for_each(|device| passthrough.add_child(device));
        tree.root.add_child(passthrough);
        tree
    }

    /// QEMU's board, and the partial trees of its domUs.
    struct World {
        blob: Vec<u8>,
        trees: Vec<Vec<u8>>,
        iommu: bool,
        /// Changes the description of the first domU.
        config: fn(&mut DomainConfig),
    }

    impl World {
        fn new(trees: Vec<DeviceTree>) -> World {
            let trees = trees.iter().map(DeviceTree::to_dtb).collect();
            World { blob: GICV4.to_vec(), trees, iommu: true, config: |_| {} }
        }

        fn of(devices: Vec<DeviceTreeNode>) -> World {
            World::new(vec![partial(devices)])
        }

        fn prepare(&self) -> PlatformDevices {
            let mut machine = fdt::read(&self.blob).unwrap();
            for (index, tree) in self.trees.iter().enumerate() {
                let range = Range::new(Pa(index as u64), tree.len() as u64);
                let module = Module { kind: ModuleKind::DeviceTree, range, bootargs: ArrayString::new() };
                let mut config = DomainConfig { cpus: 1, memory: 64 << 20, vpl011: true, ..DomainConfig::default() };
                config.modules.push(module);
                machine.domains.push(config);
            }
            (self.config)(&mut machine.domains[0]);
            let hw = smmu_model::Machine::new(Config { base: machine.smmus[0].regs.base.0, ..Config::qemu() });
            let smmus = [described(&hw.config())];
            let iommu = Box::leak(Box::new(Iommu::start(ModelHw(hw), &smmus, self.iommu)));
            let kept_frames = [machine.gic.dist, machine.smmus[0].regs, machine.uart.unwrap().regs];
            let kept_spis = [Intid(33), Intid(106)];
            let (machine, blob) = (&machine, &self.blob[..]);
            let host = HostTree { machine, blob, iommu, kept_frames: &kept_frames, kept_spis: &kept_spis };
            prepare(&host, |range| Ok(self.trees[range.base.0 as usize].clone()))
        }

        /// Why each domU gets nothing.
        fn reasons(&self) -> Vec<String> {
            let all = self.prepare().domus;
            all.into_iter().map(|domu| domu.err().map_or(String::new(), |error| error.to_string())).collect()
        }
    }

    /// Why a domU with this device gets nothing.
    fn reason(device: DeviceTreeNode) -> String {
        World::of(vec![device]).reasons().remove(0)
    }

    #[test]
    fn a_domu_gets_the_registers_and_the_spis_of_its_devices_and_dom0_does_not() {
        let mut tree = partial(vec![rtc(), gpio()]);
        let mut gic = node("gic");
        set(&mut gic, "phandle", 5u32);
        tree.root.add_child(gic);
        let mut aliases = node("aliases");
        set(&mut aliases, "rtc0", "/passthrough/rtc@9010000");
        tree.root.add_child(aliases);
        tree.root.add_child(node("other"));
        let mut prepared = World::new(vec![tree]).prepare();
        let page = |base| Range::new(Pa(base), PAGE);
        assert_eq!(prepared.paths, [RTC, GPIO]);
        assert_eq!(prepared.regs, [page(0x901_0000), page(0x903_0000)]);
        assert_eq!(prepared.spis, [Intid(34), Intid(39)]);
        let devices = prepared.take(0).unwrap();
        assert_eq!(devices.regs, [(Ipa(0x901_0000), page(0x901_0000)), (Ipa(0x905_0000), page(0x903_0000))]);
        assert_eq!((&devices.spis[..], devices.spis_needed()), (&[Intid(34), Intid(39)][..], 32));
        assert_eq!((devices.streams.len(), devices.tree.gic), (0, Some(5)));
        let [passthrough, aliases] = &devices.tree.nodes[..] else { panic!("two nodes are copied") };
        assert_eq!((passthrough.name(), aliases.name()), ("passthrough", "aliases"));
        for device in passthrough.children() {
            assert!(OURS.iter().all(|name| device.property(name).is_none()));
        }
        assert_eq!(prepared.take(0).unwrap().spis, [], "it is taken once");
        assert_eq!(Devices { spis: vec![Intid(64)], ..Devices::default() }.spis_needed(), 64);
    }

    #[test]
    fn each_mistake_in_a_node_is_one_sentence() {
        let at = "/passthrough/rtc@9010000";
        let rtc_at = |regs: &[u64]| device("rtc@9010000", RTC, regs);
        let said = |device: DeviceTreeNode, why: &str| assert_eq!(reason(device), format!("{at}: {why}"));
        said(device("rtc@9010000", "", &[0x901_0000, 0x1000, 0]), "it has no xen,path");
        said(device("rtc@9010000", "/rtc", &[]), "there is no device /rtc, or it is disabled");
        let pages = "xen,reg: expected whole pages: host address, size and guest address of each";
        for regs in [&[0x901_0000, 0x1000][..], &[0x901_0000, 0x800, 0], &[0x901_0800, 0x1000, 0], &[0x901_0000, 0, 0]]
        {
            said(rtc_at(regs), pages);
        }
        said(rtc_at(&[0x901_0000, 0x1000, u64::MAX - 0xfff]), pages);
        let reg = |base: u64, why: &str| {
            said(rtc_at(&[base, 0x1000, 0x901_0000]), &format!("xen,reg: {} {why}", Range::new(Pa(base), 0x1000)));
        };
        reg(0x4000_0000, "is memory");
        reg(0x800_0000, "has registers of EL2");
        reg(0x905_0000, "has registers of EL2");
        reg(0x1000_0000, "is of a PCI host");
        reg(0x40_1000_0000, "is of a PCI host");
        reg(0x903_0000, "is not of /pl031@9010000");
        for guest in [0x800_0000, 0x80a_0000, 0x900_0000, 0x4000_0000] {
            said(
                rtc_at(&[0x901_0000, 0x1000, guest]),
                &format!("xen,reg: the domain has something else at {}", Ipa(guest)),
            );
        }
        let virtio = device("rtc@9010000", "/virtio_mmio@a000000", &[0xa00_0000, 0x1000, 0xa00_0000]);
        assert!(reason(virtio).ends_with(" has registers of /virtio_mmio@a000200, too"));
        let mut other = rtc();
        set(&mut other, "interrupts", &[0u32, 3, 4][..]);
        said(other, "INTID 35 is not one of /pl031@9010000");
        let mut right = rtc();
        set(&mut right, "interrupts", &[0u32, 2, 4][..]);
        assert_eq!(reason(right), "");
        let mut phandle = rtc();
        set(&mut phandle, "phandle", make::GIC);
        assert_eq!(reason(phandle), "/passthrough: phandle 0xfde8 is that of another node of the domain");
    }

    #[test]
    fn a_part_of_a_device_is_not_given_away_if_the_device_has_something_in_its_page() {
        let blob = edited(GICV4, |tree| {
            set_at(tree, RTC, "#address-cells", 2u32);
            set_at(tree, RTC, "#size-cells", 2u32);
            set_at(tree, RTC, "ranges", [0u8; 0]);
            let mut part = node("part@9010800");
            set(&mut part, "reg", &[0u32, 0x901_0800, 0, 0x100][..]);
            tree.find_node_mut(RTC).unwrap().add_child(part);
        });
        let part = device("part", "/pl031@9010000/part@9010800", &[0x901_0000, 0x1000, 0x901_0000]);
        let reasons = |devices| World { blob: blob.clone(), ..World::of(devices) }.reasons();
        let why = "/passthrough/part: xen,reg: [0x9010000, 0x9011000) has registers of /pl031@9010000, too";
        assert_eq!(reasons(vec![part]), [why]);
        assert_eq!(reasons(vec![rtc()]), [""], "with its part");
    }

    #[test]
    fn el2s_interrupts_and_that_of_the_serial_port_are_not_given_away() {
        let with = |spi: u32| {
            let blob = edited(GICV4, |tree| set_at(tree, RTC, "interrupts", [0u32, spi - 32, 4]));
            World { blob, ..World::of(vec![rtc()]) }.reasons().remove(0)
        };
        assert_eq!(with(106), "/passthrough/rtc@9010000: INTID 106 of /pl031@9010000 is one of EL2's");
        assert_eq!(with(39), "/passthrough/rtc@9010000: INTID 39 of /pl031@9010000 is also that of /pl061@9030000");
        assert_eq!(with(200), "");
    }

    #[test]
    fn a_device_is_given_away_once() {
        let both = World::new(vec![partial(vec![rtc()]), partial(vec![gpio(), rtc()])]);
        let before = "/passthrough/rtc@9010000: /pl031@9010000 was given away before";
        assert_eq!(both.reasons(), ["", before]);
        // What had passed is not dom0's.
        assert_eq!(both.prepare().paths, [RTC, GPIO]);
        let again = device("clock@0", RTC, &[0x901_0000, 0x1000, 0]);
        let before = "/passthrough/clock@0: /pl031@9010000 was given away before";
        assert_eq!(World::of(vec![rtc(), again]).reasons(), [before]);
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && !is_within("/ab", "/a"));
    }

    #[test]
    fn a_device_whose_dma_nothing_limits_needs_the_operators_word() {
        let strict = |name| {
            let mut rtc = rtc();
            rtc.remove_property(name);
            World::of(vec![rtc])
        };
        let at = "/passthrough/rtc@9010000: ";
        let not_allowed = ", and xen,force-assign-without-iommu does not allow that";
        let mut world = strict("xen,force-assign-without-iommu");
        assert_eq!(world.reasons(), [format!("{at}no SMMU limits its DMA{not_allowed}")]);
        // With an SMMU in front of it.
        let smmu = phandle_of_smmu(GICV4);
        world.blob = edited(GICV4, |tree| set_at(tree, RTC, "iommus", [smmu, 0x1_0000]));
        let streams = [Streams { smmu: SmmuId(0), first: StreamId(0x1_0000), last: StreamId(0x1_0000) }];
        assert_eq!(world.prepare().take(0).unwrap().streams, streams);
        world.iommu = false;
        assert_eq!(
            world.reasons(),
            [format!("{at}{} is in bypass and does not limit its DMA{not_allowed}", SmmuId(0))]
        );
        world.iommu = true;
        world.blob = edited(GICV4, |tree| set_at(tree, RTC, "iommus", [smmu]));
        assert_eq!(world.reasons(), [format!("{at}its iommus does not name an SMMUv3 and a StreamID{not_allowed}")]);
    }

    /// The phandle of the SMMU.
    fn phandle_of_smmu(blob: &[u8]) -> u32 {
        let tree = DeviceTree::from_fdt(&fdt::parse(blob).unwrap());
        tree.root.children().find_map(|node| node.name().starts_with("smmuv3").then(|| cell(node, "phandle"))?).unwrap()
    }

    #[test]
    fn a_module_that_is_no_partial_tree_is_refused() {
        let mut world = World::new(vec![DeviceTree::new()]);
        assert_eq!(world.reasons(), ["device tree module: it has no /passthrough"]);
        world.trees[0].truncate(8);
        assert!(world.reasons()[0].starts_with("device tree module: "));
        world.trees[0] = vec![0; LARGEST as usize + 1];
        assert_eq!(world.reasons(), ["device tree module: larger than 64 KiB"]);
    }
}
