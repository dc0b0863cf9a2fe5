//! The first stage 1 map: the image, the early UART and the device tree, in tables that are part of the image.

use super::image;
use core::{ptr, slice};
use doorward::arch::{barrier, mmu};
use doorward::console::uart::Uart;
use doorward::console::{self, onpanic};
use doorward::ids::Pa;
use doorward::mm::stage1::{Kind, Map, MapError, Tables};
use doorward::util::PAGE;

/// The number of tables. The image and the device tree may each cross a few 2 MiB boundaries, and be 512 GiB apart.
const TABLES: usize = 24;
/// The largest size of a device tree in bytes (Linux, booting.rst).
const FDT_MAX: u64 = 2 << 20;

#[repr(C, align(4096))]
struct Pool([[u64; 512]; TABLES]);

static mut POOL: Pool = Pool([[0; 512]; TABLES]);
static mut USED: usize = 0;
static mut MAP: Option<Map<FromImage>> = None;

struct FromImage;

impl Tables for FromImage {
    fn take(&mut self) -> Option<Pa> {
        // SAFETY: only the boot CPU runs, and `take` is not reentered.
        unsafe {
            if USED == TABLES {
                return None;
            }
            USED += 1;
            Some(Pa((&raw mut POOL.0[USED - 1]) as u64))
        }
    }
}

/// Stops with an error message if `result` is an error.
fn must(result: Result<(), MapError>) {
    if let Err(error) = result {
        console::fatal(format_args!("{error}"));
    }
}

/// Maps the sections of the image and the early UART, and switches stage 1 on.
pub fn map_image(uart: Option<Uart>) {
    let mut map = match Map::new(FromImage) {
        Ok(map) => map,
        Err(error) => console::fatal(format_args!("{error}")),
    };
    for (start, end, kind) in image::sections() {
        must(map.map(start, end.0 - start.0, kind));
    }
    if let Some(uart) = uart {
        must(map.map(Pa(uart.base.0 & !(PAGE - 1)), PAGE, Kind::Device));
    }
    barrier::dsb_sy();
    // SAFETY: the map covers the image, which includes this code, its stack and its data. The tables were written with
    // caches off, so they are in memory, and no stale cache line hides them: `head` has invalidated the lines of the
    // image.
    unsafe { mmu::switch_to(map.root()) };
    // SAFETY: only the boot CPU runs.
    unsafe { MAP = Some(map) };
}

/// Maps the device tree at `at` and returns it; `None` if there is none.
pub fn map_fdt(at: Pa) -> Option<&'static [u8]> {
    if at.0 == 0 || !at.0.is_multiple_of(8) {
        return None;
    }
    // SAFETY: only the boot CPU runs.
    let map = unsafe { (*ptr::addr_of_mut!(MAP)).as_mut() }?;
    let mut map_up_to = |size: u64| {
        let start = at.0 & !(PAGE - 1);
        let end = (at.0 + size).next_multiple_of(PAGE);
        let result = map.map(Pa(start), end - start, Kind::Rodata);
        barrier::dsb_ish();
        barrier::isb();
        must(result);
    };
    map_up_to(8);
    // SAFETY: the bytes were just mapped, and nothing writes to them.
    let size = onpanic::size_of(unsafe { slice::from_raw_parts(at.0 as *const u8, 8) })? as u64;
    if !(40..=FDT_MAX).contains(&size) {
        return None;
    }
    map_up_to(size);
    // SAFETY: as above.
    Some(unsafe { slice::from_raw_parts(at.0 as *const u8, size as usize) })
}

/// Maps memory or registers until the second map replaces this one.
pub fn map(base: Pa, size: u64, kind: Kind) {
    // SAFETY: only the boot CPU runs.
    if let Some(map) = unsafe { (*ptr::addr_of_mut!(MAP)).as_mut() } {
        let result = map.map(base, size, kind);
        barrier::dsb_ish();
        barrier::isb();
        must(result);
    }
}

/// Reads the option `onpanic=` without stage 1, if there is a device tree at `at`.
pub fn peek(at: Pa) -> onpanic::Facts {
    if at.0 == 0 || !at.0.is_multiple_of(8) {
        return onpanic::Facts::default();
    }
    // SAFETY: the boot protocol says that there is a device tree. If there is neither a device tree nor memory, the
    // access aborts, and this CPU parks as it would anyway.
    let header = unsafe { slice::from_raw_parts(at.0 as *const u8, 8) };
    let size = match onpanic::size_of(header) {
        Some(size) if size as u64 <= FDT_MAX => size,
        _ => return onpanic::Facts::default(),
    };
    // SAFETY: as above, for the size in the header.
    onpanic::scan(unsafe { slice::from_raw_parts(at.0 as *const u8, size) })
}
