//! An executable GICv3, v4.0 and v4.1.
