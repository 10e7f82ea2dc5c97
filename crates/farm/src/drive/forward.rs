//! What a machine says while evidence is gathered goes to whoever gathers it, who may be busy with a dump: within limits, so that nothing piles
//! up without end.

use klpfarm_stress::wire::FromGuest;
use klpfarm_vm::Output;
use tokio::sync::mpsc;

use crate::evidence::Heard;
use crate::trial::Input;

/// Most that is handed on of the console and of the probe's replies, in bytes: several times what is kept as evidence.
const CONSOLE: usize = 16 << 20;
const REPLIES: usize = 64 << 20;

/// The way to whoever gathers evidence.
pub(super) struct Forward {
    to: mpsc::UnboundedSender<Heard>,
    /// Bytes that may still be handed on.
    console: usize,
    replies: usize,
}

impl Forward {
    pub(super) fn new(to: mpsc::UnboundedSender<Heard>) -> Self {
        Self { to, console: CONSOLE, replies: REPLIES }
    }

    /// Hand on console text and replies; what is too much is dropped.
    pub(super) fn pass_on(&mut self, input: &Input) {
        let (left, length, heard) = match input {
            Input::Output(Output::Probe(FromGuest::Reply { id, code, out })) => {
                (&mut self.replies, out.len(), Heard::Reply { id: *id, code: *code, out: out.clone() })
            }
            Input::Output(Output::Console(bytes)) => {
                (&mut self.console, bytes.len(), Heard::Console(bytes.clone()))
            }
            _ => return,
        };
        // An empty reply takes memory as well.
        if let Some(rest) = left.checked_sub(length + size_of::<Heard>()) {
            *left = rest;
            // Nobody listens any more once all has been gathered.
            let _ = self.to.send(heard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_piles_up_while_evidence_is_gathered_is_bounded() {
        let (to, mut from) = mpsc::unbounded_channel();
        let mut forward = Forward::new(to);
        for _ in 0..1000 {
            forward.pass_on(&Input::Output(Output::Console(vec![b'x'; 64 << 10])));
        }
        forward.pass_on(&Input::Tick);
        // A console that floods takes no room from the probe's answers.
        let reply =
            |id| Input::Output(Output::Probe(FromGuest::Reply { id, code: 0, out: "x".repeat(64 << 10) }));
        (0..2000).for_each(|id| forward.pass_on(&reply(id)));
        let (mut console, mut replies) = (0, 0);
        while let Ok(heard) = from.try_recv() {
            match heard {
                Heard::Console(bytes) => console += bytes.len(),
                Heard::Reply { out, .. } => replies += out.len(),
            }
        }
        assert!(console <= CONSOLE && console > CONSOLE - (128 << 10), "{console}");
        assert!(replies <= REPLIES && replies > REPLIES - (128 << 10), "{replies}");
    }
}
