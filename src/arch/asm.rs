//! Assembly that also compiles on a host, where the rooms above are tested, checked and documented.
//!
//! On the target, `asm!` and `global_asm!` are those of [`core::arch`]. On a host there is no EL2: `global_asm!` emits
//! nothing, and executing an `asm!` panics with the text of the instruction. Operands are type-checked on both.
//! `extern_asm!` declares the functions and labels that a `global_asm!` defines.

#[cfg(target_os = "none")]
pub(crate) use core::arch::{asm, global_asm};

/// Panics, because `instruction` can only be executed at EL2.
///
/// # Safety
///
/// There is no requirement. The function is unsafe because the `asm!` that it replaces is.
#[cfg(not(target_os = "none"))]
pub(crate) unsafe fn missing<T>(instruction: &str) -> T {
    unimplemented!("EL2 instruction on a host: {instruction}")
}

/// Evaluates an input operand.
#[cfg(not(target_os = "none"))]
pub(crate) fn input<T>(_: T) {}

#[cfg(not(target_os = "none"))]
macro_rules! asm {
    (@ $text:expr; options($($option:ident),*) $(,)?) => { $crate::arch::asm::missing::<()>($text) };
    (@ $text:expr; $name:ident = $($rest:tt)*) => { $crate::arch::asm::asm!(@ $text; $($rest)*) };
    (@ $text:expr; in($register:tt) $value:expr, $($rest:tt)*) => {{
        $crate::arch::asm::input($value);
        $crate::arch::asm::asm!(@ $text; $($rest)*)
    }};
    (@ $text:expr; out($register:tt) $value:ident, $($rest:tt)*) => {{
        $value = $crate::arch::asm::missing($text);
        $crate::arch::asm::asm!(@ $text; $($rest)*)
    }};
    (@ $text:expr; inout($register:tt) $value:expr, $($rest:tt)*) => {{
        $crate::arch::asm::input($value);
        $value = $crate::arch::asm::missing($text);
        $crate::arch::asm::asm!(@ $text; $($rest)*)
    }};
    ($text:expr, $more:literal, $($rest:tt)*) => { $crate::arch::asm::asm!(@ $text; $($rest)*) };
    ($text:expr, $($rest:tt)*) => { $crate::arch::asm::asm!(@ $text; $($rest)*) };
}
#[cfg(not(target_os = "none"))]
pub(crate) use asm;

#[cfg(not(target_os = "none"))]
macro_rules! global_asm {
    ($text:literal $(, $name:ident = const $value:expr)* $(,)?) => { $(const _: usize = $value;)* };
}
#[cfg(not(target_os = "none"))]
pub(crate) use global_asm;

/// Declares functions (`fn name(arguments) -> result;`) or labels (`static name;`) that a `global_asm!` defines.
macro_rules! extern_asm {
    ($($vis:vis fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {
        #[cfg(target_os = "none")]
        unsafe extern "C" { $($vis fn $name($($argument: $type),*) $(-> $result)?;)+ }
        $(
            #[cfg(not(target_os = "none"))]
            $vis unsafe fn $name($(_: $type),*) $(-> $result)? {
                // SAFETY: it has no requirement.
                unsafe { $crate::arch::asm::missing(stringify!($name)) }
            }
        )+
    };
    ($($vis:vis static $name:ident;)+) => {
        #[cfg(target_os = "none")]
        unsafe extern "C" { $($vis static $name: u8;)+ }
        $(
            #[cfg(not(target_os = "none"))]
            #[allow(non_upper_case_globals, reason = "the name of a label")]
            $vis static $name: u8 = 0;
        )+
    };
}
pub(crate) use extern_asm;
