//! What a machine says while evidence is gathered: answers of the probe, and its console.

use std::time::Duration;

use klpfarm_stress::wire::{Ask, ToGuest};
use klpfarm_vm::Machine;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Ids of these questions count up from here; the dispatcher's are random numbers of 64 bits, and nothing waits for one of them here.
const FIRST_ID: u64 = 1 << 32;

/// Console text kept, in bytes; a guest may flood it.
const MOST_CONSOLE: usize = 2 << 20;

/// A console that was silent for so long has said what it had to say.
const QUIET: Duration = Duration::from_millis(1500);

/// Something that came out of the machine.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The probe's answer to the question with this id.
    Reply { id: u64, code: i32, out: String },
    /// Bytes of the console.
    Console(Vec<u8>),
}

/// Listens to a machine.
pub(super) struct Listener {
    from: mpsc::UnboundedReceiver<Heard>,
    next_id: u64,
    console: Vec<u8>,
    /// What was said before that is no answer.
    answer_from: usize,
    /// The probe left a question unanswered: it will leave the next one so as well.
    mute: bool,
}

impl Listener {
    pub(super) fn new(from: mpsc::UnboundedReceiver<Heard>) -> Self {
        Self { from, next_id: FIRST_ID, console: Vec::new(), answer_from: 0, mute: false }
    }

    /// Ask the probe and wait for the answer until then.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn ask(
        &mut self,
        machine: &Machine,
        ask: Ask,
        until: Instant,
    ) -> Result<(i32, String), String> {
        if self.mute {
            return Err("the probe did not answer an earlier question".to_owned());
        }
        if Instant::now() >= until {
            return Err("no time was left".to_owned());
        }
        let id = self.next_id;
        self.next_id += 1;
        machine.tell_probe(&ToGuest { id, ask });
        loop {
            match timeout_at(until, self.from.recv()).await {
                Ok(Some(Heard::Reply { id: of, code, out })) if of == id => return Ok((code, out)),
                Ok(Some(heard)) => self.hear(heard),
                Ok(None) | Err(_) => {
                    self.mute = true;
                    return Err("the probe did not answer in time".to_owned());
                }
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        if let Heard::Console(bytes) = heard {
            let room = MOST_CONSOLE.saturating_sub(self.console.len());
            self.console.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// Forget the console up to now.
    pub(super) fn forget_console(&mut self) {
        while let Ok(heard) = self.from.try_recv() {
            drop(heard);
        }
        self.console.clear();
        self.answer_from = 0;
    }

    /// What the console says from now on is an answer to something new.
    pub(super) fn next_answer(&mut self) {
        while let Ok(heard) = self.from.try_recv() {
            self.hear(heard);
        }
        self.answer_from = self.console.len();
    }

    /// Wait until the console has said `word` since [`Self::next_answer`] and has then come to rest, but no longer than `until`; tells whether
    /// it said it.
    pub(super) async fn console_says(&mut self, word: &str, until: Instant) -> bool {
        let mut said = false;
        loop {
            said = said || contains(&self.console[self.answer_from..], word.as_bytes());
            // Silence means an end only after a beginning.
            let patience = if said { until.min(Instant::now() + QUIET) } else { until };
            match timeout_at(patience, self.from.recv()).await {
                Ok(Some(heard)) => self.hear(heard),
                Ok(None) | Err(_) => return said,
            }
            if Instant::now() >= until {
                return said;
            }
        }
    }

    /// The console since [`Self::forget_console`].
    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn a_console_that_answers_is_heard_out_and_one_that_does_not_is_given_up() {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut listener = Listener::new(rx);
        tx.send(Heard::Console(b"old sysrq: x".to_vec())).unwrap();
        listener.forget_console();
        assert!(!listener.console_says("sysrq: ", soon(2000)).await);
        let speak = async {
            // The word comes in two pieces, and what belongs to it later.
            for piece in ["[1] sys", "rq: Show Blocked State\r\n", "task:w\n"] {
                tx.send(Heard::Console(piece.into())).unwrap();
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
        };
        let (said, ()) = tokio::join!(listener.console_says("SysRq: ", soon(60_000)), speak);
        assert!(said);
        assert_eq!(listener.console(), "[1] sysrq: Show Blocked State\ntask:w\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_console_that_never_rests_is_bounded_in_time_and_size() {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut listener = Listener::new(rx);
        let flood = tokio::spawn(async move {
            while tx.send(Heard::Console(vec![b'x'; 1 << 20])).is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let begun = Instant::now();
        assert!(listener.console_says("xx", soon(5000)).await);
        assert!(begun.elapsed() < Duration::from_secs(6) && listener.console().len() <= MOST_CONSOLE);
        drop(listener);
        flood.await.unwrap();
    }
}
