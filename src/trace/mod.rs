//! Counters; takes no lock.
