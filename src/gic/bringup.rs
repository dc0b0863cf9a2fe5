//! Bring-up of what all CPUs share, and of each CPU's part.
//!
//! The order matters. Every ITS that an earlier owner of the machine left enabled is disabled before any memory that it
//! may access is reused, and so is stale residency on every redistributor. The capabilities that are used are those
//! that *all* redistributors have, so they are read before the tables are made. Each CPU then enables its own part.

use super::counters::Counters;
use super::dist::{self, Dist};
use super::driver::Gic;
use super::error::{GicError, ItsError};
use super::facts::Facts;
use super::inherited::Inherited;
use super::interface::{Interface, Interfaces, NO_LPIS, NO_SGIS};
use super::its::{self, Its, Plan};
use super::layout::{ItsLayout, Layout};
use super::lpi::{self, Lpis};
use super::redist::{self, Redist};
use super::regs::{GICD_TYPER, GICD_TYPER2, GICR_TYPER};
use super::v4::{self, Generation, VpeTables};
use crate::ids::{CpuId, ItsId, Lpi};
use crate::mmio::{Coherence, Hw};
use alloc::vec::Vec;

impl<H: Hw + Clone> Gic<H> {
    /// Reads what the hardware supports and brings up what all CPUs share: the distributor, the ITSs and the tables.
    /// Called on the boot CPU. An ITS that cannot be brought up is logged and not used. No CPU takes an interrupt
    /// before its [`init_cpu`](Self::init_cpu).
    pub fn discover(hw: H, layout: &Layout<'_>) -> Result<Gic<H>, GicError> {
        let arch_rev = dist::arch_rev(&hw, layout.dist);
        if !matches!(arch_rev, 3 | 4) {
            return Err(GicError::NotGicV3(arch_rev));
        }
        // All ITSs are disabled before any memory that they may still use is touched.
        let quiet: Vec<bool> = layout.itss.iter().map(|its| its::quiesce(&hw, its.base).is_ok()).collect();
        let dist = Dist::new(hw.clone(), layout.dist);
        if !dist.init() {
            return Err(GicError::Distributor);
        }
        let redists = redist::find(&hw, layout);
        let boot = redists.get(layout.boot_cpu.index()).ok_or(GicError::NoSuchCpu(layout.boot_cpu))?;
        if !boot.is_present() {
            return Err(GicError::NoRedistributor(layout.boot_cpu));
        }
        for redist in &redists {
            if !redist.is_present() {
                log::warn!("{}: no redistributor: stays off", redist.cpu);
                continue;
            }
            if !redist.clear_stale_residency() {
                log::warn!("{}: an earlier owner's vPE is still being written back", redist.cpu);
            }
        }

        let mut facts = common_facts(&dist, &redists, layout);
        let inherited = Inherited::new(layout.reserved);
        let lpis = lpis(&hw, &mut facts, &redists, boot, &inherited, layout.coherent)?;
        let plan = Plan {
            cpus: layout.cpus.len() as u64,
            virtual_lpis: facts.virtual_lpis,
            v41: facts.v41,
            vpe_bits: facts.vpe_bits,
        };
        let reach = |its: &ItsLayout| if facts.v41 { its::shares_vpe_table(&hw, its.base) } else { None };
        let reaches: Vec<_> = layout.itss.iter().map(reach).collect();
        let sharing =
            v4::Sharing::of(&reaches, &redists.iter().map(|r| r.is_present().then(|| r.group())).collect::<Vec<_>>());
        let mut numbers = 0;
        let mut itss = Vec::new();
        for (n, (its, quiet)) in layout.itss.iter().zip(quiet).enumerate() {
            let id = ItsId(n as u8);
            itss.push(match (&lpis, quiet) {
                (None, _) => None,
                // An erratum says why.
                _ if !its.is_used => None,
                (_, false) => {
                    log::error!("{id}: not used: {}", ItsError::NotQuiescent);
                    None
                }
                _ => match Its::bring_up(hw.clone(), id, its, plan, sharing.of_its(n, &itss), &mut numbers) {
                    Ok(its) => Some(its),
                    Err(e) => {
                        log::error!("{id}: not used: {e}");
                        None
                    }
                },
            });
        }
        settle_facts(&mut facts, &itss);
        let generation = if facts.v41 { Generation::V41 } else { Generation::V40 };
        let tables = vpe_tables(&mut facts, generation, &sharing, boot, &itss);
        let mut gic = Gic {
            hw,
            dist,
            redists,
            itss,
            lpis,
            inherited,
            interfaces: Interfaces::new(),
            v4: None,
            facts,
            counters: Counters::new(),
            coherent: layout.coherent,
        };
        if gic.facts.virtual_lpis {
            let proxy = gic.proxy();
            gic.facts.proxy = proxy.as_ref().map(|p| (p.its, p.device));
            gic.v4 = Some(v4::State::new(generation, gic.facts.vpes, proxy, tables));
        }
        Ok(gic)
    }

    /// Maps the proxy device, through whose events doorbells are controlled where redistributors cannot do it.
    fn proxy(&self) -> Option<v4::Proxy> {
        if self.facts.can_invlpi {
            return None;
        }
        let its = self.itss.iter().flatten().find(|its| its.facts.virtual_lpis)?;
        match v4::Proxy::set_up(its, &self.counters) {
            Ok(proxy) => Some(proxy),
            Err(e) => {
                log::warn!("{}: no proxy device: {e}; doorbells are controlled by INVALL", its.id);
                None
            }
        }
    }

    /// Adds a CPU that comes up, before [`init_cpu`](Self::init_cpu).
    pub fn join(&self, cpu: CpuId, interface: Interface) -> Result<(), GicError> {
        let mut lacks = 0;
        if self.facts.virtual_lpis && !interface.virtual_lpis {
            lacks |= NO_LPIS;
        }
        if self.facts.vsgi && !interface.virtual_sgis {
            lacks |= NO_SGIS;
        }
        let result = self.interfaces.join(lacks);
        match result {
            Ok(()) if lacks & NO_LPIS != 0 => {
                log::warn!("{cpu}: its GIC interface takes no virtual LPIs: no direct injection on this machine");
            }
            Ok(()) if lacks & NO_SGIS != 0 => {
                log::warn!("{cpu}: its GIC interface takes no virtual SGIs: they are not used on this machine");
            }
            _ => {}
        }
        result.map_err(|what| GicError::Interface(cpu, if what & NO_LPIS != 0 { "LPIs" } else { "SGIs" }))
    }

    /// Brings up one CPU's part: wakes its redistributor, enables SGIs and LPIs, disables PPIs, and maps its collection
    /// on every ITS. Called on that CPU, or on another one before it is started. If the CPU was [taken out of
    /// service](Self::take_out) before, its redistributor keeps its tables.
    pub fn init_cpu(&self, cpu: CpuId) -> Result<(), GicError> {
        let redist = self.redist(cpu).ok_or(GicError::NoRedistributor(cpu))?;
        redist.wake()?;
        let Some(lpis) = &self.lpis else { return Ok(()) };
        redist.enable_lpis(lpis, self.coherent, &self.inherited)?;
        if let Some(v4) = self.v4() {
            v4::init_redist(v4, redist, lpis.coherence() == Coherence::Coherent)?;
        }
        for its in self.itss.iter().flatten().filter(|its| !its.queue.is_dead()) {
            its.map_collection(&self.counters, redist).map_err(|e| GicError::Collection(its.id, e))?;
        }
        redist.enter_service();
        Ok(())
    }
}

/// What the distributor and all redistributors support. [`settle_facts`] adds what depends on the ITSs.
fn common_facts<H: Hw + Clone>(dist: &Dist<H>, redists: &[Redist<H>], layout: &Layout<'_>) -> Facts {
    let typer = dist.typer();
    // Not empty: the boot CPU has one.
    let redists = || redists.iter().filter(|r| r.is_present());
    let all = |has: fn(&Redist<H>) -> bool| redists().all(has);
    let has_lpis =
        typer.is_set(GICD_TYPER::LPIS) && all(|r| r.typer.is_set(GICR_TYPER::PLPIS)) && !layout.itss.is_empty();
    let bits = (typer.read(GICD_TYPER::ID_BITS) as u8 + 1).min(lpi::MAX_ID_BITS);
    let lpi_bits = if has_lpis && bits >= lpi::MIN_ID_BITS { bits } else { 0 };
    let room = (1u32 << lpi_bits).saturating_sub(Lpi::FIRST);
    let lpis = match typer.read(GICD_TYPER::NUM_LPIS) {
        0 => room,
        n => room.min(1 << (n + 1)),
    };
    let v41 = all(Redist::has_rvpeid);
    let mut virtual_lpis = layout.virtual_lpis_wanted && lpi_bits != 0 && all(Redist::has_vlpis);
    if virtual_lpis && redists().any(Redist::has_rvpeid) != v41 {
        log::warn!("GIC: only some redistributors support GICv4.1: no virtual LPIs");
        virtual_lpis = false;
    }
    let mut vpe_bits = 16;
    if v41 {
        let typer2 = dist.typer2();
        if typer2.is_set(GICD_TYPER2::VIL) {
            vpe_bits = typer2.read(GICD_TYPER2::VID) as u8 + 1;
        }
    }
    Facts {
        spis: dist.spis(),
        lpi_bits,
        lpis,
        cpus: redists().count() as u16,
        virtual_lpis,
        v41,
        can_invlpi: all(Redist::can_invlpi),
        can_setclr: all(Redist::can_setclr),
        dirty: all(Redist::has_dirty),
        single_vmovp: false,
        vsgi: all(Redist::has_vsgi),
        vpe_bits: vpe_bits.min(16),
        vpes: 0,
        proxy: None,
        itss: Vec::new(),
    }
}

/// Disables LPIs that an earlier owner of the machine left enabled, and makes the tables for new ones. `None`: there are
/// no LPIs.
///
/// Where LPIs cannot be disabled, the redistributor's tables are used further, and all other redistributors use its
/// configuration table. Those that share tables (GICR_TYPER.CommonLPIAff) must all use the same one (IHI 0069, 12.11
/// GICR_PROPBASER). So there are no LPIs at all if the boot CPU's tables cannot be used, or those of another CPU that
/// shares with a third. The CPU stays off if it shares with none.
fn lpis<H: Hw + Clone>(
    hw: &H,
    facts: &mut Facts,
    redists: &[Redist<H>],
    boot: &Redist<H>,
    inherited: &Inherited,
    coherent: bool,
) -> Result<Option<Lpis<H>>, GicError> {
    if facts.lpi_bits == 0 {
        return Ok(None);
    }
    let stuck: Vec<&Redist<H>> =
        redists.iter().filter(|r| r.is_present()).filter(|redist| !redist.disable_lpis()).collect();
    let boot_is_stuck = stuck.iter().any(|redist| redist.cpu == boot.cpu);
    let may_lead = |redist: &&&Redist<H>| !boot_is_stuck || redist.cpu == boot.cpu;
    let lead = stuck.iter().filter(may_lead).map(|redist| redist.lpi_tables()).find(|tables| {
        let (config, pending) = tables.ranges();
        (lpi::MIN_ID_BITS..=facts.lpi_bits).contains(&tables.id_bits)
            && inherited.is_free(config)
            && inherited.is_free(pending)
    });
    let fits = |redist: &Redist<H>| {
        let tables = redist.lpi_tables();
        lead.is_some_and(|lead| tables.shares_config_with(lead)) && inherited.is_free(tables.ranges().1)
    };
    let shares = |one: &Redist<H>| {
        redists.iter().filter(|r| r.is_present()).any(|other| other.cpu != one.cpu && other.shares_tables_with(one))
    };
    if let Some(unfit) = stuck.iter().find(|redist| !fits(redist) && (redist.cpu == boot.cpu || shares(redist))) {
        log::warn!(
            "{}: LPIs were left enabled and cannot be disabled, with tables that cannot be used: no LPIs on this machine: \
             dom0 gets no ITS and no MSIs",
            unfit.cpu
        );
        (facts.lpi_bits, facts.lpis, facts.virtual_lpis) = (0, 0, false);
        return Ok(None);
    }
    let Some(lead) = lead.filter(|lead| inherited.take(hw, lead.ranges().0)) else {
        return Lpis::new(hw.clone(), facts.lpi_bits, facts.lpis, coherent).map(Some);
    };
    log::info!("GIC: LPIs were left enabled: the tables are used further, with the configuration at {}", lead.config);
    facts.lpi_bits = lead.id_bits;
    facts.lpis = facts.lpis.min(lpi::config_bytes(lead.id_bits) as u32);
    Ok(Some(Lpis::with_table(hw.clone(), lead.config, lead.id_bits, facts.lpis, coherent && lead.coherent)))
}

/// Plans the vPE tables of redistributors, where they have any, and makes that of the boot CPU. If that fails there are
/// no virtual LPIs.
fn vpe_tables<H: Hw + Clone>(
    facts: &mut Facts,
    generation: Generation,
    sharing: &v4::Sharing,
    boot: &Redist<H>,
    itss: &[Option<Its<H>>],
) -> VpeTables {
    if !facts.virtual_lpis {
        return VpeTables::default();
    }
    match v4::vpe_tables(generation, sharing, boot, itss, 1 << facts.vpe_bits) {
        Ok(tables) => {
            facts.vpes = u64::from(facts.vpes).min(tables.capacity()) as u32;
            tables
        }
        Err(e) => {
            log::warn!("GIC: no vPE table for a redistributor: {e}: no virtual LPIs");
            (facts.virtual_lpis, facts.v41, facts.vsgi) = (false, false, false);
            VpeTables::default()
        }
    }
}

/// Adds what depends on the ITSs. Virtual LPIs are used if at least one of them supports them.
fn settle_facts<H>(facts: &mut Facts, itss: &[Option<Its<H>>]) {
    facts.itss = itss.iter().map(|its| its.as_ref().map(|its| its.facts)).collect();
    let able = || itss.iter().flatten().filter(|its| its.facts.virtual_lpis);
    facts.virtual_lpis &= able().next().is_some();
    facts.v41 &= facts.virtual_lpis;
    facts.single_vmovp = facts.virtual_lpis && able().all(|its| its.facts.single_vmovp);
    facts.vsgi &= facts.v41 && able().all(|its| its.facts.vsgi);
    if facts.virtual_lpis {
        // In the table of doorbells the vPEID 0xffff stands for none.
        let tables = able().filter_map(|its| its.vpe_table.as_ref()).map(|t| t.capacity()).min().unwrap_or(0);
        facts.vpes = tables.min(1 << facts.vpe_bits).min(u64::from(u16::MAX)) as u32;
    }
}
