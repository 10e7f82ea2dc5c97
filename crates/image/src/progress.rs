//! What a build tells while it goes on.

/// One piece of news from a build. Steps count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Another process builds the same image; we wait for it.
    Waiting {
        /// The image's id.
        id: String,
    },
    /// A step begins.
    Step {
        /// Which step, from 1.
        number: usize,
        /// How many steps there are.
        total: usize,
        /// What is being done, in a few words.
        title: String,
    },
    /// A line one of the tools wrote.
    Line(String),
    /// A download or a hash proceeds.
    Bytes {
        /// Bytes so far.
        done: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
}

/// Where progress goes. `Send`, because builds are awaited on a multi-threaded runtime.
pub type Sink<'a> = &'a mut (dyn FnMut(Progress) + Send);
