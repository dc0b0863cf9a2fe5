//! The assembly of a domain from its specification, step by step.
//!
//! At boot the steps follow each other at once. At run time they are the work of the vCPU that has asked for the domain, so
//! each is short: a piece of an image, a piece of a mapping, one vPE or one vCPU. An assembly that fails, or that nobody
//! wants any more, is undone in steps as well, whatever it has come to.

use super::{BuildError, DomainSpec, Homes, ID_BITS, PRIORITY_BITS, any_cpu};
use crate::arch::ich;
use crate::domain::images::Rams;
use crate::domain::msi::{LpiPaths, LpiQuota};
use crate::domain::{Domain, Parts, release_gic};
use crate::gic::v4::VmHandle;
use crate::host::Host;
use crate::host::cmdline::Direct;
use crate::ids::{CpuId, DomId, Ipa, Pa, VcpuId, VpeId};
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Fwb, Stage2, Stage2Error, ipa_bits};
use crate::mm::tlb::Tlbs;
use crate::smmu::iommu::DeviceView;
use crate::util::PAGE;
use crate::util::progress::Progress;
use crate::util::range::Range;
use crate::vcpu::{Loaded, Vcpu};
use crate::vgic::{Vgic, VgicConfig};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The largest number of bytes that are mapped in one step: by blocks of 2 MiB, and by blocks of 1 GiB. A descriptor takes
/// some 100 instructions.
const PIECE: u64 = 256 << 20;
const LARGE_PIECE: u64 = 64 << 30;
const GIB: u64 = 1 << 30;

/// A domain that is being built.
pub struct Assembly {
    spec: DomainSpec,
    stage: Stage,
    made: Made,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Load the images.
    Images(Loaded),
    /// Make the virtual GIC.
    Vgic,
    /// Allocate a VMID and the root of stage 2.
    Stage2,
    /// Map a range, of which so many bytes are mapped.
    Map(usize, u64),
    /// Make the VM for vLPIs.
    Vm,
    /// Make the vPE of this vCPU, or reserve LPIs after the last one.
    Vpe(usize),
    /// Make the address space of the devices.
    View,
    /// Map a range there.
    ViewMap(usize, u64),
    /// Assign a range of streams.
    Streams(usize),
    /// Make a vCPU.
    Vcpu(VcpuId),
    /// Nothing.
    Finished,
}

/// The parts that have been made.
#[derive(Default)]
struct Made {
    vgic: Option<Vgic>,
    stage2: Option<Stage2<'static, El2, Tlbs>>,
    paths: Option<LpiPaths>,
    view: Option<DeviceView<El2>>,
    vcpus: Vec<Arc<Vcpu>>,
}

/// A range that is mapped in one of the domain's address spaces.
type Mapping = (Ipa, Pa, u64, Attr);

/// How much of a range is mapped next. Blocks of 1 GiB stay whole.
fn piece((ipa, pa, size, attr): Mapping, done: u64) -> Option<Mapping> {
    let left = size.checked_sub(done).filter(|&left| left > 0)?;
    let (ipa, pa) = (Ipa(ipa.0 + done), pa.add(done));
    let piece = if (ipa.0 | pa.0) % GIB == 0 && left >= GIB {
        (left - left % GIB).min(LARGE_PIECE)
    } else {
        left.min(PIECE).min(GIB - ipa.0 % GIB)
    };
    Some((ipa, pa, piece, attr))
}

impl DomainSpec {
    fn ram_mappings(&self) -> impl Iterator<Item = Mapping> {
        self.ram.banks().iter().map(|bank| (bank.ipa, bank.pa, bank.size, Attr::Ram))
    }

    /// What the CPUs reach: RAM, and ranges of the machine.
    fn mapping(&self, index: usize) -> Option<Mapping> {
        let mapped = &self.devices.mapped;
        let devices = mapped.iter().map(|&(at, range, attr)| (at, range.base, range.size, attr));
        self.ram_mappings().chain(devices).nth(index)
    }

    /// What the devices reach.
    fn device_mapping(&self, index: usize) -> Option<Mapping> {
        let dma = &self.devices.dma;
        let doorbells = dma.doorbells.iter().map(|&(ipa, pa)| (ipa, pa, PAGE, Attr::Doorbell));
        let reserved = dma.reserved.iter().map(|range| (Ipa(range.base.0), range.base, range.size, Attr::Ram));
        self.ram_mappings().chain(doorbells).chain(reserved).nth(index)
    }
}

impl Assembly {
    /// Nothing has been made yet.
    pub(super) fn new(spec: DomainSpec) -> Assembly {
        Assembly { spec, stage: Stage::Images(Loaded::default()), made: Made::default() }
    }

    /// The number of the domain.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.spec.id
    }

    /// What is done next; after an error, what could not be done.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Performs one step.
    ///
    /// # Errors
    ///
    /// The domain cannot be built. What has been made has to be [undone](Assembly::undo).
    pub fn step(&mut self, host: &'static Host) -> Result<Progress, BuildError> {
        self.stage = match self.stage {
            Stage::Images(loaded) => match self.spec.images.load_piece(&self.spec.ram, loaded) {
                Ok(Some(more)) => Stage::Images(more),
                Ok(None) => Stage::Vgic,
                Err(error) => return Err(BuildError::because("images", error)),
            },
            Stage::Vgic => {
                self.made.vgic = Some(self.vgic()?);
                Stage::Stage2
            }
            Stage::Stage2 => {
                self.made.stage2 = Some(address_space(host)?);
                Stage::Map(0, 0)
            }
            Stage::Map(index, done) => self.map(index, done)?,
            Stage::Vm => {
                self.made.paths = Some(self.paths(host));
                Stage::Vpe(0)
            }
            Stage::Vpe(index) if index < self.spec.affinities.len() => {
                self.add_vpe(host, index);
                Stage::Vpe(index + 1)
            }
            Stage::Vpe(_) => {
                self.reserve_lpis(host)?;
                Stage::View
            }
            Stage::View => self.view(host)?,
            Stage::ViewMap(index, done) => self.map_for_devices(index, done)?,
            Stage::Streams(index) => self.assign(host, index)?,
            Stage::Vcpu(id) if id.index() < self.spec.affinities.len() => {
                self.place_vcpu(host, id)?;
                Stage::Vcpu(VcpuId(id.0 + 1))
            }
            Stage::Vcpu(_) | Stage::Finished => Stage::Finished,
        };
        Ok(if self.stage == Stage::Finished { Progress::Done } else { Progress::More })
    }

    fn vgic(&self) -> Result<Vgic, BuildError> {
        Vgic::new(VgicConfig {
            vcpus: self.spec.affinities.clone(),
            spis: self.spec.devices.spis,
            id_bits: ID_BITS,
            has_lpis: !self.spec.devices.itss.is_empty(),
            list_registers: ich::count(),
            priority_bits: PRIORITY_BITS,
        })
        .map_err(|error| BuildError::because("interrupt controller", error))
    }

    fn map(&mut self, index: usize, done: u64) -> Result<Stage, BuildError> {
        let (Some(mapping), Some(stage2)) = (self.spec.mapping(index), &mut self.made.stage2) else {
            return Ok(Stage::Vm);
        };
        let Some((ipa, pa, size, attr)) = piece(mapping, done) else { return Ok(Stage::Map(index + 1, 0)) };
        stage2.map(ipa, pa, size, attr).map_err(failed)?;
        Ok(Stage::Map(index, done + size))
    }

    /// Creates the VM, if the domain's device interrupts can be vLPIs.
    fn paths(&self, host: &Host) -> LpiPaths {
        let id = self.spec.id;
        let has_itss = !self.spec.devices.itss.is_empty();
        let v4 = host.gic.v4().filter(|_| host.options.direct == Direct::On && has_itss);
        let vm = v4.and_then(|v4| {
            v4.create_vm(ID_BITS)
                .inspect_err(|error| log::warn!("{id}: no vLPI tables: {error}; LPIs are injected by software"))
                .ok()
        });
        let devices = self.spec.devices.device_ids.clone();
        LpiPaths { vm, vcpus: Vec::new(), devices, lpis: LpiQuota::none() }
    }

    /// Makes the vPE of a vCPU, as long as there are free ones. The LPIs of a vCPU without a vPE are injected by software.
    fn add_vpe(&mut self, host: &Host, index: usize) {
        let id = self.spec.id;
        let homes = self.spec.homes.first(host, self.spec.affinities.len());
        let Some((paths, &cpu)) = self.made.paths.as_mut().zip(homes.get(index)) else { return };
        let vpe_at = |vm: VmHandle| -> Option<VpeId> {
            host.gic
                .v4()?
                .add_vpe(vm, cpu)
                .inspect_err(|error| {
                    log::warn!("{id}: no vPE for the vCPU on {cpu}: {error}; its LPIs are injected by software");
                })
                .ok()
        };
        let vpe = paths.vm.and_then(vpe_at);
        paths.vcpus.push((cpu, vpe));
    }

    /// Reserves physical LPIs, if a vCPU has no vPE.
    fn reserve_lpis(&mut self, host: &Host) -> Result<(), BuildError> {
        let Some(paths) = &mut self.made.paths else { return Ok(()) };
        let all_direct = paths.vcpus.iter().all(|(_, vpe)| vpe.is_some());
        let has_itss = !self.spec.devices.itss.is_empty();
        let count = if all_direct || !has_itss { 0 } else { self.spec.devices.lpis };
        paths.lpis = LpiQuota::reserve(&host.gic, count)
            .ok_or_else(|| BuildError(alloc::format!("{count} LPIs are not free")))?;
        if all_direct
            && host.gic.has_virtual_sgis()
            && let Some(vgic) = &self.made.vgic
        {
            vgic.offer_direct_sgis();
            log::info!("{}: SGIs are virtual SGIs if the guest does without their active state", self.spec.id);
        }
        Ok(())
    }

    /// Makes the address space of the devices, if an SMMU limits what they reach.
    fn view(&mut self, host: &Host) -> Result<Stage, BuildError> {
        let Some(stage2) = &self.made.stage2 else { return Ok(Stage::Vcpu(VcpuId(0))) };
        if self.spec.devices.dma.streams.is_empty() || !host.iommu.translates() {
            return Ok(Stage::Vcpu(VcpuId(0)));
        }
        let bits = ipa_bits(host.features().stage2().pa_range);
        self.made.view = Some(host.iommu.new_view(stage2.vmid(), bits).map_err(failed_for_devices)?);
        Ok(Stage::ViewMap(0, 0))
    }

    /// dom0 does without what cannot be mapped for its devices. A domU is not built then.
    fn map_for_devices(&mut self, index: usize, done: u64) -> Result<Stage, BuildError> {
        let (Some(mapping), Some(view)) = (self.spec.device_mapping(index), &mut self.made.view) else {
            return Ok(Stage::Streams(0));
        };
        let Some((ipa, pa, size, attr)) = piece(mapping, done) else { return Ok(Stage::ViewMap(index + 1, 0)) };
        match view.map(ipa, pa, size, attr) {
            Ok(()) => {}
            Err(error) if self.spec.is_dom0() => {
                let range = Range::new(pa, size);
                log::error!("{}: {range}: not for devices: {error}: DMA to it fails", self.spec.id);
            }
            Err(error) => return Err(failed_for_devices(error)),
        }
        Ok(Stage::ViewMap(index, done + size))
    }

    /// dom0 does without a device that cannot be assigned. A domU is not built then.
    fn assign(&mut self, host: &Host, index: usize) -> Result<Stage, BuildError> {
        let (Some(&streams), Some(view)) = (self.spec.devices.dma.streams.get(index), &self.made.view) else {
            return Ok(Stage::Vcpu(VcpuId(0)));
        };
        match host.iommu.assign(self.spec.id, streams, view) {
            Ok(()) => {}
            Err(error) if self.spec.is_dom0() => {
                log::error!("{}: {streams}: not assigned: {error}: its devices reach no memory", self.spec.id);
            }
            Err(error) => return Err(BuildError(alloc::format!("{streams}: {error}"))),
        }
        Ok(Stage::Streams(index + 1))
    }

    /// Makes a vCPU and adds it to the scheduler.
    fn place_vcpu(&mut self, host: &Host, id: VcpuId) -> Result<(), BuildError> {
        let spec = &self.spec;
        let affinity = spec.affinities.get(id.index()).copied().unwrap_or_default();
        let vpe = self.made.paths.as_ref().and_then(|paths| paths.vpe(id));
        let make = |cpu| Arc::new(Vcpu::new(spec.id, id, affinity, cpu, vpe, ich::count()));
        let placed = match &spec.homes {
            Homes::Fixed(homes) => homes.get(id.index()).and_then(|&cpu| try_place(host, make(cpu), cpu)),
            Homes::Any => any_cpu(host).find_map(|cpu| try_place(host, make(cpu), cpu)),
        };
        let vcpu = placed.ok_or_else(|| BuildError(alloc::format!("no CPU is free for {id}")))?;
        if let Some(weight) = spec.weight {
            vcpu.entity.set_weight(weight);
        }
        if let Some(percent) = spec.cap {
            vcpu.entity.set_cap(percent);
        }
        if let Some(vpe) = vpe {
            host.vpes.give(vpe, vcpu.clone());
        }
        self.made.vcpus.push(vcpu);
        Ok(())
    }

    /// Returns the domain, all of whose parts have been made. Its vCPUs are off, and it is not in the table of domains
    /// yet.
    ///
    /// # Errors
    ///
    /// The assembly itself, if it is not finished.
    pub fn finish(self: Box<Self>, host: &'static Host) -> Result<Domain, Box<Assembly>> {
        let Assembly { spec, stage, made } = *self;
        match made {
            Made { vgic: Some(vgic), stage2: Some(stage2), paths: Some(paths), view, vcpus }
                if stage == Stage::Finished =>
            {
                let devices = spec.devices;
                Ok(Domain::new(
                    host,
                    Parts {
                        id: spec.id,
                        name: spec.name,
                        stage2,
                        device_view: view,
                        ram: spec.ram,
                        vgic,
                        dist: devices.dist,
                        redists: devices.redists,
                        itss: devices.itss,
                        paths,
                        console: devices.console,
                        ports: devices.ports,
                        absent: devices.absent,
                        bridges: devices.bridges,
                        pci: devices.pci,
                        vcpus,
                        images: spec.restarts.then_some(spec.images),
                        on_crash: spec.on_crash,
                    },
                ))
            }
            made => Err(Box::new(Assembly { spec, stage, made })),
        }
    }

    /// Undoes a part of what has been made. Returns `false` if it has to be called again. None of the vCPUs has run.
    #[must_use]
    pub fn undo(&mut self, host: &Host) -> bool {
        if let Some(vcpu) = self.made.vcpus.pop() {
            host.remove_vcpu(&vcpu);
            if let Some(vpe) = vcpu.vpe {
                host.vpes.take_back(vpe);
            }
            return false;
        }
        if let Some(view) = self.made.view.take() {
            host.iommu.remove(self.spec.id, view);
            return false;
        }
        if let Some(paths) = &self.made.paths
            && !release_gic(host, self.spec.id, paths)
        {
            return false;
        }
        self.made.paths = None;
        if let Some(stage2) = self.made.stage2.take() {
            host.free_stage2(stage2);
            return false;
        }
        // What was reserved for its devices before there were paths; none of them has been mapped.
        let released = host.gic.release_devices(self.spec.id);
        debug_assert!(released, "{} has never run", self.spec.id);
        true
    }

    /// The RAM, when all else has been undone. It may hold parts of the images.
    #[must_use]
    pub fn into_rams(self) -> Rams {
        let Assembly { spec, .. } = self;
        core::iter::once(spec.ram).chain(spec.images.into_kept()).collect()
    }
}

/// A domain that could not be built, and what its RAM was.
pub(super) struct Failure {
    pub error: BuildError,
    pub rams: Rams,
}

/// Builds a domain at once. Its vCPUs are off, and it is not in the table of domains yet.
pub(super) fn assemble(host: &'static Host, spec: DomainSpec) -> Result<Domain, Box<Failure>> {
    let mut assembly = Box::new(Assembly::new(spec));
    let error = loop {
        match assembly.step(host) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => match assembly.finish(host) {
                Ok(domain) => return Ok(domain),
                Err(unfinished) => {
                    assembly = unfinished;
                    break BuildError::new("a part is missing");
                }
            },
            Err(error) => break error,
        }
    };
    // It ends: none of the vPEs has been resident.
    while !assembly.undo(host) {}
    Err(Box::new(Failure { error, rams: assembly.into_rams() }))
}

fn failed(error: Stage2Error) -> BuildError {
    BuildError::because("address space", error)
}

fn failed_for_devices(error: Stage2Error) -> BuildError {
    BuildError::because("address space of its devices", error)
}

/// An address space with a VMID of its own.
fn address_space(host: &Host) -> Result<Stage2<'static, El2, Tlbs>, BuildError> {
    let params = host.features().stage2();
    let fwb = if params.fwb { Fwb::On } else { Fwb::Off };
    let vmid = host.vmids.take().ok_or_else(|| BuildError::new("no VMID is free"))?;
    Stage2::new(&El2, host.tlbs, vmid, ipa_bits(params.pa_range), fwb).map_err(|error| {
        host.vmids.give_back(vmid);
        failed(error)
    })
}

/// Adds a vCPU to the scheduler on `cpu`. Returns `None` if the scheduler does not accept it there.
fn try_place(host: &Host, vcpu: Arc<Vcpu>, cpu: CpuId) -> Option<Arc<Vcpu>> {
    host.add_vcpu(&vcpu, cpu).is_ok().then_some(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_mapped_in_pieces_that_leave_blocks_whole() {
        const M: u64 = 1 << 20;
        let pieces = |ipa: u64, pa: u64, size: u64| {
            let (mut done, mut all) = (0, Vec::new());
            while let Some((at, to, bytes, attr)) = piece((Ipa(ipa * M), Pa(pa * M), size * M, Attr::Ram), done) {
                assert_eq!((at, to, attr), (Ipa(ipa * M + done), Pa(pa * M + done), Attr::Ram));
                all.push(bytes / M);
                done += bytes;
            }
            assert_eq!(done, size * M);
            all
        };
        assert_eq!(pieces(1024, 2048, 32), [32]);
        // Whole blocks of 1 GiB, at once, and the rest.
        assert_eq!(pieces(1024, 2048, 2 * 1024 + 300), [2048, 256, 44]);
        // Addresses that are equal modulo 1 GiB: up to the next block by small ones.
        assert_eq!(pieces(1024 + 700, 3072 + 700, 324 + 1024), [256, 68, 1024]);
        // No block of 1 GiB is possible.
        assert_eq!(pieces(1024, 2050, 600), [256, 256, 88]);
        assert_eq!(pieces(1024, 1024, 130 * 1024), [65536, 65536, 2048]);
        assert_eq!(pieces(1024, 1024, 0), []);
    }
}
