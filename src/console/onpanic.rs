//! The option `onpanic=`: after a fatal error the machine parks, or with `onpanic=off` it powers off.
//!
//! The option must be known before the device tree is parsed, because an invalid tree is one of the fatal errors, and
//! while stage 1 is still off. So this file scans the flattened tree for the hypervisor's command line, which is
//! `/chosen/xen,xen-bootargs` or else `/chosen/bootargs`, and for the method of `/psci` (Devicetree Specification 0.4,
//! chapter 5), and for nothing else.

/// What is needed to stop the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the hypervisor's command line has the option `onpanic=off`.
    pub off: bool,
    /// Whether the method of `/psci` is `hvc`; `None` if there is no method.
    pub psci_by_hvc: Option<bool>,
}

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;

fn word(blob: &[u8], at: usize) -> Option<u32> {
    let bytes = blob.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn text(blob: &[u8], at: usize) -> Option<&[u8]> {
    blob.get(at..)?.split(|&byte| byte == 0).next()
}

/// Returns the size in the header of a device tree; `None` if it is not a device tree.
#[must_use]
pub fn size_of(header: &[u8]) -> Option<usize> {
    (word(header, 0)? == MAGIC).then(|| word(header, 4).map(|size| size as usize)).flatten()
}

/// Whether a command line has `onpanic=off`. Of several `onpanic=`, the last one counts.
#[must_use]
pub fn powers_off(line: &[u8]) -> bool {
    let words = line.split(|byte| *byte == 0 || byte.is_ascii_whitespace());
    words.fold(false, |off, word| match word {
        b"onpanic=off" => true,
        b"onpanic=park" => false,
        _ => off,
    })
}

/// Scans `blob`. What cannot be read is treated as absent.
#[must_use]
pub fn scan(blob: &[u8]) -> Facts {
    let mut facts = Facts::default();
    let _ = walk(blob, &mut facts);
    facts
}

fn walk(blob: &[u8], facts: &mut Facts) -> Option<()> {
    size_of(blob)?;
    let mut at = word(blob, 8)? as usize;
    let strings = word(blob, 12)? as usize;
    let (mut depth, mut chosen, mut psci, mut own) = (0u32, false, false, false);
    loop {
        let token = word(blob, at)?;
        at += 4;
        match token {
            BEGIN_NODE => {
                depth += 1;
                let name = text(blob, at)?;
                if depth == 2 {
                    chosen = name == b"chosen";
                    psci = name == b"psci" || name.starts_with(b"psci@");
                }
                at += (name.len() + 4) & !3;
            }
            END_NODE => depth = depth.checked_sub(1)?,
            PROP => {
                let (length, name) = (word(blob, at)? as usize, word(blob, at + 4)? as usize);
                let value = blob.get(at + 8..(at + 8).checked_add(length)?)?;
                let name = text(blob, strings.checked_add(name)?)?;
                if depth == 2 && chosen && name == b"xen,xen-bootargs" {
                    (facts.off, own) = (powers_off(value), true);
                } else if depth == 2 && chosen && name == b"bootargs" && !own {
                    facts.off = powers_off(value);
                } else if depth == 2 && psci && name == b"method" {
                    facts.psci_by_hvc = Some(value.starts_with(b"hvc"));
                }
                at = (at + 8 + length).checked_add(3)? & !3;
            }
            NOP => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Builds a tree: header, structure, strings.
    fn tree(bootargs: &str, method: &str) -> Vec<u8> {
        tree_with(&[("chosen", BOOTARGS, bootargs), ("psci", METHOD, method)])
    }

    /// Offsets of names in the strings.
    const BOOTARGS: u32 = 0;
    const METHOD: u32 = 9;
    const XEN_BOOTARGS: u32 = 16;

    /// Builds a tree of nodes with one property each, and one more node that is to be ignored.
    fn tree_with(nodes: &[(&str, u32, &str)]) -> Vec<u8> {
        let strings = b"bootargs\0method\0xen,xen-bootargs\0";
        let mut s: Vec<u8> = Vec::new();
        let put = |s: &mut Vec<u8>, w: u32| s.extend(w.to_be_bytes());
        let pad = |s: &mut Vec<u8>| s.resize(s.len().next_multiple_of(4), 0);
        put(&mut s, BEGIN_NODE);
        put(&mut s, 0);
        for &(node, offset, value) in nodes.iter().chain(&[("other", BOOTARGS, "onpanic=off")]) {
            put(&mut s, BEGIN_NODE);
            s.extend(node.as_bytes());
            s.push(0);
            pad(&mut s);
            put(&mut s, PROP);
            put(&mut s, value.len() as u32 + 1);
            put(&mut s, offset);
            s.extend(value.as_bytes());
            s.push(0);
            pad(&mut s);
            put(&mut s, END_NODE);
            put(&mut s, NOP);
        }
        put(&mut s, END_NODE);
        put(&mut s, 9);
        let mut blob = Vec::new();
        let total = (40 + s.len() + strings.len()) as u32;
        for w in [MAGIC, total, 40, 40 + s.len() as u32, 40, 17, 16, 0, strings.len() as u32, s.len() as u32] {
            put(&mut blob, w);
        }
        blob.extend(&s);
        blob.extend(strings);
        blob
    }

    #[test]
    fn the_option_is_only_read_from_the_command_line() {
        assert_eq!(scan(&tree("loglvl=debug onpanic=off", "smc")), Facts { off: true, psci_by_hvc: Some(false) });
        assert_eq!(scan(&tree("", "hvc")), Facts { off: false, psci_by_hvc: Some(true) });
        assert!(!scan(&tree("xonpanic=off onpanic=offx", "smc")).off);
    }

    #[test]
    fn xen_bootargs_are_the_hypervisors_command_line_if_they_exist() {
        let (own, plain) = (|line| ("chosen", XEN_BOOTARGS, line), |line| ("chosen", BOOTARGS, line));
        for nodes in [[own("onpanic=off"), plain("quiet")], [plain("quiet"), own("onpanic=off")]] {
            assert!(scan(&tree_with(&nodes)).off);
        }
        for nodes in [[own("loglvl=debug"), plain("onpanic=off")], [plain("onpanic=off"), own("loglvl=debug")]] {
            assert!(!scan(&tree_with(&nodes)).off, "that line is for dom0's kernel");
        }
    }

    #[test]
    fn the_last_of_several_words_counts() {
        assert!(powers_off(b"onpanic=park  onpanic=off\0"));
        assert!(!powers_off(b"onpanic=off onpanic=park"));
    }

    #[test]
    fn scanning_a_truncated_or_damaged_tree_does_not_panic() {
        let whole = tree("onpanic=off", "smc");
        for end in 0..whole.len() {
            let _ = scan(&whole[..end]);
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            let _ = scan(&damaged);
        }
    }

    #[test]
    fn only_a_device_tree_has_a_size() {
        assert_eq!(size_of(&[0; 40]), None);
        assert_eq!(size_of(&tree("", "smc")), Some(tree("", "smc").len()));
    }
}
