//! Storms: how much of EL2's time the interrupts of devices may cost for one vCPU.
//!
//! Two kinds of a device's interrupts are taken by EL2 on whichever CPU they come to, whoever runs there: LPIs that are
//! injected by software, and doorbells of vPEs that are not resident. A device that floods would take that CPU from other
//! domains. So what is taken for a vCPU is metered. Over the rate, the LPI is masked by its configuration byte: what comes
//! then stays pending in the redistributor, many as one, and no edge is lost. Once the meter has room again, EL2's timer
//! unmasks it.
//!
//! With a rate of R, a burst of B, and E LPIs and doorbells that lead to the vCPU, EL2 takes at most B + R·t + E in t
//! seconds, whatever the devices do: each one taken is charged, and one that is taken over the rate is masked until all
//! before it has been paid for.
//!
//! Everything else that makes EL2 run needs a guest that runs:
//!
//! * vLPIs of a resident vPE do not come to EL2 at all, and on GICv4.1 a doorbell rings once for each sleep;
//! * an SPI is active until its guest ends it, and does not come again before;
//! * a vCPU's exits are its own time, an SGI to one that is not in a guest costs nobody an interrupt, and to one that is,
//!   costs that one: its domain's own time.

use crate::domain::msi::{PRIORITY, Routes};
use crate::gic::v4::V4Error;
use crate::gic::{Gic, ItsError};
use crate::ids::Lpi;
use crate::mmio::Hw;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// A hundredth of a second's worth may come at once, but no fewer than this.
const BURST: u64 = 32;

/// Room that there is when masked ones are let through again.
const RELIEF: u64 = 16;

/// How many interrupts a vCPU may cost EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Ticks for each.
    interval: u64,
    /// Ticks' worth of them at once.
    burst: u64,
}

impl Rate {
    /// `per_second` of them, with a counter of `frequency` Hz.
    #[must_use]
    pub fn new(per_second: u32, frequency: u64) -> Rate {
        let interval = (frequency / u64::from(per_second.max(1))).max(1);
        Rate { interval, burst: interval * (u64::from(per_second) / 100).max(BURST) }
    }

    /// How many may come at once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst / self.interval
    }
}

/// What a vCPU has cost: the time when all of it will have been paid for.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Charges for one interrupt at `now`. `false` if it is over the rate.
    #[must_use]
    pub fn take(&self, rate: &Rate, now: u64) -> bool {
        let charge = |paid: u64| Some(paid.max(now).saturating_add(rate.interval));
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge).unwrap_or(now);
        before.max(now).saturating_add(rate.interval).saturating_sub(now) <= rate.burst
    }

    /// When there is room again.
    #[must_use]
    pub fn relief_at(&self, rate: &Rate) -> u64 {
        (self.0.load(Ordering::Relaxed) + RELIEF * rate.interval).saturating_sub(rate.burst)
    }
}

/// Which LPIs are masked.
pub struct Storms {
    /// The rate for each vCPU.
    pub rate: Rate,
    masked: Vec<AtomicU64>,
}

impl Storms {
    /// No storm, for `lpis` LPIs.
    #[must_use]
    pub fn new(lpis: u32, rate: Rate) -> Storms {
        Storms { rate, masked: (0..lpis.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn word(&self, lpi: Lpi) -> Option<(&AtomicU64, u64)> {
        let index = lpi.0.checked_sub(Lpi::FIRST)?;
        Some((self.masked.get((index / 64) as usize)?, 1 << (index % 64)))
    }

    /// `lpi` was taken for the vCPU of `meter`. If that is over the rate, it is masked, and the answer is when
    /// [`relieve`](Self::relieve) is to be called.
    #[must_use]
    pub fn took<H: Hw + Clone>(&self, gic: &Gic<H>, routes: &Routes, lpi: Lpi, meter: &Meter, now: u64) -> Option<u64> {
        if meter.take(&self.rate, now) {
            return None;
        }
        let (word, bit) = self.word(lpi)?;
        // The bit comes last: whoever finds it unmasks what is masked. If the LPI has become another's meanwhile, it is
        // unmasked for that one.
        if set_enabled(gic, routes, lpi, false) == Became::Nothing {
            return None;
        }
        word.fetch_or(bit, Ordering::SeqCst);
        Some(meter.relief_at(&self.rate))
    }

    /// Unmasks each LPI whose `relief` has come; that is when the meter of its vCPU has room again, and `None` for an LPI
    /// that leads to nobody any more. Answers when to come again, and how many were unmasked.
    pub fn relieve<H: Hw + Clone>(
        &self,
        gic: &Gic<H>,
        routes: &Routes,
        now: u64,
        relief: impl Fn(Lpi) -> Option<u64>,
    ) -> (Option<u64>, u32) {
        let (mut again, mut unmasked) = (None::<u64>, 0);
        for (index, word) in (0u32..).zip(&self.masked) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            let mut later = 0;
            let mut wait = |bit: u64, at: u64| {
                later |= bit;
                again = Some(again.map_or(at, |again| again.min(at)));
            };
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                bits &= !bit;
                let lpi = Lpi(Lpi::FIRST + index * 64 + bit.trailing_zeros());
                match relief(lpi) {
                    None => {}
                    Some(at) if at > now => wait(bit, at),
                    Some(_) => match set_enabled(gic, routes, lpi, true) {
                        Became::Nothing => {}
                        Became::Known => unmasked += 1,
                        Became::Unsure => wait(bit, now.saturating_add(RELIEF * self.rate.interval)),
                    },
                }
            }
            if later != 0 {
                word.fetch_or(later, Ordering::SeqCst);
            }
        }
        (again, unmasked)
    }
}

/// What came of masking or unmasking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
    /// The LPI leads to nobody, or needs no mask.
    Nothing,
    /// The hardware knows, or will get no interrupt through any more.
    Known,
    /// It was told and has not said so, or could not be told now.
    Unsure,
}

fn set_enabled<H: Hw + Clone>(gic: &Gic<H>, routes: &Routes, lpi: Lpi, enabled: bool) -> Became {
    let told = if let Some(route) = routes.get(lpi) {
        gic.configure_lpi(lpi, PRIORITY, enabled);
        gic.invalidate(route.its, route.device, route.event)
    } else {
        let Some((v4, vpe)) = gic.v4().zip(gic.whose_doorbell(lpi)) else { return Became::Nothing };
        match v4.let_ring(vpe, enabled) {
            Ok(true) => Ok(()),
            Ok(false) | Err(V4Error::NoSuchVpe(_)) => return Became::Nothing,
            Err(V4Error::Its(error)) => Err(error),
            Err(_) => return Became::Unsure,
        }
    };
    match told {
        Err(ItsError::Timeout | ItsError::CpuOffline(_)) => Became::Unsure,
        // Other errors are an event or an ITS that is gone.
        _ => Became::Known,
    }
}

#[cfg(test)]
mod tests;
