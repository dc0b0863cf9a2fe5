//! Taking a CPU out of service while the machine runs; [`Gic::init_cpu`] takes it back.
//!
//! SPIs are routed to a CPU, events are mapped to its collection, and vPEs with their doorbells live at its
//! redistributor. First the redistributor is marked as leaving: from then on nothing new can be sent there. Code that
//! found it in service before that did so under a lock which this file takes afterwards, so whatever it sent there is
//! found. Then everything is moved:
//!
//! | what | how | pending state |
//! |---|---|---|
//! | SPIs | GICD_IROUTER | stays in the distributor |
//! | events | MOVI, INV, SYNC at both redistributors | is moved |
//! | vPEs | VMOVP, VSYNC | is in the VPT |
//! | doorbells | with the vPE; the events of the proxy device by MOVI | is moved, or is left for the last step |
//! | LPIs that are still pending | MOVALL, after all of the above has been synchronised | is moved |
//!
//! The collection stays mapped without events: remapping a collection that events are mapped to is UNPREDICTABLE (IHI
//! 0069, 5.3 MAPC). The redistributor keeps its tables, and their memory is never freed: EnableLPIs may be impossible
//! to clear, and on GICv4.1 other redistributors may share its vPE table.
//!
//! After a failure the CPU stays in service. What has been moved by then stays where it is, which is harmless: a vPE
//! moves back when it next runs there.
//!
//! Putting the redistributor and the CPU to sleep is left to the firmware (PSCI), with two Security states or one.

use super::driver::Gic;
use super::error::ItsError;
use super::its::{Command, collection};
use super::redist::Redist;
use super::v4::EnterError;
use crate::ids::{CpuId, ItsId, Mpidr, VpeId};
use crate::mmio::Hw;
use core::fmt;

/// How much was moved away from a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The SPIs that were routed to it.
    pub spis: u32,
    /// The events that were mapped to its collection.
    pub events: u32,
    /// The vPEs that lived there, with their doorbells.
    pub vpes: u32,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} SPIs, {} events, {} vPEs", self.spis, self.events, self.vpes)
    }
}

/// Why a CPU could not be taken out of service. It stays in service if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeOutError {
    /// It is not in service, or is being taken out already.
    NotInService(CpuId),
    /// The CPU to which its interrupts were to be moved is not in service, or is the same.
    NoTarget(CpuId),
    /// An ITS did not move the CPU's events.
    Its(ItsId, ItsError),
    /// A vPE could not be moved.
    Vpe(VpeId, EnterError),
}

impl fmt::Display for TakeOutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TakeOutError::NotInService(cpu) => write!(f, "{cpu} is not in service"),
            TakeOutError::NoTarget(cpu) => write!(f, "its interrupts cannot be moved to {cpu}"),
            TakeOutError::Its(its, e) => write!(f, "{its} did not move its events: {e}"),
            TakeOutError::Vpe(vpe, e) => write!(f, "{vpe} cannot be moved: {e}"),
        }
    }
}

impl<H: Hw + Clone> Gic<H> {
    /// Takes a CPU out of service: moves its SPIs, events and vPEs to `to` without losing a pending interrupt. No vPE
    /// is resident there. It may be called on any CPU, for one CPU at a time. Pending SGIs and PPIs stay with the CPU.
    pub fn take_out(&self, cpu: CpuId, to: CpuId) -> Result<Moved, TakeOutError> {
        let from = self.redist(cpu).ok_or(TakeOutError::NotInService(cpu))?;
        let to = self.redist(to).filter(|r| r.cpu != cpu).ok_or(TakeOutError::NoTarget(to))?;
        if self.lpis.is_none() {
            return Ok(Moved { spis: self.reroute(from, to), ..Moved::default() });
        }
        if !to.is_in_service() {
            return Err(TakeOutError::NoTarget(to.cpu));
        }
        if !from.begin_take_out() {
            return Err(TakeOutError::NotInService(cpu));
        }
        match self.move_everything(from, to) {
            Ok(moved) => {
                from.leave_service();
                Ok(moved)
            }
            Err(e) => {
                from.enter_service();
                Err(e)
            }
        }
    }

    fn reroute(&self, from: &Redist<H>, to: &Redist<H>) -> u32 {
        self.dist.reroute(Mpidr::from_packed(from.affinity()), Mpidr::from_packed(to.affinity()))
    }

    fn move_everything(&self, from: &Redist<H>, to: &Redist<H>) -> Result<Moved, TakeOutError> {
        let mut moved = Moved::default();
        for its in self.itss.iter().flatten().filter(|its| !its.queue.is_dead()) {
            let events = self.batch(its.id).and_then(|mut batch| {
                let events = batch.move_all_physical(from.cpu, to.cpu)?;
                batch.finish()?;
                Ok(events)
            });
            match events {
                Ok(n) => moved.events += n,
                // The interrupts of a dead ITS are lost in any case.
                Err(ItsError::Dead) => {}
                Err(e) => return Err(TakeOutError::Its(its.id, e)),
            }
        }
        if let Some(v4) = self.v4() {
            moved.vpes = v4.evacuate(from.cpu, to.cpu).map_err(|(vpe, e)| TakeOutError::Vpe(vpe, e))?;
        }
        self.move_pending(from, to)?;
        moved.spis = self.reroute(from, to);
        Ok(moved)
    }

    /// Moves LPIs that are still pending: doorbells whose vPEs have been moved already. Any ITS can do it for all.
    fn move_pending(&self, from: &Redist<H>, to: &Redist<H>) -> Result<(), TakeOutError> {
        for its in self.itss.iter().flatten().filter(|its| !its.queue.is_dead()) {
            let (source, target) = (its.target(from), its.target(to));
            let commands = [
                Command::movall(source, target),
                Command::sync(source),
                // The target may have cached the configuration of LPIs that have been reallocated since.
                Command::invall(collection(to.cpu)),
                Command::sync(target),
            ];
            match its.run(&self.counters, &commands) {
                Ok(_) => return Ok(()),
                Err(ItsError::Dead) => {}
                Err(e) => return Err(TakeOutError::Its(its.id, e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gic::testing::key;
    use crate::gic::testing::{Bench, DEV, Guest, ITS0};
    use crate::gic::v4::{InterruptGroups, V4Error, Why};
    use crate::ids::{Intid, Lpi};
    use gic_model::{CommandFault, Config, Fault, Staleness};
    use std::vec::Vec;

    const CPUS: usize = 4;
    /// The CPU that is taken out of service.
    const GOES: CpuId = CpuId(1);
    /// The CPU to which everything is moved.
    const STAYS: CpuId = CpuId(2);
    const SPI: Intid = Intid(40);
    const IROUTER: u64 = 0x6000;

    fn v4_machines() -> Vec<Config> {
        let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
        vec![
            Config::qemu(CPUS),
            Config::v4_0(CPUS),
            proxy(Config::v4_0(CPUS)).stale(Staleness::Random(5)),
            proxy(Config::its_list(CPUS, 2)),
            Config::its_list(CPUS, 3),
            Config::v4_1(CPUS, 2),
            Config::graviton3(CPUS),
        ]
    }

    fn sticky(config: Config) -> Config {
        config.each_cpu(|_, cpu| cpu.ces = false)
    }

    fn affinity(config: &Config, cpu: CpuId) -> Mpidr {
        Mpidr::from_packed(config.cpus[cpu.index()].affinity)
    }

    #[test]
    fn spis_and_events_are_moved_with_their_pending_state() {
        for config in v4_machines().into_iter().chain([Config::gicv3(CPUS), Config::gicv3(CPUS).noncoherent()]) {
            let Bench { machine, gic } = Bench::up(config.clone());
            gic.map_device(ITS0, DEV, 3).unwrap();
            let lpi = gic.alloc_lpi().unwrap();
            gic.configure_lpi(lpi, 0x80, true);
            gic.map_physical(key(ITS0, 1), lpi, GOES).unwrap();
            let other = gic.alloc_lpi().unwrap();
            gic.configure_lpi(other, 0x80, true);
            gic.map_physical(key(ITS0, 2), other, CpuId(3)).unwrap();
            gic.spi_route(SPI, affinity(&config, GOES));
            gic.spi_route(Intid(41), affinity(&config, CpuId(3)));
            machine.msi(DEV.0, 1);
            machine.advance_us(100);

            let moved = gic.take_out(GOES, STAYS).unwrap();
            assert_eq!((moved.spis, moved.events), (1, 1));
            let route = |spi: Intid| machine.read64(config.gicd + IROUTER + 8 * u64::from(spi.0));
            assert_eq!(route(SPI), affinity(&config, STAYS).0);
            assert_eq!(route(Intid(41)), affinity(&config, CpuId(3)).0);
            assert_eq!((machine.host_ack(1), machine.host_ack(2)), (None, Some(lpi.0)));
            machine.msi(DEV.0, 1);
            machine.advance_us(100);
            assert_eq!((machine.host_ack(1), machine.host_ack(2)), (None, Some(lpi.0)));
            machine.msi(DEV.0, 2);
            machine.advance_us(100);
            assert_eq!((machine.host_ack(2), machine.host_ack(3)), (None, Some(other.0)), "of another CPU");
            machine.assert_clean();
        }
    }

    #[test]
    fn a_pending_doorbell_is_moved_with_its_vpe() {
        for config in v4_machines() {
            let g = Guest::new(config, 2);
            g.map(ITS0, 1, 1);
            let r = g.enter(1, GOES.0);
            assert!(!g.leave(r, Why::Block));
            g.msi(ITS0, 1);
            g.machine.advance_us(100);
            let moved = g.gic.take_out(GOES, STAYS).unwrap();
            assert_eq!((moved.vpes, g.v4().home(g.vpes[1])), (1, Some(STAYS)));
            g.machine.advance_us(100);
            assert_eq!(g.doorbells(GOES.index()), []);
            assert_eq!(g.doorbells(STAYS.index()), [g.vpes[1]]);
            // Later doorbells are taken there, too.
            let r = g.enter(1, STAYS.0);
            assert_eq!(g.guest(STAYS.index()), [1]);
            assert!(!g.leave(r, Why::Block));
            g.msi(ITS0, 1);
            g.machine.advance_us(100);
            assert_eq!(g.doorbells(STAYS.index()), [g.vpes[1]]);
            g.machine.assert_clean();
        }
    }

    #[test]
    fn a_cpu_that_comes_back_uses_the_tables_that_it_had() {
        for config in v4_machines().into_iter().map(sticky).chain(v4_machines()) {
            let (gicr, ces) = (config.cpus[GOES.index()].gicr, config.cpus[GOES.index()].ces);
            let g = Guest::new(config, 2);
            g.map(ITS0, 1, 1);
            let allocations = g.machine.allocations().len();
            for _ in 0..2 {
                let _ = g.gic.take_out(GOES, STAYS).unwrap();
                if ces {
                    // Like firmware that disables LPIs before it puts the redistributor to sleep.
                    g.machine.write32(gicr, 0);
                    g.machine.advance_us(10);
                }
                g.gic.init_cpu(GOES).unwrap();
                assert_eq!(g.machine.allocations().len(), allocations);
                let r = g.enter(1, GOES.0);
                g.msi(ITS0, 1);
                g.machine.advance_us(100);
                assert_eq!(g.guest(GOES.index()), [1]);
                assert!(!g.leave(r, Why::Block));
                g.msi(ITS0, 1);
                g.machine.advance_us(100);
                assert_eq!(g.doorbells(GOES.index()), [g.vpes[1]]);
                let r = g.enter(1, GOES.0);
                assert_eq!(g.guest(GOES.index()), [1]);
                assert!(!g.leave(r, Why::Block));
            }
            g.machine.assert_clean();
        }
    }

    #[test]
    fn a_cpu_on_which_a_vpe_is_resident_is_not_taken_out() {
        for config in v4_machines() {
            let g = Guest::new(config, 2);
            g.map(ITS0, 1, 1);
            let r = g.enter(1, GOES.0);
            let stays = TakeOutError::Vpe(g.vpes[1], EnterError::Elsewhere(GOES));
            assert_eq!(g.gic.take_out(GOES, STAYS), Err(stays));
            g.msi(ITS0, 1);
            g.machine.advance_us(100);
            assert_eq!(g.guest(GOES.index()), [1]);
            assert!(!g.leave(r, Why::Block));
            assert!(g.gic.take_out(GOES, STAYS).is_ok());
            g.machine.assert_clean();
        }
    }

    #[test]
    fn no_lpi_or_vpe_can_be_sent_to_a_cpu_that_is_out_of_service() {
        let g = Guest::new(Config::v4_0(CPUS), 2);
        let offline = Err(ItsError::CpuOffline(GOES));
        let lpi = g.gic.alloc_lpi().unwrap();
        g.gic.map_physical(key(ITS0, 2), lpi, STAYS).unwrap();
        assert_eq!(g.gic.nearest_in_service(GOES), Some(GOES));
        let _ = g.gic.take_out(GOES, STAYS).unwrap();
        assert_eq!((g.gic.nearest_in_service(GOES), g.gic.nearest_in_service(CpuId(3))), (Some(STAYS), Some(CpuId(3))));
        assert_eq!(g.gic.map_physical(key(ITS0, 3), Lpi(lpi.0 + 1), GOES), offline);
        assert_eq!(g.gic.move_physical(key(ITS0, 2), GOES), offline);
        assert_eq!(g.v4().add_vpe(g.vm, GOES), Err(V4Error::CpuOffline(GOES)));
        assert_eq!(g.v4().enter(g.vpes[1], GOES, InterruptGroups::GROUP1).unwrap_err(), EnterError::CpuOffline(GOES));
        assert_eq!(g.gic.take_out(GOES, STAYS), Err(TakeOutError::NotInService(GOES)));
        assert_eq!(g.gic.take_out(STAYS, GOES), Err(TakeOutError::NoTarget(GOES)));
        assert_eq!(g.gic.take_out(STAYS, STAYS), Err(TakeOutError::NoTarget(STAYS)));
        assert_eq!(g.gic.take_out(CpuId(9), STAYS), Err(TakeOutError::NotInService(CpuId(9))));
        g.machine.assert_clean();
    }

    #[test]
    fn a_cpu_stays_in_service_if_an_its_is_late_and_can_be_taken_out_later() {
        for nth in 0..6 {
            let g = Guest::new(Config::v4_0(CPUS), 2);
            g.map(ITS0, 1, 1);
            let lpi = g.gic.alloc_lpi().unwrap();
            g.gic.configure_lpi(lpi, 0x80, true);
            g.gic.map_physical(key(ITS0, 2), lpi, GOES).unwrap();
            g.machine.inject(Fault::Command { its: 0, nth, fault: CommandFault::Late { us: 150_000 } });
            assert!(g.gic.take_out(GOES, STAYS).is_err(), "{nth}");
            g.machine.advance_us(200_000);
            g.gic.drain(ITS0).unwrap();
            // It is in service as before.
            g.gic.map_physical(key(ITS0, 3), Lpi(lpi.0 + 1), GOES).unwrap();
            let r = g.enter(1, GOES.0);
            assert!(!g.leave(r, Why::Block));
            g.machine.advance_us(100);
            g.msi(ITS0, 1);
            g.msi(ITS0, 2);
            g.machine.advance_us(100);
            assert!(g.gic.take_out(GOES, STAYS).is_ok(), "{nth}");
            let taken: Vec<u32> = core::iter::from_fn(|| g.machine.host_ack(STAYS.index())).collect();
            assert_eq!(taken.len(), 2, "{nth}: an LPI and a doorbell of {taken:?}");
            g.machine.assert_clean();
        }
    }
}
