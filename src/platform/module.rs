//! Boot modules: the files that a boot loader has loaded into memory.

use crate::util::range::Range;
use arrayvec::ArrayString;

/// The purpose of a boot module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A kernel image.
    Kernel,
    /// An initial RAM disk.
    Ramdisk,
    /// A device tree, or a part of one.
    DeviceTree,
    /// Not stated.
    Unknown,
}

/// A file that the boot loader has loaded into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its purpose.
    pub kind: ModuleKind,
    /// The memory that holds it.
    pub range: Range,
    /// The command line for it.
    pub bootargs: ArrayString<2048>,
}
