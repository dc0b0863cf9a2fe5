//! The physical GIC.
