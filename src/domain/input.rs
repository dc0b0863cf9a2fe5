//! What is typed: to dom0, or to the debug keys.

use crate::console;
use crate::host::hypervisor;

/// Takes what the UART has received.
pub fn take() {
    let hv = hypervisor();
    console::irq(&mut |domain, byte| {
        if let Some(domain) = hv.domain(domain) {
            // What neither the FIFO nor the line behind it takes is lost, as on a real UART.
            domain.input(byte);
        }
    });
}
