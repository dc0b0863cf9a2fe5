//! The ITS that a guest sees.
