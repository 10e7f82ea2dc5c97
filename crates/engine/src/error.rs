//! Why something could not be done: whose fault it is, what happened, and what could help.

use std::error::Error as StdError;
use std::fmt;

use crate::Remedy;

/// Whose fault a failure is. The command line makes its exit code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bad input: the user can correct it.
    Input,
    /// klpfarm or the host failed.
    Farm,
    /// Whoever asked ended it.
    Interrupted,
}

type Cause = Box<dyn StdError + Send + Sync>;

/// Why something could not be done.
///
/// Its text is one or more lines, and complete but for the [`Remedy`]. [`Error::cause`] is the library's own error where there is one.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    context: Option<String>,
    cause: Cause,
    remedy: Option<Remedy>,
}

impl Error {
    fn new(kind: Kind, cause: Cause) -> Self {
        Self { kind, context: None, cause, remedy: None }
    }

    /// Bad input: a text, or another error, which is kept.
    pub fn input(cause: impl Into<Cause>) -> Self {
        Self::new(Kind::Input, cause.into())
    }

    /// Several problems of the input at once, one a line.
    pub fn inputs<E: fmt::Display>(problems: &[E]) -> Self {
        Self::input(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    /// klpfarm or the host failed: a text, or another error, which is kept.
    pub fn farm(cause: impl Into<Cause>) -> Self {
        Self::new(Kind::Farm, cause.into())
    }

    /// Whoever asked ended it; `what` says what becomes of what was begun.
    pub fn interrupted(what: &str) -> Self {
        Self::new(Kind::Interrupted, what.into())
    }

    /// The same, with what it is about (a file, mostly) before its text.
    #[must_use]
    pub fn about(self, what: impl fmt::Display) -> Self {
        let context = match self.context {
            Some(context) => format!("{what}: {context}"),
            None => what.to_string(),
        };
        Self { context: Some(context), ..self }
    }

    /// The same, with what could help.
    #[must_use]
    pub fn with(self, remedy: Remedy) -> Self {
        Self { remedy: Some(remedy), ..self }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What could help, if anything but what the text says.
    pub fn remedy(&self) -> Option<&Remedy> {
        self.remedy.as_ref()
    }

    /// What was given as the cause: a library's own error can be had by `downcast_ref`.
    pub fn cause(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.cause
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.context {
            Some(context) => write!(f, "{context}: {}", self.cause),
            None => self.cause.fmt(f),
        }
    }
}

impl StdError for Error {
    /// What lies below the cause: the text of the cause itself is in this error's.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_its_cause_and_its_remedy() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::farm(io).about("/run").about("writing").with(Remedy::FreeDisk);
        assert_eq!((error.kind(), error.remedy()), (Kind::Farm, Some(&Remedy::FreeDisk)));
        assert!(error.to_string().starts_with("writing: /run: "), "{error}");
        let cause = error.cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(cause, Some(std::io::ErrorKind::StorageFull));
    }

    #[test]
    fn several_problems_are_lines() {
        assert_eq!(Error::inputs(&["a", "b"]).to_string(), "a\nb");
    }
}
