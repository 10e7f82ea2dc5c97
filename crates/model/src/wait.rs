//! Tasks that make no progress, as the journal keeps them: raw enough that what is made of them can be made again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tasks noted while evidence was gathered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waits {
    /// What they were noted for.
    pub noted: Noted,
    /// How many there were in all; not all need stand in `tasks`.
    pub total: u32,
    /// The tasks, those that have waited longest first.
    pub tasks: Vec<Wait>,
}

/// Why a task was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Noted {
    /// It does not get on: uninterruptible for a second, or a workload thread without an operation for two.
    Blocked,
    /// It holds up the transition to or from the patch.
    Straggler,
    /// Code of the patch stood on its stack; it may well get on.
    InPatch,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Wait {
    /// Its name, as in `/proc/PID/comm`.
    pub task: String,
    /// Process id. Tasks of one process share their memory.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// State letter of `/proc/PID/stat`.
    pub state: char,
    /// The workload it is a thread of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Workload threads that its process has in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// When it got on last, in milliseconds after applying (before it, if negative); absent without a patch or where nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_apply_ms: Option<i64>,
    /// Its stack as the kernel prints it, innermost frame first, `FUNCTION+0x1/0x2 [MODULE]`; empty if it could not be read.
    pub stack: Vec<String>,
}

/// A line of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Without offset.
    pub symbol: &'a str,
    /// Without the compiler's endings (`.isra.0`) as well.
    pub function: &'a str,
    /// The module it is in; none in the kernel itself.
    pub module: Option<&'a str>,
}

/// A line of a stack without the address that older kernels print and newer ones hide (`[<0>] `).
pub fn without_address(line: &str) -> &str {
    match line.split_once("] ") {
        Some((address, rest)) if address.trim_start().starts_with("[<") => rest.trim(),
        _ => line.trim(),
    }
}

impl<'a> Frame<'a> {
    /// Read a line as the kernel prints it: `FUNCTION+0x1/0x2 [MODULE]`, or `[MODULE BUILDID]` with `CONFIG_STACKTRACE_BUILD_ID`. None for
    /// a frame that the unwinder doubts, `? FUNCTION+0x1/0x2`: it is a leftover of an earlier call; and none for an address in no function, such as the
    /// `0xffffffffffffffff` that ends a stack before 4.20.
    pub fn read(line: &'a str) -> Option<Self> {
        let mut words = without_address(line).split_whitespace();
        let symbol = words.next()?.split('+').next()?;
        let function = symbol.split('.').next().filter(|f| *f != "?" && !f.starts_with("0x"))?;
        let module = words.find_map(|w| w.strip_prefix('[')).map(|m| m.trim_end_matches(']'));
        (!function.is_empty()).then_some(Self { symbol, function, module })
    }
}

impl Wait {
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.stack.iter().filter_map(|line| Frame::read(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_all_kernels() {
        let read = |line| Frame::read(line).map(|f| (f.function, f.module));
        assert_eq!(read("[<0>] klp_wait+0x5c/0x70 [klp_held]"), Some(("klp_wait", Some("klp_held"))));
        assert_eq!(read("[<ffffffffc014c07c>] do_it.isra.0+0x5c/0x70"), Some(("do_it", None)));
        // CONFIG_STACKTRACE_BUILD_ID
        assert_eq!(read("f+0x5c/0x70 [x 6e2a9d2ffa5e0b5d4f2c7ab1b0f8e6b2]"), Some(("f", Some("x"))));
        assert_eq!(read("? klp_wait+0x5c/0x70 [klp_held]"), None);
        assert_eq!(read("[<0>] ? klp_wait+0x5c/0x70 [klp_held]"), None);
        // As 4.4.220 ends every stack.
        assert_eq!(read("[<ffffffffffffffff>] 0xffffffffffffffff"), None);
        assert_eq!(read("0xffffffffffffffff"), None);
    }
}
