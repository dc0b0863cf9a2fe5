//! Memory: frames, heap, EL2 stage 1, guest stage 2.
#![allow(unsafe_code, reason = "this room hands out memory by address")]

mod bitmap;
pub mod frames;
#[cfg(target_os = "none")]
pub mod heap;
pub mod stage1;
pub mod stage2;
