//! The committed file: how many boards are accepted at least, and why others are refused.
//!
//! The number is in the first line that has `at least NUMBER` in bold. Each reason is an item that begins with a part of the sentence
//! in code quotes.

/// What the file says.
pub struct Reasons {
    /// The least number of boards that have to be accepted.
    pub least: usize,
    sentences: Vec<String>,
}

impl Reasons {
    /// Reads the file; `None` if it has no number.
    pub fn of(text: &str) -> Option<Self> {
        let number = text.split_once("**at least ")?.1;
        let digits: String = number.chars().take_while(|digit| digit.is_ascii_digit() || *digit == ',').collect();
        let least = digits.replace(',', "").parse().ok()?;
        let items = text.lines().filter_map(|line| line.strip_prefix("* `")?.split_once('`'));
        Some(Self { least, sentences: items.map(|item| item.0.to_owned()).collect() })
    }

    /// Whether there is a reason for a sentence.
    pub fn has(&self, sentence: &str) -> bool {
        self.sentences.iter().any(|known| sentence.contains(known.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_the_sentences_are_read() {
        let text = "So **at least 1,095** of them.\n\n* `no GIC`: a part.\n* Another\n";
        let reasons = Reasons::of(text).unwrap();
        assert_eq!(reasons.least, 1095);
        assert!(reasons.has("GIC: no GIC there") && !reasons.has("Another"));
        assert!(Reasons::of("at least 5").is_none());
    }
}
