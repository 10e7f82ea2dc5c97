//! Progress and notes on standard error while a command runs.

use std::io::IsTerminal;

use klpfarm_engine::{Note, Watcher};
use klpfarm_model::{Event, Plan};
use klpfarm_report::{Terminal, View, one_line};

use crate::hints;

/// The longest note that is shown, in characters.
const LONGEST: usize = 1000;

/// Shows notes as lines, and events as a terminal or a log wants them.
#[derive(Debug, Default)]
pub(crate) struct Console {
    terminal: Option<Terminal>,
}

impl Watcher for Console {
    fn note(&mut self, note: Note) {
        say(&note);
    }

    fn begins(&mut self, plan: &Plan, past: &[Event]) {
        let view = if std::io::stderr().is_terminal() { View::Live } else { View::Plain };
        let mut terminal = Terminal::new(view, plan);
        past.iter().for_each(|event| terminal.past(event));
        self.terminal = Some(terminal);
    }

    fn event(&mut self, event: &Event) {
        if let Some(terminal) = &mut self.terminal {
            terminal.event(event);
        }
    }

    fn ends(&mut self) {
        self.terminal = None;
    }
}

/// A note on standard error.
pub(crate) fn say(note: &Note) {
    tell!("klpfarm: {}", one_line(&hints::of_note(note), LONGEST));
}
