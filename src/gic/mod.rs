//! The physical GIC: GICv3 and GICv4, from the distributor to the interrupts that bypass the hypervisor.
//!
//! | file | what it owns |
//! |---|---|
//! | `regs`, `its/regs` | register layouts; no mask, shift or offset stands above them |
//! | `dist`, `redist` | the distributor; each CPU's redistributor |
//! | `lpi` | LPI numbers and their configuration table |
//! | `hotplug` | taking a CPU out of service; [`init_cpu`](Gic::init_cpu) takes it back |
//! | `its` | interrupt translation services: bring-up, commands, devices and events |
//! | `v4` | virtual LPIs: VMs, vPEs, residency, doorbells |
//! | `facts`, `counters` | what this machine has; what happened |
//!
//! Bring-up has an order. Every ITS that an earlier owner left running is stopped before anything that it may look
//! at is touched; stale residency is cleared on every redistributor before its memory is reused; the capabilities
//! used are those that *all* redistributors have; only then are tables made. Each CPU then turns on its own part.
//!
//! Everything is reached by `&self` and is generic over [`Hw`], so the same driver runs on the executable GIC of
//! `tests/gic-model`. Manual: IHI 0069.

#[cfg(test)]
mod acpi_tests;
pub mod counters;
pub mod cpuif;
mod dist;
pub mod errata;
mod facts;
mod hotplug;
pub mod its;
mod lpi;
mod redist;
mod regs;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod v4;

pub use counters::Counters;
pub use dist::Trigger;
pub use facts::{Facts, ItsFacts};
pub use hotplug::{Moved, TakeOutError};
pub use its::{Batch, Event, ItsError};
pub use v4::V4;

use crate::ids::{CpuId, Intid, ItsId, Lpi, Mpidr, Pa, VpeId};
use crate::mmio::{Coherence, Hw};
use alloc::vec::Vec;
use core::fmt;
use dist::{Bank, Dist};
use its::{Its, Plan};
use lpi::Lpis;
use redist::Redist;
use regs::{GICD_TYPER, GICD_TYPER2, GICR_TYPER, PIDR2, PIDR2_FIELDS};
use tock_registers::LocalRegisterCopy;

/// An ITS as the platform describes it.
#[derive(Clone, Copy, Debug)]
pub struct ItsLayout {
    /// Its control frame.
    pub base: Pa,
    /// It looks into the CPUs' caches.
    pub coherent: bool,
}

/// The GIC as the platform describes it. What it does not say is asked of the hardware.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// The distributor.
    pub dist: Pa,
    /// Redistributor regions: address and bytes.
    pub redists: &'a [(Pa, u64)],
    /// Bytes from one redistributor to the next, where the platform says.
    pub stride: Option<u64>,
    /// The CPUs to serve; the index is the [`CpuId`].
    pub cpus: &'a [Mpidr],
    /// The ITSs; the index is the [`ItsId`].
    pub itss: &'a [ItsLayout],
    /// Redistributors look into the CPUs' caches.
    pub coherent: bool,
    /// Virtual LPIs are to be used where there are any.
    pub virtual_lpis_wanted: bool,
}

/// Why the GIC cannot be used, wholly or by one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// The distributor's architecture revision is neither 3 nor 4.
    NotGicV3(u32),
    /// The distributor did not act on a register write in time, or has no affinity routing.
    Distributor,
    /// No redistributor has this CPU's affinity.
    NoRedistributor(Mpidr),
    /// There is no such CPU.
    NoSuchCpu(CpuId),
    /// The CPU's redistributor does not wake up.
    Asleep(CpuId),
    /// The CPU's redistributor did not act on a register write in time.
    RegisterWrite(CpuId),
    /// LPIs were on when we came, and the redistributor does not let us turn them off: its tables are not ours.
    LpisStuckOn(CpuId),
    /// No memory left.
    NoMemory,
    /// An ITS did not take the CPU's collection.
    Collection(ItsId, ItsError),
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GicError::NotGicV3(rev) => write!(f, "the interrupt controller is not a GICv3 or GICv4 (ArchRev {rev})"),
            GicError::Distributor => write!(f, "the GIC distributor does not act on register writes"),
            GicError::NoRedistributor(m) => write!(f, "no GIC redistributor has the affinity {m} of a CPU"),
            GicError::NoSuchCpu(c) => write!(f, "the GIC does not know {c}"),
            GicError::Asleep(c) => write!(f, "the GIC redistributor of {c} does not wake up"),
            GicError::RegisterWrite(c) => write!(f, "the GIC redistributor of {c} does not act on register writes"),
            GicError::LpisStuckOn(c) => {
                write!(f, "LPIs of {c} were left on and cannot be turned off: it can take none of ours")
            }
            GicError::NoMemory => write!(f, "no memory left for GIC tables"),
            GicError::Collection(its, e) => write!(f, "{its} did not take a CPU's collection: {e}"),
        }
    }
}

/// The whole GIC.
pub struct Gic<H: Hw + Clone> {
    hw: H,
    dist: Dist<H>,
    redists: Vec<Redist<H>>,
    itss: Vec<Option<Its<H>>>,
    lpis: Option<Lpis<H>>,
    v4: Option<v4::State>,
    facts: Facts,
    counters: Counters,
    coherent: bool,
}

impl<H: Hw + Clone> Gic<H> {
    /// Finds out what there is, on the boot CPU, and brings up what all CPUs share: the distributor, the ITSs, the
    /// tables. An ITS that cannot be brought up is left out with a line in the log. No CPU takes an interrupt before
    /// its [`init_cpu`](Self::init_cpu).
    pub fn discover(hw: H, layout: &Layout<'_>) -> Result<Gic<H>, GicError> {
        let pidr2 = LocalRegisterCopy::<u32, PIDR2_FIELDS::Register>::new(hw.read32(layout.dist.add(PIDR2)));
        if !matches!(pidr2.read(PIDR2_FIELDS::ARCH_REV), 3 | 4) {
            return Err(GicError::NotGicV3(pidr2.read(PIDR2_FIELDS::ARCH_REV)));
        }
        // All ITSs, before anything that they may still be using is touched.
        let quiet: Vec<bool> = layout.itss.iter().map(|its| its::quiesce(&hw, its.base).is_ok()).collect();
        let dist = Dist::new(hw.clone(), layout.dist);
        if !dist.init() {
            return Err(GicError::Distributor);
        }
        let redists = redist::find(&hw, layout)?;
        for redist in &redists {
            if !redist.evict_stranger() {
                log::warn!("{}: an earlier owner's vPE is still being written back", redist.cpu);
            }
        }

        let mut facts = common_facts(&dist, &redists, layout);
        let lpis = match facts.lpi_bits {
            0 => None,
            bits => Some(Lpis::new(hw.clone(), u32::from(bits), facts.lpis, layout.coherent)?),
        };
        let plan = Plan {
            cpus: layout.cpus.len() as u64,
            virtual_lpis: facts.virtual_lpis,
            v41: facts.v41,
            vpe_bits: facts.vpe_bits,
        };
        let reach = |its: &ItsLayout| if facts.v41 { its::shares_vpe_table(&hw, its.base) } else { None };
        let reaches: Vec<_> = layout.itss.iter().map(reach).collect();
        let sharing = v4::Sharing::of(&reaches, &redists.iter().map(Redist::group).collect::<Vec<_>>());
        let mut numbers = 0;
        let mut itss = Vec::new();
        for (n, (its, quiet)) in layout.itss.iter().zip(quiet).enumerate() {
            let id = ItsId(n as u8);
            itss.push(match (&lpis, quiet) {
                (None, _) => None,
                (_, false) => {
                    log::error!("{id}: left out: {}", ItsError::NotQuiescent);
                    None
                }
                _ => match Its::bring_up(hw.clone(), id, its, plan, sharing.of_its(n, &itss), &mut numbers) {
                    Ok(its) => Some(its),
                    Err(e) => {
                        log::error!("{id}: left out: {e}");
                        None
                    }
                },
            });
        }
        settle_facts(&mut facts, &itss);
        let groups = vpe_tables(&mut facts, &sharing, &redists, &itss);
        let mut gic = Gic {
            hw,
            dist,
            redists,
            itss,
            lpis,
            v4: None,
            facts,
            counters: Counters::new(),
            coherent: layout.coherent,
        };
        if gic.facts.virtual_lpis {
            let proxy = gic.proxy();
            gic.facts.proxy = proxy.as_ref().map(|p| (p.its, p.device));
            gic.v4 = Some(v4::State::new(gic.facts.vpes, proxy, groups));
        }
        Ok(gic)
    }

    /// The device through whose events doorbells are controlled, where redistributors cannot do it.
    fn proxy(&self) -> Option<v4::Proxy> {
        if self.facts.can_invlpi {
            return None;
        }
        let its = self.itss.iter().flatten().find(|its| its.facts.virtual_lpis)?;
        match v4::Proxy::set_up(self, its) {
            Ok(proxy) => Some(proxy),
            Err(e) => {
                log::warn!("{}: no proxy device for doorbells ({e}): they are controlled by INVALL", its.id);
                None
            }
        }
    }

    /// Brings up one CPU's part, on that CPU or (before it is started) for it: redistributor awake, SGIs enabled,
    /// PPIs disabled, LPIs on, its collection mapped on every ITS. Also for a CPU that was
    /// [taken out](Self::take_out) and comes back: what its redistributor kept is used again.
    pub fn init_cpu(&self, cpu: CpuId) -> Result<(), GicError> {
        let redist = self.redists.get(cpu.index()).ok_or(GicError::NoSuchCpu(cpu))?;
        redist.wake()?;
        let Some(lpis) = &self.lpis else { return Ok(()) };
        redist.enable_lpis(lpis, self.coherent)?;
        if let Some(v4) = self.v4.as_ref().filter(|_| self.facts.v41) {
            v4.groups.join(redist, lpis.coherence() == Coherence::Coherent)?;
        }
        for its in self.itss.iter().flatten().filter(|its| !its.queue.is_dead()) {
            its.map_collection(&self.counters, redist).map_err(|e| GicError::Collection(its.id, e))?;
        }
        redist.open();
        Ok(())
    }

    /// What this machine has.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// An ITS that was brought up.
    fn its(&self, id: ItsId) -> Result<&Its<H>, ItsError> {
        self.itss.get(id.index()).and_then(Option::as_ref).ok_or(ItsError::NoSuchIts(id))
    }

    /// A CPU's redistributor, if its LPIs are on.
    #[inline]
    fn online(&self, cpu: CpuId) -> Result<&Redist<H>, ItsError> {
        self.redists.get(cpu.index()).filter(|r| r.has_lpis()).ok_or(ItsError::CpuOffline(cpu))
    }

    /// The same, if LPIs and vPEs may be sent there: the CPU is not being taken out.
    #[inline]
    fn open(&self, cpu: CpuId) -> Result<&Redist<H>, ItsError> {
        self.redists.get(cpu.index()).filter(|r| r.takes_lpis()).ok_or(ItsError::CpuOffline(cpu))
    }

    /// A CPU that takes LPIs: this one if it does, or the next that does.
    #[must_use]
    pub fn taker(&self, cpu: CpuId) -> Option<CpuId> {
        let (before, from) = self.redists.split_at_checked(cpu.index())?;
        from.iter().chain(before).find(|redist| redist.takes_lpis()).map(|redist| redist.cpu)
    }

    // ---- LPIs -----------------------------------------------------------------------------------------------

    /// Takes an LPI number: disabled, mapped to nothing.
    pub fn alloc_lpi(&self) -> Option<Lpi> {
        self.lpis.as_ref()?.alloc()
    }

    /// Gives an LPI number back. Its event has been unmapped.
    pub fn free_lpi(&self, lpi: Lpi) {
        if let Some(lpis) = &self.lpis {
            lpis.free(lpi);
        }
    }

    /// Writes an LPI's configuration byte. The hardware reads it at `map_physical`, `invalidate` or `invalidate_cpu`.
    pub fn configure_lpi(&self, lpi: Lpi, priority: u8, enabled: bool) {
        if let Some(lpis) = &self.lpis {
            lpis.configure(lpi, priority, enabled);
        }
    }

    /// How many LPI numbers are given out, doorbells included.
    pub fn lpis_in_use(&self) -> u32 {
        self.lpis.as_ref().map_or(0, Lpis::in_use)
    }

    /// Whose doorbell an LPI is. Takes no lock; any CPU may get any doorbell.
    #[inline]
    pub fn doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        let vpe = self.lpis.as_ref()?.doorbell(lpi)?;
        self.counters.doorbells.bump();
        Some(vpe)
    }

    /// The same, without taking it for a ring.
    pub fn whose_doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        self.lpis.as_ref()?.doorbell(lpi)
    }

    // ---- SPIs: INTIDs from 32. Numbers that do not exist are ignored, and are neither pending nor active. -----

    /// Enables an SPI.
    pub fn spi_enable(&self, i: Intid) {
        self.spi(i, |b| b.enable(i));
    }

    /// Disables an SPI, and waits until that has taken effect.
    pub fn spi_disable(&self, i: Intid) {
        self.dist.disable(i);
    }

    /// Whether an SPI is enabled.
    pub fn spi_is_enabled(&self, i: Intid) -> bool {
        self.dist.spi(i).is_some_and(|b| b.is_enabled(i))
    }

    /// Sets an SPI's priority (lower is more urgent).
    pub fn spi_set_priority(&self, i: Intid, priority: u8) {
        self.spi(i, |b| b.set_priority(i, priority));
    }

    /// Sets how an SPI is sampled. It is disabled meanwhile (by the caller).
    pub fn spi_set_trigger(&self, i: Intid, trigger: Trigger) {
        self.spi(i, |b| b.set_trigger(i, trigger));
    }

    /// Sends an SPI to one CPU.
    pub fn spi_route(&self, i: Intid, to: Mpidr) {
        self.dist.route(i, to);
    }

    /// Makes an SPI pending, or not.
    pub fn spi_set_pending(&self, i: Intid, pending: bool) {
        self.spi(i, |b| b.set_pending(i, pending));
    }

    /// Whether an SPI is pending.
    pub fn spi_is_pending(&self, i: Intid) -> bool {
        self.dist.spi(i).is_some_and(|b| b.is_pending(i))
    }

    /// Makes an SPI active, or not.
    pub fn spi_set_active(&self, i: Intid, active: bool) {
        self.spi(i, |b| b.set_active(i, active));
    }

    /// Whether an SPI is active.
    pub fn spi_is_active(&self, i: Intid) -> bool {
        self.dist.spi(i).is_some_and(|b| b.is_active(i))
    }

    fn spi(&self, i: Intid, act: impl FnOnce(&Bank<H>)) {
        if let Some(bank) = self.dist.spi(i) {
            act(bank);
        }
    }

    // ---- SGIs and PPIs: INTIDs 0 to 31 of one CPU -------------------------------------------------------------

    /// Enables a CPU's SGI or PPI.
    pub fn ppi_enable(&self, cpu: CpuId, i: Intid) {
        self.ppi(cpu, i, |b| b.enable(i));
    }

    /// Disables a CPU's SGI or PPI, and waits until that has taken effect.
    pub fn ppi_disable(&self, cpu: CpuId, i: Intid) {
        if let Some(redist) = self.redists.get(cpu.index()) {
            redist.disable(i);
        }
    }

    /// Whether a CPU's SGI or PPI is enabled.
    pub fn ppi_is_enabled(&self, cpu: CpuId, i: Intid) -> bool {
        self.bank(cpu, i).is_some_and(|b| b.is_enabled(i))
    }

    /// Sets the priority of a CPU's SGI or PPI.
    pub fn ppi_set_priority(&self, cpu: CpuId, i: Intid, priority: u8) {
        self.ppi(cpu, i, |b| b.set_priority(i, priority));
    }

    /// Sets how a CPU's PPI is sampled.
    pub fn ppi_set_trigger(&self, cpu: CpuId, i: Intid, trigger: Trigger) {
        self.ppi(cpu, i, |b| b.set_trigger(i, trigger));
    }

    /// Makes a CPU's SGI or PPI pending, or not.
    pub fn ppi_set_pending(&self, cpu: CpuId, i: Intid, pending: bool) {
        self.ppi(cpu, i, |b| b.set_pending(i, pending));
    }

    /// Whether a CPU's SGI or PPI is pending.
    pub fn ppi_is_pending(&self, cpu: CpuId, i: Intid) -> bool {
        self.bank(cpu, i).is_some_and(|b| b.is_pending(i))
    }

    /// Makes a CPU's SGI or PPI active, or not.
    pub fn ppi_set_active(&self, cpu: CpuId, i: Intid, active: bool) {
        self.ppi(cpu, i, |b| b.set_active(i, active));
    }

    /// Whether a CPU's SGI or PPI is active.
    pub fn ppi_is_active(&self, cpu: CpuId, i: Intid) -> bool {
        self.bank(cpu, i).is_some_and(|b| b.is_active(i))
    }

    fn bank(&self, cpu: CpuId, i: Intid) -> Option<&Bank<H>> {
        self.redists.get(cpu.index())?.private(i)
    }

    fn ppi(&self, cpu: CpuId, i: Intid, act: impl FnOnce(&Bank<H>)) {
        if let Some(bank) = self.bank(cpu, i) {
            act(bank);
        }
    }
}

/// What the distributor and all redistributors have. What depends on the ITSs is settled later.
fn common_facts<H: Hw + Clone>(dist: &Dist<H>, redists: &[Redist<H>], layout: &Layout<'_>) -> Facts {
    let typer = dist.typer();
    let all = |has: fn(&Redist<H>) -> bool| !redists.is_empty() && redists.iter().all(has);
    let has_lpis =
        typer.is_set(GICD_TYPER::LPIS) && all(|r| r.typer.is_set(GICR_TYPER::PLPIS)) && !layout.itss.is_empty();
    let bits = (typer.read(GICD_TYPER::ID_BITS) + 1).min(lpi::MAX_ID_BITS);
    let lpi_bits = if has_lpis && bits > 13 { bits } else { 0 };
    let room = (1u32 << lpi_bits).saturating_sub(Lpi::FIRST);
    let lpis = match typer.read(GICD_TYPER::NUM_LPIS) {
        0 => room,
        n => room.min(1 << (n + 1)),
    };
    let v41 = all(Redist::has_rvpeid);
    let mut virtual_lpis = layout.virtual_lpis_wanted && lpi_bits != 0 && all(Redist::has_vlpis);
    if virtual_lpis && redists.iter().any(Redist::has_rvpeid) != v41 {
        log::warn!("GIC: some redistributors are GICv4.1 and some are not: no virtual LPIs");
        virtual_lpis = false;
    }
    let (mut vpe_bits, mut nassgicap) = (16, false);
    if v41 {
        let typer2 = dist.typer2();
        if typer2.is_set(GICD_TYPER2::VIL) {
            vpe_bits = typer2.read(GICD_TYPER2::VID) as u8 + 1;
        }
        nassgicap = typer2.is_set(GICD_TYPER2::NASSGICAP);
    }
    Facts {
        spis: dist.spis(),
        lpi_bits: lpi_bits as u8,
        lpis,
        cpus: redists.len() as u16,
        virtual_lpis,
        v41,
        can_invlpi: all(Redist::can_invlpi),
        can_setclr: all(Redist::can_setclr),
        dirty: all(Redist::has_dirty),
        single_vmovp: false,
        vsgi: all(Redist::has_vsgi),
        nassgicap,
        vpe_bits: vpe_bits.min(16),
        vpes: 0,
        proxy: None,
        itss: Vec::new(),
    }
}

/// GICv4.1: the vPE tables of redistributors. Without them there are no virtual LPIs.
fn vpe_tables<H: Hw + Clone>(
    facts: &mut Facts,
    sharing: &v4::Sharing,
    redists: &[Redist<H>],
    itss: &[Option<Its<H>>],
) -> v4::Groups {
    if !facts.v41 {
        return v4::Groups::default();
    }
    match v4::Groups::make(sharing, redists, itss, 1 << facts.vpe_bits) {
        Ok(groups) => {
            let room = groups.capacity().unwrap_or(0);
            facts.vpes = u64::from(facts.vpes).min(room) as u32;
            groups
        }
        Err(e) => {
            log::warn!("GIC: no vPE table for a redistributor ({e:?}): no virtual LPIs");
            (facts.virtual_lpis, facts.v41, facts.vsgi) = (false, false, false);
            v4::Groups::default()
        }
    }
}

/// What the ITSs add. Virtual LPIs are used if at least one of them has them.
fn settle_facts<H>(facts: &mut Facts, itss: &[Option<Its<H>>]) {
    facts.itss = itss.iter().map(|its| its.as_ref().map(|its| its.facts)).collect();
    let able = || itss.iter().flatten().filter(|its| its.facts.virtual_lpis);
    facts.virtual_lpis &= able().next().is_some();
    facts.v41 &= facts.virtual_lpis;
    facts.single_vmovp = facts.virtual_lpis && able().all(|its| its.facts.single_vmovp);
    facts.vsgi &= facts.v41 && able().all(|its| its.facts.vsgi);
    if facts.virtual_lpis {
        // The last 16-bit number stands for "none" in the doorbell table.
        let tables = able().filter_map(|its| its.vpe_table.as_ref()).map(|t| t.capacity()).min().unwrap_or(0);
        facts.vpes = tables.min(1 << facts.vpe_bits).min(u64::from(u16::MAX)) as u32;
    }
}

/// The driver is shared by all CPUs.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Gic<crate::mm::hw::El2>>();
};
