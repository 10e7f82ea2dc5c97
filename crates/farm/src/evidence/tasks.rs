//! All tasks of a guest with their stacks: asked for in one go, sorted by what they say of the patch. Pure.

use klpfarm_model::{Frame, Noted, Wait, Waits, counted, without_address};

/// Where the guest keeps the text until it is fetched.
pub(super) const FILE: &str = "/run/klpfarm/tasks";

/// Tasks looked at, at most: a fork bomb must not keep evidence from being gathered.
const MOST: usize = 3000;

/// Tasks of one list in the journal, at most.
const MOST_NOTED: usize = 32;

/// The shell line that writes files of all tasks to [`FILE`], each line with its file's name before it. Two programs are started, however
/// many tasks there are: starting one takes long in a loaded guest. `skip`: threads whose stack hangs whoever reads it.
pub(super) fn collect_line(skip: &[u32]) -> String {
    let skip: Vec<String> = skip.iter().map(u32::to_string).collect();
    format!(
        "cd /proc; n=0; for t in [0-9]*/task/[0-9]*; do case ' {} ' in *\" ${{t##*/}} \"*) continue;; esac\n\
         echo $t/stat $t/wchan $t/patch_state $t/stack; n=$((n+1)); [ $n -ge {MOST} ] && break\n\
         done | xargs grep -s '' > {FILE}; wc -c < {FILE}",
        skip.join(" ")
    )
}

/// The shell line that prints a piece of [`FILE`], from this byte on.
pub(super) fn fetch_line(from: usize, length: usize) -> String {
    format!("tail -c +{} {FILE} | head -c {length}", from + 1)
}

/// One task.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Task {
    pid: u32,
    tid: u32,
    comm: String,
    state: char,
    wchan: String,
    patch_state: Option<i8>,
    stack: Vec<String>,
}

/// Tasks from what [`collect_line`] wrote. Lines that make no sense are left out: a task may go while it is looked at.
pub(super) fn read(text: &str) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for line in text.lines() {
        let Some((pid, tid, file, value)) = split(line) else { continue };
        if tasks.last().is_none_or(|t| t.tid != tid) {
            tasks.push(Task { pid, tid, state: '?', ..Task::default() });
        }
        let Some(task) = tasks.last_mut() else { continue };
        match file {
            "stat" => {
                if let Some((comm, state)) = stat(value) {
                    (task.comm, task.state) = (comm.to_owned(), state);
                }
            }
            "wchan" if value != "0" => task.wchan = value.to_owned(),
            "patch_state" => task.patch_state = value.trim().parse().ok(),
            "stack" => task.stack.push(without_address(value).to_owned()),
            _ => {}
        }
    }
    tasks
}

/// `PID/task/TID/FILE:VALUE`
fn split(line: &str) -> Option<(u32, u32, &str, &str)> {
    let (path, value) = line.split_once(':')?;
    let mut parts = path.split('/');
    let pid = parts.next()?.parse().ok()?;
    let tid = parts.nth(1)?.parse().ok()?;
    let file = parts.next()?;
    parts.next().is_none().then_some((pid, tid, file, value))
}

/// Name and state from `stat`; the name may hold anything but ends at the last parenthesis.
fn stat(line: &str) -> Option<(&str, char)> {
    let (open, close) = (line.find('(')?, line.rfind(')')?);
    Some((line.get(open + 1..close)?, line.get(close + 1..)?.trim_start().chars().next()?))
}

impl Task {
    fn in_patch(&self, patches: &[String]) -> bool {
        let mut modules = self.stack.iter().filter_map(|line| Frame::read(line)?.module);
        modules.any(|module| patches.iter().any(|p| p == module))
    }

    /// A task the kernel waits for until the transition to `wanted` ends; -1 means that it has nothing to switch.
    fn is_straggler(&self, wanted: u8) -> bool {
        self.patch_state.is_some_and(|s| s >= 0 && u8::try_from(s) != Ok(wanted))
    }

    fn wait(&self) -> Wait {
        Wait {
            task: self.comm.clone(),
            pid: self.pid,
            tid: self.tid,
            state: self.state,
            workload: None,
            threads: None,
            since_apply_ms: None,
            stack: self.stack.iter().take(16).cloned().collect(),
        }
    }

    fn text(&self) -> String {
        let switched =
            self.patch_state.filter(|s| *s >= 0).map_or_else(String::new, |s| format!(" patch_state {s}"));
        let mut text = format!("{}:{} pid {} state {}{switched}", self.comm, self.tid, self.pid, self.state);
        if !self.wchan.is_empty() {
            text.push_str(&format!(" in {}", self.wchan));
        }
        text.push('\n');
        for frame in &self.stack {
            text.push_str(&format!("    {frame}\n"));
        }
        text
    }
}

/// What the journal keeps of them: tasks that hold up the transition to `wanted`, and tasks with code of a patch on the stack.
pub(super) fn noted(tasks: &[Task], patches: &[String], wanted: Option<u8>) -> Vec<Waits> {
    let straggler = |t: &&Task| wanted.is_some_and(|w| t.is_straggler(w));
    let of_patch = |t: &&Task| t.in_patch(patches);
    let list = |noted: Noted, of: &dyn Fn(&&Task) -> bool| {
        let all: Vec<Wait> = tasks.iter().filter(|t| of(t)).map(Task::wait).collect();
        let total = u32::try_from(all.len()).unwrap_or(u32::MAX);
        Waits { noted, total, tasks: all.into_iter().take(MOST_NOTED).collect() }
    };
    let lists = [list(Noted::Straggler, &straggler), list(Noted::InPatch, &of_patch)];
    lists.into_iter().filter(|w| w.total > 0).collect()
}

/// Tasks that hold up the transition, for people.
pub(super) fn stragglers(tasks: &[Task], wanted: u8) -> String {
    tasks.iter().filter(|t| t.is_straggler(wanted)).map(Task::text).collect()
}

/// All tasks for people, what matters most first; each stands once. `concerned` are processes that make no progress.
pub(super) fn stacks(tasks: &[Task], patches: &[String], concerned: &[u32]) -> String {
    const HEADINGS: [&str; 4] = [
        "with code of the patch on the stack",
        "in uninterruptible sleep",
        "of processes with tasks that are making no progress",
        "all others",
    ];
    let place = |t: &Task| match t {
        t if t.in_patch(patches) => 0,
        t if t.state == 'D' => 1,
        t if concerned.contains(&t.pid) => 2,
        _ => 3,
    };
    let mut text = String::new();
    for (n, heading) in HEADINGS.iter().enumerate() {
        let members: Vec<&Task> = tasks.iter().filter(|t| place(t) == n).collect();
        text.push_str(&format!("==== {} {heading}\n", counted(members.len(), "task")));
        members.iter().for_each(|t| text.push_str(&t.text()));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
1/task/1/stat:1 (systemd) S 0 1 1 0
1/task/1/wchan:ep_poll
1/task/1/patch_state:1
1/task/1/stack:[<0>] ep_poll+0x1/0x2
57/task/57/stat:57 (a) (b) D 2 0 0
57/task/57/wchan:0
57/task/57/patch_state:0
57/task/57/stack:[<0>] klp_wait+0x1/0x2 [my_patch]
57/task/57/stack:[<0>] kthread+0x1/0x2
nonsense
58/task/59/stat:59 (half
58/task/59/patch_state:-1
58/task/60/stat:60 (w) D 1
";

    fn patches() -> Vec<String> {
        vec!["my_patch".to_owned()]
    }

    #[test]
    fn tasks_are_read_whatever_their_names_and_however_little_is_there() {
        let tasks = read(TEXT);
        let of: Vec<(u32, &str, char, usize)> =
            tasks.iter().map(|t| (t.tid, t.comm.as_str(), t.state, t.stack.len())).collect();
        assert_eq!(of, [(1, "systemd", 'S', 1), (57, "a) (b", 'D', 2), (59, "", '?', 0), (60, "w", 'D', 0)]);
        assert_eq!(tasks[1].stack[0], "klp_wait+0x1/0x2 [my_patch]");
        assert_eq!(read(""), []);
    }

    #[test]
    fn stragglers_and_tasks_in_the_patch_are_noted() {
        let tasks = read(TEXT);
        let lists = noted(&tasks, &patches(), Some(1));
        let of: Vec<(Noted, u32)> = lists.iter().map(|w| (w.noted, w.tasks[0].tid)).collect();
        assert_eq!(of, [(Noted::Straggler, 57), (Noted::InPatch, 57)]);
        assert_eq!(lists[0].total, 1, "-1 is no straggler");
        assert!(noted(&tasks, &[], None).is_empty());
        assert!(stragglers(&tasks, 1).starts_with("a) (b:57 pid 57 state D patch_state 0\n    klp_wait"));
    }

    #[test]
    fn each_task_stands_once_under_the_best_heading() {
        let text = stacks(&read(TEXT), &patches(), &[58]);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{text} lacks {part}"));
        assert!(at("==== 1 task with code") < at(":57 "));
        assert!(at(":57 ") < at(":60 ") && at(":60 ") < at(":59 ") && at(":59 ") < at("systemd:1 "));
        assert_eq!(text.matches(":57 ").count(), 1);
    }

    #[test]
    fn nothing_but_numbers_gets_into_the_shell_line() {
        let line = collect_line(&[3, 44]);
        assert!(line.contains("case ' 3 44 ' in"), "{line}");
        assert!(!line.contains("cmdline") && !line.contains("maps") && !line.contains("/status"));
    }
}
