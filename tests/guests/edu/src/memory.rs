//! The guest's memory: what it owns, and what must be in it.

use guest_rt::its::Table;
use guest_rt::{fdt, off, say};

/// Random numbers: xorshift64*.
pub struct Random(u64);

impl Random {
    /// From a seed that is not 0.
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}

/// The ranges of RAM in the device tree.
pub fn ram() -> impl Iterator<Item = (u64, u64)> {
    fdt::nodes().filter(|node| node.name.starts_with("memory@")).flat_map(|node| node.ranges())
}

/// How many of these bytes are in the guest's RAM.
pub fn owned(at: u64, bytes: u64) -> u64 {
    let end = at.saturating_add(bytes);
    ram().map(|(base, size)| end.min(base + size).saturating_sub(at.max(base))).sum()
}

/// Loads a byte that a device may have written.
pub fn byte(at: u64) -> u8 {
    // SAFETY: callers pass addresses in tables, which no Rust object occupies.
    unsafe { (at as *const u8).read_volatile() }
}

/// Stores a byte that a device may read.
pub fn set_byte(at: u64, value: u8) {
    // SAFETY: as `byte`.
    unsafe { (at as *mut u8).write_volatile(value) };
}

/// Loads a word.
pub fn word(at: u64) -> u64 {
    // SAFETY: as `byte`; callers pass aligned addresses.
    unsafe { (at as *const u64).read_volatile() }
}

/// Stores a word.
pub fn set_word(at: u64, value: u64) {
    // SAFETY: as `word`.
    unsafe { (at as *mut u64).write_volatile(value) };
}

/// Bytes that [`Watched`] watches.
const BYTES: usize = 2 << 20;

static CONTENT: Table<BYTES> = Table::new();
static SHADOW: Table<BYTES> = Table::new();

/// Memory whose content is known.
pub struct Watched;

impl Watched {
    /// Its size.
    pub const BYTES: u64 = BYTES as u64;

    /// Its address.
    pub fn address(&self) -> u64 {
        CONTENT.address()
    }

    /// What should be at this address.
    pub fn expected(&self, at: u64) -> u8 {
        byte(at - CONTENT.address() + SHADOW.address())
    }

    /// Says what should be at this address from now on.
    pub fn expect(&self, at: u64, value: u8) {
        set_byte(at - CONTENT.address() + SHADOW.address(), value);
    }

    /// Checks `bytes` bytes.
    pub fn check_range(&self, at: u64, bytes: u64, what: &str) {
        for at in at..at + bytes {
            let (is, should) = (byte(at), self.expected(at));
            if is != should {
                say!("GUEST FAIL edu: {what}: {is:#04x} instead of {should:#04x} at {at:#x}");
                off()
            }
        }
    }

    /// Checks everything.
    pub fn check(&self) {
        for offset in (0..Self::BYTES).step_by(8) {
            let (is, should) = (word(CONTENT.address() + offset), word(SHADOW.address() + offset));
            if is != should {
                say!("GUEST FAIL edu: {is:#x} instead of {should:#x} at {:#x}", CONTENT.address() + offset);
                off()
            }
        }
    }
}

/// Fills the memory with random words.
pub fn witness(random: &mut Random) -> Watched {
    for offset in (0..Watched::BYTES).step_by(8) {
        let value = random.next();
        set_word(CONTENT.address() + offset, value);
        set_word(SHADOW.address() + offset, value);
    }
    Watched
}
