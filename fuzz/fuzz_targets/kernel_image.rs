//! The header of a kernel Image: any file is refused or read, and an image that was read gets a place that overlaps
//! nothing, or none, whatever its header and the boot loader say of sizes.
//!
//! The first 96 bytes of the input are two banks of RAM and where the boot loader has put the kernel and the RAM disk, in pages.
//! The rest is the file.
//!
//! `cargo +nightly fuzz run kernel_image -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::build::image::Image;
use doorward::build::layout::{self, Placement, domu};
use doorward::ids::Pa;
use doorward::util::range::Range;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

/// Physical addresses have at most 48 bits.
const END: u64 = 1 << 48;
/// What a search takes grows with the banks' size.
const LARGEST: u64 = 1 << 34;

fn range(input: &mut Input<'_>) -> Range {
    let (base, size) = ((input.word() % (END - LARGEST)) & !0xfff, input.word() % LARGEST);
    Range::new(Pa(base), size)
}

/// Reads the header and places the image as that of dom0 and of a domU.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let [mut low, mut high, kernel, ramdisk, busy] = std::array::from_fn(|_| range(&mut input));
    if high.base < low.base {
        core::mem::swap(&mut low, &mut high);
    }
    let choice = input.word();
    // In the order of their addresses, and apart, as the memory of a machine is.
    let banks = if low.overlaps(high) { vec![high] } else { vec![low, high] };
    let ramdisk = (choice & 1 != 0).then_some(ramdisk);
    let Input(file) = input;
    let image = match Image::parse(file) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(file.len() >= 64 && image.text_offset < 2 << 20 && (1..=1 << 32).contains(&image.image_size));
    match layout::place(&banks, &image, kernel, ramdisk, &[busy]) {
        Ok(placement) => {
            let own = [Some(kernel), Some(busy), ramdisk.filter(|&file| placement.initrd != Some(file))];
            check(&image, &placement, &banks, kernel.size, own.into_iter().flatten());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let ram = low.size & !0x1f_ffff;
    if let Ok(placement) = domu::place_modules(ram, &image, kernel.size, ramdisk.map(|file| file.size)) {
        check(&image, &placement, &[Range::new(domu::RAM, ram)], kernel.size, [].into_iter());
    }
}

fn check(image: &Image, at: &Placement, banks: &[Range], file: u64, keep: impl Iterator<Item = Range>) {
    assert!(at.kernel.size >= image.image_size && at.kernel.size >= file);
    assert_eq!(at.kernel.base.0 % (2 << 20), image.text_offset);
    let mut taken: Vec<Range> = keep.collect();
    for part in [Some(at.kernel), Some(at.dtb), at.initrd].into_iter().flatten() {
        assert!(banks.iter().any(|bank| bank.covers(part)), "{part} is not in RAM");
        assert!(!taken.iter().any(|other| other.overlaps(part)), "{part} overlaps another");
        taken.push(part);
    }
}
