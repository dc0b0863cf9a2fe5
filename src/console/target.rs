//! The console of the running image.

use super::keys;
use super::log_ring;
use super::mux::{Focus, Typed};
use super::onpanic::Facts;
use super::printer::{Again, POLL_US, Printer};
use super::ring::Ring;
use super::stamp::Stamp;
use super::uart::{Kind, POLLS, Registers, Uart};
use crate::arch::{barrier, psci, timer};
use crate::ids::{DOMAINS, DomId, Pa};
use crate::sync::{Lock, Rank};
use crate::util::bits::set_bits;
use alloc::sync::Arc;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use log::{LevelFilter, Log, Metadata, Record};

/// The UART's kind and address. Plain words, because they are set before stage 1 is on, when only loads and stores
/// work.
static KIND: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(0);
/// Whether `onpanic=off` is set.
static OFF: AtomicBool = AtomicBool::new(false);
/// How printing excludes other CPUs: [`EARLY`], [`SHARED`] or [`SEIZED`].
static PHASE: AtomicU8 = AtomicU8::new(EARLY);
/// Not at all: locks do not work yet, and only the boot CPU runs.
const EARLY: u8 = 0;
/// By the lock.
const SHARED: u8 = 1;
/// Not at all: a CPU has panicked.
const SEIZED: u8 = 2;

/// Whether the last byte was sent although the UART had no room: then the next one does not wait for it, so that a line
/// on a stuck UART takes no longer than a byte.
static STUCK: AtomicBool = AtomicBool::new(false);

/// What has to be done for domains: [`WORK`] and [`TELL`].
static TODO: AtomicU32 = AtomicU32::new(0);

/// The bit in [`TODO`] that says that a ring may have something to print.
const WORK: u32 = 1 << 0;

/// The bit in [`TODO`] that says that [`ANSWERED`] is not empty. It is set after a bit there.
const TELL: u32 = 1 << 1;

/// A bit for each domain that has waited for room in its ring and has it now, at its slot.
static ANSWERED: [AtomicU64; DOMAINS / 64] = [const { AtomicU64::new(0) }; DOMAINS / 64];

/// The time to wait for the lock. Its owner prints a line at most, or what the UART takes at once. So a CPU waits for no
/// more than the lines of all other CPUs, unless the owner has stopped for ever: then it prints without the lock.
const LOCK_US: u64 = 5_000_000;

/// The time for which the machine, before it stops, waits for the output of the domains.
const FLUSH_US: u64 = 2_000_000;

/// Undoes what a domain may have done to the terminal, when it loses the keyboard and before a panic is reported, so that
/// the lines of others can be seen: ends an unfinished control sequence or string (CAN, ST); soft reset (DECSTR); colours
/// off; the ASCII character set and UTF-8; the main screen; wrapping and the cursor on; no scroll region.
const RESTORE: &str = "\x18\x1b\\\x1b[!p\x1b[0m\x0f\x1b(B\x1b%G\x1b[?47l\x1b[?7h\x1b[?25h\x1b7\x1b[r\x1b8\n";

static STATE: Lock<Printer> = Lock::new(Rank::Console, Printer::new());

/// Makes `uart` the console; with `None` there is no output.
pub fn set_uart(uart: Option<Uart>) {
    let (kind, base) = match uart {
        None => (0, Pa(0)),
        Some(Uart { kind: Kind::Pl011, base }) => (1, base),
        Some(Uart { kind: Kind::Ns16550Byte { shift }, base }) => (2 | u64::from(shift) << 8, base),
        Some(Uart { kind: Kind::Ns16550Word { shift }, base }) => (3 | u64::from(shift) << 8, base),
    };
    BASE.store(base.0, Ordering::Relaxed);
    KIND.store(kind, Ordering::Relaxed);
}

/// Returns the console's UART.
#[must_use]
pub fn uart() -> Option<Uart> {
    let (kind, base) = (KIND.load(Ordering::Relaxed), Pa(BASE.load(Ordering::Relaxed)));
    let shift = (kind >> 8 & 0xff) as u8;
    let kind = match kind & 0xff {
        1 => Kind::Pl011,
        2 => Kind::Ns16550Byte { shift },
        3 => Kind::Ns16550Word { shift },
        _ => return None,
    };
    Some(Uart { kind, base })
}

fn enable() {
    if let Some(uart) = uart() {
        uart.enable(&Registers);
    }
}

fn put(byte: u8) {
    if let Some(uart) = uart() {
        let polls = if STUCK.load(Ordering::Relaxed) { 1 } else { POLLS };
        STUCK.store(!uart.put(&Registers, byte, polls), Ordering::Relaxed);
    }
}

/// A writer to the UART that takes no lock.
struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

/// Runs `print` with the lock. If that cannot be taken, because there are no locks yet or its owner has stopped, runs it
/// without the state, on a line of its own.
fn with_state<R>(print: impl FnOnce(Option<&mut Printer>) -> R) -> R {
    let shared = PHASE.load(Ordering::Relaxed) == SHARED;
    if shared {
        let begin = timer::now_us();
        loop {
            if let Some(mut state) = STATE.try_lock() {
                return print(Some(&mut state));
            }
            if timer::now_us() - begin > LOCK_US {
                break;
            }
            barrier::yield_cpu();
        }
    }
    // Early output, or output after a panic. The UART is only accessed when there is something to print: the early UART
    // of an image that was not patched for its board may not exist.
    enable();
    if shared {
        let _ = Raw.write_str("\n");
    }
    print(None)
}

/// Prints a line. If the cursor is not at the start of a line, a new one is started.
pub fn line(text: fmt::Arguments<'_>) {
    with_state(|state| print_line(state, "", text));
}

/// Prints a line after a domain has lost the keyboard.
fn line_on_restored_terminal(text: fmt::Arguments<'_>) {
    with_state(|state| print_line(state, RESTORE, text));
}

fn print_line(state: Option<&mut Printer>, before: &str, text: fmt::Arguments<'_>) {
    if let Some(state) = state {
        state.turns.start_line();
        while let Some(byte) = state.turns.staged() {
            put(byte);
        }
    }
    let _ = Raw.write_str(before);
    let _ = Kept.write_fmt(text);
    let _ = Kept.write_str("\n");
}

/// A writer to the UART, and to the ring with the last lines.
struct Kept;

impl Write for Kept {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        log_ring::append(text.as_bytes());
        Raw.write_str(text)
    }
}

/// Makes printing take the lock, so that lines of several CPUs do not mix, and starts the log. Called once locks work.
pub fn unlock() {
    enable();
    PHASE.store(SHARED, Ordering::Relaxed);
    if log::set_logger(&Sink).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Makes printing take no lock, for a CPU that panics.
pub fn seize() {
    PHASE.store(SEIZED, Ordering::Relaxed);
    let _ = Raw.write_str("\n");
    let _ = Raw.write_str(RESTORE);
}

/// Sets the log level.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

struct Sink;

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let stamp = Stamp { us: timer::now_us(), level: record.level(), target: record.target() };
        line(format_args!("{stamp}{}", record.args()));
    }

    fn flush(&self) {}
}

/// Says that there may be something to print. The caller then calls [`drain`].
pub fn announce() {
    TODO.fetch_or(WORK, Ordering::AcqRel);
}

/// Whether [`drain`] has something to do. An idle CPU looks each time before it sleeps.
#[inline]
#[must_use]
pub fn has_work() -> bool {
    TODO.load(Ordering::Relaxed) != 0
}

/// Prints what waits in the rings of domains, as far as the UART takes it at once, and tells the domains that wait for room
/// in their rings and have it now: `tell` gets a [`DomId::slot`], and returns `false` for a domain that it cannot tell. Waits
/// for nothing. The caller holds no lock.
///
/// Returns the time in microseconds after which it has to be called again, on any CPU; `None` if somebody will call it
/// when that is needed.
pub fn drain(tell: &mut dyn FnMut(usize) -> bool) -> Option<u64> {
    if !has_work() || PHASE.load(Ordering::Relaxed) != SHARED {
        return None;
    }
    let mut again = None;
    // Cleared before the rings are read: what a domain announces later is done later.
    if TODO.fetch_and(!WORK, Ordering::AcqRel) & WORK != 0 {
        let mut todo = WORK;
        match STATE.try_lock() {
            None => again = Some(POLL_US),
            Some(mut state) => {
                let now = timer::now_us();
                match state.visit(uart().as_ref(), &Registers, now) {
                    Again::Never => todo = 0,
                    Again::Interrupt => {}
                    Again::At(at) => again = Some(at.saturating_sub(now)),
                }
                for (all, &new) in ANSWERED.iter().zip(state.take_requests().words()) {
                    if new != 0 {
                        all.fetch_or(new, Ordering::AcqRel);
                        todo |= TELL;
                    }
                }
            }
        }
        TODO.fetch_or(todo, Ordering::AcqRel);
    }
    if TODO.fetch_and(!TELL, Ordering::AcqRel) & TELL != 0 {
        for (word, first) in ANSWERED.iter().zip((0..).step_by(64)) {
            for bit in set_bits(word.swap(0, Ordering::AcqRel)) {
                if !tell(first + bit as usize) {
                    word.fetch_or(1 << bit, Ordering::AcqRel);
                    TODO.fetch_or(TELL, Ordering::AcqRel);
                    again = Some(0);
                }
            }
        }
    }
    again
}

/// Prints what the domains have printed so far, because the machine stops; some of it, if the UART is slow.
pub fn flush() {
    with_state(|state| {
        if let Some(state) = state {
            flush_state(state, true);
        }
    });
}

fn flush_state(state: &mut Printer, raw: bool) {
    if let Some(uart) = uart() {
        state.flush(&uart, &Registers, raw, timer::now_us() + FLUSH_US, timer::now_us);
    }
}

/// Adds a domain with a console, whose output comes from `ring`.
pub fn attach(domain: DomId, ring: Arc<Ring>) {
    with_state(|state| {
        if let Some(state) = state {
            state.mux.attach(domain);
            state.turns.add(domain, ring);
        }
    });
}

/// Takes the keyboard from a domain that has ended. Its output goes on until [`release`].
pub fn detach(domain: DomId) {
    let had_focus = with_state(|state| {
        let Some(state) = state else { return false };
        state.turns.close(domain.slot());
        state.mux.detach(domain)
    });
    announce();
    if had_focus {
        line_on_restored_terminal(format_args!(
            "(nobody has the keyboard: {domain} has ended; three times Ctrl-A moves it to {})",
            DomId(0)
        ));
    }
}

/// Removes the ring of a domain that has ended, if all is printed, or else if `late`. Returns whether the domain has no
/// ring now.
pub fn release(domain: DomId, late: bool) -> bool {
    let Some(mut state) = STATE.try_lock() else { return false };
    let slot = domain.slot();
    let Some(ring) = state.turns.ring(slot) else { return true };
    let gone = late || ring.is_empty();
    if gone {
        state.turns.remove(slot);
    }
    gone
}

/// Enables the UART's receive interrupt, which [`irq`] handles, and lets its transmit interrupt be used.
pub fn listen() {
    with_state(|state| {
        if let (Some(state), Some(uart)) = (state, uart()) {
            state.listen(&uart, &Registers);
        }
    });
}

/// Handles the UART's receive interrupt. Keys for a domain are passed to `to_domain`. Debug keys are run here, so the
/// caller must not hold a lock. The transmit interrupt is handled by [`drain`], which the caller calls next.
pub fn irq(to_domain: &mut dyn FnMut(DomId, u8)) {
    let Some(uart) = uart() else { return };
    uart.acknowledge(&Registers);
    while let Some(byte) = uart.get(&Registers) {
        let typed = with_state(|state| state.map(|state| state.mux.key(byte)));
        match typed {
            None | Some(Typed::Held | Typed::Dropped) => {}
            Some(Typed::Domain { to, held, byte }) => {
                (0..held).for_each(|_| to_domain(to, 1));
                to_domain(to, byte);
            }
            Some(Typed::Debug(key)) => {
                if !keys::run(key) {
                    line(format_args!("(`h` lists the debug keys; three times Ctrl-A moves the keyboard to dom0)"));
                }
            }
            Some(Typed::Moved(focus)) => {
                match focus {
                    Focus::Domain(domain) => line_on_restored_terminal(format_args!("({domain} has the keyboard)")),
                    Focus::Hypervisor | Focus::Nobody => line_on_restored_terminal(format_args!(
                        "(the hypervisor has the keyboard; `h` for help, three times Ctrl-A for dom0)"
                    )),
                }
                // The incomplete line of a domain that has the keyboard now is printed.
                announce();
            }
        }
    }
}

/// Prints the list of debug keys.
pub fn help() {
    keys::for_each(|key, help| line(format_args!("  {key}  {help}")));
}

/// Sets how the machine stops after a fatal error.
pub fn set_onpanic(facts: Facts) {
    OFF.store(facts.off, Ordering::Relaxed);
    if let Some(hvc) = facts.psci_by_hvc {
        psci::set_conduit(if hvc { psci::Conduit::Hvc } else { psci::Conduit::Smc });
    }
}

/// Prints `doorward: fatal: ...` and stops.
pub fn fatal(message: fmt::Arguments<'_>) -> ! {
    line(format_args!("doorward: fatal: {message}"));
    stop()
}

/// Parks this CPU, or powers the machine off with `onpanic=off`. What the domains have printed comes before, if the lock is
/// free; no domain controls the terminal any more.
pub fn stop() -> ! {
    if PHASE.load(Ordering::Relaxed) != EARLY
        && let Some(mut state) = STATE.try_lock()
    {
        flush_state(&mut state, false);
    }
    if OFF.load(Ordering::Relaxed) {
        psci::system_off();
    }
    barrier::park()
}
