//! What a line of the log starts with: `[    1.234567] level room: `.

use core::fmt;
use log::Level;

/// The start of a line.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// When, in microseconds.
    pub us: u64,
    /// How grave.
    pub level: Level,
    /// The module that speaks, as the compiler names it.
    pub target: &'a str,
}

/// The room that a module is in: `doorward::gic::its::queue` is in `gic`.
fn room(target: &str) -> &str {
    let mut parts = target.split("::");
    match (parts.next(), parts.next()) {
        (Some("doorward"), Some(room)) => room,
        (Some("doorward"), None) => "main",
        (Some(other), _) => other,
        (None, _) => "",
    }
}

impl fmt::Display for Stamp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        let (s, us) = (self.us / 1_000_000, self.us % 1_000_000);
        write!(f, "[{s:>5}.{us:06}] {level} {}: ", room(self.target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn time_level_and_room() {
        let stamp = |us, level, target| Stamp { us, level, target }.to_string();
        assert_eq!(stamp(1_234_567, Level::Info, "doorward::gic::its"), "[    1.234567] info gic: ");
        assert_eq!(stamp(12, Level::Error, "doorward"), "[    0.000012] error main: ");
        assert_eq!(stamp(123_456_000_001, Level::Warn, "elsewhere::x"), "[123456.000001] warn elsewhere: ");
    }
}
