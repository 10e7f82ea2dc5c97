//! The journal: one event a line, synced before anybody acts on it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use klpfarm_model::Event;

use crate::RunLock;

/// `journal.jsonl` of a run.
#[derive(Debug)]
pub struct Journal {
    file: File,
    _lock: RunLock,
}

impl Journal {
    /// Begin a new journal; one that exists is refused.
    pub(crate) fn create(path: &Path, lock: RunLock) -> io::Result<Self> {
        Ok(Self { file: File::options().append(true).create_new(true).open(path)?, _lock: lock })
    }

    /// Go on behind the last whole line; what a crash left of another is cut off.
    pub(crate) fn resume(path: &Path, lock: RunLock) -> io::Result<Self> {
        let text = fs::read(path)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let file = File::options().append(true).open(path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
        Ok(Self { file, _lock: lock })
    }

    /// Write an event and wait until it is on disk. What could be written of one that can't be kept is taken back, so that the next one
    /// does not stand behind half a line.
    ///
    /// # Errors
    /// Disk full and the like: nothing may be done on the strength of an event that is not kept.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if written.is_err() {
            let _ = self.file.set_len(before);
        }
        written
    }
}

/// Read a journal. A last line without its end is what a crash leaves: it is left out and `torn` is set.
pub(crate) fn read(text: &[u8]) -> Result<(Vec<Event>, bool), (usize, String)> {
    let mut events = Vec::new();
    for (number, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
        if line.last() != Some(&b'\n') {
            return Ok((events, true));
        }
        let event: Event = serde_json::from_slice(line).map_err(|e| (number + 1, e.to_string()))?;
        let expected = events.len() as u64 + 1;
        if event.seq != expected {
            return Err((number + 1, format!("event {} where {expected} was expected", event.seq)));
        }
        events.push(event);
    }
    Ok((events, false))
}

#[cfg(test)]
mod tests {
    use klpfarm_model::Body;

    use super::*;
    use crate::Run;

    fn event(seq: u64) -> Event {
        Event { seq, at_ms: 0, scope: None, body: Body::Note { text: "ein Wörtchen – mehr".into() } }
    }

    fn lines(events: &[Event]) -> Vec<u8> {
        events
            .iter()
            .flat_map(|e| serde_json::to_string(e).unwrap().into_bytes().into_iter().chain([b'\n']))
            .collect()
    }

    /// Power can go at any byte: what is left is a journal, and goes on as one.
    #[test]
    fn a_journal_goes_on_wherever_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let whole = lines(&[event(1), event(2), event(3)]);
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let kept = whole[..cut].iter().filter(|b| **b == b'\n').count();
            let (events, torn) = read(&whole[..cut]).unwrap();
            assert_eq!(events.len(), kept);
            assert_eq!(torn, cut > 0 && whole[cut - 1] != b'\n');
            let mut journal = Journal::resume(&path, RunLock::take(dir.path()).unwrap()).unwrap();
            journal.append(&event(kept as u64 + 1)).unwrap();
            drop(journal);
            let (events, torn) = read(&fs::read(&path).unwrap()).unwrap();
            assert_eq!((events.len(), torn), (kept + 1, false), "cut at {cut}");
        }
        assert!(!dir.path().join(RunLock::FILE).exists());
    }

    #[test]
    fn a_damaged_middle_is_named() {
        let [one, two, three] = [event(1), event(2), event(3)].map(|e| lines(&[e]));
        let damaged = [&one[..], b"x\n", &two].concat();
        assert_eq!(read(&damaged).unwrap_err().0, 2);
        assert_eq!(read(&[&one[..], b"\xff\n", &two].concat()).unwrap_err().0, 2);
        assert_eq!(read(&[&one[..], &three].concat()).unwrap_err().0, 2);
    }

    #[test]
    fn two_farms_do_not_write_one_journal() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::take(dir.path()).unwrap();
        let said = RunLock::take(dir.path()).unwrap_err().to_string();
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        drop(lock);
        RunLock::take(dir.path()).unwrap();
        // No run: nothing is left in a folder that is somebody else's.
        assert!(Run::resume(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
