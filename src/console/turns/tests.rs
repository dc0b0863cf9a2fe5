//! The order of what several domains print.

use super::*;
use crate::console::ring::RING_LEN;
use std::string::String;
use std::vec::Vec;

/// The turns of `domains` domains.
fn turns(domains: usize) -> Turns {
    let mut turns = Turns::new();
    (0..domains).for_each(|domain| turns.add(DomId(domain as u16), Arc::new(Ring::new(RING_LEN))));
    turns
}

fn say(turns: &Turns, domain: usize, text: impl AsRef<[u8]>) {
    text.as_ref().iter().for_each(|&byte| assert!(turns.ring(domain).unwrap().push(byte)));
}

/// What is printed at `now` until nothing is left.
fn printed(turns: &mut Turns, focus: Option<usize>, now: u64) -> String {
    let bytes: Vec<u8> = core::iter::from_fn(|| turns.next(focus, now)).collect();
    String::from_utf8(bytes).unwrap()
}

/// What precedes a line of the hypervisor.
fn before_own_line(turns: &mut Turns) -> String {
    turns.start_line();
    core::iter::from_fn(|| turns.staged()).map(char::from).collect()
}

#[test]
fn the_domain_with_the_keyboard_is_printed_as_it_comes() {
    let mut turns = turns(2);
    say(&turns, 0, b"\x1b[1mprompt # ");
    assert_eq!(printed(&mut turns, Some(0), 0), "\x1b[1mprompt # ");
    say(&turns, 0, b"e");
    assert_eq!(printed(&mut turns, Some(0), 0), "e");
}

#[test]
fn another_domain_is_printed_when_its_line_is_complete_and_with_a_mark() {
    let mut turns = turns(2);
    say(&turns, 1, b"he\0llo\r\r");
    assert_eq!(printed(&mut turns, Some(0), 0), "");
    say(&turns, 1, b"\nmore");
    assert_eq!(printed(&mut turns, Some(0), 0), "(d1) hello\r\n");
    turns.close(1);
    assert_eq!(printed(&mut turns, Some(0), 0), "(d1) more\r\n", "it has ended");
}

#[test]
fn controls_of_a_domain_without_the_keyboard_are_shown() {
    let mut turns = turns(2);
    say(&turns, 1, b"a\x1b[1G\x1b[2K\x9b2K\rb\x08\r\n");
    assert_eq!(printed(&mut turns, Some(0), 0), "(d1) a^[[1G^[[2K\\x9b2K^Mb^H\r\n");
    say(&turns, 0, b"a\x1b[1G\n");
    assert_eq!(printed(&mut turns, None, 0), "(d0) a^[[1G\r\n", "nor has dom0 a right to them");
}

#[test]
fn a_line_that_is_too_long_is_split_between_characters() {
    let mut turns = turns(2);
    let text = "é".repeat(LENGTH / 2 - 1) + "xé";
    say(&turns, 1, &text);
    assert_eq!(printed(&mut turns, Some(0), 0), "", "a character may be incomplete");
    say(&turns, 1, b"yz+");
    assert_eq!(printed(&mut turns, Some(0), 0), ["(d1) ", &text, "\r\r\r\n"].concat());
    say(&turns, 1, b"\n");
    assert_eq!(printed(&mut turns, Some(0), 0), "\r(d1) yz+\r\n");
}

#[test]
fn a_line_waits_for_the_end_of_the_line_that_the_domain_with_the_keyboard_has_begun() {
    let mut turns = turns(2);
    say(&turns, 0, b"begun ");
    say(&turns, 1, b"other\n");
    assert_eq!(printed(&mut turns, Some(0), 1_000), "begun ");
    assert_eq!(turns.held_until(), Some(1_000 + HOLD_US));
    say(&turns, 0, b"and ended\r\n");
    assert_eq!(printed(&mut turns, Some(0), 1_000 + HOLD_US - 1), "and ended\r\n(d1) other\r\n");
    assert_eq!(turns.held_until(), None);
}

#[test]
fn a_prompt_is_cut_by_a_line_that_has_waited_long_enough() {
    let mut turns = turns(2);
    say(&turns, 0, b"prompt # ");
    say(&turns, 1, b"other\n");
    assert_eq!(printed(&mut turns, Some(0), 0), "prompt # ");
    assert_eq!(printed(&mut turns, Some(0), HOLD_US), "\r\r\r\n(d1) other\r\n");
    say(&turns, 0, b"echo\r\n");
    assert_eq!(printed(&mut turns, Some(0), HOLD_US), "\recho\r\n");
}

#[test]
fn a_domain_with_the_keyboard_that_never_ends_its_line_holds_others_for_a_limited_time() {
    let mut turns = turns(2);
    (0..3).for_each(|_| say(&turns, 1, b"other\n"));
    let (mut seen, mut now) = (0, 0);
    while seen < 3 {
        say(&turns, 0, b"x");
        now += 1_000;
        seen += printed(&mut turns, Some(0), now).matches("(d1) other\r\n").count();
        assert!(now < 4 * (HOLD_US + 2_000), "{seen} lines at {now}");
    }
}

#[test]
fn the_hypervisors_line_cuts_a_line_and_the_rest_is_marked() {
    let mut turns = turns(2);
    say(&turns, 0, b"dom0 ");
    assert_eq!(printed(&mut turns, Some(0), 0), "dom0 ");
    assert_eq!(before_own_line(&mut turns), "\r\r\r\n");
    say(&turns, 0, b"goes on\r\n");
    assert_eq!(printed(&mut turns, Some(0), 0), "\rgoes on\r\n");
    assert_eq!(before_own_line(&mut turns), "");
    // In the middle of an escaped character of another domain.
    say(&turns, 1, b"ab\x9bcd\n");
    let begun: String = (0..9).filter_map(|_| turns.next(Some(0), 0)).map(char::from).collect();
    assert_eq!(begun, "(d1) ab\\x");
    assert_eq!(before_own_line(&mut turns), "9b\r\r\r\n");
    assert_eq!(printed(&mut turns, Some(0), 0), "\r(d1) cd\r\n");
}

#[test]
fn domains_have_turns_of_one_line_and_the_one_with_the_keyboard_has_every_second() {
    let mut turns = turns(3);
    (0..4).for_each(|_| (0..3).for_each(|domain| say(&turns, domain, [b'a' + domain as u8, b'\n'])));
    let order: String = printed(&mut turns, Some(0), 0).chars().filter(|c| "abc".contains(*c)).collect();
    assert_eq!(order, "abacabacbcbc");
    (0..3).for_each(|_| (0..3).for_each(|domain| say(&turns, domain, [b'a' + domain as u8, b'\n'])));
    let order: String = printed(&mut turns, None, 0).chars().filter(|c| "abc".contains(*c)).collect();
    assert_eq!(order, "abcabcabc");
}

#[test]
fn a_ring_that_is_removed_in_the_middle_of_its_line_leaves_whole_lines() {
    let mut turns = turns(2);
    say(&turns, 1, b"long line\n");
    (0..8).for_each(|_| _ = turns.next(Some(0), 0));
    turns.remove(1);
    say(&turns, 0, b"next\n");
    assert_eq!(printed(&mut turns, Some(0), 0), "\r\nnext\n");
}

#[test]
fn when_the_machine_stops_dom0_comes_first_and_no_line_waits() {
    let mut turns = turns(2);
    say(&turns, 1, b"domU without end");
    say(&turns, 0, b"dom0\r\nprompt");
    turns.close_all();
    assert_eq!(printed(&mut turns, Some(0), 0), "dom0\r\nprompt\r\r\r\n(d1) domU without end\r\n");
    say(&turns, 0, b"\x1b[2J\n");
    assert_eq!(printed(&mut turns, None, 0), "\r(d0) ^[[2J\r\n");
}

#[test]
fn what_is_discarded_is_gone_and_the_next_line_is_whole() {
    let mut turns = turns(2);
    say(&turns, 1, b"\x9bline\n");
    (0..7).for_each(|_| _ = turns.next(Some(0), 0));
    turns.discard();
    say(&turns, 1, b"next\n");
    assert!(printed(&mut turns, Some(0), 0).ends_with("(d1) next\r\n"));
}

/// Whatever domains print in any mix, each line of the console belongs to one domain, and no line is lost.
#[test]
fn lines_of_domains_that_print_at_random_are_never_mixed() {
    let mut random = 1u64;
    let mut roll = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let mut turns = turns(4);
    let (mut now, mut screen, mut own) = (0, String::new(), 0);
    let mut sent = [0usize; 4];
    let line = |domain: usize| format!("{domain}{}\n", char::from(b'a' + domain as u8).to_string().repeat(37));
    for _ in 0..20_000 {
        now += roll(3_000);
        let domain = roll(4) as usize;
        let text = line(domain);
        for _ in 0..roll(60) {
            let at = sent[domain] % text.len();
            sent[domain] += usize::from(turns.ring(domain).unwrap().push(text.as_bytes()[at]));
        }
        if roll(40) == 0 {
            screen += &before_own_line(&mut turns);
            screen += "own line\r\n";
            own += 1;
        }
        // The UART takes a few bytes.
        screen.extend((0..roll(80)).map_while(|_| turns.next(Some(0), now)).map(char::from));
    }
    // What waits for dom0's line is held when it is looked at first.
    [now, now + HOLD_US].iter().for_each(|&at| screen += &printed(&mut turns, Some(0), at));
    let mut lines = [0; 4];
    for (domain, &sent) in sent.iter().enumerate() {
        let text = line(domain);
        say(&turns, domain, &text[sent % text.len()..]);
        lines[domain] = sent / text.len() + 1;
    }
    screen += &printed(&mut turns, Some(0), now + HOLD_US);
    assert!(turns.rings().all(|(_, ring)| ring.is_empty()));
    let mut parts = [const { Vec::new() }; 4];
    let mut seen = 0;
    for text in screen.split_terminator('\n') {
        let text = text.trim_matches('\r');
        if text == "own line" {
            seen += 1;
            continue;
        }
        let (mark, text) = if text.starts_with("(d") { text.split_at(5) } else { ("(d0) ", text) };
        let domain = usize::from(mark.as_bytes()[2] - b'0');
        let own = line(domain);
        assert!(text.chars().all(|c| own.contains(c)), "{mark}{text:?}");
        parts[domain].extend(text.bytes());
    }
    assert_eq!(seen, own);
    for (domain, parts) in parts.iter().enumerate() {
        assert_eq!(String::from_utf8_lossy(parts), line(domain).trim_end().repeat(lines[domain]));
    }
}

#[test]
fn what_a_domain_prints_while_the_machine_stops_is_lost_and_cuts_no_line() {
    let mut turns = turns(2);
    say(&turns, 1, b"one\ntw");
    turns.close_all();
    turns.rings().for_each(|(_, ring)| ring.seal());
    assert!(!turns.ring(1).unwrap().push(b'o'));
    assert_eq!(printed(&mut turns, None, 0), "(d1) one\r\n(d1) tw\r\n");
    assert!(!turns.ring(1).unwrap().push(b'\n'));
    assert_eq!(printed(&mut turns, None, 0), "");
}

#[test]
fn each_of_many_domains_has_its_turn_with_its_number_as_the_mark() {
    let mut turns = Turns::new();
    // Numbers whose places are not in their order.
    let ids: Vec<DomId> = (700..900).map(DomId).filter(|id| id.slot() != 0).collect();
    ids.iter().for_each(|&id| turns.add(id, Arc::new(Ring::new(RING_LEN))));
    turns.add(DomId(0), Arc::new(Ring::new(RING_LEN)));
    for id in &ids {
        say(&turns, id.slot(), "a\nb\n");
    }
    let printed = printed(&mut turns, Some(0), 0);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2 * ids.len());
    for text in ["a", "b"] {
        let mut round: Vec<String> = ids.iter().map(|id| std::format!("(d{}) {text}", id.0)).collect();
        let mut got: Vec<&str> = lines.iter().copied().filter(|line| line.ends_with(text)).collect();
        round.sort();
        got.sort();
        assert_eq!(got, round);
    }
    assert!(lines[..ids.len()].iter().all(|line| line.ends_with('a')), "nobody has a second turn before all had one");
}

#[test]
fn a_line_is_printed_though_the_domain_with_the_keyboard_never_ends_its_own() {
    let mut turns = turns(3);
    let mut now = 0;
    say(&turns, 0, "x");
    assert_eq!(printed(&mut turns, Some(0), now), "x");
    say(&turns, 2, "line\n");
    let mut screen = String::new();
    while !screen.contains("(d2) line") {
        say(&turns, 0, "y");
        screen += &printed(&mut turns, Some(0), now);
        now += 1_000;
        assert!(now < 2 * HOLD_US, "{screen}");
    }
}
