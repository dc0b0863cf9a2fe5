//! The lines of a console that several speakers share.
//!
//! The hypervisor prints the output of the domain that has the keyboard as it comes, and that of all others by the line. When
//! another line must come out while one is unfinished, it cuts the latter: it ends the first part with three carriage returns
//! and a line feed, and begins the rest with a carriage return (`console::target::CUT`). Lines of domains without the keyboard
//! start with `(d1) ` and the like, each part of them. Here the parts are joined, so that only complete lines are delivered.

/// Collects the bytes of a console into lines.
#[derive(Default)]
pub struct Lines {
    /// The line so far, without carriage returns.
    line: Vec<u8>,
    /// Whether it began with a carriage return.
    resumes: bool,
    /// Carriage returns directly before this byte.
    returns: usize,
    /// First parts of lines that were cut, by the domain that they are marked with.
    parts: Vec<(Option<u16>, Vec<u8>)>,
}

/// Carriage returns before the line feed where a line is cut.
const CUT: usize = 3;

impl Lines {
    /// Takes a byte. The line that it completes, without end and carriage returns.
    pub fn push(&mut self, byte: u8) -> Option<String> {
        match byte {
            b'\r' => {
                self.resumes |= self.line.is_empty() && self.returns == 0;
                self.returns += 1;
                None
            }
            b'\n' => self.end(),
            _ => {
                self.returns = 0;
                self.line.push(byte);
                None
            }
        }
    }

    fn end(&mut self) -> Option<String> {
        let cut = std::mem::take(&mut self.returns) >= CUT;
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.resumes)
            && let Some(place) = self.place(mark(&line))
        {
            line = join(self.parts.remove(place).1, line);
        }
        if cut {
            let key = mark(&line);
            self.parts.retain(|(other, _)| *other != key);
            self.parts.push((key, line));
            return None;
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    /// Where the first part of a line is whose rest is marked with `domain`: that domain may have had the keyboard for one of
    /// them, and been without a mark.
    fn place(&self, domain: Option<u16>) -> Option<usize> {
        let same = self.parts.iter().position(|(other, _)| *other == domain);
        same.or_else(|| match domain {
            Some(_) => self.parts.iter().position(|(other, _)| other.is_none()),
            None => self.parts.len().checked_sub(1),
        })
    }
}

/// The length of a mark, and the domain that it names.
fn parse_mark(line: &[u8]) -> Option<(usize, u16)> {
    let rest = line.strip_prefix(b"(d")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    rest[digits..].starts_with(b") ").then_some((digits + 4, number))
}

fn mark(line: &[u8]) -> Option<u16> {
    parse_mark(line).map(|(_, domain)| domain)
}

/// Two parts as one line. It has a mark if either part has one: the domain did not have the keyboard all the time.
fn join(first: Vec<u8>, rest: Vec<u8>) -> Vec<u8> {
    match (parse_mark(&first), parse_mark(&rest)) {
        (Some(_), Some((length, _))) => [&first, &rest[length..]].concat(),
        (None, Some((length, _))) => [&rest[..length], &first, &rest[length..]].concat(),
        (_, None) => [first, rest].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(console: &str) -> Vec<String> {
        let mut lines = Lines::default();
        console.bytes().filter_map(|byte| lines.push(byte)).collect()
    }

    #[test]
    fn lines_end_with_and_without_a_carriage_return() {
        assert_eq!(lines("one\r\ntwo\nthree\r\r\n\r\nfour"), ["one", "two", "three", ""]);
    }

    #[test]
    fn a_line_that_others_cut_is_delivered_whole_when_it_ends() {
        let console = "GUEST COUN\r\r\r\n(d1) GUEST ENDS never\r\n[    1.000000] info vm: x\r\n\rTERS 0x10\r\nnext\r\n";
        let whole = ["(d1) GUEST ENDS never", "[    1.000000] info vm: x", "GUEST COUNTERS 0x10", "next"];
        assert_eq!(lines(console), whole);
    }

    #[test]
    fn a_line_can_be_cut_more_than_once() {
        assert_eq!(lines("a\r\r\r\nx\r\n\rb\r\r\r\ny\r\n\rc\r\n"), ["x", "y", "abc"]);
    }

    #[test]
    fn a_line_that_is_cut_before_its_line_feed_is_delivered_once() {
        assert_eq!(lines("done\r\r\r\r\nx\r\n\r\nnext\r\n"), ["x", "done", "next"]);
    }

    #[test]
    fn a_long_line_of_a_domain_without_the_keyboard_is_joined_without_the_second_mark() {
        assert_eq!(lines("(d1) aa\r\r\r\n(d2) x\r\n\r(d1) bb\r\n"), ["(d2) x", "(d1) aabb"]);
    }

    #[test]
    fn a_line_that_goes_on_after_its_domain_lost_the_keyboard_has_a_mark() {
        assert_eq!(
            lines("DW-T\r\r\r\n(dom1 has the keyboard)\r\n\r(d0) EST\r\n"),
            ["(dom1 has the keyboard)", "(d0) DW-TEST"]
        );
    }

    #[test]
    fn a_line_that_goes_on_after_its_domain_got_the_keyboard_has_a_mark() {
        assert_eq!(
            lines("(d0) DW-T\r\r\r\n(dom0 has the keyboard)\r\n\rEST\r\n"),
            ["(dom0 has the keyboard)", "(d0) DW-TEST"]
        );
    }

    #[test]
    fn parts_of_two_domains_are_told_apart() {
        let console = "(d1) a\r\r\r\nb\r\r\r\n(d2) x\r\n\r(d1) A\r\n\rB\r\n";
        assert_eq!(lines(console), ["(d2) x", "(d1) aA", "bB"]);
    }

    #[test]
    fn a_carriage_return_at_the_start_of_a_line_means_nothing_if_none_was_cut() {
        assert_eq!(lines("\rprompt\r\n"), ["prompt"]);
    }
}
