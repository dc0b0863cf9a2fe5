//! The GIC that a guest sees.
