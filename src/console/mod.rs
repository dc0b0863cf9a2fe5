//! The UART, the log, and who gets what is typed.
