//! Placeholder until the verbs land.
fn main() {}
