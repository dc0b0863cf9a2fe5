//! Rate limit: how much of EL2's time the device interrupts of one vCPU may take.
//!
//! Two kinds of device interrupt interrupt EL2 on the CPU that they arrive on, whichever domain runs there: LPIs that
//! are injected by software, and doorbells of vPEs that are not resident. A device that sends too many would take that
//! CPU's time from other domains. Each of these interrupts is therefore charged to its vCPU ([`Meter`]). Above the rate
//! the LPI is masked by its configuration byte: later arrivals stay pending in the redistributor, merged into one, and
//! no edge is lost. Once the meter has credit again, EL2's timer unmasks the LPI.
//!
//! With a rate of R per second, a burst of B, and E LPIs and doorbells that lead to the vCPU, EL2 takes at most
//! B + R·t + E interrupts in t seconds, whatever the devices do: each interrupt is charged, and an LPI that is taken
//! above the rate is masked until the earlier ones are paid for.
//!
//! Other sources of work for EL2 need a running guest:
//!
//! * vLPIs of a resident vPE do not reach EL2, and on GICv4.1 a doorbell rings once for each time the vCPU blocks;
//! * an SPI stays active until the guest deactivates it, and does not arrive again before;
//! * a vCPU's exits take its own time. An SGI to a vCPU that is not in the guest causes no interrupt; one to a vCPU in
//!   the guest takes the time of the same domain.

use super::routes::{PRIORITY, Routes};
use crate::gic::v4::V4Error;
use crate::gic::{Gic, ItsError};
use crate::ids::Lpi;
use crate::mmio::Hw;
use crate::util::bits::set_bits;
use crate::vcpu::meter::{Meter, Rate};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// The LPIs and doorbells that are masked because of their rate.
pub struct RateLimits {
    /// The rate for each vCPU.
    pub rate: Rate,
    /// One bit for each LPI from 8192 on that is masked and waits to be unmasked.
    masked: Vec<AtomicU64>,
}

impl RateLimits {
    /// Limits for `lpis` LPIs, none of them masked.
    #[must_use]
    pub fn new(lpis: u32, rate: Rate) -> RateLimits {
        RateLimits { rate, masked: (0..lpis.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn word(&self, lpi: Lpi) -> Option<(&AtomicU64, u64)> {
        let index = lpi.0.checked_sub(Lpi::FIRST)?;
        Some((self.masked.get((index / 64) as usize)?, 1 << (index % 64)))
    }

    /// Charges `meter`, the meter of a vCPU, for one arrival of `lpi`. Above the rate it masks the LPI and returns the
    /// time at which [`unmask_due`](Self::unmask_due) has to be called.
    #[must_use]
    pub fn charge<H: Hw + Clone>(
        &self,
        gic: &Gic<H>,
        routes: &Routes,
        lpi: Lpi,
        meter: &Meter,
        now: u64,
    ) -> Option<u64> {
        if meter.take(&self.rate, now) {
            return None;
        }
        let (word, bit) = self.word(lpi)?;
        // The bit is set after the LPI has been masked, so that the CPU that finds the bit unmasks it. If the LPI has
        // been given to another event meanwhile, it is unmasked for that event.
        if set_enabled(gic, routes, lpi, false) == Change::Needless {
            return None;
        }
        word.fetch_or(bit, Ordering::SeqCst);
        Some(meter.unmask_at(&self.rate))
    }

    /// Unmasks each masked LPI whose time has come. `unmask_at` returns the time at which the meter of the LPI's vCPU
    /// has credit again, or `None` for an LPI that no longer has a vCPU. Returns the time of the next call, and how
    /// many LPIs were unmasked.
    pub fn unmask_due<H: Hw + Clone>(
        &self,
        gic: &Gic<H>,
        routes: &Routes,
        now: u64,
        unmask_at: impl Fn(Lpi) -> Option<u64>,
    ) -> (Option<u64>, u32) {
        let (mut again, mut unmasked) = (None::<u64>, 0);
        for (index, word) in (0u32..).zip(&self.masked) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = word.swap(0, Ordering::SeqCst);
            let mut later = 0;
            let mut wait = |bit: u32, at: u64| {
                later |= 1 << bit;
                again = Some(again.map_or(at, |again| again.min(at)));
            };
            for bit in set_bits(bits) {
                let lpi = Lpi(Lpi::FIRST + index * 64 + bit);
                match unmask_at(lpi) {
                    None => {}
                    Some(at) if at > now => wait(bit, at),
                    Some(_) => match set_enabled(gic, routes, lpi, true) {
                        Change::Needless => {}
                        Change::Confirmed => unmasked += 1,
                        Change::Unconfirmed => wait(bit, now.saturating_add(self.rate.retry_after())),
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

/// The result of masking or unmasking an LPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Nothing was done: the LPI has no vCPU, or it is a doorbell that the hardware itself limits.
    Needless,
    /// The hardware has confirmed the change, or the event or the ITS no longer exists.
    Confirmed,
    /// The hardware has not confirmed the change in time, or the command could not be sent.
    Unconfirmed,
}

/// Masks or unmasks a physical LPI or a doorbell.
fn set_enabled<H: Hw + Clone>(gic: &Gic<H>, routes: &Routes, lpi: Lpi, enabled: bool) -> Change {
    let result = if let Some(route) = routes.get(lpi) {
        gic.configure_lpi(lpi, PRIORITY, enabled);
        gic.invalidate(route.event)
    } else {
        let Some((v4, vpe)) = gic.v4().zip(gic.peek_doorbell(lpi)) else { return Change::Needless };
        match v4.mask_doorbell(vpe, !enabled) {
            Ok(true) => Ok(()),
            Ok(false) | Err(V4Error::NoSuchVpe(_)) => return Change::Needless,
            Err(V4Error::Its(error)) => Err(error),
            Err(_) => return Change::Unconfirmed,
        }
    };
    match result {
        Err(ItsError::Timeout | ItsError::CpuOffline(_)) => Change::Unconfirmed,
        // Any other error means that the event or the ITS no longer exists.
        _ => Change::Confirmed,
    }
}

#[cfg(test)]
mod tests;
