//! AArch64 at EL2, and nothing else.
