//! The console on a model of a PL011 at 115200 baud, in virtual time.

use super::*;
use crate::console::ring::{RING_LEN, Ring};
use crate::console::uart::{Kind, POLLS};
use crate::ids::{DomId, Pa};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use std::cell::{Cell, RefCell};
use std::string::String;
use std::vec::Vec;

/// Time for a byte of ten bits at 115200 baud.
const BYTE_US: u64 = 87;
const FIFO: usize = 32;
/// The level at which the transmit interrupt is raised.
const TRIGGER: usize = 16;
const UART: Uart = Uart { kind: Kind::Pl011, base: Pa(0) };

/// A PL011: its FIFO, the line behind it, and its transmit interrupt.
#[derive(Default)]
struct Slow {
    now: Cell<u64>,
    fifo: RefCell<VecDeque<u8>>,
    /// When the byte that is on the line has left.
    busy_until: Cell<u64>,
    sent: RefCell<Vec<(u64, u8)>>,
    mask: Cell<u32>,
    raised: Cell<bool>,
    /// The clear-to-send input is off.
    stuck: Cell<bool>,
}

impl Slow {
    /// Lets `us` pass.
    fn pass(&self, us: u64) {
        self.now.set(self.now.get() + us);
        while !self.stuck.get() && self.busy_until.get() <= self.now.get() {
            let Some(byte) = self.fifo.borrow_mut().pop_front() else {
                self.busy_until.set(self.now.get());
                break;
            };
            self.busy_until.set(self.busy_until.get() + BYTE_US);
            self.sent.borrow_mut().push((self.busy_until.get(), byte));
            if self.fifo.borrow().len() == TRIGGER {
                self.raised.set(true);
            }
        }
    }

    fn interrupts(&self) -> bool {
        self.raised.get() && self.mask.get() & 1 << 5 != 0
    }

    fn screen(&self) -> String {
        self.sent.borrow().iter().map(|&(_, byte)| char::from(byte)).collect()
    }
}

impl Port for Slow {
    fn read(&self, _: &Uart, offset: u64) -> u32 {
        // An access takes a moment, so that a loop that waits for the UART ends.
        self.pass(1);
        assert_eq!(offset, 0x18);
        let fifo = self.fifo.borrow();
        let busy = !fifo.is_empty() || self.busy_until.get() > self.now.get();
        u32::from(fifo.len() >= FIFO) << 5 | u32::from(busy) << 3
    }

    fn write(&self, _: &Uart, offset: u64, value: u32) {
        match offset {
            0x00 if self.fifo.borrow().len() < FIFO => {
                self.fifo.borrow_mut().push_back(value as u8);
                if self.fifo.borrow().len() > TRIGGER {
                    self.raised.set(false);
                }
            }
            0x00 => {}
            0x38 => self.mask.set(value),
            _ => {}
        }
    }
}

/// The console of a machine with this many domains.
struct Bench {
    uart: Slow,
    printer: Printer,
    rings: Vec<Arc<Ring>>,
    /// When somebody has to visit again.
    again: Again,
    visits: u64,
}

impl Bench {
    fn new(domains: usize, interrupt: bool) -> Bench {
        let mut bench = Bench {
            uart: Slow::default(),
            printer: Printer::new(),
            rings: (0..domains).map(|_| Arc::new(Ring::new(RING_LEN))).collect(),
            again: Again::Never,
            visits: 0,
        };
        for (domain, ring) in bench.rings.iter().enumerate() {
            bench.printer.mux.attach(DomId(domain as u16));
            bench.printer.turns.add(DomId(domain as u16), ring.clone());
        }
        if interrupt {
            bench.printer.listen(&UART, &bench.uart);
        }
        bench
    }

    /// Visits, and returns how long that took.
    fn visit(&mut self) -> u64 {
        let before = self.uart.now.get();
        self.again = self.printer.visit(Some(&UART), &self.uart, before);
        self.visits += 1;
        self.uart.now.get() - before
    }

    /// Lets time pass as on a machine where nobody idles: visits come from the UART's interrupt and from timers.
    fn pass(&mut self, us: u64) {
        let end = self.uart.now.get() + us;
        while self.uart.now.get() < end {
            self.uart.pass(10);
            let due = matches!(self.again, Again::At(at) if at <= self.uart.now.get());
            if self.uart.interrupts() || due {
                self.visit();
            }
        }
    }
}

/// Two vCPUs of a domU print without end. dom0 prints a line each 20 ms, and has to wait for none of its bytes; each of its
/// lines is on the terminal whole, soon.
fn dom0_beside_a_flood(interrupt: bool) -> (u64, Bench) {
    let mut bench = Bench::new(2, interrupt);
    let (mut longest, mut flooded, mut begun) = (0, 0, Vec::new());
    for number in 0..100 {
        begun.push(bench.uart.now.get());
        for byte in format!("dom0 line {number:03}\r\n").bytes() {
            assert!(bench.rings[0].push(byte), "dom0's FIFO is full");
            longest = bench.visit().max(longest);
            while bench.rings[1].push(b"flood\r\n"[flooded % 7]) {
                flooded += 1;
            }
            bench.pass(20);
        }
        bench.pass(20_000);
    }
    bench.pass(RING_LEN as u64 * BYTE_US * 3);
    let screen = bench.uart.screen();
    let lines: Vec<&str> = screen.split("\r\n").collect();
    let dom0: Vec<&&str> = lines.iter().filter(|line| line.contains("dom0")).collect();
    assert_eq!(dom0.len(), 100);
    let whole = dom0.iter().enumerate().all(|(number, line)| **line == format!("dom0 line {number:03}"));
    assert!(whole, "{screen}");
    let domu = lines.iter().filter(|line| line.contains("flood")).count();
    assert!(domu > 100 && lines.iter().all(|line| line.is_empty() || line.contains("dom0") || *line == "(d1) flood"));
    // When the last byte of each line of dom0 left.
    let mut ends = Vec::new();
    let mut text = String::new();
    for &(at, byte) in bench.uart.sent.borrow().iter() {
        text.push(char::from(byte));
        if byte == b'\n' {
            if text.starts_with("dom0") {
                ends.push(at);
            }
            text.clear();
        }
    }
    let late = ends.iter().zip(&begun).map(|(end, begun)| end - begun).max().unwrap();
    assert!(late < 20_000, "a line of dom0 was on the terminal after {late} us");
    (longest, bench)
}

#[test]
fn no_byte_of_a_domain_waits_for_the_uart_while_another_domain_floods_it() {
    let (longest, bench) = dom0_beside_a_flood(true);
    // The reads of the FIFO's flag, a microsecond each, and no wait for a byte.
    assert!(longest <= FIFO as u64 + 2, "{longest} us for a byte");
    assert_eq!(
        (bench.again, bench.uart.mask.get() & 1 << 5),
        (Again::Never, 0),
        "the interrupt is off when all is sent"
    );
}

#[test]
fn a_uart_without_an_interrupt_is_polled() {
    let (longest, bench) = dom0_beside_a_flood(false);
    assert!(longest <= FIFO as u64 + 2, "{longest} us for a byte");
    assert_eq!(bench.uart.mask.get(), 0);
}

#[test]
fn a_domain_that_fills_its_ring_is_told_when_it_has_room_and_no_other_is() {
    let mut bench = Bench::new(2, true);
    while bench.rings[1].push(b'\n') {}
    assert!(bench.rings[1].request_room());
    bench.visit();
    assert_eq!(bench.printer.take_requests(), Slots::new());
    // A line of this kind is its mark and its end.
    bench.pass(7 * BYTE_US * (RING_LEN as u64 / 2 + 8));
    assert_eq!(bench.printer.take_requests().iter().collect::<Vec<_>>(), [1]);
    assert_eq!(bench.printer.take_requests(), Slots::new());
}

#[test]
fn the_echo_of_a_key_comes_within_a_line_of_other_domains() {
    let mut bench = Bench::new(3, true);
    let line = "x".repeat(super::super::turns::LENGTH - 1) + "\n";
    for ring in &bench.rings[1..] {
        (0..20).for_each(|_| line.bytes().for_each(|byte| _ = ring.push(byte)));
    }
    bench.visit();
    bench.pass(30_000);
    let typed = bench.uart.now.get();
    assert!(bench.rings[0].push(b'#'));
    bench.visit();
    bench.pass(200_000);
    let echo = bench.uart.sent.borrow().iter().find(|&&(_, byte)| byte == b'#').unwrap().0 - typed;
    assert!(echo < (line.len() + 10 + FIFO) as u64 * BYTE_US, "{echo} us");
}

#[test]
fn a_visit_to_a_uart_that_takes_everything_sends_a_limited_number_of_bytes() {
    struct Fast(Cell<usize>);
    impl Port for Fast {
        fn read(&self, _: &Uart, _: u64) -> u32 {
            0
        }
        fn write(&self, _: &Uart, offset: u64, _: u32) {
            self.0.set(self.0.get() + usize::from(offset == 0));
        }
    }
    let mut bench = Bench::new(1, false);
    while bench.rings[0].push(b'x') {}
    let fast = Fast(Cell::new(0));
    assert_eq!(bench.printer.visit(Some(&UART), &fast, 5), Again::At(5 + POLL_US));
    assert_eq!(fast.0.get(), VISIT);
}

#[test]
fn what_waits_for_a_stuck_uart_is_dropped_in_the_end() {
    let mut bench = Bench::new(1, true);
    bench.uart.stuck.set(true);
    while bench.rings[0].push(b'x') {}
    bench.visit();
    bench.visit();
    assert!(!bench.rings[0].is_empty());
    bench.uart.pass(STUCK_US + 1_000);
    bench.visit();
    assert!(bench.rings[0].is_empty());
    // When it takes bytes again, they are printed.
    bench.uart.stuck.set(false);
    bench.pass(100_000);
    b"again\n".iter().for_each(|&byte| _ = bench.rings[0].push(byte));
    bench.visit();
    bench.pass(10_000);
    assert!(bench.uart.screen().ends_with("again\n"));
}

#[test]
fn without_a_uart_domains_do_not_wait() {
    let mut bench = Bench::new(2, false);
    while bench.rings[1].push(b'x') {}
    assert_eq!(bench.printer.visit(None, &bench.uart, 0), Again::Never);
    assert!(bench.rings[1].is_empty());
}

#[test]
fn all_that_was_printed_before_the_machine_stops_leaves_the_uart_within_the_deadline() {
    let mut bench = Bench::new(2, true);
    (0..100).for_each(|n| format!("line {n}\r\n").bytes().for_each(|byte| _ = bench.rings[0].push(byte)));
    b"and a domU's".iter().for_each(|&byte| _ = bench.rings[1].push(byte));
    bench.printer.flush(&UART, &bench.uart, true, 2_000_000, || bench.uart.now.get());
    assert!(bench.uart.screen().ends_with("line 99\r\n(d1) and a domU's\r\n"), "{}", bench.uart.screen());
    // A domain that goes on printing, and a UART that is stuck, delay it no longer than that.
    while bench.rings[0].push(b'x') {}
    bench.uart.stuck.set(true);
    let begin = bench.uart.now.get();
    bench.printer.flush(&UART, &bench.uart, true, begin + 1_000, || bench.uart.now.get());
    assert!(bench.uart.now.get() <= begin + 1_010);
}

/// The hypervisor's line waits for the UART; it is not stuck for longer than a line takes.
#[test]
fn a_byte_of_the_hypervisor_is_sent_when_there_is_room() {
    let uart = Slow::default();
    (0..200).for_each(|_| assert!(UART.put(&uart, b'x', POLLS)));
    assert!(uart.now.get() <= 201 * BYTE_US);
}
