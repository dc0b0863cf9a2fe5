//! Windows in this guest's address space: second addresses for 2 MiB of memory or devices.

use core::arch::asm;
use core::cell::UnsafeCell;
use guest_rt::mrs;

/// A table of stage 1.
#[repr(C, align(4096))]
pub struct Table(UnsafeCell<[u64; 512]>);
// SAFETY: the guest has one vCPU, and its exception handlers use no table.
unsafe impl Sync for Table {}

/// A descriptor's bits for Normal memory and for devices (see the runtime's `head.rs`).
pub const NORMAL: u64 = 0x701;
/// As [`NORMAL`].
pub const DEVICE: u64 = 0x705;
/// The bit of a descriptor that gives EL0 access.
pub const EL0: u64 = 1 << 6;
/// The bits of a descriptor that refers to a table.
pub const TABLE: u64 = 3;
/// The size of a block.
pub const BLOCK: u64 = 2 << 20;

impl Table {
    /// A table that maps nothing.
    pub const fn new() -> Table {
        Table(UnsafeCell::new([0; 512]))
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Maps the block of `to` as number `index`.
    pub fn set(&self, index: usize, to: u64, bits: u64) {
        // SAFETY: an entry of this table.
        unsafe { self.0.get().cast::<u64>().add(index).write_volatile(to & !(BLOCK - 1) | bits) };
    }
}

/// The address of the root's descriptor for a GiB of the address space.
pub fn root_entry(gib: u64) -> *mut u64 {
    ((mrs!("ttbr0_el1") & 0xffff_ffff_f000) + 8 * gib) as *mut u64
}

/// Makes `table` the table of a GiB of the address space that nothing uses.
pub fn install(gib: u64, table: &Table) {
    // SAFETY: nothing is accessed through this GiB.
    unsafe {
        root_entry(gib).write_volatile(0);
        asm!("dsb ishst", "tlbi vmalle1", "dsb ish", "isb");
        root_entry(gib).write_volatile(table.address() | TABLE);
        asm!("dsb ishst", "isb");
    }
}
