//! The console of the running image.

use super::keys;
use super::lines::Line;
use super::mux::{DOMAINS, Focus, Mux, Typed};
use super::onpanic::Facts;
use super::stamp::Stamp;
use super::uart::{Kind, Registers, Uart};
use crate::arch::{barrier, psci, timer};
use crate::ids::{DomId, Pa};
use crate::sync::{Lock, Rank};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use log::{LevelFilter, Log, Metadata, Record};

/// The UART's kind and address. Plain words, because they are set before stage 1 is on, when only loads and stores
/// work.
static KIND: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(0);
/// Whether `onpanic=off` is set.
static OFF: AtomicBool = AtomicBool::new(false);
/// Whether printing takes the lock: locks work, and no CPU has panicked.
static SHARED: AtomicBool = AtomicBool::new(false);

/// The time to wait for the lock before a line is printed without it.
const LINE_US: u64 = 100_000;

/// The time to wait for the lock for a key or for the change of a domain, which without the lock would be lost.
const CHANGE_US: u64 = 5_000_000;

struct State {
    mux: Mux,
    lines: [Line; DOMAINS],
    /// Index of the domain whose line is on the terminal and has not ended, if there is one.
    unfinished: Option<usize>,
    /// A bit for each domain, by index, whose line was cut and not continued yet: see [`CUT`].
    cut: u16,
}

impl State {
    /// Makes sure that the next byte starts a line, by cutting an unfinished one.
    fn start_line(&mut self) {
        if let Some(slot) = self.unfinished.take() {
            self.cut(slot);
        }
    }

    /// Ends a line that goes on later.
    fn cut(&mut self, slot: usize) {
        let _ = Raw.write_str(CUT);
        self.cut |= 1 << slot;
    }

    /// Marks what follows as the rest of this domain's line, if that was cut.
    fn resume(&mut self, slot: usize) {
        if self.cut & (1 << slot) != 0 {
            self.cut &= !(1 << slot);
            put(b'\r');
        }
    }
}

/// Ends a line that another one cuts: with three carriage returns instead of one. The rest of the line starts with a carriage
/// return when its turn comes. A terminal shows neither, but a program that reads the console can join the parts.
const CUT: &str = "\r\r\n";

static STATE: Lock<State> = Lock::new(
    Rank::Console,
    State { mux: Mux::new(), lines: [const { Line::new() }; DOMAINS], unfinished: None, cut: 0 },
);

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
        uart.put(&Registers, byte);
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

/// Runs `print` with the lock if it can be taken within `limit_us`, and otherwise without the lock and the state.
fn with_state<R>(limit_us: u64, print: impl FnOnce(Option<&mut State>) -> R) -> R {
    if SHARED.load(Ordering::Relaxed) {
        let begin = timer::now_us();
        loop {
            if let Some(mut state) = STATE.try_lock() {
                return print(Some(&mut state));
            }
            if timer::now_us() - begin > limit_us {
                break;
            }
            barrier::yield_cpu();
        }
    }
    // Early output, or output after a panic. The UART is only accessed when there is something to print: the early UART
    // of an image that was not patched for its board may not exist.
    enable();
    print(None)
}

/// Prints a line. If the cursor is not at the start of a line, a new one is started.
pub fn line(text: fmt::Arguments<'_>) {
    with_state(LINE_US, |state| {
        if let Some(state) = state {
            state.start_line();
        }
        let _ = Raw.write_fmt(text);
        let _ = Raw.write_str("\n");
    });
}

/// Makes printing take the lock, so that lines of several CPUs do not mix, and starts the log. Called once locks work.
pub fn unlock() {
    enable();
    SHARED.store(true, Ordering::Relaxed);
    if log::set_logger(&Sink).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Makes printing take no lock, for a CPU that panics.
pub fn seize() {
    SHARED.store(false, Ordering::Relaxed);
    let _ = Raw.write_str("\n");
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

/// Prints a byte of a domain's output: at once if the domain has the focus, otherwise when its line is complete.
pub fn guest_write(domain: DomId, byte: u8) {
    with_state(LINE_US, |state| {
        let Some(state) = state else { return put(byte) };
        let slot = usize::from(domain.0).min(DOMAINS - 1);
        if state.mux.focus() == Focus::Domain(domain) {
            state.resume(slot);
            put(byte);
            state.unfinished = (byte != b'\n').then_some(slot);
        } else if state.lines[slot].push(byte) {
            print_line(state, domain, slot, byte == b'\n');
        }
    });
}

/// Adds a domain with a console.
pub fn attach(domain: DomId) {
    with_state(CHANGE_US, |state| {
        if let Some(state) = state {
            state.mux.attach(domain);
        }
    });
}

/// Removes a domain's console. Its incomplete line is printed, and if it had the focus, that moves to dom0.
pub fn detach(domain: DomId) {
    let moved = with_state(CHANGE_US, |state| {
        let Some(state) = state else { return false };
        let slot = usize::from(domain.0).min(DOMAINS - 1);
        if !state.lines[slot].is_empty() {
            print_line(state, domain, slot, true);
        }
        state.cut &= !(1 << slot);
        state.mux.detach(domain)
    });
    if moved {
        line(format_args!("({} has the keyboard)", DomId(0)));
    }
}

/// Prints what a domain without the focus has written; the line is cut there unless `complete`.
fn print_line(state: &mut State, domain: DomId, slot: usize, complete: bool) {
    state.start_line();
    state.resume(slot);
    let _ = write!(Raw, "(d{}) ", domain.0);
    state.lines[slot].take().iter().for_each(|&byte| put(byte));
    if complete {
        let _ = Raw.write_str("\n");
    } else {
        state.cut(slot);
    }
}

/// Enables the UART's receive interrupt, which [`irq`] handles.
pub fn listen() {
    if let Some(uart) = uart() {
        uart.listen(&Registers);
    }
}

/// Handles the UART's receive interrupt. Keys for a domain are passed to `to_domain`. Debug keys are run here, so the
/// caller must not hold a lock.
pub fn irq(to_domain: &mut dyn FnMut(DomId, u8)) {
    let Some(uart) = uart() else { return };
    uart.acknowledge(&Registers);
    while let Some(byte) = uart.get(&Registers) {
        let typed = with_state(CHANGE_US, |state| state.map(|state| key(state, byte)));
        match typed {
            None | Some(Typed::Held) => {}
            Some(Typed::Domain { to, held, byte }) => {
                (0..held).for_each(|_| to_domain(to, 1));
                to_domain(to, byte);
            }
            Some(Typed::Debug(key)) => {
                if !keys::run(key) {
                    line(format_args!("(`h` lists the debug keys; three times Ctrl-A moves the keyboard to dom0)"));
                }
            }
            Some(Typed::Moved(Focus::Hypervisor)) => {
                line(format_args!("(the hypervisor has the keyboard; `h` for help, three times Ctrl-A for dom0)"));
            }
            Some(Typed::Moved(Focus::Domain(domain))) => line(format_args!("({domain} has the keyboard)")),
        }
    }
}

/// Processes a key. If a domain gets the focus, its incomplete line is printed first.
fn key(state: &mut State, byte: u8) -> Typed {
    let typed = state.mux.key(byte);
    if let Typed::Moved(Focus::Domain(domain)) = typed {
        let slot = usize::from(domain.0).min(DOMAINS - 1);
        if !state.lines[slot].is_empty() {
            print_line(state, domain, slot, false);
        }
    }
    typed
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

/// Parks this CPU, or powers the machine off with `onpanic=off`.
pub fn stop() -> ! {
    if OFF.load(Ordering::Relaxed) {
        psci::system_off();
    }
    barrier::park()
}
