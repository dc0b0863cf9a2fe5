//! Points in the schedulers between two accesses whose order matters. In the stress tests, a thread that reaches one
//! yields by chance, so that other threads run in between. Otherwise a point is nothing.

#[cfg(all(test, not(loom)))]
std::thread_local!(static SEED: core::cell::Cell<u64> = const { core::cell::Cell::new(1) });

/// Sets where this thread's sequence of random numbers starts. Not 0.
#[cfg(all(test, not(loom)))]
pub fn seed(seed: u64) {
    SEED.set(seed);
}

/// A random number below `below`, from this thread's own sequence.
#[cfg(all(test, not(loom)))]
pub fn random(below: u64) -> u64 {
    SEED.set(super::random::xorshift(SEED.get()));
    SEED.get() % below
}

/// Lets other threads run here, by chance.
#[cfg(all(test, not(loom)))]
pub fn race_point() {
    if random(8) == 0 {
        (0..random(6)).for_each(|_| std::thread::yield_now());
    }
}

/// Does nothing outside the stress tests.
#[cfg(not(all(test, not(loom))))]
#[inline]
pub fn race_point() {}
