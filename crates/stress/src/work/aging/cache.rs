//! The page cache: files of random sizes, written and read again.

use super::*;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// Bytes moved by one operation.
const CHUNK: usize = 64 << 10;
/// Sizes of files, in chunks; in between each order of size is as common as the others.
const LARGEST: u64 = 64;

pub(super) struct Cache {
    dir: PathBuf,
    /// Chunks to be held in all.
    wanted: u64,
    held: u64,
    files: Vec<Old>,
    next: u64,
    buffer: Vec<u64>,
}

/// One file: its number in the folder, tag of its content, and chunks.
struct Old {
    number: u64,
    tag: u64,
    chunks: u64,
}

impl Cache {
    pub(super) fn new(dir: PathBuf, bytes: u64, keepers: u64) -> Self {
        // More than half of what is available would be thrown out again before it is read.
        let wanted = bytes.min(memory().0 / 2 / keepers) / CHUNK as u64;
        Self { dir, wanted, held: 0, files: Vec::new(), next: 0, buffer: vec![0; CHUNK / 8] }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("c{number}"))
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the same memory as bytes; every bit pattern is valid for both types.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_mut_ptr().cast(), CHUNK) }
    }

    /// Writes a new file, and reads it again.
    fn grow(&mut self, context: &mut Context<'_>) {
        let exponent = context.rng.below(u64::from(LARGEST.ilog2()) + 1);
        let chunks = (1 << exponent) + context.rng.below(1 << exponent);
        let chunks = chunks.min(LARGEST).min(self.wanted - self.held);
        let (number, tag) = (self.next, context.rng.next() | 1);
        self.next += 1;
        let path = self.path(number);
        let opened = context.op(CREATE, || {
            fs::create_dir_all(&self.dir)?;
            OpenOptions::new().read(true).write(true).create_new(true).open(&path)
        });
        let file = match opened {
            Ok(file) => file,
            Err(error) => return self.less(context, "a new file", &error),
        };
        for chunk in 0..chunks {
            if !context.go_on() {
                return;
            }
            self.buffer.iter_mut().enumerate().for_each(|(i, w)| *w = word(tag, chunk, i));
            let bytes = self.bytes();
            let wrote = context.op(CACHE_WRITE, || file.write_all_at(bytes, chunk * CHUNK as u64));
            if let Err(error) = wrote {
                let _ = fs::remove_file(&path);
                return self.less(context, "writing", &error);
            }
        }
        self.held += chunks;
        self.files.push(Old { number, tag, chunks });
        for chunk in 0..chunks {
            self.read(context, &file, tag, chunk);
        }
    }

    /// What cannot be had is not wanted any more.
    fn less(&mut self, context: &Context<'_>, what: &str, error: &io::Error) {
        judge(context, "cache-write", what, error);
        self.wanted = self.held;
    }

    fn read(&mut self, context: &mut Context<'_>, file: &File, tag: u64, chunk: u64) {
        let bytes = self.bytes();
        let read = context.op(CACHE_READ, || file.read_exact_at(bytes, chunk * CHUNK as u64));
        match read {
            Ok(()) => {
                if let Some(i) = (0..self.buffer.len()).find(|&i| self.buffer[i] != word(tag, chunk, i)) {
                    let at = chunk as usize * CHUNK + i * 8;
                    let detail = format!(
                        "byte {at} of an old file: expected what was written, got {:#x}",
                        self.buffer[i]
                    );
                    context.wrong_content("cache-read", &detail);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                context.wrong_content("cache-read", &format!("chunk {chunk} of an old file is cut short"));
            }
            Err(error) => judge(context, "cache-read", "reading an old file", &error),
        }
    }

    fn remove(&mut self, context: &mut Context<'_>, i: usize) {
        let old = self.files.swap_remove(i);
        self.held -= old.chunks;
        let path = self.path(old.number);
        if let Err(error) = context.op(REMOVE, || fs::remove_file(&path)) {
            judge(context, "remove", "an old file", &error);
        }
    }
}

impl Wear for Cache {
    fn is_done(&self) -> bool {
        self.held >= self.wanted
    }

    fn wear(&mut self, context: &mut Context<'_>) {
        if memory_to_spare() && disk_to_spare(self.dir.parent().unwrap_or(&self.dir)) {
            self.grow(context);
        } else {
            self.wanted = self.held;
        }
    }

    fn keep(&mut self, context: &mut Context<'_>) {
        if self.files.is_empty() {
            return;
        }
        let i = context.rng.index(self.files.len());
        // Now and then one goes, and another comes in its place with the next step of `wear`.
        if context.rng.one_in(64) {
            return self.remove(context, i);
        }
        let (tag, chunk) = (self.files[i].tag, context.rng.below(self.files[i].chunks));
        match File::open(self.path(self.files[i].number)) {
            Ok(file) => self.read(context, &file, tag, chunk),
            Err(error) => judge(context, "cache-read", "opening an old file", &error),
        }
    }
}

/// Word of a chunk; one multiplication, because all of it is checked.
fn word(tag: u64, chunk: u64, index: usize) -> u64 {
    (tag ^ chunk << 1).wrapping_mul(index as u64 | 1) ^ index as u64
}
