//! Boot modules, as the builders of domains use them.
#![allow(unsafe_code, reason = "copies and looks at what the boot loader left")]

use crate::build::image::{HEADER_LEN, Image, ImageError};
use crate::ids::{Ipa, Pa};
use crate::mm::guest_ram::{GuestRam, NotGuestRam, peek};
use crate::platform::Module;

/// Copies a module into a domain's RAM.
pub fn load(ram: &GuestRam, module: &Module, to: Pa) -> Result<(), NotGuestRam> {
    let bytes = usize::try_from(module.range.size).unwrap_or(usize::MAX);
    // SAFETY: modules lie in RAM, which is mapped; no domain that runs has them, so that nobody writes them.
    unsafe { ram.load(module.range.base, Ipa(to.0), bytes) }
}

/// What a kernel says of itself.
pub fn image(kernel: &Module) -> Result<Image, ImageError> {
    let mut header = [0; HEADER_LEN];
    // SAFETY: as above.
    Image::parse(unsafe { peek(kernel.range, &mut header) })
}
