//! Everything that can go wrong, each with what to do about it.

use std::path::{Path, PathBuf};

use klpfarm_model::yaml::YamlError;

/// A program that is not there, and the Debian package that brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingTool {
    /// The program, for example `mmdebstrap`.
    pub program: &'static str,
    /// The Debian package, for example `mmdebstrap`.
    pub package: &'static str,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe is wrong; every problem found.
    #[error("{}", lines(.0))]
    Recipe(Vec<YamlError>),
    /// No recipe has that name.
    #[error(
        "no recipe `{name}`: it is neither a YAML file nor one of {}; \
         see `klpfarm image list`", .known.join(", ")
    )]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// The names that would have been found.
        known: Vec<String>,
    },
    /// Programs are missing.
    #[error("missing on this host: {}; install with `apt-get install {}`", programs(.0), packages(.0))]
    MissingTools(Vec<MissingTool>),
    /// An ordinary user without what user namespaces need.
    #[error("cannot build as an ordinary user: {0}")]
    Unprivileged(String),
    /// Not enough room.
    #[error(
        "{}: {} MiB free, {} MiB needed to build this image; free some space or set KLPFARM_HOME to a larger file system",
        .dir.display(), .free >> 20, .needed >> 20
    )]
    NoSpace {
        /// Where the image would go.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A tool failed.
    #[error("{title}: `{program}` {status}{}{}", last_lines(.tail), advice(.hint))]
    Tool {
        /// The step.
        title: String,
        /// The program.
        program: String,
        /// How it ended, for example `exit status: 1`.
        status: String,
        /// The last lines it wrote.
        tail: Vec<String>,
        /// What to do about it, where known.
        hint: Option<String>,
    },
    /// A module does not build; the compiler's output.
    #[error("{}: the module does not build for kernel {release}:\n{output}", .source_dir.display())]
    Module {
        /// The module's source folder.
        source_dir: PathBuf,
        /// The kernel it was built for.
        release: String,
        /// What make and the compiler wrote.
        output: String,
    },
    /// A module cannot be built for this image at all.
    #[error("image {image}: {reason}")]
    NoHeaders {
        /// The image's id.
        image: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A file is not what the recipe promises.
    #[error("{what}: SHA-256 is {found}, the recipe says {expected}; the file is damaged or another release")]
    WrongHash {
        /// Path or URL.
        what: String,
        /// The recipe's hash.
        expected: String,
        /// The file's hash.
        found: String,
    },
    /// A download failed.
    #[error("{url}: {message}; is the network up, and `https_proxy` set where one is needed?")]
    Download {
        /// What was asked for.
        url: String,
        /// The causes, outermost first.
        message: String,
    },
    /// The finished root file system lacks something.
    #[error("{0}")]
    Unexpected(String),
    /// No image of that name or id.
    #[error("no image `{name}` in {}; see `klpfarm image list`", .dir.display())]
    NoImage {
        /// What was asked for.
        name: String,
        /// The store.
        dir: PathBuf,
    },
    /// A build of this image is going on.
    #[error("image {0} is being built or used right now; try again when that has ended")]
    Busy(String),
    /// An image's manifest cannot be read.
    #[error("{}: {message}; remove the image and build it again", .file.display())]
    Manifest {
        /// The manifest.
        file: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// No checkpoint of that id.
    #[error("no checkpoint `{name}` in {}; see `klpfarm checkpoint list`", .dir.display())]
    NoCheckpoint {
        /// What was asked for.
        name: String,
        /// The store.
        dir: PathBuf,
    },
    /// Several checkpoints begin so.
    #[error("`{name}` matches several checkpoints: {}; give more of the id", .ids.join(", "))]
    AmbiguousCheckpoint {
        /// What was asked for.
        name: String,
        /// All that begin so.
        ids: Vec<String>,
    },
    /// It is being made, removed, or machines run from it.
    #[error("checkpoint {0} is being made or used right now; try again when that has ended")]
    CheckpointBusy(String),
    /// It is there already.
    #[error("checkpoint {0} exists already; remove it with `klpfarm checkpoint rm {0}`")]
    CheckpointThere(String),
    /// A checkpoint is not what it was when it was made.
    #[error(
        "checkpoint {id}: {}: {reason}; remove it with `klpfarm checkpoint rm {id}`, the next run makes it again",
        .file.display()
    )]
    Damaged {
        /// Its id.
        id: String,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint can't be used on this host.
    #[error(
        "checkpoint {id}: {reason}; remove it with `klpfarm checkpoint rm {id}`, the next run makes one that fits"
    )]
    Misfit {
        /// Its id.
        id: String,
        /// What differs.
        reason: String,
    },
    /// A file is not an exported checkpoint.
    #[error("{}: not a checkpoint that can be imported: {reason}; export it again with `klpfarm checkpoint export`", .file.display())]
    Archive {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The image of a checkpoint is not here.
    #[error(
        "checkpoint {id} needs the image {image} of the host it comes from: {reason}; copy that host's folder `images/{image}` here, \
         or make a checkpoint of this host's own image (`klpfarm image build`, then `klpfarm run`)"
    )]
    NoImageOf {
        /// The checkpoint's id.
        id: String,
        /// The image's id.
        image: String,
        /// What is here instead.
        reason: String,
    },
    /// The operating system refused something.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb: `read`, `create`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: an I/O error with the verb and the path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

fn lines(problems: &[YamlError]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn programs(tools: &[MissingTool]) -> String {
    tools.iter().map(|t| t.program).collect::<Vec<_>>().join(", ")
}

fn packages(tools: &[MissingTool]) -> String {
    let mut names: Vec<_> = tools.iter().map(|t| t.package).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" ")
}

fn last_lines(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; its last lines:\n  {}", lines.join("\n  ")) }
}

fn advice(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("\n{hint}")).unwrap_or_default()
}
