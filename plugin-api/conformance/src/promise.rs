//! One checkable clause of the contract, and how its check ends.

/// A clause, and the check that tries it against a `T`.
pub(crate) struct Promise<T: ?Sized> {
    /// Short name, stable across versions.
    pub(crate) name: &'static str,
    /// The clause, as a sentence.
    pub(crate) says: &'static str,
    /// Tries it.
    pub(crate) check: fn(&mut T) -> Outcome,
}

/// `Err` ends a check early.
pub(crate) type Outcome = Result<(), End>;

/// How a check ends when the promise was not simply kept.
#[derive(Debug)]
pub(crate) enum End {
    /// What was expected and what happened.
    Broken(String),
    /// Why it could not be tried.
    Skipped(String),
}

/// Ends a check: the promise is broken.
pub(crate) fn broken<T>(how: impl Into<String>) -> Result<T, End> {
    Err(End::Broken(how.into()))
}

/// Ends a check: it cannot be tried.
pub(crate) fn skipped<T>(why: impl Into<String>) -> Result<T, End> {
    Err(End::Skipped(why.into()))
}

/// Goes on if `holds`, otherwise the promise is broken.
pub(crate) fn ensure(holds: bool, how: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { broken(how()) }
}

/// What the plugin was asked, to explain an error that was not expected.
pub(crate) trait Asked<T> {
    /// Breaks the promise with the plugin's own sentence.
    fn asked(self, what: &str) -> Result<T, End>;
}

impl<T> Asked<T> for Result<T, plugin_loader::PluginError> {
    fn asked(self, what: &str) -> Result<T, End> {
        self.map_err(|error| End::Broken(format!("{what} failed with {:?}: {error}", error.kind)))
    }
}
