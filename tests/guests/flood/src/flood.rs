//! dom0: a full command queue of MOVALLs with each store to GITS_CWRITER.
//!
//! All LPIs of vCPU 0 are pending and disabled, so each MOVALL moves all of them to the other vCPU or back, and none is
//! delivered. vCPU 1 is never started. After each store one line: `GUEST FLOOD commands=N from_us=T us=T end`, with the
//! time of the store and how long it took.

use guest_rt::gic;
use guest_rt::its::{self, Its, LARGEST_RING, Table};
use guest_rt::meter::now_us;
use guest_rt::{off, say};

const TABLE: usize = 0x1_0000;
/// All zero: every LPI is disabled.
static PROPERTIES: Table<TABLE> = Table::new();
static PENDING: Table<TABLE> = Table::new();
static RING: Table<LARGEST_RING> = Table::new();

pub fn run() -> ! {
    gic::distributor_on();
    let mut redistributors = gic::redistributors();
    let (Some(first), Some(second)) = (redistributors.next(), redistributors.next()) else {
        say!("GUEST FAIL flood: a MOVALL needs two vCPUs");
        off()
    };
    let id_bits = gic::id_bits();
    // One bit for each INTID, from 0 on.
    for byte in 0..1u64 << (id_bits - 3) {
        let at = (PENDING.address() + byte) as *mut u8;
        // SAFETY: inside the table (a virtual GIC has 16 bits of INTID at most), before the redistributor reads it.
        unsafe { at.write_volatile(0xff) };
    }
    gic::lpis_on_with_pending(first, PROPERTIES.address(), id_bits, PENDING.address());
    let mut its = Its::with_ring(&RING);
    let targets = [its.target(first), its.target(second)];
    its.fill(|slot| its::move_all(targets[slot % 2], targets[(slot + 1) % 2]));
    loop {
        let from = now_us();
        let commands = its.execute_full_ring();
        let took = now_us() - from;
        if took == 0 {
            say!("GUEST FAIL flood: {commands} commands took no time");
            off()
        }
        say!("GUEST FLOOD commands={commands} from_us={from} us={took} end");
    }
}
