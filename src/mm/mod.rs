//! Memory: frames, heap, EL2 stage 1, guest stage 2.
//!
//! EL2 takes a pool from the top of RAM (`pool`) and gives it out by the page ([`frames`]) and by the object (`heap`).
//! Its own view of memory is an identity map ([`stage1`]), of which `live` is the one in use.
#![allow(unsafe_code, reason = "this room hands out memory by address")]

mod bitmap;
pub mod frames;
pub mod guest_pool;
pub mod guest_ram;
pub mod pool;
pub mod stage1;
pub mod stage2;

pub mod el2_map;
pub mod firmware;
pub mod heap;
pub mod hw;
pub mod tlb;
