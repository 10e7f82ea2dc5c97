//! The journal: one event a line, synced before anybody acts on it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use klpfarm_model::Event;

/// `journal.jsonl` of a run.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Begin a new journal; one that exists is refused.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().append(true).create_new(true).open(path)? })
    }

    /// Write an event and wait until it is on disk.
    ///
    /// # Errors
    /// Disk full and the like: nothing may be done on the strength of an event that is not kept.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }
}

/// Read a journal. A last line without its end is what a crash leaves: it is left out and `torn` is set.
pub(crate) fn read(text: &str) -> Result<(Vec<Event>, bool), (usize, String)> {
    let mut events = Vec::new();
    let mut torn = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            torn = true;
            break;
        }
        let event: Event = serde_json::from_str(line).map_err(|e| (number + 1, e.to_string()))?;
        let expected = events.len() as u64 + 1;
        if event.seq != expected {
            return Err((number + 1, format!("event {} where {expected} was expected", event.seq)));
        }
        events.push(event);
    }
    Ok((events, torn))
}

#[cfg(test)]
mod tests {
    use klpfarm_model::Body;

    use super::*;

    #[test]
    fn a_torn_end_is_cut_off_and_a_damaged_middle_is_named() {
        let event = |seq| {
            serde_json::to_string(&Event { seq, at_ms: 0, scope: None, body: Body::TrialStarted }).unwrap()
        };
        let whole = format!("{}\n{}\n", event(1), event(2));
        for cut in 0..=whole.len() {
            let (events, torn) = read(&whole[..cut]).unwrap();
            assert_eq!(events.len(), whole[..cut].matches('\n').count());
            assert_eq!(torn, cut > 0 && !whole[..cut].ends_with('\n'));
        }
        assert_eq!(read(&format!("{}\nx\n{}\n", event(1), event(2))).unwrap_err().0, 2);
        assert_eq!(read(&format!("{}\n{}\n", event(1), event(3))).unwrap_err().0, 2);
    }
}
