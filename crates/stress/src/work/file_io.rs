//! `file-io-fsync`: files written, cut, punched, renamed and synced in many ways, with a model of every 4 KiB block.

use super::context::short_of_resources;
use super::{Context, Stressor};
use crate::params::{Form, Params, Spec};
use crate::sys;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

mod steps;

pub(super) static STRESSOR: Stressor = Stressor {
    name: "file-io-fsync",
    about: "files written, synced, cut, punched, mapped and renamed, contents and sizes verified",
    params: &[
        Spec {
            name: "dir",
            form: Form::Path,
            default: "/var/tmp/klpfarm",
            help: "a folder of its own is made in it, and removed at the end",
        },
        Spec {
            name: "size",
            form: Form::Size(1 << 20, 64 << 30),
            default: "64M",
            help: "bytes on disk at most, all threads together",
        },
    ],
    processes: "2",
    threads: "1",
    nice: "0",
    singles: super::no_singles,
    kinds: &[
        "write",
        "read",
        "fsync",
        "fdatasync",
        "truncate",
        "fallocate",
        "punch",
        "rename",
        "link",
        "create",
        "unlink",
        "direct",
        "mmap-write",
        "readdir",
        "stat",
        "yardstick",
    ],
    run,
    prepare,
    clean,
};

const WRITE: usize = 0;
const READ: usize = 1;
const FSYNC: usize = 2;
const FDATASYNC: usize = 3;
const TRUNCATE: usize = 4;
const FALLOCATE: usize = 5;
const PUNCH: usize = 6;
const RENAME: usize = 7;
const LINK: usize = 8;
const CREATE: usize = 9;
const UNLINK: usize = 10;
const DIRECT: usize = 11;
const MMAP_WRITE: usize = 12;
const READDIR: usize = 13;
const STAT: usize = 14;

/// Bytes of the model's unit: any file system's O_DIRECT is content with it.
const BLOCK: usize = 4096;
/// Files a thread has at most.
const FILES: usize = 4;

/// The folder of this run: named by the supervisor's process id, which is our parent's in a worker.
fn folder(params: &Params, pid: u32) -> PathBuf {
    Path::new(params.text("dir")).join(format!("run-{pid}"))
}

fn prepare(params: &Params) -> Result<(), String> {
    prepare_folder(Path::new(params.text("dir")))
}

/// Makes the supervisor's own folder in `dir`.
pub(super) fn prepare_folder(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|e| format!("cannot make folder {}: {e}", dir.display()))?;
    // What a killed run left behind would fill the disk in the end.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix("run-")).and_then(|n| n.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}/stat")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let own = dir.join(format!("run-{}", std::process::id()));
    fs::create_dir_all(&own).map_err(|e| format!("cannot make folder {}: {e}", own.display()))
}

fn clean(params: &Params) {
    let _ = fs::remove_dir_all(folder(params, std::process::id()));
    // Only if nobody else uses it.
    let _ = fs::remove_dir(params.text("dir"));
}

/// One file and what must be in it.
struct Model {
    name: String,
    file: File,
    /// Tag of each block; 0 is zeroes.
    blocks: Vec<u64>,
}

struct Files<'a, 'b> {
    context: &'a mut Context<'b>,
    dir: PathBuf,
    files: Vec<Model>,
    next_name: u64,
    /// Blocks one file may have.
    most: usize,
    /// Reused for all reads and writes; aligned for O_DIRECT.
    buffer: Buffer,
}

/// Blocks at an aligned address.
struct Buffer {
    memory: Vec<u64>,
    /// Index of the first aligned word.
    start: usize,
}

impl Buffer {
    fn new(blocks: usize) -> Self {
        let memory = vec![0u64; (blocks + 1) * BLOCK / 8];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start }
    }

    fn words(&mut self, blocks: usize) -> &mut [u64] {
        &mut self.memory[self.start..self.start + blocks * BLOCK / 8]
    }

    fn bytes(&mut self, blocks: usize) -> &mut [u8] {
        let words = self.words(blocks);
        // SAFETY: the same memory as bytes; every bit pattern is valid for both types.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), blocks * BLOCK) }
    }

    fn fill(&mut self, tags: &[u64]) {
        for (words, &tag) in self.words(tags.len()).chunks_exact_mut(BLOCK / 8).zip(tags) {
            words.iter_mut().enumerate().for_each(|(i, w)| *w = word(tag, i));
        }
    }

    /// The first wrong word: block, index in the block, value seen.
    fn first_wrong(&mut self, tags: &[u64]) -> Option<(usize, usize, u64)> {
        self.words(tags.len()).chunks_exact(BLOCK / 8).zip(tags).enumerate().find_map(|(b, (words, &tag))| {
            words.iter().enumerate().find(|&(i, &w)| w != word(tag, i)).map(|(i, &w)| (b, i, w))
        })
    }
}

/// Word `index` of a block; one multiplication, because all of a file is checked.
fn word(tag: u64, index: usize) -> u64 {
    if tag == 0 { 0 } else { tag.wrapping_mul(index as u64 | 1) ^ index as u64 }
}

/// Most blocks moved by one call.
const CHUNK: usize = 32;

fn run(context: &mut Context<'_>) {
    let parent = std::os::unix::process::parent_id();
    let dir = folder(context.params, parent).join(format!("{}-{}", context.process, context.thread));
    if let Err(error) = fs::create_dir_all(&dir) {
        let detail = format!("cannot make folder {}: {error}", dir.display());
        return context.fault(klpfarm_stress::wire::FaultKind::CannotRun, "start", &detail);
    }
    let workers = context.params.number("processes") * context.params.number("threads");
    let most = (context.params.number("size") / workers / FILES as u64) as usize / BLOCK;
    let most = most.clamp(8, 1024);
    let mut files = Files { context, dir, files: Vec::new(), next_name: 0, most, buffer: Buffer::new(CHUNK) };
    while files.context.go_on() {
        files.step();
    }
    let dir = files.dir.clone();
    drop(files);
    let _ = fs::remove_dir_all(dir);
}

impl Files<'_, '_> {
    fn step(&mut self) {
        if self.files.is_empty() || (self.files.len() < FILES && self.context.rng.one_in(8)) {
            return self.create();
        }
        let i = self.context.rng.index(self.files.len());
        match self.context.rng.below(100) {
            0..=19 => self.write(i),
            20..=34 => self.read(i),
            35..=54 => self.sync(i),
            55..=60 => self.truncate(i),
            61..=65 => self.fallocate(i),
            66..=70 => self.punch(i),
            71..=75 => self.rename(i),
            76..=79 => self.link(i),
            80..=85 => self.direct(i),
            86..=91 => self.mmap_write(i),
            92..=94 => self.readdir(),
            95..=97 => self.stat(i),
            _ => self.remove(i),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn new_name(&mut self) -> String {
        self.next_name += 1;
        format!("f{}", self.next_name)
    }

    /// Counts an error; a fault unless a full disk or short memory explains it.
    fn judge(&mut self, op: &str, what: &str, error: &std::io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        self.context.failed(errno);
        if !short_of_resources(errno) && errno != libc::EINTR {
            self.context.expect(op, what, 0, errno);
        }
    }

    fn create(&mut self) {
        let name = self.new_name();
        let path = self.path(&name);
        let opened = self.context.op(CREATE, || {
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)
        });
        match opened {
            Ok(file) => {
                self.files.push(Model { name, file, blocks: Vec::new() });
                let again = OpenOptions::new().write(true).create_new(true).open(&path);
                let errno = again.err().and_then(|e| e.raw_os_error()).unwrap_or(0);
                if !short_of_resources(errno) {
                    self.context.expect("create", "a name that exists", libc::EEXIST, errno);
                }
            }
            Err(error) => self.judge("create", "a new file", &error),
        }
    }

    /// A random part of a file that may grow: first block and number of blocks.
    fn part(&mut self, i: usize, may_grow: bool) -> (usize, usize) {
        let len = self.files[i].blocks.len();
        let limit = if may_grow { (len + CHUNK).min(self.most) } else { len };
        if limit == 0 {
            return (0, 0);
        }
        // No holes by chance: a write starts within the file or at its end.
        let from = self.context.rng.index(limit.min(len + 1));
        (from, 1 + self.context.rng.index((limit - from).min(CHUNK)))
    }

    /// A file whose content is no longer known (an error in the middle) is given up.
    fn give_up(&mut self, i: usize) {
        let model = self.files.swap_remove(i);
        let _ = fs::remove_file(self.path(&model.name));
    }

    fn remove(&mut self, i: usize) {
        self.verify(i, 0, self.files[i].blocks.len().min(CHUNK), "read");
        let model = self.files.swap_remove(i);
        let path = self.path(&model.name);
        if let Err(error) = self.context.op(UNLINK, || fs::remove_file(&path)) {
            self.judge("unlink", "a file of our own", &error);
        }
        let gone = fs::metadata(&path).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
        self.context.expect("unlink", "stat of a removed file", libc::ENOENT, gone);
        match model.file.metadata() {
            Ok(meta) if meta.nlink() != 0 => {
                self.context
                    .wrong_content("unlink", &format!("{} links left to a removed file", meta.nlink()));
            }
            Ok(_) => {}
            Err(error) => self.judge("stat", "a removed file that is still open", &error),
        }
    }

    /// Reads blocks back and compares them.
    fn verify(&mut self, i: usize, from: usize, len: usize, op: &str) {
        let model = &self.files[i];
        let buffer = self.buffer.bytes(len);
        let result = self.context.op(READ, || model.file.read_at(buffer, (from * BLOCK) as u64));
        match result {
            Ok(n) if n == len * BLOCK => {
                let tags = &self.files[i].blocks[from..from + len];
                if let Some((block, word, got)) = self.buffer.first_wrong(tags) {
                    let want = if tags[block] == 0 { "zero" } else { "what was written" };
                    let detail = format!(
                        "block {} of {}, byte {}: expected {want}, got {got:#x}",
                        from + block,
                        self.files[i].blocks.len(),
                        word * 8
                    );
                    self.context.wrong_content(op, &detail);
                }
            }
            Ok(n) => {
                let detail = format!("read {n} of {} bytes within the file's size", len * BLOCK);
                self.context.wrong_content(op, &detail);
            }
            Err(error) => self.judge(op, "reading", &error),
        }
    }
}
