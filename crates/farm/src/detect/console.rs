//! `console-flood`, `console-silent`: whether the console can be relied on: how much it prints, and whether what is written to the kernel's log comes out at all. Pure.
//!
//! All detectors that read kernel reports are deaf when the console is: a heartbeat is written to the log through the probe every
//! few seconds and must be heard. It is written as a program's line, which the classifier passes over wherever it stands.

use std::collections::VecDeque;
use std::time::Duration;

use klpfarm_model::Phase;

use crate::secret::Secret;

/// A heartbeat is written this often.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(5);

/// A flood is one on average over so many seconds: reports of the kernel come in bursts.
const WINDOW: u64 = 10;

/// Text that a guest prints before the patch is applied is usual; a flood is more than this many times as much.
const TIMES_USUAL: u64 = 3;

/// So much of the latest text is kept, in bytes: a heartbeat that comes in pieces, and what a flood consists of.
const KEPT: usize = 1024;

/// The console of one machine.
#[derive(Debug)]
pub(crate) struct Console {
    /// A heartbeat must have come out after this.
    limit: Duration,
    /// Bytes a second.
    flood: u64,
    /// How the heartbeats of this trial begin: a fork may still hear one of its checkpoint.
    mark: String,
    /// Each carries a word that the guest can't know before it is sent: no line of the guest's own, and none that is printed again,
    /// passes for one that is still to come.
    secret: Secret,
    /// Bytes by second, latest last.
    seconds: VecDeque<(u64, u64)>,
    /// Most bytes in [`WINDOW`] seconds before the patch was applied.
    usual: u64,
    phase: Phase,
    tail: Vec<u8>,
    /// Number of the latest heartbeat.
    beats: u64,
    /// Those that have not been heard: number, and when they were asked for.
    awaited: VecDeque<(u64, Duration)>,
    heard: bool,
    deaf: bool,
    /// What came out since a magic-sysrq key was pressed holds the answer; none was pressed otherwise.
    sysrq: Option<bool>,
    /// What the guest said when the latest one could not be written.
    refused: String,
}

/// The kernel's answer to any key: `sysrq: HELP : ...`, or `SysRq : HELP : ...` on older kernels.
fn says_sysrq(text: &[u8]) -> bool {
    text.windows(5).any(|w| w.eq_ignore_ascii_case(b"sysrq"))
}

/// What is wrong with a console.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It prints too much; evidence.
    Flood(String),
    /// It has fallen silent; evidence.
    Silent(String),
    /// It was never heard.
    Blind,
}

impl Console {
    /// `limit`: how long a heartbeat may take; `flood`: bytes a second that are too many.
    pub(crate) fn new(trial: u32, limit: Duration, flood: u64, secret: Secret) -> Self {
        Self {
            limit,
            flood,
            mark: format!("klpfarm[{trial}]: heartbeat "),
            secret,
            seconds: VecDeque::new(),
            usual: 0,
            phase: Phase::Boot,
            tail: Vec::new(),
            beats: 0,
            awaited: VecDeque::new(),
            heard: false,
            deaf: false,
            sysrq: None,
            refused: String::new(),
        }
    }

    pub(crate) fn phase(&mut self, phase: Phase) {
        if phase == Phase::Settle {
            // What the kernel prints while it boots is no measure.
            (self.usual, self.seconds) = (0, VecDeque::new());
        }
        self.phase = phase;
    }

    /// The host did not run us for `gap`.
    pub(crate) fn forgive(&mut self, gap: Duration) {
        self.awaited.iter_mut().for_each(|(_, at)| *at += gap);
    }

    /// Text of the console.
    pub(crate) fn push(&mut self, now: Duration, bytes: &[u8]) {
        match self.seconds.back_mut().filter(|(second, _)| *second == now.as_secs()) {
            Some((_, count)) => *count += bytes.len() as u64,
            None => self.seconds.push_back((now.as_secs(), bytes.len() as u64)),
        }
        while self.seconds.front().is_some_and(|(second, _)| second + WINDOW <= now.as_secs()) {
            self.seconds.pop_front();
        }
        if matches!(self.phase, Phase::Settle | Phase::Baseline) {
            self.usual = self.usual.max(self.in_window());
        }
        // Pieces are small but for a flood, in which a heartbeat may hide anywhere.
        self.tail.extend_from_slice(bytes);
        self.listen();
        if self.sysrq == Some(false) {
            self.sysrq = Some(says_sysrq(&self.tail));
        }
        let cut = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..cut);
    }

    /// A magic-sysrq key is pressed now.
    pub(crate) fn press(&mut self) {
        self.sysrq = Some(false);
        self.tail.clear();
    }

    /// Whether the kernel has said since what it makes of it.
    pub(crate) fn sysrq_answered(&self) -> bool {
        self.sysrq == Some(true)
    }

    fn in_window(&self) -> u64 {
        self.seconds.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Strike off the heartbeats that are in the text.
    fn listen(&mut self) {
        if self.awaited.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.tail);
        let numbers = text.match_indices(&self.mark).filter_map(|(at, mark)| {
            // Without its line's end a word may be half a word.
            let (line, _) = text[at + mark.len()..].split_once(['\r', '\n'])?;
            let (number, word) = line.trim_end().split_once(' ')?;
            let number: u64 = number.parse().ok()?;
            (number <= self.beats && word == self.secret.beat(number)).then_some(number)
        });
        if let Some(latest) = numbers.max() {
            self.heard = true;
            self.awaited.retain(|(number, _)| *number > latest);
        }
    }

    /// The next heartbeat is written now: its line for the kernel's log. `None` if that has proved to be of no use.
    pub(crate) fn beat(&mut self, now: Duration) -> Option<String> {
        if self.deaf {
            return None;
        }
        self.beats += 1;
        self.awaited.push_back((self.beats, now));
        Some(format!("<6>{}{} {}\n", self.mark, self.beats, self.secret.beat(self.beats)))
    }

    /// The latest heartbeat could not be written. True if none ever came out: then none is waited for any more. Where
    /// they were heard before, the one that does not come out is found.
    pub(crate) fn refuse(&mut self, why: &str) -> bool {
        why.clone_into(&mut self.refused);
        let never = !self.heard && !self.deaf;
        if never {
            self.give_up();
        }
        never
    }

    /// No heartbeat comes out here: do not wait for any.
    fn give_up(&mut self) {
        self.deaf = true;
        self.awaited.clear();
    }

    /// Every heartbeat that was written before `then` has come out.
    pub(crate) fn heard_all_before(&self, then: Duration) -> bool {
        self.awaited.front().is_none_or(|(_, at)| *at >= then)
    }

    /// What is wrong, while the probe goes on.
    pub(crate) fn tick(&mut self, now: Duration) -> Option<Trouble> {
        let bytes = self.in_window();
        let most = (self.flood * WINDOW).max(self.usual * TIMES_USUAL);
        let judged = matches!(
            self.phase,
            Phase::Apply | Phase::Transition | Phase::Soak | Phase::Reach | Phase::Revert
        );
        if judged && bytes > most {
            let lines: Vec<_> =
                String::from_utf8_lossy(&self.tail).lines().rev().take(6).map(str::to_owned).collect();
            let lines: Vec<_> = lines.into_iter().rev().skip(1).collect();
            return Some(Trouble::Flood(format!(
                "{bytes} bytes within {WINDOW} s, at most {most} are expected; the latest lines:\n{}",
                lines.join("\n")
            )));
        }
        let (number, at) = *self.awaited.front()?;
        if now.saturating_sub(at) < self.limit {
            return None;
        }
        if !self.heard {
            self.give_up();
            return Some(Trouble::Blind);
        }
        let refused = if self.refused.is_empty() {
            String::new()
        } else {
            format!("; writing to /dev/kmsg failed: {}", self.refused)
        };
        Some(Trouble::Silent(format!(
            "the line `{}{number}` was to be written to the kernel's log {:.0} s ago and has not come out, while the probe works{refused}",
            self.mark,
            now.saturating_sub(at).as_secs_f64()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn console() -> Console {
        let mut console = Console::new(3, s(15), 1000, Secret::new([7; 16]));
        console.phase(Phase::Soak);
        console
    }

    /// The n-th heartbeat as it comes out.
    fn line(n: u64) -> String {
        format!("[  13.0] klpfarm[3]: heartbeat {n} {}\r\n", Secret::new([7; 16]).beat(n))
    }

    #[test]
    fn a_heartbeat_is_heard_in_pieces_and_amid_other_text() {
        let mut console = console();
        let written = console.beat(s(1)).unwrap();
        assert_eq!(written.trim_end(), format!("<6>{}", &line(1)[9..].trim_end()));
        let text = line(1);
        console.push(s(1), format!("[  12.0] x\r\n{}", &text[..30]).as_bytes());
        assert!(!console.heard_all_before(s(2)));
        console.push(s(2), &text.as_bytes()[30..text.len() - 2]);
        assert!(!console.heard_all_before(s(2)), "the word may be longer");
        console.push(s(2), b"\r\n[  13.1] y");
        assert!(console.heard_all_before(s(2)));
        assert_eq!(console.tick(s(100)), None);
    }

    #[test]
    fn a_console_that_falls_silent_is_found() {
        let mut console = console();
        console.beat(s(1));
        console.push(s(1), line(1).as_bytes());
        console.beat(s(6));
        console.push(s(19), b"[  14.0] other text\r\n");
        assert_eq!(console.tick(s(20)), None);
        assert!(matches!(console.tick(s(21)), Some(Trouble::Silent(e)) if e.contains("heartbeat 2")));
        console.push(s(22), line(2).as_bytes());
        assert_eq!(console.tick(s(40)), None);
    }

    #[test]
    fn the_answer_to_sysrq_is_one_that_comes_after_the_key() {
        // As 4.4.220 prints it.
        let help =
            b"[   46.750668] sysrq: HELP : loglevel(0-9) reboot(b) crash(c) terminate-all-tasks(e) \r\n";
        for old in [&help[..], b"[  1.0] SysRq : HELP : loglevel(0-9) \r\n"] {
            let mut console = console();
            console.push(s(1), old);
            assert!(!console.sysrq_answered(), "no key was pressed");
            console.press();
            console.push(s(2), b"[   46.0] x\r\n");
            assert!(!console.sysrq_answered());
            console.push(s(3), &old[..18]);
            console.push(s(3), &old[18..]);
            assert!(console.sysrq_answered());
        }
        let mut classifier = klpfarm_kmsg::Classifier::new();
        let mut signals = classifier.push(help);
        signals.extend(classifier.finish());
        assert!(signals.is_empty(), "{signals:?}");
    }

    /// A line that a guest makes up, or prints again, must not strike off what is still to come.
    #[test]
    fn a_heartbeat_that_was_never_sent_is_ignored() {
        let mut console = console();
        console.beat(s(1));
        console.push(s(1), line(1).as_bytes());
        console.beat(s(6));
        for forged in [
            "klpfarm[3]: heartbeat 999999999".to_owned(),
            "klpfarm[3]: heartbeat 2 0123456789abcdef".to_owned(),
            "klpfarm[3]: heartbeat 999999999 0123456789abcdef".to_owned(),
            line(1),
            // Right, but not sent yet.
            line(9),
        ] {
            console.push(s(7), format!("{forged}\r\n").as_bytes());
        }
        assert!(!console.heard_all_before(s(7)));
        assert!(matches!(console.tick(s(21)), Some(Trouble::Silent(_))));
    }

    #[test]
    fn a_log_that_can_no_longer_be_written_to_is_found() {
        let mut console = console();
        console.beat(s(1));
        console.push(s(1), line(1).as_bytes());
        console.beat(s(6));
        assert!(!console.refuse("Input/output error"));
        assert!(matches!(console.tick(s(21)), Some(Trouble::Silent(e)) if e.contains("Input/output")));
        let mut never = Console::new(3, s(15), 1000, Secret::new([7; 16]));
        never.beat(s(1));
        assert!(never.refuse("no such file"));
        assert_eq!((never.tick(s(99)), never.beat(s(99))), (None, None));
    }

    #[test]
    fn a_console_that_was_never_heard_is_blind_and_no_finding() {
        let mut console = console();
        console.beat(s(1));
        // One of the checkpoint's, of trial 0, is none of ours.
        console.push(s(1), b"[  13.0] klpfarm[0]: heartbeat 1\r\n");
        assert_eq!(console.tick(s(16)), Some(Trouble::Blind));
        assert_eq!((console.tick(s(99)), console.beat(s(99))), (None, None));
    }

    #[test]
    fn a_pause_of_the_host_is_no_silence() {
        let mut console = console();
        console.heard = true;
        console.beat(s(1));
        console.forgive(s(300));
        assert_eq!(console.tick(s(310)), None);
    }

    #[test]
    fn a_flood_lasts() {
        let mut console = console();
        console.push(s(1), &[b'x'; 9000]);
        assert_eq!(console.tick(s(1)), None, "a burst");
        console.push(s(12), &[b'x'; 9000]);
        assert_eq!(console.tick(s(12)), None, "the first burst is over");
        console.push(s(13), b"one\ntwo\nthree\n");
        console.push(s(14), &[b'y'; 1500]);
        assert!(matches!(console.tick(s(14)), Some(Trouble::Flood(_))));
    }

    #[test]
    fn what_a_guest_always_prints_is_no_flood() {
        let mut console = Console::new(1, s(15), 1000, Secret::new([7; 16]));
        console.push(s(0), &[b'b'; 80_000]);
        assert_eq!(console.tick(s(0)), None, "it boots");
        console.phase(Phase::Settle);
        console.phase(Phase::Baseline);
        for second in 1..20 {
            console.push(s(second), &[b'x'; 2000]);
            assert_eq!(console.tick(s(second)), None);
        }
        console.phase(Phase::Soak);
        for second in 20..40 {
            console.push(s(second), &[b'x'; 4000]);
            assert_eq!(console.tick(s(second)), None, "{second}");
        }
        for second in 40..50 {
            console.push(s(second), &[b'x'; 9000]);
        }
        assert!(matches!(console.tick(s(49)), Some(Trouble::Flood(_))));
    }

    /// The heartbeat may come out in the middle of a report.
    #[test]
    fn the_classifier_passes_over_heartbeats() {
        let report = "[   98.100000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n\
             [   98.200000] #PF: supervisor read access in kernel mode\n\
             [   98.300000] Oops: 0000 [#1] PREEMPT SMP NOPTI\n\
             [   98.400000] CPU: 0 PID: 1234 Comm: worker Tainted: G           O  K   5.10.0-35-cloud-amd64 #1\n\
             [   98.500000] RIP: 0010:klp_do_madvise+0x2c/0x70 [klp_candidate]\n\
             [   98.600000] Call Trace:\n\
             [   98.700000]  __x64_sys_madvise+0x5c/0x1f0\n\
             [   98.800000]  do_syscall_64+0x5c/0x1f0\n\
             [   98.900000] ---[ end trace 0000000000000000 ]---\n";
        let read = |text: &str| {
            let mut classifier = klpfarm_kmsg::Classifier::new();
            let mut signals = classifier.push(text.as_bytes());
            signals.extend(classifier.finish());
            let title = |s: klpfarm_kmsg::Signal| match s {
                klpfarm_kmsg::Signal::Report(r) => (r.title, r.corrupted),
                other => (format!("{other:?}"), false),
            };
            signals.into_iter().map(title).collect::<Vec<_>>()
        };
        let plain = read(report);
        assert_eq!(plain.len(), 1, "{plain:?}");
        let lines: Vec<&str> = report.lines().collect();
        for at in 0..=lines.len() {
            let (before, after) = lines.split_at(at);
            let text = format!(
                "{}\n[   99.123456] klpfarm[3]: heartbeat 7 0123456789abcdef\n{}\n",
                before.join("\n"),
                after.join("\n")
            );
            assert_eq!(read(&text), plain, "before line {at}");
        }
    }
}
