//! The device tree that the guest was started with (Devicetree Specification 0.4, chapter 5): just enough to find nodes and
//! to read their properties.

const MAGIC: u32 = 0xd00d_feed;
const BEGIN: u32 = 1;
const END: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// The address of the device tree; 0 if x0 was 0.
#[must_use]
pub fn address() -> u64 {
    unsafe extern "C" {
        static guest_fdt: u64;
    }
    // SAFETY: the start-up code wrote it before any Rust ran.
    unsafe { (&raw const guest_fdt).read_volatile() }
}

/// The tree's bytes; none if there is no tree.
#[must_use]
pub fn bytes() -> &'static [u8] {
    let at = address() as *const u8;
    if at.is_null() {
        return &[];
    }
    // SAFETY: whoever started the guest put a tree there, which nobody changes. A tree is longer than its header.
    let header = unsafe { core::slice::from_raw_parts(at, 40) };
    if word(header, 0) != Some(MAGIC) {
        return &[];
    }
    // SAFETY: as before; the header says how long it is.
    unsafe { core::slice::from_raw_parts(at, word(header, 4).unwrap_or(0) as usize) }
}

/// The big-endian word at this offset.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The text at this offset, up to its NUL.
fn text(bytes: &'static [u8], at: usize) -> Option<&'static str> {
    let rest = bytes.get(at..)?;
    let length = rest.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(&rest[..length]).ok()
}

/// A node.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its name, with the unit address.
    pub name: &'static str,
    /// The offset of what follows its name.
    body: usize,
}

/// What is at one place of the structure block, and the offset of what follows it.
enum Token {
    Begin(Node),
    Property { name: &'static str, value: &'static [u8] },
    Other,
    Last,
}

fn token(tree: &'static [u8], at: usize) -> Option<(Token, usize)> {
    let after = at + 4;
    Some(match word(tree, at)? {
        BEGIN => {
            let name = text(tree, after)?;
            let body = (after + name.len() + 1).next_multiple_of(4);
            (Token::Begin(Node { name, body }), body)
        }
        PROPERTY => {
            let length = word(tree, after)? as usize;
            let name = text(tree, word(tree, 12)? as usize + word(tree, after + 4)? as usize)?;
            let start = after + 8;
            let value = tree.get(start..start + length)?;
            (Token::Property { name, value }, (start + length).next_multiple_of(4))
        }
        END | NOP => (Token::Other, after),
        _ => (Token::Last, after),
    })
}

/// All nodes, parents before their children.
pub fn nodes() -> impl Iterator<Item = Node> {
    let tree = bytes();
    let mut at = word(tree, 8).unwrap_or(0) as usize;
    core::iter::from_fn(move || {
        loop {
            let (token, next) = token(tree, at)?;
            at = next;
            match token {
                Token::Begin(node) => return Some(node),
                Token::Last => return None,
                _ => {}
            }
        }
    })
}

/// The first node that is compatible with `kind`.
#[must_use]
pub fn compatible(kind: &str) -> Option<Node> {
    nodes().find(|node| {
        let list = node.property("compatible").unwrap_or(&[]);
        list.split(|byte| *byte == 0).any(|entry| entry == kind.as_bytes())
    })
}

impl Node {
    /// The value of a property.
    #[must_use]
    pub fn property(self, name: &str) -> Option<&'static [u8]> {
        let tree = bytes();
        let mut at = self.body;
        loop {
            let (token, next) = token(tree, at)?;
            at = next;
            match token {
                Token::Property { name: other, value } if other == name => return Some(value),
                Token::Property { .. } => {}
                Token::Other if word(tree, at - 4) == Some(NOP) => {}
                // Properties come before children.
                _ => return None,
            }
        }
    }

    /// The cells of a property.
    pub fn cells(self, name: &str) -> impl Iterator<Item = u32> + use<> {
        let value = self.property(name).unwrap_or(&[]);
        value.chunks_exact(4).map(|cell| u32::from_be_bytes([cell[0], cell[1], cell[2], cell[3]]))
    }

    /// The ranges of a `reg` whose addresses and sizes have two cells each, as (base, size).
    pub fn ranges(self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let mut cells = self.cells("reg").map(u64::from);
        core::iter::from_fn(move || {
            let mut pair = || Some(cells.next()? << 32 | cells.next()?);
            Some((pair()?, pair()?))
        })
    }
}

/// The number in the word `NAME=NUMBER` of the guest's command line.
#[must_use]
pub fn argument(name: &str) -> Option<u64> {
    words().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Whether the guest's command line has this word.
#[must_use]
pub fn has(word: &str) -> bool {
    words().any(|other| other == word)
}

fn words() -> impl Iterator<Item = &'static str> {
    let chosen = nodes().find(|node| node.name == "chosen");
    let text = chosen.and_then(|chosen| chosen.property("bootargs")).unwrap_or(&[]);
    let text = core::str::from_utf8(text).unwrap_or("").trim_end_matches('\0');
    text.split_ascii_whitespace()
}
