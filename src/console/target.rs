//! The console of the running image.

use super::onpanic::Facts;
use super::uart::{Kind, Registers, Uart};
use crate::arch::{barrier, psci};
use crate::ids::Pa;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The UART, as plain words: they are set before stage 1 is on, when a store is all there is.
static KIND: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(0);
/// `onpanic=off`
static OFF: AtomicBool = AtomicBool::new(false);

/// Makes `uart` the console; `None` for silence.
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

/// The console's UART.
#[must_use]
pub fn uart() -> Option<Uart> {
    let (kind, base) = (KIND.load(Ordering::Relaxed), Pa(BASE.load(Ordering::Relaxed)));
    let shift = (kind >> 8) as u8;
    let kind = match kind & 0xff {
        1 => Kind::Pl011,
        2 => Kind::Ns16550Byte { shift },
        3 => Kind::Ns16550Word { shift },
        _ => return None,
    };
    Some(Uart { kind, base })
}

/// Writes to the UART without asking anybody.
struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(uart) = uart() {
            for byte in text.bytes() {
                if byte == b'\n' {
                    uart.put(&Registers, b'\r');
                }
                uart.put(&Registers, byte);
            }
        }
        Ok(())
    }
}

/// Says what the device tree asks for when the machine cannot go on.
pub fn set_onpanic(facts: Facts) {
    OFF.store(facts.off, Ordering::Relaxed);
    if let Some(hvc) = facts.psci_by_hvc {
        psci::set_conduit(if hvc { psci::Conduit::Hvc } else { psci::Conduit::Smc });
    }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    let _ = Raw.write_fmt(text);
    let _ = Raw.write_str("\n");
}

/// Ends the start-up with a sentence: `doorward: fatal: ...`, then parks, or switches off with `onpanic=off`.
pub fn fatal(sentence: fmt::Arguments<'_>) -> ! {
    line(format_args!("doorward: fatal: {sentence}"));
    stop()
}

/// Parks this CPU for good, or switches the machine off with `onpanic=off`.
pub fn stop() -> ! {
    if OFF.load(Ordering::Relaxed) {
        psci::system_off();
    }
    barrier::park()
}
