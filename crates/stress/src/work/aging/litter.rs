//! Small files in many folders, made, renamed, looked up and removed: inodes, dentries (of names that are not there, too), directory
//! blocks, and a file system full of small holes.

use super::*;
use crate::work::mix;
use std::fs::OpenOptions;
use std::io::{Read, Write};

/// Entries of a folder, so that it stays within one block of 4 KiB.
const IN_FOLDER: usize = 48;
/// Longest file.
const LARGEST: u64 = 4096;

pub(super) struct Litter {
    dir: PathBuf,
    /// Files and folders to be there in all, and that are there.
    wanted: u64,
    count: u64,
    folders: Vec<Folder>,
    next: u64,
}

struct Folder {
    number: u64,
    files: Vec<Small>,
}

#[derive(Clone, Copy)]
struct Small {
    number: u64,
    tag: u64,
    size: usize,
}

impl Litter {
    pub(super) fn new(dir: PathBuf, wanted: u64) -> Self {
        Self { dir, wanted, count: 0, folders: Vec::new(), next: 0 }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn folder_path(&self, folder: usize) -> PathBuf {
        self.dir.join(format!("d{}", self.folders[folder].number))
    }

    fn path(&self, folder: usize, number: u64) -> PathBuf {
        self.folder_path(folder).join(format!("file-{number}"))
    }

    /// A folder with room for one more, made if need be.
    fn roomy(&mut self, context: &mut Context<'_>) -> Option<usize> {
        let some = (!self.folders.is_empty()).then(|| context.rng.index(self.folders.len()));
        if let Some(i) = some.filter(|&i| self.folders[i].files.len() < IN_FOLDER) {
            return Some(i);
        }
        let number = self.number();
        self.folders.push(Folder { number, files: Vec::with_capacity(IN_FOLDER) });
        let new = self.folders.len() - 1;
        let path = self.folder_path(new);
        match context.op(CREATE, || fs::create_dir_all(&path)) {
            Ok(()) => {
                self.count += 1;
                Some(new)
            }
            Err(error) => {
                self.folders.pop();
                self.less(context, "a new folder", &error);
                None
            }
        }
    }

    fn less(&mut self, context: &Context<'_>, what: &str, error: &io::Error) {
        judge(context, "create", what, error);
        self.wanted = self.count;
    }

    fn create(&mut self, context: &mut Context<'_>) {
        let Some(folder) = self.roomy(context) else { return };
        let tag = context.rng.next();
        // Half of them tiny, as on any machine.
        let size =
            if context.rng.one_in(2) { context.rng.below(128) } else { context.rng.below(LARGEST + 1) };
        let small = Small { number: self.number(), tag, size: size as usize };
        let path = self.path(folder, small.number);
        let made = context.op(CREATE, || {
            let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            file.write_all(&content(small))
        });
        match made {
            Ok(()) => {
                self.count += 1;
                self.folders[folder].files.push(small);
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                self.less(context, "a new file", &error);
            }
        }
    }

    /// A file at random: its folder and place in it.
    fn any(&self, context: &mut Context<'_>) -> Option<(usize, usize)> {
        let folder = (!self.folders.is_empty()).then(|| context.rng.index(self.folders.len()))?;
        let files = self.folders[folder].files.len();
        (files > 0).then(|| (folder, context.rng.index(files)))
    }

    /// To a new name, often in another folder. A failure leaves it where it was.
    fn rename(&mut self, context: &mut Context<'_>) {
        let Some((folder, i)) = self.any(context) else { return };
        let to = context.rng.index(self.folders.len());
        let to = if self.folders[to].files.len() < IN_FOLDER { to } else { folder };
        let small = self.folders[folder].files[i];
        let renamed = Small { number: self.number(), ..small };
        let (from_path, to_path) = (self.path(folder, small.number), self.path(to, renamed.number));
        match context.op(RENAME, || fs::rename(&from_path, &to_path)) {
            Ok(()) => {
                self.folders[folder].files.swap_remove(i);
                self.folders[to].files.push(renamed);
                must_be_missing(context, "rename", &from_path);
            }
            Err(error) => judge(context, "rename", "a file of our own", &error),
        }
    }

    fn remove(&mut self, context: &mut Context<'_>) {
        let Some((folder, i)) = self.any(context) else { return };
        let small = self.folders[folder].files.swap_remove(i);
        let path = self.path(folder, small.number);
        match context.op(REMOVE, || fs::remove_file(&path)) {
            Ok(()) => self.count -= 1,
            Err(error) => judge(context, "remove", "a file of our own", &error),
        }
        if self.folders[folder].files.is_empty() {
            let path = self.folder_path(folder);
            self.folders.swap_remove(folder);
            match context.op(REMOVE, || fs::remove_dir(&path)) {
                Ok(()) => self.count -= 1,
                Err(error) => judge(context, "remove", "an empty folder of our own", &error),
            }
        }
    }

    fn verify(&mut self, context: &mut Context<'_>) {
        let Some((folder, i)) = self.any(context) else { return };
        let small = self.folders[folder].files[i];
        let path = self.path(folder, small.number);
        let read = context.op(VERIFY, || {
            let mut got = Vec::with_capacity(small.size);
            fs::File::open(&path)?.take(2 * LARGEST).read_to_end(&mut got).map(|_| got)
        });
        match read {
            Ok(got) if got == content(small) => {}
            Ok(got) => {
                let detail = format!(
                    "a small file: {} bytes written, {} read, content differs",
                    small.size,
                    got.len()
                );
                context.wrong_content("verify", &detail);
            }
            Err(error) => judge(context, "verify", "reading a small file", &error),
        }
    }

    /// A name that was never there: the kernel remembers that, too.
    fn lookup(&mut self, context: &mut Context<'_>) {
        if self.folders.is_empty() {
            return;
        }
        let folder = context.rng.index(self.folders.len());
        let path = self.folder_path(folder).join(format!("none-{}", context.rng.below(1 << 20)));
        must_be_missing(context, "lookup", &path);
    }
}

fn must_be_missing(context: &mut Context<'_>, op: &str, path: &Path) {
    let errno = context.op(LOOKUP, || fs::metadata(path)).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
    if !short_of_resources(errno) {
        context.expect(op, "a name that is not there", libc::ENOENT, errno);
    }
}

impl Wear for Litter {
    fn is_done(&self) -> bool {
        self.count >= self.wanted
    }

    fn wear(&mut self, context: &mut Context<'_>) {
        // Asked now and then: it costs as much as making a file.
        if self.next.is_multiple_of(64) && !disk_to_spare(self.dir.parent().unwrap_or(&self.dir)) {
            self.wanted = self.count;
        }
        match context.rng.below(100) {
            0..=64 => self.create(context),
            65..=74 => self.rename(context),
            75..=82 => self.remove(context),
            83..=92 => self.verify(context),
            _ => self.lookup(context),
        }
    }

    fn keep(&mut self, context: &mut Context<'_>) {
        match context.rng.below(100) {
            // What goes comes back with the next steps of `wear`.
            0..=9 => self.remove(context),
            10..=29 => self.rename(context),
            30..=79 => self.verify(context),
            _ => self.lookup(context),
        }
    }
}

fn content(small: Small) -> Vec<u8> {
    let words = (0..small.size.div_ceil(8)).flat_map(|i| mix(small.tag ^ i as u64).to_ne_bytes());
    words.take(small.size).collect()
}
