//! A guest that begins anew, with the VM and the vPEs that it had.

use super::*;
use crate::gic::its::Event;
use crate::gic::testing::{DEV, Guest, ITS0, key, vlpi};
use crate::gic::v4::Why::{Block, Preempt};
use crate::gic::{Gic, ItsError};
use crate::ids::{CpuId, ItsId, VpeId};
use crate::mm::counting::allocations;
use gic_model::{CommandFault, Config, Fault, Staleness};
use std::vec::Vec;

const CPUS: usize = 3;
/// An event whose pending state the hardware does not clear when it is unmapped.
const LEFT: u32 = 20;

fn machines() -> Vec<Config> {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    let idai = |mut c: Config| {
        c.idai = Some(true);
        c
    };
    let mut all = Vec::from([
        Config::qemu(CPUS),
        idai(Config::v4_0(CPUS)).stale(Staleness::Random(1)),
        proxy(Config::v4_0(CPUS)).stale(Staleness::Random(2)),
        Config::v4_0(CPUS).noncoherent(),
        Config::v4_1(CPUS, 1).stale(Staleness::Random(3)),
        Config::v4_1(CPUS, 2).noncoherent(),
        Config::graviton3(CPUS),
    ]);
    all.extend((1..=4).map(|n| Config::its_list(CPUS, n).stale(Staleness::Random(n as u64))));
    all
}

impl Guest {
    /// Unmaps all that is mapped, as a virtual ITS that is reset.
    fn unmap_all(&self) {
        (0..self.machine.config().its.len()).for_each(|its| self.gic.unmap_device(ItsId(its as u8), DEV).unwrap());
    }

    fn renew(&self) {
        self.v4().renew_vm(self.vm).unwrap();
        self.vpes.iter().for_each(|vpe| self.v4().renew_vpe(*vpe).unwrap());
    }
}

fn its(n: usize) -> ItsId {
    ItsId(n as u8)
}

fn mapped(gic: &Gic<crate::gic::testing::ModelHw>, its: ItsId, event: u32) -> bool {
    gic.event(key(its, event)) != Ok(Event::Unmapped)
}

#[test]
fn no_interrupt_of_the_former_life_arrives_and_new_ones_do() {
    for (n, config) in machines().into_iter().enumerate() {
        let itss = config.its.len();
        let direct = config.cpus[0].direct_lpi;
        let g = Guest::new(config, 2);
        let last = its(itss - 1);
        // The first vPE lives away from where it was made, and blocks. Interrupts for it wait, and its doorbell.
        g.map(ITS0, 1, 0);
        g.map(last, 2, 0);
        let first = g.enter(0, 2);
        let _ = g.leave(first, Block);
        g.msi(ITS0, 1);
        g.msi(last, 2);
        g.map(last, LEFT, 0);
        g.msi(last, LEFT);
        if g.gic.has_virtual_sgis() {
            let on = |_| SgiConfig { enabled: true, group1: true, priority: 0xa0 };
            g.v4().configure_sgis(g.vpes[0], 1 << 3, on).unwrap();
            g.v4().send_sgi(g.vpes[0], 3).unwrap();
        }
        g.machine.advance_us(100);
        g.machine.inject(Fault::DiscardKeepsPending { its: last.index() });
        g.unmap_all();
        g.machine.heal();
        let (memory, lpis) = (g.machine.allocations().len(), g.gic.lpis_in_use());
        // Nothing is allocated, not even if nothing can be.
        g.machine.inject(Fault::OutOfMemory { after: 0 });
        assert_eq!(allocations(|| g.renew()), 0, "machine {n}");
        g.machine.heal();
        assert_eq!((g.machine.allocations().len(), g.gic.lpis_in_use()), (memory, lpis), "machine {n}");
        assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(2)));
        if direct || g.gic.v4.as_ref().unwrap().proxy.is_some() {
            assert_eq!(g.all_doorbells(), [], "machine {n}: a doorbell of the former life");
        } else {
            let _ = g.all_doorbells();
        }

        (0..itss).for_each(|n| g.gic.map_device(its(n), DEV, 5).unwrap());
        // The vLPI that was pending is enabled again; the one that was enabled is mapped and stays disabled.
        g.map(last, LEFT, 0);
        g.map(ITS0, 1, 0);
        g.v4().map_event(key(last, 2), g.vpes[0], vlpi(2)).unwrap();
        assert!(mapped(&g.gic, last, 2));
        let first = g.enter(0, 2);
        assert_eq!(g.guest(2), [], "machine {n}: an interrupt of the former life");
        if g.gic.has_virtual_sgis() {
            assert_eq!(g.v4().pending_sgis(g.vpes[0]), Ok(0));
            g.v4().send_sgi(g.vpes[0], 3).unwrap();
        }
        g.msi(last, 2);
        g.msi(ITS0, 1);
        g.machine.advance_us(100);
        assert_eq!(g.guest(2), [1], "machine {n}: vLPI 2 and SGI 3 are disabled");
        assert!(!g.leave(first, Block), "machine {n}");
        g.msi(last, LEFT);
        g.machine.advance_us(100);
        assert_eq!(g.all_doorbells(), [g.vpes[0]], "machine {n}");
        let first = g.enter(0, 1);
        assert_eq!(g.guest(1), [LEFT], "machine {n}");
        let _ = g.leave(first, Preempt);
        g.take_down();
        g.machine.assert_clean();
    }
}

#[test]
fn a_vpe_that_is_in_use_is_not_renewed() {
    for config in machines() {
        let g = Guest::new(config, 2);
        g.map(ITS0, 1, 0);
        assert_eq!(g.v4().renew_vpe(g.vpes[0]), Err(V4Error::HasEvents));
        g.unmap_all();
        let first = g.enter(0, 1);
        assert_eq!(g.v4().renew_vpe(g.vpes[0]), Err(V4Error::Resident(CpuId(1))));
        // It leaves, and the redistributor is late to write it back.
        g.machine.inject(Fault::DirtyStuck { cpu: 1 });
        let _ = g.leave(first, Preempt);
        assert_eq!(g.v4().renew_vpe(g.vpes[0]), Err(V4Error::Resident(CpuId(1))));
        g.machine.heal();
        assert_eq!(g.v4().renew_vpe(g.vpes[0]), Ok(()));
        assert_eq!(g.v4().renew_vpe(VpeId(40)), Err(V4Error::NoSuchVpe(VpeId(40))));
        g.machine.assert_clean();
    }
}

/// Whichever command the ITS does not complete in time, or never: the pending table is not used again unless the
/// unmapping was seen to complete, and it is not freed.
#[test]
fn an_its_that_does_not_answer_fails_a_renewal_in_bounded_time_and_its_memory_is_not_freed() {
    let machines = [Config::v4_0(CPUS), Config::qemu(CPUS), Config::v4_1(CPUS, 2)];
    for (config, nth) in machines.iter().flat_map(|config| (1..=8).map(move |nth| (config, nth))) {
        for fault in [CommandFault::Late { us: 600_000 }, CommandFault::Hang] {
            let g = Guest::new(config.clone(), 1);
            g.unmap_all();
            let last = config.its.len() - 1;
            g.machine.inject(Fault::Command { its: last, nth, fault });
            let from = g.machine.now_us();
            let renewed = g.v4().renew_vpe(g.vpes[0]);
            assert!(g.machine.now_us() - from < 1_000_000, "nth {nth}, {fault:?}");
            let Err(error) = renewed else {
                // There were fewer commands.
                g.machine.heal();
                continue;
            };
            assert_eq!(error, V4Error::Its(ItsError::Timeout), "nth {nth}, {fault:?}");
            let memory = g.machine.allocations().len();
            let removed = g.v4().remove_vpe(g.vpes[0]);
            let freed = memory - g.machine.allocations().len();
            assert_eq!(usize::from(removed.is_ok()), freed, "nth {nth}, {fault:?}: {removed:?}");
            g.machine.heal();
            g.machine.advance_us(1_000_000);
            assert_eq!(g.v4().remove_vpe(g.vpes[0]), Err(V4Error::NoSuchVpe(g.vpes[0])));
            g.v4().destroy_vm(g.vm).unwrap();
            g.machine.assert_clean();
        }
    }
}
