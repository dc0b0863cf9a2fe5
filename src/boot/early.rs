//! The first stage 1: the image, the early UART and the device tree, page by page, in tables from the image.

use super::*;
use core::{ptr, slice};
use doorward::arch::mmu;
use doorward::mm::stage1::{Kind, Map, MapError, Tables};

const PAGE: u64 = 0x1000;
/// The image and the device tree may each cross a few 2 MiB boundaries, and lie 512 GiB apart.
const TABLES: usize = 24;
/// The largest device tree there is (Linux, booting.rst).
const FDT_MAX: u64 = 2 << 20;

#[repr(C, align(4096))]
struct Pool([[u64; 512]; TABLES]);

static mut POOL: Pool = Pool([[0; 512]; TABLES]);
static mut USED: usize = 0;
static mut MAP: Option<Map<FromImage>> = None;

struct FromImage;

impl Tables for FromImage {
    fn take(&mut self) -> Option<Pa> {
        // SAFETY: only the boot CPU runs, and it takes tables from one place at a time.
        unsafe {
            if USED == TABLES {
                return None;
            }
            USED += 1;
            Some(Pa((&raw mut POOL.0[USED - 1]) as u64))
        }
    }
}

fn address(symbol: *const u8) -> u64 {
    symbol as u64
}

/// Tells what went wrong and stops.
fn must(result: Result<(), MapError>) {
    if let Err(error) = result {
        console::fatal(format_args!("{error}"));
    }
}

/// Maps the image section by section, and the early UART, and switches stage 1 on.
pub fn map_image(uart: Option<Uart>) {
    let mut map = match Map::new(FromImage) {
        Ok(map) => map,
        Err(error) => console::fatal(format_args!("{error}")),
    };
    for (start, end, kind) in image_sections() {
        must(map.map(start, end.0 - start.0, kind));
    }
    if let Some(uart) = uart {
        must(map.map(Pa(uart.base.0 & !(PAGE - 1)), PAGE, Kind::Device));
    }
    barrier::dsb_sy();
    // SAFETY: the map holds the image, in which are this code, its stack and its data. The tables were written with
    // caches off, so they are in memory, and no stale line hides them: the entry code invalidated the image's lines.
    unsafe { mmu::switch_to(map.root()) };
    // SAFETY: only the boot CPU runs.
    unsafe { MAP = Some(map) };
}

/// The image's sections, with the rights that each needs. The page below the boot stack is not among them.
pub fn image_sections() -> [(Pa, Pa, Kind); 5] {
    let at = |symbol: *const u8| Pa(address(symbol));
    [
        (at(&raw const __image_start), at(&raw const __text_start), Kind::Rodata),
        (at(&raw const __text_start), at(&raw const __text_end), Kind::Text),
        (at(&raw const __rodata_start), at(&raw const __data_start), Kind::Rodata),
        (at(&raw const __data_start), at(&raw const __stack_guard), Kind::Data),
        (at(&raw const __stack_bottom), at(&raw const __image_end), Kind::Data),
    ]
}

/// Maps the device tree at `at`; `None` when there is none.
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
    // SAFETY: just mapped, and nobody writes to it.
    let size = onpanic::size_of(unsafe { slice::from_raw_parts(at.0 as *const u8, 8) })? as u64;
    if !(40..=FDT_MAX).contains(&size) {
        return None;
    }
    map_up_to(size);
    // SAFETY: as above.
    Some(unsafe { slice::from_raw_parts(at.0 as *const u8, size as usize) })
}

/// Maps more memory or registers for the boot CPU, until the map that stays is installed.
pub fn map(base: Pa, size: u64, kind: Kind) {
    // SAFETY: only the boot CPU runs.
    if let Some(map) = unsafe { (*ptr::addr_of_mut!(MAP)).as_mut() } {
        let result = map.map(base, size, kind);
        barrier::dsb_ish();
        barrier::isb();
        must(result);
    }
}

/// Looks for the word `onpanic=off` where stage 1 cannot be switched on, if `at` looks like a device tree at all.
pub fn peek(at: Pa) -> onpanic::Facts {
    if at.0 == 0 || !at.0.is_multiple_of(8) {
        return onpanic::Facts::default();
    }
    // SAFETY: the loader says that there is a device tree; if not, there is still memory or this CPU takes an abort
    // on its way to being parked anyhow.
    let header = unsafe { slice::from_raw_parts(at.0 as *const u8, 8) };
    let size = match onpanic::size_of(header) {
        Some(size) if size as u64 <= FDT_MAX => size,
        _ => return onpanic::Facts::default(),
    };
    // SAFETY: as above, for the size it claims.
    onpanic::scan(unsafe { slice::from_raw_parts(at.0 as *const u8, size) })
}
