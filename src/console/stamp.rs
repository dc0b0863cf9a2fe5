//! The prefix of a log line: `[    1.234567] level room: `, where the room is a top-level module such as `gic`.

use core::fmt;
use log::Level;

/// The prefix of a log line.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// The time since boot in microseconds.
    pub us: u64,
    /// The level.
    pub level: Level,
    /// The path of the module that logs.
    pub target: &'a str,
}

/// Returns the top-level module of a module path: `gic` for `doorward::gic::its::queue`.
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
    fn a_prefix_has_time_level_and_top_level_module() {
        let stamp = |us, level, target| Stamp { us, level, target }.to_string();
        assert_eq!(stamp(1_234_567, Level::Info, "doorward::gic::its"), "[    1.234567] info gic: ");
        assert_eq!(stamp(12, Level::Error, "doorward"), "[    0.000012] error main: ");
        assert_eq!(stamp(123_456_000_001, Level::Warn, "elsewhere::x"), "[123456.000001] warn elsewhere: ");
    }
}
