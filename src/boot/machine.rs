//! The storage of the machine's description, and the console that it describes.

use doorward::console;
use doorward::console::onpanic::{self, Facts};
use doorward::console::uart::{Kind as UartKind, Uart};
use doorward::platform::{self, Machine};

/// The machine's description. The EFI application or the entry code fills it, once; after that it is not changed.
pub static mut STORAGE: Machine = Machine::new();

/// Makes the machine's UART the console.
pub fn set_console(machine: &Machine) {
    if let Some(uart) = &machine.uart {
        console::set_uart(Some(Uart { kind: uart_kind(uart.kind), base: uart.regs.base }));
    }
}

/// What the machine's description says about fatal errors.
pub fn onpanic(machine: &Machine) -> Facts {
    Facts {
        off: onpanic::powers_off(machine.bootargs.as_bytes()),
        psci_by_hvc: machine.psci.map(|conduit| conduit == platform::Conduit::Hvc),
    }
}

fn uart_kind(kind: platform::UartKind) -> UartKind {
    match kind {
        platform::UartKind::Pl011 => UartKind::Pl011,
        platform::UartKind::Ns16550 { reg_shift, io_width } => {
            let shift = u8::try_from(reg_shift).unwrap_or(0);
            if io_width == 1 { UartKind::Ns16550Byte { shift } } else { UartKind::Ns16550Word { shift } }
        }
    }
}
