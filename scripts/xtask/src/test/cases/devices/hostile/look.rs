//! A look at the machine from outside, through QEMU's monitor: the hypervisor's code and constants, the configuration space of
//! PCI functions, and a word in all of RAM.

use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSymbol as _};

use crate::paths;
use crate::qemu::{Machine, RAM};
use crate::qmp::Qmp;
use crate::test::{Lab, Verdict};

/// MiB of RAM. The guest knows it, too.
pub const MEM: u64 = 768;

/// Bus 0 in the host's configuration space.
const CONFIG: u64 = 0x40_1000_0000;
const BUS: u64 = 1 << 20;
/// Bytes of one function's configuration space, and the index of the hostile domain's function.
const FUNCTION: usize = 4096;
const EDU: usize = 8 << 3;

/// A look at one machine.
pub struct Look<'a> {
    lab: &'a Lab,
    socket: &'a Path,
    /// Bytes of the hypervisor's image that never change.
    constant: u64,
    /// Where the image is.
    image: Cell<u64>,
    /// The word that the guest stores.
    mark: Cell<u64>,
    /// The guest's memory, as base and size, in its own addresses.
    owned: RefCell<Vec<(u64, u64)>>,
    /// Where the word was found.
    marks: RefCell<Option<Vec<Marks>>>,
}

/// Memory that is full of marks: its address, and the number of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marks {
    at: u64,
    words: u64,
}

impl Marks {
    /// Whether all of it is in a range.
    fn is_in(self, (base, size): (u64, u64)) -> bool {
        (base..base + size).contains(&self.at) && self.at + 8 * self.words <= base + size
    }
}

/// What must not change.
pub struct Snapshot {
    image: Vec<u8>,
    functions: Vec<u8>,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.socket);
    }
}

impl<'a> Look<'a> {
    /// For a machine with a QMP socket that runs the hypervisor which was built last.
    pub fn new(lab: &'a Lab, machine: &'a Machine) -> Result<Self, String> {
        let elf = std::fs::read(paths::elf()).map_err(|error| format!("{}: {error}", paths::elf().display()))?;
        let file = object::File::parse(&*elf).map_err(|error| error.to_string())?;
        let end = file.symbol_by_name("__rodata_end").ok_or("the hypervisor has no symbol __rodata_end")?;
        let socket = machine.qmp.as_deref().ok_or("the machine has no QMP socket")?;
        let (image, mark) = (Cell::new(0), Cell::new(0));
        let (owned, marks) = (RefCell::default(), RefCell::default());
        Ok(Self { lab, socket, constant: end.address(), image, mark, owned, marks })
    }

    /// Reads what the hypervisor and the guest say in a line.
    pub fn line(&self, line: &str) {
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        if let Some((_, rest)) = line.split_once(": Doorward ").filter(|_| self.image.get() == 0) {
            let base = rest.split_once('[').and_then(|(_, rest)| rest.split_once(','));
            self.image.set(base.and_then(|(base, _)| hex(base)).unwrap_or(0));
        } else if let Some((_, rest)) = line.split_once("GUEST MARK ") {
            let words = rest.split_whitespace().map(|word| hex(word.trim_start_matches("veil=")));
            let words: Vec<u64> = words.flatten().collect();
            self.mark.set(words.iter().fold(0, |mark, word| mark ^ word));
        } else if let Some((_, rest)) = line.split_once("GUEST OWNS ") {
            let words: Vec<u64> = rest.split_whitespace().filter_map(hex).collect();
            if let [base, size] = words[..] {
                self.owned.borrow_mut().push((base, size));
            }
        }
    }

    /// Writes the content of physical addresses to a file.
    fn dump(&self, at: u64, bytes: u64) -> Result<PathBuf, String> {
        let file = self.lab.dir.join(format!("memory-{at:x}"));
        let say = |failure: crate::fail::Failure| failure.text;
        let mut qmp = Qmp::connect(self.socket).map_err(say)?;
        let said = qmp.monitor(&format!("pmemsave {at:#x} {bytes:#x} \"{}\"", file.display())).map_err(say)?;
        if said.trim().is_empty() { Ok(file) } else { Err(format!("pmemsave: {said}")) }
    }

    fn read(&self, at: u64, bytes: u64) -> Result<Vec<u8>, String> {
        let file = self.dump(at, bytes)?;
        let read = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()));
        let _ = std::fs::remove_file(file);
        read.and_then(|content| match content.len() as u64 {
            length if length == bytes => Ok(content),
            length => Err(format!("{length:#x} of {bytes:#x} bytes could be read at {at:#x}")),
        })
    }

    /// What must not change, as it is now.
    pub fn snapshot(&self) -> Result<Snapshot, String> {
        if self.image.get() == 0 {
            return Err("the hypervisor did not say where its image is".into());
        }
        let image = self.read(self.image.get(), self.constant)?;
        Ok(Snapshot { image, functions: self.read(CONFIG, BUS)? })
    }

    /// Searches all RAM for the guest's word.
    pub fn search(&self) -> Verdict {
        if self.mark.get() == 0 {
            return Err("the guest did not say what it stores".into());
        }
        let file = self.dump(RAM, MEM << 20)?;
        let found = std::fs::File::open(&file).and_then(|memory| find(memory, self.mark.get()));
        let _ = std::fs::remove_file(&file);
        self.marks.replace(Some(found.map_err(|error| format!("{}: {error}", file.display()))?));
        println!("   marks at {}", self.found());
        Ok(())
    }

    /// Checks that the word is in the page that the guest has made of it, and nowhere else.
    pub fn only_one_page(&self) -> Verdict {
        match self.marks.borrow().as_deref() {
            Some([Marks { at, words: 512 }]) if at % 4096 == 0 => Ok(()),
            _ => Err(format!("what the guest stored elsewhere is at {}", self.found())),
        }
    }

    /// Checks that the word is in the memory of the guest, whose addresses are those of the machine, and nowhere else.
    pub fn only_in_its_own(&self) -> Verdict {
        let (marks, owned) = (self.marks.borrow(), self.owned.borrow());
        let marks = marks.as_deref().filter(|marks| !marks.is_empty()).ok_or("the guest's marks were not found")?;
        match marks.iter().find(|marks| !owned.iter().any(|range| marks.is_in(*range))) {
            None => Ok(()),
            Some(marks) => Err(format!("the guest has stored to {:#x}, and owns {owned:x?}", marks.at)),
        }
    }

    /// Where marks were found, or the first of them.
    fn found(&self) -> String {
        let marks = self.marks.borrow();
        let marks = marks.as_deref().unwrap_or_default();
        let shown = marks.iter().take(4).map(|marks| format!("{:#x} ({} words)", marks.at, marks.words));
        let shown = shown.collect::<Vec<_>>().join(", ");
        if marks.len() > 4 { format!("{shown} and {} other places", marks.len() - 4) } else { shown }
    }
}

impl Snapshot {
    /// Compares the hypervisor's code and constants.
    pub fn compare_image(&self, after: &Snapshot) -> Verdict {
        match (0..self.image.len()).find(|&at| self.image.get(at) != after.image.get(at)) {
            None => Ok(()),
            Some(at) => Err(format!("the hypervisor's image has changed at {at:#x}")),
        }
    }

    /// Compares the configuration space of all functions but the hostile domain's.
    pub fn compare_functions(&self, after: &Snapshot) -> Verdict {
        let own = EDU * FUNCTION..(EDU + 1) * FUNCTION;
        let others = (0..self.functions.len()).filter(|at| !own.contains(at));
        match others.into_iter().find(|&at| self.functions.get(at) != after.functions.get(at)) {
            None => Ok(()),
            Some(at) => {
                let (function, offset) = (at / FUNCTION, at % FUNCTION);
                Err(format!("function {:02x}.{} has changed at {offset:#x}", function >> 3, function & 7))
            }
        }
    }
}

/// Finds two equal words or more that are `mark`, at any alignment of its bytes, in memory from the start of RAM on.
fn find(mut memory: impl std::io::Read, mark: u64) -> std::io::Result<Vec<Marks>> {
    const PIECE: usize = 1 << 20;
    let rotations: [u64; 8] = std::array::from_fn(|bytes| mark.rotate_left(8 * bytes as u32));
    let mut piece = Vec::with_capacity(PIECE);
    let (mut at, mut last, mut words) = (RAM, 0, 0);
    let mut found = Vec::new();
    let mut end = |at: u64, words: u64| {
        if words > 1 {
            found.push(Marks { at: at - 8 * words, words });
        }
    };
    loop {
        piece.clear();
        if memory.by_ref().take(PIECE as u64).read_to_end(&mut piece)? == 0 {
            end(at, words);
            return Ok(found);
        }
        for bytes in piece.chunks_exact(8) {
            let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            let is_mark = rotations.contains(&word);
            if words > 0 && !(is_mark && word == last) {
                end(at, words);
                words = 0;
            }
            words += u64::from(is_mark);
            last = word;
            at += 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_at_any_alignment() {
        let mark = 0x0123_4567_89ab_cdef_u64;
        let mut memory = vec![0u8; 4 << 20];
        let bytes: Vec<u8> = mark.to_le_bytes().repeat(4);
        memory[0x1003..0x1023].copy_from_slice(&bytes);
        // One word alone may be a register that was saved.
        memory[0x3000..0x3008].copy_from_slice(&bytes[..8]);
        let over = (1 << 20) - 16;
        memory[over..over + 32].copy_from_slice(&bytes);
        let end = memory.len() - 32;
        memory[end..].copy_from_slice(&bytes);
        let expected = [(0x1008, 3), (over as u64, 4), (end as u64, 4)];
        let expected = expected.map(|(at, words)| Marks { at: RAM + at, words });
        assert_eq!(find(&memory[..], mark).unwrap(), expected);
        assert_eq!(find(&memory[..], mark ^ 1).unwrap(), []);
    }

    #[test]
    fn marks_are_in_a_range_with_all_their_words() {
        let marks = Marks { at: 0x1008, words: 3 };
        assert!(marks.is_in((0x1000, 0x20)) && !marks.is_in((0x1000, 0x1f)) && !marks.is_in((0x1010, 0x20)));
    }
}
