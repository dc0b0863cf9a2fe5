//! Memory: frames, heap, EL2's stage 1, guests' stage 2.
//!
//! | file | content |
//! |---|---|
//! | [`pool`] | the choice of the memory that EL2 takes for itself, from the top of RAM |
//! | [`frames`], `heap` | allocation of that memory by pages (with `bitmap`), and by objects |
//! | [`stage1`], `el2_map` | EL2's identity map: its tables, and the map in use |
//! | [`stage2`], `tlb` | a domain's tables and their TLB maintenance |
//! | [`guest_pool`], [`guest_ram`] | the memory set aside for domUs, and access to a domain's RAM |
//! | `hw` | [`Hw`](crate::mmio::Hw) on hardware |
//! | `firmware` | access to the firmware's tables |
#![allow(unsafe_code, reason = "allocators and page tables give access to memory by address")]

mod bitmap;
#[cfg(test)]
pub(crate) mod counting;
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
