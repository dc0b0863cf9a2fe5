//! Steps that take CPUs out of service and back.

use super::*;
use crate::ids::EventKey;

/// The offsets of GICR_CTLR and GICR_WAKER, and ProcessorSleep of the latter.
const CTLR: u64 = 0x0;
const WAKER: u64 = 0x14;
const PROCESSOR_SLEEP: u32 = 1 << 1;

impl World {
    pub(super) fn take_out(&mut self, c: usize, to: usize, power: Power) {
        let (cpu, target) = (CpuId(c as u16), CpuId(to as u16));
        let result = self.gic.take_out(cpu, target);
        if c == to || self.out[to] {
            assert_eq!(result, Err(TakeOutError::NoTarget(target)));
            return;
        }
        if self.out[c] {
            assert_eq!(result, Err(TakeOutError::NotInService(cpu)));
            return;
        }
        // Some events may have been moved even if this failed.
        for k in self.keys() {
            self.events.get_mut(&k).unwrap().0 =
                self.gic.event(EventKey::new(ItsId(k.0), DEV, EventId(k.1.into()))).unwrap();
        }
        match result {
            Ok(_) => {
                assert!(self.resident[c].is_none(), "a vPE is resident on {cpu}");
                let homes = self.vpes.iter().flatten().filter_map(|v| self.v4().home(*v));
                assert_eq!(homes.filter(|home| *home == cpu).count(), 0, "vPEs that live on {cpu}");
                self.out[c] = true;
                self.power(c, power);
            }
            Err(TakeOutError::Vpe(_, EnterError::Elsewhere(there))) => {
                assert!(there == cpu && self.resident[c].is_some());
            }
            Err(TakeOutError::Its(_, ItsError::Timeout))
            | Err(TakeOutError::Vpe(_, EnterError::Moving | EnterError::NotMoved { .. })) => {
                // Give the commands time, so that later steps see their effect.
                for its in 0..self.itss {
                    while self.gic.drain(ItsId(its)) == Err(ItsError::Timeout) {}
                }
            }
            Err(e) => panic!("{cpu} cannot be taken out: {e}"),
        }
    }

    /// What the firmware does to the redistributor.
    pub(super) fn power(&self, c: usize, power: Power) {
        let cpu = &self.config.cpus[c];
        if let Power::LpisOff = power
            && cpu.ces
        {
            self.machine.write32(cpu.gicr + CTLR, 0);
            self.soon();
        }
        if let Power::Asleep | Power::LpisOff = power {
            self.machine.write32(cpu.gicr + WAKER, PROCESSOR_SLEEP);
        }
    }

    pub(super) fn take_back(&mut self, c: usize) {
        if !self.out[c] {
            return;
        }
        let memory = self.memory();
        if let Err(e) = self.gic.init_cpu(CpuId(c as u16)) {
            assert!(matches!(e, GicError::Collection(_, ItsError::Timeout)), "{e}");
            self.quiet();
            self.gic.init_cpu(CpuId(c as u16)).unwrap();
        }
        assert_eq!(self.memory(), memory, "a CPU that comes back uses its old tables");
        self.out[c] = false;
    }
}
