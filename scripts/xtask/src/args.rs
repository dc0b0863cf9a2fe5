//! The command line: long flags, each at most once, and bare words. A word nobody asked for is an error.

use crate::fail::{Failure, Outcome};

/// The words after the verb; every reader takes out what it knows, [`Args::finish`] refuses the rest.
pub struct Args {
    words: Vec<String>,
}

impl Args {
    /// The words after the verb.
    pub fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    /// Was `name` given?
    pub fn flag(&mut self, name: &str) -> bool {
        let found = self.words.iter().position(|word| word == name);
        found.map(|at| self.words.remove(at)).is_some()
    }

    /// The value of `name VALUE` or `name=VALUE`.
    pub fn value(&mut self, name: &str) -> Outcome<Option<String>> {
        for at in 0..self.words.len() {
            if self.words[at] == name {
                if at + 1 == self.words.len() {
                    return Err(Failure::usage(format!("{name} needs a value")));
                }
                self.words.remove(at);
                return Ok(Some(self.words.remove(at)));
            }
            let joined = self.words[at].strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
            if let Some(value) = joined {
                let value = value.to_owned();
                self.words.remove(at);
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The value of `name` as a number.
    pub fn number<T: std::str::FromStr>(&mut self, name: &str) -> Outcome<Option<T>> {
        let Some(text) = self.value(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Failure::usage(format!("{name}: `{text}` is not a number"))),
        }
    }

    /// The next bare word, if any is left.
    pub fn word(&mut self) -> Option<String> {
        let at = self.words.iter().position(|word| !word.starts_with("--"))?;
        Some(self.words.remove(at))
    }

    /// Refuses what is left.
    pub fn finish(self, verb: &str) -> Outcome {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Failure::usage(format!("{verb} does not know `{word}`; see `cargo xtask help`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn a_value_may_be_a_word_of_its_own_or_joined() {
        let mut args = args("--smp 4 --mem=2G");
        assert_eq!(args.number::<u32>("--smp").unwrap(), Some(4));
        assert_eq!(args.value("--mem").unwrap().as_deref(), Some("2G"));
        assert!(args.finish("run").is_ok());
    }

    #[test]
    fn a_flag_without_its_value_is_a_usage_error() {
        assert_eq!(args("--smp").value("--smp").unwrap_err().code, 2);
        assert_eq!(args("--smp four").number::<u32>("--smp").unwrap_err().code, 2);
    }

    #[test]
    fn a_word_that_nobody_took_is_refused() {
        let mut args = args("--debug --bogus");
        assert!(args.flag("--debug"));
        assert!(!args.flag("--release"));
        assert_eq!(args.finish("build").unwrap_err().code, 2);
    }
}
