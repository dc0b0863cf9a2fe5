//! Which vCPU runs where.
