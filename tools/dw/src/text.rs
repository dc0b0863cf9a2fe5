//! Text for people: tables, sizes, durations; and what may not reach a terminal.

use std::fmt::Write;

/// A text with its control characters made visible: what comes from elsewhere must not act on the terminal.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => out.push('\t'),
            '\x7f' => out.push_str("^?"),
            '\0'..='\x1f' => {
                out.push('^');
                out.push(char::from(character as u8 ^ 0x40));
            }
            _ if character.is_control() => {
                let _ = write!(out, "\\x{:02x}", character as u32);
            }
            // These turn the direction of what follows.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(out, "\\u{{{:x}}}", character as u32);
            }
            _ => out.push(character),
        }
    }
    out
}

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Lines of columns, each as wide as its widest cell, without blanks at the end of lines.
pub struct Table {
    columns: Vec<(Align, usize)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings. Each column is at least so wide.
    pub fn new(columns: &[(&str, Align, usize)]) -> Table {
        Table {
            columns: columns.iter().map(|&(_, align, width)| (align, width)).collect(),
            rows: vec![columns.iter().map(|&(heading, ..)| heading.to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn text(&self) -> String {
        let width = |at: usize, least: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(least)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(at, column)| width(at, column.1)).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), (align, _)) in row.iter().zip(&widths).zip(&self.columns) {
                let gap = if line.is_empty() { "" } else { " " };
                let _ = match align {
                    Align::Left => write!(line, "{gap}{cell:<width$}"),
                    Align::Right => write!(line, "{gap}{cell:>width$}"),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Bytes as MiB, rounded up, as `xl list` shows memory.
pub fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Bytes with a unit and one decimal.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Reads a size: a number of MiB, or one with K, M, G or T. `None` if it is none, or too large.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 20),
    };
    let number: u64 = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    number.checked_mul(1 << shift)
}

/// Reads a list of CPUs: `0-3,5`, or `all`.
pub fn parse_cpus(text: &str) -> Result<doorward_api::CpuSet, String> {
    use doorward_api::CpuSet;
    if text == "all" {
        return Ok(CpuSet::ALL);
    }
    let mut set = CpuSet::EMPTY;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| text.trim().parse::<u32>().map_err(|_| format!("`{part}` is not a CPU or a range of CPUs"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= CpuSet::CPUS {
            return Err(format!("`{part}`: CPUs are 0 to {}, in ascending order", CpuSet::CPUS - 1));
        }
        for cpu in first..=last {
            set.insert(cpu);
        }
    }
    Ok(set)
}

/// A set of CPUs as `xl vcpu-list` shows it: `0-3,5`, or `all`.
pub fn cpus(set: &doorward_api::CpuSet, all: u32) -> String {
    if (0..all).all(|cpu| set.contains(cpu)) {
        return "all".to_owned();
    }
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in set.iter() {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let range = |&(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

/// Seconds since the start with microseconds, as the hypervisor's log shows them.
pub fn stamp(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Nanoseconds as seconds with one decimal.
pub fn seconds(ns: u64) -> String {
    format!("{}.{}", ns / 1_000_000_000, ns / 100_000_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_made_visible() {
        assert_eq!(shown("a\x1b[2Jb\r\n\u{9b}1m\x7f\u{202e}é"), "a^[[2Jb^M^J\\x9b1m^?\\u{202e}é");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("Name", Align::Left, 6), ("ID", Align::Right, 0)]);
        table.row(vec!["a-longer-name".into(), "1".into()]);
        table.row(vec!["b".into(), "100".into()]);
        assert_eq!(table.text(), "Name           ID\na-longer-name   1\nb             100\n");
    }

    #[test]
    fn sizes_are_in_mib_unless_they_say_otherwise() {
        assert_eq!(parse_size("512"), Some(512 << 20));
        assert_eq!(
            (parse_size("64K"), parse_size("1g"), parse_size("2T")),
            (Some(64 << 10), Some(1 << 30), Some(2 << 40))
        );
        for bad in ["", "M", "-1", "+1", "1.5G", "1 G", "99999999999999T", "1GiB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        assert_eq!((size(512), size(3 << 19)), ("512 B".into(), "1.5 MiB".into()));
    }

    #[test]
    fn sets_of_cpus_are_written_as_they_are_read() {
        for text in ["0", "0-3,5", "2,4-5,1023"] {
            assert_eq!(cpus(&parse_cpus(text).unwrap(), 1024), text);
        }
        assert_eq!(cpus(&parse_cpus("all").unwrap(), 8), "all");
        assert_eq!(cpus(&parse_cpus("0-7").unwrap(), 8), "all");
        for bad in ["", "a", "3-1", "1024", "1,,2", "-1"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }
}
