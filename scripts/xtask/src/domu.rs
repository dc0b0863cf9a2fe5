//! DomUs: their boot modules as QEMU's loader devices, and `xen,domain` nodes in the device tree.
//!
//! QEMU's guest-loader supports one kernel and one RAM disk, which are dom0's. So QEMU first dumps the device tree that it would
//! pass on (`dumpdtb`), nodes for the domUs are added to it, and QEMU is started with the result.

use std::path::{Path, PathBuf};
use std::process::Command;

use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};

use crate::fail::{Doing, Failure, Outcome};
use crate::{paths, sh};

/// A domU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomU {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its partial device tree, as a flattened one.
    pub dtb: Option<PathBuf>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// RAM in MiB.
    pub mem: u64,
    /// The weight of each vCPU; `None` for the hypervisor's default.
    pub weight: Option<u32>,
    /// The cap of each vCPU, in percent of a CPU.
    pub cap: Option<u32>,
    /// The PCI functions that it gets, as `0000:00:03.0`.
    pub pci: Vec<String>,
    /// Whether it may get functions that cannot be reset.
    pub pci_allow_no_reset: bool,
    /// The kernel's command line.
    pub append: String,
}

impl Default for DomU {
    fn default() -> Self {
        let append = "console=ttyAMA0".into();
        Self {
            kernel: paths::linux(),
            initrd: None,
            dtb: None,
            cpus: 1,
            mem: 256,
            weight: None,
            cap: None,
            pci: Vec::new(),
            pci_allow_no_reset: false,
            append,
        }
    }
}

impl DomU {
    /// Parses `KERNEL[,initrd=F][,dtb=F][,cpus=N][,mem=SIZE][,weight=N][,cap=N][,pci=BDF]...[,pci-allow-no-reset]
    /// [,append=WORDS]`; WORDS extends to the end.
    pub fn parse(text: &str) -> Outcome<Self> {
        let (text, words) = text.split_once(",append=").map_or((text, None), |(text, words)| (text, Some(words)));
        let mut fields = text.split(',');
        let mut domu = Self { kernel: fields.next().unwrap_or_default().into(), ..Self::default() };
        if let Some(words) = words {
            domu.append = format!("{} {words}", domu.append);
        }
        for field in fields {
            let bad = || {
                let known =
                    "initrd=F, dtb=F, cpus=N, mem=SIZE, weight=N, cap=N, pci=BDF, pci-allow-no-reset or append=WORDS";
                Failure::usage(format!("--domu: `{field}` is none of {known}"))
            };
            if field == "pci-allow-no-reset" {
                domu.pci_allow_no_reset = true;
                continue;
            }
            let (key, value) = field.split_once('=').ok_or_else(bad)?;
            match key {
                "initrd" => domu.initrd = Some(value.into()),
                "dtb" => domu.dtb = Some(value.into()),
                "cpus" => domu.cpus = value.parse().map_err(|_| bad())?,
                "weight" => domu.weight = Some(value.parse().map_err(|_| bad())?),
                "cap" => domu.cap = Some(value.parse().map_err(|_| bad())?),
                "pci" => domu.pci.push(function(value).ok_or_else(bad)?),
                "mem" => domu.mem = mebibytes(value).ok_or_else(bad)?,
                _ => return Err(bad()),
            }
        }
        Ok(domu)
    }
}

impl DomU {
    /// The files that are loaded for it, and their kinds.
    fn modules(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let kernel = ("multiboot,kernel", Some(&self.kernel));
        let others = [("multiboot,ramdisk", self.initrd.as_ref()), ("multiboot,device-tree", self.dtb.as_ref())];
        [kernel].into_iter().chain(others).filter_map(|(kind, file)| Some((kind, file?)))
    }
}

/// The size in MiB of `128M` or `1G`.
fn mebibytes(text: &str) -> Option<u64> {
    match text.strip_suffix('G') {
        Some(number) => number.parse::<u64>().ok()?.checked_mul(1024),
        None => text.strip_suffix('M')?.parse().ok(),
    }
}

/// The full name of the PCI function `00:03.0` or `0000:00:03.0`.
fn function(text: &str) -> Option<String> {
    let mut parts = text.rsplit(':');
    let (device, function) = parts.next()?.split_once('.')?;
    let (bus, segment) = (parts.next()?, parts.next().unwrap_or("0"));
    let hex = |text: &str, most| u16::from_str_radix(text, 16).ok().filter(|number| *number <= most);
    let (segment, bus) = (hex(segment, u16::MAX)?, hex(bus, 0xff)?);
    let (device, function) = (hex(device, 0x1f)?, hex(function, 7)?);
    parts.next().is_none().then(|| format!("{segment:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// A file loaded into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Blob {
    file: PathBuf,
    at: u64,
    bytes: u64,
}

/// Assigns addresses to the files of all domains. A file that several domains use is loaded once.
fn lay_out(domains: &[DomU], start: u64) -> Outcome<Vec<Blob>> {
    let mut blobs: Vec<Blob> = Vec::new();
    let mut at = start;
    for file in domains.iter().flat_map(|domain| domain.modules()).map(|(_, file)| file) {
        if blobs.iter().any(|blob| blob.file == *file) {
            continue;
        }
        let bytes = std::fs::metadata(file).doing(format_args!("reading the size of {}", file.display()))?.len();
        blobs.push(Blob { file: file.clone(), at, bytes });
        at = (at + bytes).next_multiple_of(2 << 20);
    }
    Ok(blobs)
}

/// A change of QEMU's device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeEdit {
    /// The region of redistributors has so many bytes.
    Redistributors(u64),
    /// So many bytes of memory from an address on are reserved.
    Reserve(u64, u64),
    /// The PCI function with this requester ID is mapped to DeviceID 0, which is that of stores by `Qtest`.
    Device0(u16),
    /// The PCI function with this requester ID has no StreamID.
    NoStream(u16),
    /// What boards have and QEMU has not: a region for each of so many redistributors, long names, a device in the console's
    /// page, fewer buses than it says, and a GIC that is said to reach 4 GiB only.
    Odd(u32),
}

/// The distance of redistributors on `virt` with a GICv4.
const REDISTRIBUTOR: u64 = 0x4_0000;

/// The node of the GIC.
const GIC: &str = "/intc@8000000";

impl TreeEdit {
    fn apply(self, host: &Fdt, tree: &mut DeviceTree) -> Result<(), String> {
        match self {
            TreeEdit::Redistributors(bytes) => {
                let old = host.find_node(GIC).and_then(|gic| gic.property("reg"));
                // The distributor's address and size, and the region's address.
                let kept = old.as_ref().and_then(|reg| reg.value().get(..24));
                let kept = kept.ok_or_else(|| format!("QEMU's device tree has no reg at {GIC}"))?;
                let reg = tree.find_node_mut(GIC).and_then(|gic| gic.property_mut("reg"));
                let value = [kept, &bytes.to_be_bytes()].concat();
                reg.ok_or("QEMU's device tree has no GIC")?.set_value(value.as_slice());
            }
            TreeEdit::Reserve(address, bytes) => {
                tree.memory_reservations.push(MemoryReservation::new(address, bytes));
            }
            TreeEdit::Device0(rid) => set_map(tree, "msi-map", &with_device0(&map(host, "msi-map")?, rid)?)?,
            TreeEdit::Odd(cpus) => odd(host, tree, cpus)?,
            TreeEdit::NoStream(rid) => set_map(tree, "iommu-map", &without(&map(host, "iommu-map")?, rid))?,
        }
        Ok(())
    }
}

/// Carries out [`TreeEdit::Odd`].
fn odd(host: &Fdt, tree: &mut DeviceTree, cpus: u32) -> Result<(), String> {
    let reg = |path: &str| {
        let reg = host.find_node(path).and_then(|node| node.property("reg")).map(|reg| reg.value().to_vec());
        reg.ok_or_else(|| format!("QEMU's device tree has no reg at {path}"))
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let old = reg(GIC)?;
    let first = number(old.get(16..24).ok_or("QEMU's GIC has no redistributors")?);
    let mut regions = old.get(..16).unwrap_or_default().to_vec();
    for cpu in 0..u64::from(cpus) {
        regions.extend((first + cpu * REDISTRIBUTOR).to_be_bytes());
        regions.extend(REDISTRIBUTOR.to_be_bytes());
    }
    let gic = tree.find_node_mut(GIC).ok_or("QEMU's device tree has no GIC")?;
    set(gic, "reg", regions.as_slice());
    set(gic, "#redistributor-regions", cpus);
    let pci = tree.find_node_mut(PCI).ok_or("QEMU's device tree has no PCI host")?;
    let mut ecam = reg(PCI)?;
    ecam.splice(8.., (64u64 << 20).to_be_bytes());
    set(pci, "reg", ecam.as_slice());
    set(&mut tree.root, "linux,a-property-whose-name-is-longer-than-31-characters", "x");
    let mut neighbour = DeviceTreeNode::new_unchecked("a-node-whose-name-is-longer-than-31-characters@9000800");
    set(&mut neighbour, "compatible", "arm,sbsa-uart");
    set(&mut neighbour, "reg", &[0u32, 0x900_0800, 0, 0x100][..]);
    tree.root.add_child(neighbour);
    let compatible = tree.root.property_mut("compatible").ok_or("QEMU's device tree has no compatible")?;
    compatible.set_value(&["linux,dummy-virt", "rockchip,rk3568"][..]);
    Ok(())
}

/// What the device tree has in addition to QEMU's.
#[derive(Clone, Copy)]
pub struct Extras<'a> {
    /// The domUs.
    pub domains: &'a [DomU],
    /// `/chosen/xen,xen-bootargs`.
    pub own_words: Option<&'a str>,
    /// Changes of the tree itself.
    pub edits: &'a [TreeEdit],
}

impl Extras<'_> {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.domains.is_empty() || self.own_words.is_some() || !self.edits.is_empty()
    }
}

/// Adds `extras` to a complete command of QEMU: the files of domUs from `start` on, and a device tree, written to `tree`.
pub fn equip(qemu: &mut Command, extras: &Extras<'_>, start: u64, tree: &Path) -> Outcome {
    let blobs = lay_out(extras.domains, start)?;
    let mut dump = Command::new(qemu.get_program());
    dump.args(qemu.get_args()).args(["-machine", &format!("dumpdtb={}", tree.display())]);
    sh::quiet(&mut dump)?;
    let host = std::fs::read(tree).doing(format_args!("reading {}", tree.display()))?;
    let edited = edited(&host, extras, &blobs).map_err(Failure::new)?;
    std::fs::write(tree, edited).doing(format_args!("writing {}", tree.display()))?;
    for blob in &blobs {
        let file = blob.file.to_string_lossy().replace(',', ",,");
        qemu.args(["-device", &format!("loader,file={file},addr={:#x},force-raw=on", blob.at)]);
    }
    qemu.arg("-dtb").arg(tree);
    Ok(())
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn cells(number: u64) -> [u32; 2] {
    [(number >> 32) as u32, number as u32]
}

/// The node of the PCI host bridge.
const PCI: &str = "/pcie@10000000";

/// A map of requester IDs (`msi-map`, `iommu-map`) of the host's PCI host bridge, by its cells.
fn map(host: &Fdt, name: &str) -> Result<Vec<u32>, String> {
    let map = host.find_node(PCI).and_then(|pci| pci.property(name));
    let map = map.ok_or_else(|| format!("QEMU's device tree has no {name} at {PCI}"))?;
    let cells = map.value().chunks_exact(4).map(|cell| u32::from_be_bytes(cell.try_into().expect("four bytes")));
    Ok(cells.collect())
}

/// Replaces a map of QEMU's PCI host bridge.
fn set_map(tree: &mut DeviceTree, name: &str, cells: &[u32]) -> Result<(), String> {
    let old = tree.find_node_mut(PCI).and_then(|pci| pci.property_mut(name));
    old.ok_or_else(|| format!("QEMU's device tree has no {name}"))?.set_value(cells);
    Ok(())
}

/// The map without `rid`.
fn without(map: &[u32], rid: u16) -> Vec<u32> {
    let rid = u32::from(rid);
    let mut left = Vec::new();
    for entry in map.chunks_exact(4) {
        let [first, target, output, length] = entry.try_into().expect("four cells");
        if !(first..first + length).contains(&rid) {
            left.extend([first, target, output, length]);
            continue;
        }
        let before = rid - first;
        if before > 0 {
            left.extend([first, target, output, before]);
        }
        if length > before + 1 {
            left.extend([rid + 1, target, output + before + 1, length - before - 1]);
        }
    }
    left
}

/// The `msi-map` with an entry in front that maps `rid` to DeviceID 0. The function with requester ID 0 is QEMU's host bridge, which
/// sends no MSIs: it would share this DeviceID, and is left out.
fn with_device0(map: &[u32], rid: u16) -> Result<Vec<u32>, String> {
    let its = *map.get(1).ok_or("QEMU's msi-map is empty")?;
    Ok([vec![u32::from(rid), its, 0, 1], without(map, 0)].concat())
}

/// The host's tree with `extras`.
fn edited(host: &[u8], extras: &Extras<'_>, blobs: &[Blob]) -> Result<Vec<u8>, String> {
    let Extras { domains, own_words, edits } = *extras;
    let host = Fdt::new(host).map_err(|error| format!("QEMU's device tree: {error}"))?;
    let mut tree = DeviceTree::from_fdt(&host);
    edits.iter().try_for_each(|edit| edit.apply(&host, &mut tree))?;
    let chosen = tree.root.child_mut("chosen").ok_or("QEMU's device tree has no /chosen")?;
    if let Some(words) = own_words {
        set(chosen, "xen,xen-bootargs", words);
    }
    for (number, domain) in domains.iter().enumerate() {
        let mut node = DeviceTreeNode::new_unchecked(format!("domU{}", number + 1));
        set(&mut node, "compatible", "xen,domain");
        set(&mut node, "#address-cells", 2u32);
        set(&mut node, "#size-cells", 2u32);
        set(&mut node, "cpus", domain.cpus);
        set(&mut node, "memory", &cells(domain.mem << 10)[..]);
        set(&mut node, "vpl011", &[0u32; 0][..]);
        for (name, value) in [("doorward,cpu-weight", domain.weight), ("doorward,cpu-cap", domain.cap)] {
            if let Some(value) = value {
                set(&mut node, name, value);
            }
        }
        if !domain.pci.is_empty() {
            let functions: Vec<&str> = domain.pci.iter().map(String::as_str).collect();
            set(&mut node, "doorward,pci", &functions[..]);
        }
        if domain.pci_allow_no_reset {
            set(&mut node, "doorward,pci-allow-no-reset", &[0u32; 0][..]);
        }
        for (kind, file) in domain.modules() {
            let blob = blobs.iter().find(|blob| blob.file == *file).ok_or("a file without an address")?;
            let mut module = DeviceTreeNode::new_unchecked(format!("module@{:x}", blob.at));
            set(&mut module, "compatible", &[kind, "multiboot,module"][..]);
            set(&mut module, "reg", &[cells(blob.at), cells(blob.bytes)].concat()[..]);
            if kind == "multiboot,kernel" {
                set(&mut module, "bootargs", domain.append.as_str());
            }
            node.add_child(module);
        }
        chosen.add_child(node);
    }
    Ok(tree.to_dtb())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domu_is_parsed_from_one_word() {
        let domu = DomU::parse("k,initrd=i,dtb=d,cpus=2,mem=1G,weight=512,cap=50,append=quiet a=b,c=d").unwrap();
        assert_eq!((domu.weight, domu.cap), (Some(512), Some(50)));
        assert_eq!((domu.kernel, domu.initrd, domu.dtb), ("k".into(), Some("i".into()), Some("d".into())));
        assert_eq!((domu.cpus, domu.mem, domu.append.as_str()), (2, 1024, "console=ttyAMA0 quiet a=b,c=d"));
        assert_eq!(DomU::parse("k").unwrap(), DomU { kernel: "k".into(), ..DomU::default() });
        let functions = DomU::parse("k,pci=00:03.0,cpus=2,pci=1:ff:1f.7").unwrap().pci;
        assert_eq!(functions, ["0000:00:03.0", "0001:ff:1f.7"]);
        for wrong in ["3.0", "00:20.0", "00:03", "0:0:0:3.0", "00:03.8"] {
            assert!(DomU::parse(&format!("k,pci={wrong}")).is_err(), "{wrong}");
        }
        assert!(DomU::parse("k,cpus=x").is_err() && DomU::parse("k,mem=5").is_err() && DomU::parse("k,x=1").is_err());
    }

    #[test]
    fn a_requester_id_is_cut_out_of_a_map() {
        assert_eq!(without(&[0, 7, 0x100, 8], 3), [0, 7, 0x100, 3, 4, 7, 0x104, 4]);
        assert_eq!(without(&[0, 7, 0x100, 8], 0), [1, 7, 0x101, 7]);
        assert_eq!(without(&[0, 7, 0x100, 8], 7), [0, 7, 0x100, 7]);
        assert_eq!(without(&[0, 7, 0x100, 8, 8, 7, 0, 1], 8), [0, 7, 0x100, 8]);
        assert_eq!(without(&[0, 7, 0x100, 8], 9), [0, 7, 0x100, 8]);
    }

    #[test]
    fn nodes_are_written_in_xens_binding() {
        let host = std::fs::read(paths::root().join("tests/data/virt-gicv4-dom0.dtb")).unwrap();
        let domains = [DomU {
            kernel: "k".into(),
            initrd: Some("i".into()),
            weight: Some(512),
            pci: vec!["0000:00:03.0".into(), "0000:00:04.0".into()],
            ..DomU::default()
        }];
        let blobs = [
            Blob { file: "k".into(), at: 0x5600_0000, bytes: 5 },
            Blob { file: "i".into(), at: 0x1_5620_0000, bytes: 7 },
        ];
        let extras = Extras {
            domains: &domains,
            own_words: Some("loglvl=debug"),
            edits: &[TreeEdit::Redistributors(0xc_0000), TreeEdit::Reserve(0x5000, 0x1000), TreeEdit::Device0(0xf0)],
        };
        let blob = edited(&host, &extras, &blobs).unwrap();
        let tree = Fdt::new(&blob).unwrap();
        let cells = |path: &str, name: &str| {
            let bytes = tree.find_node(path).unwrap().property(name).unwrap().value().to_vec();
            bytes.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(cells("/chosen/domU1", "memory"), [0, 256 << 10]);
        assert_eq!(cells(GIC, "reg"), [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xc_0000]);
        assert_eq!(tree.memory_reservations().collect::<Vec<_>>(), [MemoryReservation::new(0x5000, 0x1000)]);
        assert_eq!(cells("/chosen/domU1", "doorward,cpu-weight"), [512]);
        assert_eq!(cells("/chosen/domU1/module@56000000", "reg"), [0, 0x5600_0000, 0, 5]);
        assert_eq!(cells("/chosen/domU1/module@156200000", "reg"), [1, 0x5620_0000, 0, 7]);
        let functions = tree.find_node("/chosen/domU1").unwrap().property("doorward,pci").unwrap();
        assert_eq!(functions.value(), b"0000:00:03.0\x000000:00:04.0\x00");
        let words = tree.find_node("/chosen").unwrap().property("xen,xen-bootargs").unwrap();
        assert_eq!(words.value(), b"loglvl=debug\0");
        let map = cells("/pcie@10000000", "msi-map");
        assert_eq!((map[0], map[2], map[3], &map[4..]), (0xf0, 0, 1, &[1, map[1], 1, 0xffff][..]));
    }
}
