//! The single operations on files.

use super::*;

impl Files<'_, '_> {
    fn tags(&mut self, len: usize) -> Vec<u64> {
        (0..len).map(|_| self.context.rng.next() | 1).collect()
    }

    fn set(&mut self, i: usize, from: usize, tags: &[u64]) {
        let blocks = &mut self.files[i].blocks;
        if blocks.len() < from + tags.len() {
            blocks.resize(from + tags.len(), 0);
        }
        blocks[from..from + tags.len()].copy_from_slice(tags);
    }

    pub(super) fn write(&mut self, i: usize) {
        let (from, len) = self.part(i, true);
        let append = self.context.rng.one_in(4) && self.files[i].blocks.len() + len <= self.most;
        let from = if append { self.files[i].blocks.len() } else { from };
        let tags = self.tags(len);
        self.buffer.fill(&tags);
        let buffer = self.buffer.bytes(len);
        let model = &self.files[i];
        let path = self.dir.join(&model.name);
        let result = self.context.op(WRITE, || {
            if append {
                use std::io::Write;
                OpenOptions::new().append(true).open(&path)?.write_all(buffer)
            } else {
                model.file.write_all_at(buffer, (from * BLOCK) as u64)
            }
        });
        match result {
            Ok(()) => self.set(i, from, &tags),
            Err(error) => {
                self.judge("write", if append { "appending" } else { "writing" }, &error);
                return self.give_up(i);
            }
        }
        if self.context.rng.one_in(3) {
            self.verify(i, from, len, "write");
        }
    }

    pub(super) fn read(&mut self, i: usize) {
        let (from, len) = self.part(i, false);
        if len > 0 {
            return self.verify(i, from, len, "read");
        }
        let n = self.files[i].file.read_at(&mut [0u8; 16], 0);
        if !matches!(n, Ok(0)) {
            self.context.wrong_content("read", &format!("reading an empty file gave {n:?}"));
        }
    }

    pub(super) fn sync(&mut self, i: usize) {
        let file = &self.files[i].file;
        let (op, result) = match self.context.rng.below(3) {
            0 => ("fsync", self.context.op(FSYNC, || file.sync_all())),
            1 => ("fdatasync", self.context.op(FDATASYNC, || file.sync_data())),
            _ => {
                let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
                let fd = file.as_raw_fd();
                // SAFETY: plain values.
                let call = || sys::checked(unsafe { libc::sync_file_range(fd, 0, 0, flags) });
                let done = self.context.op(FDATASYNC, call);
                ("sync-file-range", done.map(drop))
            }
        };
        if let Err(error) = result {
            self.judge(op, "a regular file", &error);
        }
    }

    pub(super) fn truncate(&mut self, i: usize) {
        let new = self.context.rng.index(self.files[i].blocks.len().max(1) + 8).min(self.most);
        let file = &self.files[i].file;
        match self.context.op(TRUNCATE, || file.set_len((new * BLOCK) as u64)) {
            Ok(()) => self.files[i].blocks.resize(new, 0),
            Err(error) => {
                self.judge("truncate", "a regular file", &error);
                return self.give_up(i);
            }
        }
        self.stat(i);
        let tail = self.files.get(i).map_or(0, |m| m.blocks.len().min(8));
        if tail > 0 {
            self.verify(i, self.files[i].blocks.len() - tail, tail, "truncate");
        }
    }

    /// One mode of `fallocate`; what it answers on this file system at first must stay. True if it was done.
    fn allocate(
        &mut self,
        i: usize,
        op: &'static str,
        kind: usize,
        mode: i32,
        from: usize,
        len: usize,
    ) -> bool {
        let fd = self.files[i].file.as_raw_fd();
        let (at, bytes) = ((from * BLOCK) as i64, (len * BLOCK) as i64);
        // SAFETY: plain values.
        let got = self.context.call(kind, || i64::from(unsafe { libc::fallocate(fd, mode, at, bytes) }));
        let errno = got.err().unwrap_or(0);
        if !short_of_resources(errno) && errno != libc::EINTR {
            let allowed = [0, libc::EOPNOTSUPP, libc::ENOSYS];
            self.context.expect_constant(op, mode as u64, "a regular file", &allowed, errno);
        }
        errno == 0
    }

    pub(super) fn fallocate(&mut self, i: usize) {
        let (from, len) = self.part(i, true);
        if len > 0 && self.allocate(i, "fallocate", FALLOCATE, 0, from, len) {
            // Allocating changes no content; beyond the end it adds zeroes.
            let blocks = &mut self.files[i].blocks;
            blocks.resize(blocks.len().max(from + len), 0);
            self.verify(i, from, len, "fallocate");
        } else {
            self.files_may_have_grown(i);
        }
    }

    /// A failed allocation may have lengthened the file: believe its size from here on.
    fn files_may_have_grown(&mut self, i: usize) {
        let Ok(meta) = self.files[i].file.metadata() else { return };
        if meta.len() != (self.files[i].blocks.len() * BLOCK) as u64 {
            self.give_up(i);
        }
    }

    pub(super) fn punch(&mut self, i: usize) {
        let (from, len) = self.part(i, false);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        if len > 0 && self.allocate(i, "punch", PUNCH, mode, from, len) {
            self.set(i, from, &vec![0; len]);
            let end = (from + len + 1).min(self.files[i].blocks.len());
            let start = from.saturating_sub(1);
            self.verify(i, start, (end - start).min(CHUNK), "punch");
        }
    }

    pub(super) fn rename(&mut self, i: usize) {
        let new = self.new_name();
        let (from, to) = (self.path(&self.files[i].name), self.path(&new));
        if let Err(error) = self.context.op(RENAME, || fs::rename(&from, &to)) {
            return self.judge("rename", "a file of our own", &error);
        }
        self.files[i].name = new;
        let old = fs::metadata(&from).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
        self.context.expect("rename", "stat of the old name", libc::ENOENT, old);
        match (fs::metadata(&to), self.files[i].file.metadata()) {
            (Ok(a), Ok(b)) if a.ino() != b.ino() => {
                self.context.wrong_content("rename", "the new name is another file");
            }
            (Ok(_), Ok(_)) => {}
            (Err(error), _) | (_, Err(error)) => self.judge("rename", "stat of the new name", &error),
        }
    }

    pub(super) fn link(&mut self, i: usize) {
        let name = self.new_name();
        let (from, to) = (self.path(&self.files[i].name), self.path(&name));
        if let Err(error) = self.context.op(LINK, || fs::hard_link(&from, &to)) {
            // Some file systems (FAT, some overlays) have no links.
            let errno = error.raw_os_error().unwrap_or(0);
            self.context.failed(errno);
            if !short_of_resources(errno) {
                let allowed = [libc::EPERM, libc::EOPNOTSUPP, libc::EXDEV];
                self.context.expect_constant("link", 0, "a file of our own", &allowed, errno);
            }
            return;
        }
        self.context.expect_constant("link", 0, "a file of our own", &[0], 0);
        let count = |files: &Self| files.files[i].file.metadata().map(|m| m.nlink()).unwrap_or(0);
        let with = count(self);
        let removed = self.context.op(UNLINK, || fs::remove_file(&to));
        let without = count(self);
        if let Err(error) = removed {
            return self.judge("unlink", "a second name", &error);
        }
        if (with, without) != (2, 1) {
            let detail =
                format!("link counts with and without a second name: {with}, {without}; expected 2, 1");
            self.context.wrong_content("link", &detail);
        }
    }

    /// The same blocks past the page cache, where the file system can.
    pub(super) fn direct(&mut self, i: usize) {
        let (from, len) = self.part(i, true);
        let path = self.path(&self.files[i].name);
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let errno = opened.as_ref().err().and_then(std::io::Error::raw_os_error).unwrap_or(0);
        if !short_of_resources(errno) {
            self.context.expect_constant("direct", 0, "opening with O_DIRECT", &[0, libc::EINVAL], errno);
        }
        let Ok(file) = opened else { return };
        let tags = self.tags(len);
        self.buffer.fill(&tags);
        let buffer = self.buffer.bytes(len);
        let result = self.context.op(DIRECT, || file.write_all_at(buffer, (from * BLOCK) as u64));
        match result {
            Ok(()) => self.set(i, from, &tags),
            Err(error) => {
                self.judge("direct", "writing", &error);
                return self.give_up(i);
            }
        }
        // Once through the cache, which must not hold the old content, and once past it.
        self.verify(i, from, len, "direct");
        self.buffer.bytes(len).fill(0xa5);
        let buffer = self.buffer.bytes(len);
        let read = self.context.op(DIRECT, || file.read_exact_at(buffer, (from * BLOCK) as u64));
        match read {
            Ok(()) if self.buffer.first_wrong(&tags).is_some() => {
                self.context.wrong_content("direct", "a direct read gave something else than was written");
            }
            Ok(()) => {}
            Err(error) => self.judge("direct", "reading", &error),
        }
    }

    /// Writes through a shared mapping and reads through the file.
    pub(super) fn mmap_write(&mut self, i: usize) {
        let (from, len) = self.part(i, false);
        // Touching a hole on a full disk is a SIGBUS by design.
        if len == 0 || self.files[i].blocks[from..from + len].contains(&0) {
            return;
        }
        let tags = self.tags(len);
        self.buffer.fill(&tags);
        let bytes = self.buffer.bytes(len);
        let fd = self.files[i].file.as_raw_fd();
        let synced = self.context.op(MMAP_WRITE, || {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping of blocks that the file has (nobody else cuts it), copied to within its bounds, then unmapped.
            unsafe {
                let at = libc::mmap(
                    std::ptr::null_mut(),
                    bytes.len(),
                    rights,
                    libc::MAP_SHARED,
                    fd,
                    (from * BLOCK) as i64,
                );
                if at == libc::MAP_FAILED {
                    return Err(std::io::Error::last_os_error());
                }
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len());
                let synced = sys::checked(libc::msync(at, bytes.len(), libc::MS_SYNC));
                libc::munmap(at, bytes.len());
                synced
            }
        });
        match synced {
            Ok(_) => {
                self.set(i, from, &tags);
                self.verify(i, from, len, "mmap-write");
            }
            Err(error) => {
                self.judge("mmap-write", "mapping or msync", &error);
                self.give_up(i);
            }
        }
    }

    pub(super) fn readdir(&mut self) {
        let dir = self.dir.clone();
        let listed = self.context.op(READDIR, || -> std::io::Result<Vec<String>> {
            fs::read_dir(dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
        });
        let mut listed = match listed {
            Ok(listed) => listed,
            Err(error) => return self.judge("readdir", "a folder of our own", &error),
        };
        listed.sort();
        let mut known: Vec<_> = self.files.iter().map(|m| m.name.clone()).collect();
        known.sort();
        if listed != known {
            let detail = format!("expected {}, got {}", known.join(" "), listed.join(" "));
            self.context.wrong_content("readdir", &detail);
        }
    }

    pub(super) fn stat(&mut self, i: usize) {
        // A time no clock will ever give by itself; whole seconds, because some file systems keep no more.
        let seconds = 1_000_000_000 + self.context.rng.below(500_000_000);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = &self.files[i].file;
        let meta = self.context.op(STAT, || file.set_modified(time).and_then(|()| file.metadata()));
        match meta {
            Ok(meta) => {
                let want = (self.files[i].blocks.len() * BLOCK) as u64;
                if meta.len() != want {
                    let detail = format!("size: expected {want}, got {}", meta.len());
                    self.context.wrong_content("stat", &detail);
                }
                if meta.mtime() != seconds as i64 {
                    let detail = format!("time of change: set to {seconds}, got {}", meta.mtime());
                    self.context.wrong_content("stat", &detail);
                }
            }
            Err(error) => self.judge("stat", "an open file", &error),
        }
    }
}
