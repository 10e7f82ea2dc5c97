//! What long-lived processes hold: open and removed files, locks, sockets and pipes with data in them, watches, timers, maps, and
//! threads that wait for something that seldom comes.

// SAFETY, for every `unsafe` block here: system calls on values, descriptors and buffers that belong to the held thing alone, with
// lengths taken from those buffers.
#![allow(clippy::undocumented_unsafe_blocks)]

use crate::sys;
use crate::work::Rng;
use crate::work::madvise::stamp_file;
use crate::work::region::{Backing, PAGE, Region};
use crate::work::units::{Outcome, Trouble, call, demand, fails};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, mpsc};

/// One thing held.
pub(super) trait Held {
    /// Whether it still is what it was; on the way it is used a little.
    fn check(&mut self, rng: &mut Rng) -> Outcome;
}

/// Takes a thing; its folder is the process's own.
type Take = fn(&Path, &mut Rng) -> Result<Box<dyn Held>, Trouble>;

pub(super) const KINDS: &[(&str, Take)] = &[
    ("an open file", |dir, rng| OldFile::take(dir.join("open"), false, rng)),
    ("a removed file", |dir, rng| OldFile::take(dir.join("removed"), true, rng)),
    ("a removed file", |dir, rng| OldFile::take(dir.join("removed-too"), true, rng)),
    ("a file lock", Lock::take),
    ("a pair of sockets", socket_pair),
    ("a named socket", named_socket),
    ("a connection to ourselves", connection),
    ("a pipe", pipe),
    ("an event counter", Events::take),
    ("a watch", Watch::take),
    ("a timer", Timer::take),
    ("locked memory", locked_memory),
    ("shared memory", shared_memory),
    ("a file map", file_map),
    ("System V memory", SysV::take),
    ("a thread in futex", |_, _| FutexThread::take()),
    ("a thread in poll", |_, _| PollThread::take()),
    ("a thread in nanosleep", |_, _| sleeping_thread()),
];

fn trouble(name: &'static str) -> impl Fn(io::Error) -> Trouble {
    move |e| match e.raw_os_error() {
        Some(errno) => Trouble::Errno(name, errno),
        None => Trouble::Wrong(name, e.to_string()),
    }
}

/// Of data that must be waiting: that there is none is no want of resources, but a loss.
fn must_wait(name: &'static str) -> impl Fn(io::Error) -> Trouble {
    move |e| match e.kind() {
        io::ErrorKind::WouldBlock => Trouble::Wrong(name, "what was waiting is gone".into()),
        _ => trouble(name)(e),
    }
}

fn descriptor(name: &'static str, value: i32) -> Result<OwnedFd, Trouble> {
    call(name, value).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// An open file of one block, perhaps removed from its folder.
struct OldFile {
    file: File,
    removed: bool,
    content: [u8; PAGE],
}

impl OldFile {
    fn take(path: PathBuf, removed: bool, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let mut old = Self { file: file.map_err(trouble("open"))?, removed, content: [0; PAGE] };
        old.write(rng)?;
        if removed {
            fs::remove_file(&path).map_err(trouble("unlink"))?;
        }
        Ok(Box::new(old))
    }

    fn write(&mut self, rng: &mut Rng) -> Outcome {
        self.content.fill(rng.next() as u8);
        self.file.write_all_at(&self.content, 0).map_err(trouble("pwrite"))
    }
}

impl Held for OldFile {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        let mut got = [0u8; PAGE];
        self.file.read_exact_at(&mut got, 0).map_err(trouble("pread"))?;
        demand("pread", got == self.content, || "its content changed".into())?;
        let meta = self.file.metadata().map_err(trouble("fstat"))?;
        let links = u64::from(!self.removed);
        demand("fstat", meta.nlink() == links && meta.len() == PAGE as u64, || {
            format!("{} links and {} bytes, expected {links} and {PAGE}", meta.nlink(), meta.len())
        })?;
        if rng.one_in(4) { self.write(rng) } else { Ok(()) }
    }
}

/// A file locked by both kinds of lock.
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    fn take(dir: &Path, _: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        let path = dir.join("lock");
        let file = File::create_new(&path).map_err(trouble("open"))?;
        let lock = Self { file, path };
        call("flock", unsafe { libc::flock(lock.file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
        lock.range(libc::F_WRLCK, 0)?;
        Ok(Box::new(lock))
    }

    /// Locks or unlocks one byte.
    fn range(&self, kind: i32, byte: i64) -> Outcome {
        let mut range: libc::flock = unsafe { zeroed() };
        (range.l_type, range.l_start, range.l_len) = (kind as i16, byte, 1);
        call("fcntl-lock", unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLK, &raw const range) })
            .map(drop)
    }
}

impl Held for Lock {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        // Another open file of the same name is another owner to `flock`. (Closing it ends the ranges locked, as the rules have it.)
        let other = File::open(&self.path).map_err(trouble("open"))?;
        fails("flock", libc::EAGAIN, unsafe {
            libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB)
        })?;
        drop(other);
        let byte = 1 + rng.below(100) as i64;
        self.range(libc::F_WRLCK, 0)?;
        self.range(libc::F_WRLCK, byte)?;
        self.range(libc::F_UNLCK, byte)
    }
}

/// Two ends with data on the way.
struct Stream {
    name: &'static str,
    to: Box<dyn Write>,
    from: Box<dyn Read>,
    /// What must come out next.
    waiting: Vec<u8>,
    /// Whatever else must stay open.
    _also: Option<OwnedFd>,
}

impl Stream {
    fn take(
        name: &'static str,
        to: impl Write + 'static,
        from: impl Read + 'static,
        also: Option<OwnedFd>,
        rng: &mut Rng,
    ) -> Result<Box<dyn Held>, Trouble> {
        let (to, from) = (Box::new(to), Box::new(from));
        let mut stream = Self { name, to, from, waiting: Vec::new(), _also: also };
        stream.send(rng)?;
        Ok(Box::new(stream))
    }

    fn send(&mut self, rng: &mut Rng) -> Outcome {
        let len = 1 + rng.index(2000);
        self.waiting = vec![rng.next() as u8; len];
        self.to.write_all(&self.waiting).map_err(trouble(self.name))
    }
}

impl Held for Stream {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        let mut got = vec![0u8; self.waiting.len()];
        self.from.read_exact(&mut got).map_err(must_wait(self.name))?;
        demand(self.name, got == self.waiting, || format!("{} bytes waited, others came", got.len()))?;
        self.send(rng)
    }
}

fn socket_pair(_: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    let (to, from) = UnixStream::pair().map_err(trouble("socketpair"))?;
    Stream::take("unix-stream", to, from, None, rng)
}

fn named_socket(dir: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    // By a descriptor of the folder: a socket's path has room for some hundred bytes only.
    let folder = File::open(dir).map_err(trouble("open"))?;
    let path = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
    let listener = UnixListener::bind(&path).map_err(trouble("unix-bind"))?;
    let to = UnixStream::connect(&path).map_err(trouble("unix-connect"))?;
    let (from, _) = listener.accept().map_err(trouble("unix-accept"))?;
    Stream::take("unix-stream", to, from, Some(listener.into()), rng)
}

fn connection(_: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(trouble("tcp-bind"))?;
    let address = listener.local_addr().map_err(trouble("getsockname"))?;
    let to = TcpStream::connect(address).map_err(trouble("tcp-connect"))?;
    let (from, _) = listener.accept().map_err(trouble("tcp-accept"))?;
    Stream::take("tcp-stream", to, from, Some(listener.into()), rng)
}

fn pipe(_: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    let (from, to) = sys::pipe().map_err(trouble("pipe2"))?;
    Stream::take("pipe", File::from(to), File::from(from), None, rng)
}

/// An eventfd watched by an epoll.
struct Events {
    events: OwnedFd,
    epoll: OwnedFd,
    count: u64,
}

impl Events {
    fn take(_: &Path, _: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
        let events = descriptor("eventfd", unsafe { libc::eventfd(3, flags) })?;
        let epoll = descriptor("epoll_create1", unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let mut wanted = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
        call("epoll_ctl", unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, events.as_raw_fd(), &raw mut wanted)
        })?;
        Ok(Box::new(Self { events, epoll, count: 3 }))
    }
}

impl Held for Events {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        let mut ready = libc::epoll_event { events: 0, u64: 0 };
        let n =
            call("epoll_wait", unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut ready, 1, 0) })?;
        let word = ready.u64;
        demand("epoll_wait", n == 1 && word == 77, || {
            format!("{n} events with word {word}, expected one with 77")
        })?;
        let mut eight = [0u8; 8];
        sys::read_some(&self.events, &mut eight).map_err(must_wait("eventfd"))?;
        let got = u64::from_ne_bytes(eight);
        demand("eventfd", got == self.count, || format!("counted {got}, expected {}", self.count))?;
        self.count = 1 + rng.below(1000);
        sys::write_some(&self.events, &self.count.to_ne_bytes()).map_err(trouble("eventfd")).map(drop)
    }
}

/// An inotify watch on a folder of its own.
struct Watch {
    inotify: OwnedFd,
    folder: PathBuf,
}

impl Watch {
    fn take(dir: &Path, _: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        let folder = dir.join("watched");
        fs::create_dir(&folder).map_err(trouble("mkdir"))?;
        let flags = libc::IN_CLOEXEC | libc::IN_NONBLOCK;
        let inotify = descriptor("inotify_init1", unsafe { libc::inotify_init1(flags) })?;
        let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes())
            .map_err(|_| Trouble::Errno("inotify_add_watch", libc::EINVAL))?;
        call("inotify_add_watch", unsafe {
            libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), libc::IN_CREATE)
        })?;
        Ok(Box::new(Self { inotify, folder }))
    }
}

impl Held for Watch {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        let name = format!("n{}", rng.below(1000));
        let path = self.folder.join(&name);
        File::create_new(&path).map_err(trouble("open"))?;
        let told = (|| {
            let mut buffer = [0u8; 512];
            let n = sys::read_some(&self.inotify, &mut buffer).map_err(must_wait("inotify"))?;
            // The name stands behind four words.
            let told = buffer[..n].get(16..).and_then(|b| b.split(|&b| b == 0).next()).unwrap_or(&[]);
            demand("inotify", told == name.as_bytes(), || {
                format!("{name} was made, {n} bytes tell of another")
            })
        })();
        fs::remove_file(&path).map_err(trouble("unlink"))?;
        told
    }
}

/// A POSIX timer that is armed for long and tells nobody.
struct Timer(libc::timer_t);

const TIMER_S: i64 = 1_000_000;

impl Timer {
    fn take(_: &Path, _: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        unsafe {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_NONE;
            let mut timer: libc::timer_t = zeroed();
            call("timer_create", libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer))?;
            let mut time: libc::itimerspec = zeroed();
            time.it_value.tv_sec = TIMER_S;
            call("timer_settime", libc::timer_settime(timer, 0, &raw const time, std::ptr::null_mut()))?;
            Ok(Box::new(Self(timer)))
        }
    }
}

impl Held for Timer {
    fn check(&mut self, _: &mut Rng) -> Outcome {
        let mut time: libc::itimerspec = unsafe { zeroed() };
        call("timer_gettime", unsafe { libc::timer_gettime(self.0, &raw mut time) })?;
        let left = time.it_value.tv_sec;
        demand("timer_gettime", (1..=TIMER_S).contains(&left), || format!("{left} s left of {TIMER_S}"))
    }
}

/// Memory of which each page has a stamp.
struct Map(Region);

impl Map {
    fn take(region: Result<Region, i32>, write: bool, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        let mut region = region.map_err(|errno| Trouble::Errno("mmap", errno))?;
        let pages = region.len();
        (0..pages).filter(|_| write).for_each(|page| region.write(page, rng.next()));
        Ok(Box::new(Self(region)))
    }
}

impl Held for Map {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        for _ in 0..4 {
            let page = rng.index(self.0.len());
            self.0.check(page, rng).map_err(|detail| Trouble::Wrong("memory", detail))?;
        }
        let page = rng.index(self.0.len());
        self.0.write(page, rng.next());
        Ok(())
    }
}

/// Pages of a map, and of the little of it that is locked.
const MAP: usize = 64;
const LOCKED: usize = 4;

fn locked_memory(_: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    let region = Region::map(None, MAP, Backing::Anon, None);
    if let Ok(region) = &region {
        call("mlock", unsafe { libc::mlock(region.base as *const libc::c_void, LOCKED * PAGE) })?;
    }
    Map::take(region, true, rng)
}

fn shared_memory(_: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    let file = sys::memfd(c"klpfarm-held").map_err(trouble("memfd_create"))?;
    sys::ftruncate(&file, (MAP * PAGE) as i64).map_err(trouble("ftruncate"))?;
    Map::take(Region::map(None, MAP, Backing::Shared, Some((file.as_fd(), 0))), true, rng)
}

fn file_map(dir: &Path, rng: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
    let file = File::options().read(true).write(true).create_new(true).open(dir.join("map"));
    let file = OwnedFd::from(file.map_err(trouble("open"))?);
    stamp_file(&file, MAP).map_err(trouble("write"))?;
    Map::take(Region::map(None, MAP, Backing::FilePrivate, Some((file.as_fd(), 0))), false, rng)
}

/// System V shared memory, removed by name and kept by its attachment, so that nothing is left behind.
struct SysV {
    word: &'static AtomicU32,
    value: u32,
}

impl SysV {
    fn take(_: &Path, _: &mut Rng) -> Result<Box<dyn Held>, Trouble> {
        unsafe {
            let id =
                call("shmget", libc::shmget(libc::IPC_PRIVATE, MAP * PAGE, libc::IPC_CREAT | 0o600))? as i32;
            let at = libc::shmat(id, std::ptr::null(), 0);
            let attached = call("shmat", at as i64);
            call("shmctl", libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()))?;
            attached?;
            Ok(Box::new(Self { word: &*at.cast::<AtomicU32>(), value: 0 }))
        }
    }
}

impl Held for SysV {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        let got = self.word.load(SeqCst);
        demand("shmat", got == self.value, || format!("holds {got:#x}, expected {:#x}", self.value))?;
        self.value = rng.next() as u32;
        self.word.store(self.value, SeqCst);
        Ok(())
    }
}

/// Starts a thread that ends with the process.
fn thread(body: impl FnOnce() + Send + 'static) -> Result<(), Trouble> {
    std::thread::Builder::new().stack_size(64 << 10).spawn(body).map(drop).map_err(trouble("clone"))
}

/// A thread that sleeps until a word changes, for minutes on end. A wake that is lost never ends, and shows as a thread without
/// progress.
struct FutexThread {
    word: Arc<AtomicU32>,
    awake: mpsc::Receiver<()>,
}

/// Checks that leave a waiting thread asleep, for each that wakes it.
const SELDOM: u64 = 8;

impl FutexThread {
    fn take() -> Result<Box<dyn Held>, Trouble> {
        let word = Arc::new(AtomicU32::new(0));
        let (tell, awake) = mpsc::channel();
        let theirs = Arc::clone(&word);
        thread(move || {
            let mut last = 0;
            loop {
                while theirs.load(SeqCst) == last {
                    let at = theirs.as_ptr();
                    // Whatever it returns, the word decides.
                    unsafe { libc::syscall(libc::SYS_futex, at, libc::FUTEX_WAIT, last, 0usize) };
                }
                last = theirs.load(SeqCst);
                if tell.send(()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Box::new(Self { word, awake }))
    }
}

impl Held for FutexThread {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        if !rng.one_in(SELDOM) {
            return Ok(());
        }
        self.word.fetch_add(1, SeqCst);
        call("futex", unsafe { libc::syscall(libc::SYS_futex, self.word.as_ptr(), libc::FUTEX_WAKE, 1) })?;
        self.awake.recv().map_err(|_| Trouble::Wrong("futex", "the waiting thread is gone".into()))
    }
}

/// A thread that waits in poll for a pipe.
struct PollThread {
    to: OwnedFd,
    awake: mpsc::Receiver<Result<u8, i32>>,
}

impl PollThread {
    fn take() -> Result<Box<dyn Held>, Trouble> {
        let (from, to) = sys::pipe().map_err(trouble("pipe2"))?;
        let (tell, awake) = mpsc::channel();
        thread(move || {
            loop {
                let mut entry = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                if unsafe { libc::poll(&raw mut entry, 1, -1) } == -1 && sys::errno() == libc::EINTR {
                    continue;
                }
                let mut byte = [0u8];
                let read = sys::read_some(&from, &mut byte);
                let read = read.map(|_| byte[0]).map_err(|e| e.raw_os_error().unwrap_or(0));
                if tell.send(read).is_err() {
                    return;
                }
            }
        })?;
        Ok(Box::new(Self { to, awake }))
    }
}

impl Held for PollThread {
    fn check(&mut self, rng: &mut Rng) -> Outcome {
        if !rng.one_in(SELDOM) {
            return Ok(());
        }
        let byte = rng.next() as u8;
        sys::write_some(&self.to, &[byte]).map_err(trouble("write"))?;
        match self.awake.recv() {
            Ok(Ok(got)) => demand("poll", got == byte, || format!("{byte} was sent, {got} came")),
            Ok(Err(errno)) => Err(Trouble::Errno("poll", errno)),
            Err(_) => Err(Trouble::Wrong("poll", "the waiting thread is gone".into())),
        }
    }
}

/// A thread that sleeps for an hour at a time, and has nothing else to tell.
struct Sleeper;

impl Held for Sleeper {
    fn check(&mut self, _: &mut Rng) -> Outcome {
        Ok(())
    }
}

fn sleeping_thread() -> Result<Box<dyn Held>, Trouble> {
    thread(|| {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
    })?;
    Ok(Box::new(Sleeper))
}
