//! Pseudo-random numbers for placing vCPUs at random and for tests.

/// The number that follows `x` in a sequence of random numbers (xorshift). Neither is ever 0.
pub fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    x
}
