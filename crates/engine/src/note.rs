//! What is told while work goes on, and what could help.

use std::path::PathBuf;

use klpfarm_model::{Event, Plan};

/// What could help against an error or what a note says, as data: whoever shows it names the command, the option or the button.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Free disk space, or set a lower reserve.
    FreeDisk,
    /// Fewer machines at once.
    FewerMachines,
    /// Build the image of this recipe (a name or a file).
    BuildImage(String),
    /// Build the image of a checkpoint or a run, whose recipe klpfarm does not know.
    RebuildImage,
    /// Make the reach map of this image.
    MapReach(String),
    /// Write a workload that calls the function, and measure it.
    WriteWorkload,
    /// Create a key pair.
    NewKey,
    /// Sign the verdict.
    SignVerdict,
    /// Have the prior verdict signed, by its key's owner where it was made.
    SignPrior,
    /// Judge the run in this folder again, and compare.
    JudgeAgain(PathBuf),
    /// Add the run in this folder to the index of runs.
    IndexRun(PathBuf),
}

/// Something worth knowing that is no event of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// One line; names in it may come from anywhere, and are not cleaned for a terminal.
    pub text: String,
    /// What could help, if anything.
    pub remedy: Option<Remedy>,
}

impl Note {
    /// A note that needs no remedy.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), remedy: None }
    }

    /// The same, with what could help.
    #[must_use]
    pub fn with(self, remedy: Remedy) -> Self {
        Self { remedy: Some(remedy), ..self }
    }
}

/// Who follows the work: a terminal, a page.
pub trait Watcher: Send {
    /// Something worth knowing that is no event.
    fn note(&mut self, note: Note);

    /// Machines start: those of a run, or one that is aged. Events of `plan` follow; `past` are those of a run that goes on.
    fn begins(&mut self, plan: &Plan, past: &[Event]);

    /// An event, which the journal has if it is of a run.
    fn event(&mut self, event: &Event);

    /// No more events follow.
    fn ends(&mut self);
}
