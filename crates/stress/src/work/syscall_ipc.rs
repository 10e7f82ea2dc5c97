//! Units of [`super::syscall_mix`] that carry data: pipes, sockets, events, SysV and POSIX IPC, copies in the kernel.

// SAFETY, for every `unsafe` block here: system calls on values, descriptors and buffers that belong to this unit alone,
// with lengths taken from those buffers.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::Rng;
use super::syscall_mix::*;
use super::syscall_units::Fd;
use super::units::*;
use crate::sys;
use std::io::{Read, Write};
use std::mem::zeroed;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

pub(super) static UNITS: &[Unit] = &[
    Unit { kind: PIPE, run: pipe },
    Unit { kind: PIPE, run: pipe_errors },
    Unit { kind: SOCKET, run: socket_pair },
    Unit { kind: SOCKET, run: tcp },
    Unit { kind: SOCKET, run: udp },
    Unit { kind: SOCKET, run: unix_named },
    Unit { kind: POLL, run: poll },
    Unit { kind: POLL, run: epoll },
    Unit { kind: EVENT, run: event_descriptor },
    Unit { kind: EVENT, run: inotify },
    Unit { kind: IPC, run: shared_memory },
    Unit { kind: IPC, run: messages },
    Unit { kind: IPC, run: semaphores },
    Unit { kind: IPC, run: posix_queue },
    Unit { kind: IPC, run: keys },
    Unit { kind: COPY, run: send_file },
    Unit { kind: COPY, run: splice },
];

pub(super) fn pattern(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len.div_ceil(8)).flat_map(|_| rng.next().to_ne_bytes()).take(len).collect()
}

pub(super) fn pipes() -> Result<(Fd, Fd), Trouble> {
    let mut fds = [0; 2];
    call("pipe2", unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    Ok((Fd(fds[0]), Fd(fds[1])))
}

pub(super) fn write(name: &'static str, fd: i32, data: &[u8]) -> Outcome {
    let n = call(name, unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) } as i64)?;
    demand(name, n as usize == data.len(), || format!("{n} of {} bytes", data.len()))
}

/// Reads exactly what was sent.
pub(super) fn read(name: &'static str, fd: i32, data: &[u8]) -> Outcome {
    let mut back = vec![0u8; data.len()];
    let mut got = 0;
    while got < back.len() {
        match call(name, unsafe { libc::read(fd, back[got..].as_mut_ptr().cast(), back.len() - got) } as i64)?
        {
            0 => break,
            n => got += n as usize,
        }
    }
    demand(name, back == data, || format!("{} bytes sent, {got} arrived, content compared", data.len()))
}

fn pipe(rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(8192);
    let data = pattern(rng, len);
    let (from, to) = pipes()?;
    write("pipe-write", to.0, &data)?;
    read("pipe-read", from.0, &data)
}

fn pipe_errors(_: &mut Rng) -> Outcome {
    let (from, to) = pipes()?;
    let mut byte = 0u8;
    fails("pipe-read", libc::EAGAIN, unsafe { libc::read(from.0, (&raw mut byte).cast(), 1) } as i64)?;
    drop(from);
    // SIGPIPE is ignored in this program.
    fails("pipe-write", libc::EPIPE, unsafe { libc::write(to.0, (&raw const byte).cast(), 1) } as i64)
}

fn socket_pair(rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(4096);
    let data = pattern(rng, len);
    let kind = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET][rng.index(3)];
    let mut fds = [0; 2];
    unsafe {
        call("socketpair", libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()))?;
        let (a, b) = (Fd(fds[0]), Fd(fds[1]));
        write("unix-send", a.0, &data)?;
        read("unix-receive", b.0, &data)?;
        let (mut value, mut size) = (0i32, 4u32);
        call(
            "getsockopt",
            libc::getsockopt(a.0, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut value).cast(), &raw mut size),
        )?;
        demand("getsockopt", value == kind, || format!("type {value} of a socket of type {kind}"))?;
        call("shutdown", libc::shutdown(a.0, libc::SHUT_RDWR))?;
    }
    Ok(())
}

pub(super) fn trouble(name: &'static str) -> impl Fn(std::io::Error) -> Trouble {
    move |e| match (e.raw_os_error(), e.kind()) {
        (Some(errno), _) => Trouble::Errno(name, errno),
        (None, _) => Trouble::Wrong(name, e.to_string()),
    }
}

fn tcp(rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(16_384);
    let data = pattern(rng, len);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(trouble("tcp-listen"))?;
    let address = listener.local_addr().map_err(trouble("getsockname"))?;
    let mut client = TcpStream::connect(address).map_err(trouble("tcp-connect"))?;
    let (mut server, _) = listener.accept().map_err(trouble("tcp-accept"))?;
    let mut back = vec![0; len];
    client.write_all(&data).map_err(trouble("tcp-send"))?;
    server.read_exact(&mut back).map_err(trouble("tcp-receive"))?;
    server.write_all(&back).map_err(trouble("tcp-send"))?;
    back.fill(0);
    client.read_exact(&mut back).map_err(trouble("tcp-receive"))?;
    demand("tcp-receive", back == data, || format!("{len} bytes came back changed"))?;
    server.shutdown(std::net::Shutdown::Write).map_err(trouble("shutdown"))?;
    let end = client.read(&mut back).map_err(trouble("tcp-receive"))?;
    // Reset instead of closed: thousands of sockets in TIME_WAIT would use up the ports.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as u32;
    call("setsockopt", unsafe {
        libc::setsockopt(
            client.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size,
        )
    })?;
    demand("tcp-receive", end == 0, || format!("{end} bytes after the end"))
}

/// Datagrams may be lost even here when memory is short: only what arrives is judged.
fn udp(rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(1400);
    let data = pattern(rng, len);
    let a = UdpSocket::bind("127.0.0.1:0").map_err(trouble("udp-bind"))?;
    let b = UdpSocket::bind("127.0.0.1:0").map_err(trouble("udp-bind"))?;
    b.set_nonblocking(true).map_err(trouble("fcntl"))?;
    let to = b.local_addr().map_err(trouble("getsockname"))?;
    let n = a.send_to(&data, to).map_err(trouble("udp-send"))?;
    demand("udp-send", n == len, || format!("{n} of {len} bytes"))?;
    let mut back = vec![0; 2000];
    match b.recv_from(&mut back) {
        Ok((n, _)) => demand("udp-receive", back[..n] == data, || format!("{len} bytes sent, {n} arrived")),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(trouble("udp-receive")(e)),
    }
}

fn unix_named(rng: &mut Rng) -> Outcome {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let name = format!("klpfarm-mix-{}-{}-{}", std::process::id(), sys::tid(), rng.next());
    let address = SocketAddr::from_abstract_name(name).map_err(trouble("unix-bind"))?;
    let listener = UnixListener::bind_addr(&address).map_err(trouble("unix-bind"))?;
    let again = UnixListener::bind_addr(&address).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
    demand("unix-bind", again == libc::EADDRINUSE, || {
        format!("a name in use was bound again: {}", sys::errno_name(again))
    })?;
    let mut client = UnixStream::connect_addr(&address).map_err(trouble("unix-connect"))?;
    let (mut server, _) = listener.accept().map_err(trouble("unix-accept"))?;
    let data = pattern(rng, 100);
    let mut back = [0; 100];
    client.write_all(&data).map_err(trouble("unix-send"))?;
    server.read_exact(&mut back).map_err(trouble("unix-receive"))?;
    demand("unix-receive", back[..] == data[..], || "content compared".into())
}

fn poll(_: &mut Rng) -> Outcome {
    let (from, to) = pipes()?;
    unsafe {
        let mut fds = [
            libc::pollfd { fd: from.0, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: to.0, events: libc::POLLOUT, revents: 0 },
        ];
        let n = call("poll", libc::poll(fds.as_mut_ptr(), 2, 0))?;
        let right = n == 1 && fds[0].revents == 0 && fds[1].revents == libc::POLLOUT;
        demand("poll", right, || format!("{n} ready; {:#x}, {:#x}", fds[0].revents, fds[1].revents))?;
        write("pipe-write", to.0, b"x")?;
        let n = call("poll", libc::poll(fds.as_mut_ptr(), 1, 60_000))?;
        demand("poll", n == 1 && fds[0].revents == libc::POLLIN, || {
            format!("{n} ready; {:#x}", fds[0].revents)
        })?;
        let mut set: libc::fd_set = zeroed();
        if (from.0 as usize) < libc::FD_SETSIZE {
            libc::FD_SET(from.0, &raw mut set);
            let mut now = libc::timeval { tv_sec: 0, tv_usec: 0 };
            let null = std::ptr::null_mut();
            let n = call("select", libc::select(from.0 + 1, &raw mut set, null, null, &raw mut now))?;
            demand("select", n == 1 && libc::FD_ISSET(from.0, &raw const set), || format!("{n} ready"))?;
        }
    }
    Ok(())
}

fn epoll(rng: &mut Rng) -> Outcome {
    let (from, to) = pipes()?;
    let mark = rng.next();
    unsafe {
        let set = Fd::new("epoll_create", libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: mark };
        call("epoll_ctl", libc::epoll_ctl(set.0, libc::EPOLL_CTL_ADD, from.0, &raw mut event))?;
        fails(
            "epoll_ctl",
            libc::EEXIST,
            libc::epoll_ctl(set.0, libc::EPOLL_CTL_ADD, from.0, &raw mut event),
        )?;
        let mut got: [libc::epoll_event; 4] = zeroed();
        let n = call("epoll_wait", libc::epoll_wait(set.0, got.as_mut_ptr(), 4, 0))?;
        demand("epoll_wait", n == 0, || format!("{n} ready on an empty pipe"))?;
        write("pipe-write", to.0, b"x")?;
        let n = call("epoll_wait", libc::epoll_wait(set.0, got.as_mut_ptr(), 4, 60_000))?;
        let data = got[0].u64;
        demand("epoll_wait", n == 1 && data == mark, || format!("{n} ready, mark {data:#x} for {mark:#x}"))?;
        call("epoll_ctl", libc::epoll_ctl(set.0, libc::EPOLL_CTL_DEL, from.0, std::ptr::null_mut()))?;
        fails("epoll_ctl", libc::ENOENT, libc::epoll_ctl(set.0, libc::EPOLL_CTL_DEL, from.0, &raw mut event))
    }
}

fn event_descriptor(rng: &mut Rng) -> Outcome {
    let (a, b) = (1 + rng.below(1000), 1 + rng.below(1000));
    unsafe {
        let fd = Fd::new("eventfd", libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?;
        let mut value = 0u64;
        fails("eventfd-read", libc::EAGAIN, libc::read(fd.0, (&raw mut value).cast(), 8) as i64)?;
        write("eventfd-write", fd.0, &a.to_ne_bytes())?;
        write("eventfd-write", fd.0, &b.to_ne_bytes())?;
        read("eventfd-read", fd.0, &(a + b).to_ne_bytes())
    }
}

fn inotify(_: &mut Rng) -> Outcome {
    let dir = format!("/var/tmp/klpfarm-watch-{}-{}", std::process::id(), sys::tid());
    // A killed run may have left its folder to a later process of the same number.
    let _ = std::fs::remove_file(format!("{dir}/new"));
    std::fs::create_dir_all(&dir).map_err(trouble("mkdirat"))?;
    let outcome = watch(&dir);
    let _ = std::fs::remove_file(format!("{dir}/new"));
    std::fs::remove_dir(&dir).map_err(trouble("rmdir"))?;
    outcome
}

fn watch(dir: &str) -> Outcome {
    let c_dir = std::ffi::CString::new(dir).map_err(|_| Trouble::Errno("mkdirat", libc::EINVAL))?;
    unsafe {
        let fd = Fd::new("inotify_init", libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK))?;
        call("inotify_add_watch", libc::inotify_add_watch(fd.0, c_dir.as_ptr(), libc::IN_CREATE))?;
        std::fs::File::create(format!("{dir}/new")).map_err(trouble("openat"))?;
        let mut space = [0u64; 64];
        let n = call("inotify-read", libc::read(fd.0, space.as_mut_ptr().cast(), 512) as i64)?;
        let event = space.as_ptr().cast::<libc::inotify_event>().read_unaligned();
        let right = n >= 16 && event.mask & libc::IN_CREATE != 0;
        demand("inotify", right, || format!("{n} bytes, event {:#x} for a created file", event.mask))
    }
}

fn shared_memory(rng: &mut Rng) -> Outcome {
    let (value, len) = (rng.next(), 4096 * (1 + rng.index(8)));
    unsafe {
        let id = call("shmget", libc::shmget(libc::IPC_PRIVATE, len, 0o600 | libc::IPC_CREAT))? as i32;
        let p = libc::shmat(id, std::ptr::null(), 0);
        let attached = call("shmat", p as i64);
        // Marked now, it goes with its last user, whatever becomes of us.
        let marked = call("shmctl", libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()));
        attached?;
        let words = std::slice::from_raw_parts_mut(p.cast::<u64>(), len / 8);
        let fresh = words[0] | words[len / 8 - 1];
        words[0] = value;
        let kept = words[0];
        call("shmdt", libc::shmdt(p))?;
        marked?;
        demand("shmat", fresh == 0 && kept == value, || {
            format!("fresh {fresh:#x}, wrote {value:#x}, read {kept:#x}")
        })
    }
}

fn messages(rng: &mut Rng) -> Outcome {
    let (sent, mut got) = ([7u64, rng.next(), rng.next()], [0u64; 3]);
    unsafe {
        let id = call("msgget", libc::msgget(libc::IPC_PRIVATE, 0o600 | libc::IPC_CREAT))? as i32;
        let sends = call("msgsnd", libc::msgsnd(id, sent.as_ptr().cast(), 16, libc::IPC_NOWAIT));
        let takes = call("msgrcv", libc::msgrcv(id, got.as_mut_ptr().cast(), 16, 7, libc::IPC_NOWAIT) as i64);
        let empty = fails(
            "msgrcv",
            libc::ENOMSG,
            libc::msgrcv(id, got.as_mut_ptr().cast(), 16, 8, libc::IPC_NOWAIT) as i64,
        );
        call("msgctl", libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()))?;
        sends?;
        let n = takes?;
        empty?;
        demand("msgrcv", n == 16 && got == sent, || format!("{n} of 16 bytes, content compared"))
    }
}

fn semaphores(_: &mut Rng) -> Outcome {
    let step = |id, by: i16| unsafe {
        let mut step = libc::sembuf { sem_num: 0, sem_op: by, sem_flg: libc::IPC_NOWAIT as i16 };
        libc::semop(id, &raw mut step, 1)
    };
    unsafe {
        let id = call("semget", libc::semget(libc::IPC_PRIVATE, 1, 0o600 | libc::IPC_CREAT))? as i32;
        let early = fails("semop", libc::EAGAIN, step(id, -1));
        let up = call("semop", step(id, 2));
        let down = call("semop", step(id, -1));
        let value = call("semctl", libc::semctl(id, 0, libc::GETVAL));
        call("semctl", libc::semctl(id, 0, libc::IPC_RMID))?;
        early?;
        up?;
        down?;
        let value = value?;
        demand("semctl", value == 1, || format!("value {value} after +2 -1"))
    }
}

fn posix_queue(rng: &mut Rng) -> Outcome {
    let name = format!("/klpfarm-{}-{}\0", std::process::id(), sys::tid());
    let (sent, mut got) = (rng.next().to_ne_bytes(), [0u8; 64]);
    unsafe {
        let mut limits: libc::mq_attr = zeroed();
        (limits.mq_maxmsg, limits.mq_msgsize) = (2, 64);
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let fd = Fd::new("mq_open", libc::mq_open(name.as_ptr().cast(), flags, 0o600, &raw mut limits))?;
        call("mq_unlink", libc::mq_unlink(name.as_ptr().cast()))?;
        call("mq_send", libc::mq_send(fd.0, sent.as_ptr().cast(), 8, 3))?;
        let mut priority = 0;
        let n = call(
            "mq_receive",
            libc::mq_receive(fd.0, got.as_mut_ptr().cast(), 64, &raw mut priority) as i64,
        )?;
        let right = n == 8 && got[..8] == sent && priority == 3;
        demand("mq_receive", right, || format!("{n} of 8 bytes, priority {priority} of 3, content compared"))
    }
}

fn keys(rng: &mut Rng) -> Outcome {
    const PROCESS_KEYRING: i64 = -2;
    const KEYCTL_READ: i64 = 11;
    const KEYCTL_UNLINK: i64 = 9;
    let sent = rng.next().to_ne_bytes();
    let mut got = [0u8; 8];
    unsafe {
        let (kind, name) = (c"user".as_ptr(), c"klpfarm-mix".as_ptr());
        let id =
            call("add_key", libc::syscall(libc::SYS_add_key, kind, name, sent.as_ptr(), 8, PROCESS_KEYRING))?;
        let n = call("keyctl-read", libc::syscall(libc::SYS_keyctl, KEYCTL_READ, id, got.as_mut_ptr(), 8));
        let gone = call("keyctl-unlink", libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, id, PROCESS_KEYRING));
        let n = n?;
        gone?;
        demand("keyctl-read", n == 8 && got == sent, || format!("{n} of 8 bytes, content compared"))
    }
}

fn source(data: &[u8]) -> Result<std::os::fd::OwnedFd, Trouble> {
    let file = sys::memfd(c"klpfarm-copy").map_err(trouble("memfd_create"))?;
    write("write", file.as_raw_fd(), data)?;
    Ok(file)
}

fn send_file(rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(20_000);
    let data = pattern(rng, len);
    let (from, to) = (source(&data)?, source(&[])?);
    let mut at = 0i64;
    while (at as usize) < len {
        let left = len - at as usize;
        let n =
            call("sendfile", unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut at, left) }
                as i64)?;
        demand("sendfile", n > 0, || format!("nothing sent with {left} bytes left"))?;
    }
    call("lseek", unsafe { libc::lseek(to.as_raw_fd(), 0, libc::SEEK_SET) })?;
    read("sendfile", to.as_raw_fd(), &data)
}

fn splice(rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(4096);
    let data = pattern(rng, len);
    let from = source(&data)?;
    let ((a_out, a_in), (b_out, b_in)) = (pipes()?, pipes()?);
    unsafe {
        let mut at = 0i64;
        let mut moved = 0;
        while moved < len {
            let n = libc::splice(from.as_raw_fd(), &raw mut at, a_in.0, std::ptr::null_mut(), len - moved, 0);
            let n = call("splice", n as i64)?;
            demand("splice", n > 0, || format!("{moved} of {len} bytes"))?;
            moved += n as usize;
        }
        let n = call("tee", libc::tee(a_out.0, b_in.0, len, 0) as i64)?;
        demand("tee", n as usize <= len && n > 0, || format!("{n} of {len} bytes"))?;
        read("tee", b_out.0, &data[..n as usize])?;
    }
    read("splice", a_out.0, &data)
}
