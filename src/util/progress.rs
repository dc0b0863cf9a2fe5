//! Whether work that is done in steps is complete.

/// What a step has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is left has to be done"]
pub enum Progress {
    /// Everything is done.
    Done,
    /// Another step is needed.
    More,
}
