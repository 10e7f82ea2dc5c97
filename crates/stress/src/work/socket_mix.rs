//! `socket-mix`: sockets of many families and protocols on the loopback device. Whatever arrives is compared with what was sent.

// SAFETY, for every `unsafe` block here: system calls on values, descriptors and buffers that belong to this unit alone,
// with lengths taken from those buffers.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::syscall_ipc::{pattern, read, trouble, write};
use super::syscall_units::Fd;
use super::units::{self, Outcome, Trouble, Unit, call, demand};
use super::{Context, Rng, Stressor};
use crate::params::Params;
use crate::sys;
use std::mem::zeroed;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

pub(super) static STRESSOR: Stressor = Stressor {
    name: "socket-mix",
    about: "TCP, MPTCP, SCTP, UDP, raw, packet, vsock and Unix sockets with their contents verified",
    params: &[],
    processes: "1",
    threads: "1",
    nice: "0",
    singles: super::no_singles,
    kinds: &[
        "tcp",
        "multipath",
        "sctp",
        "time-wait",
        "udp",
        "raw",
        "packet",
        "vsock",
        "unix",
        "unix-descriptor",
        "unix-cycle",
        "option",
        "netlink",
        "yardstick",
    ],
    run,
    prepare,
    clean: super::nothing_to_clean,
};

const TCP: usize = 0;
const MULTIPATH: usize = 1;
const SCTP: usize = 2;
const TIME_WAIT: usize = 3;
const UDP: usize = 4;
const RAW: usize = 5;
const PACKET: usize = 6;
const VSOCK: usize = 7;
const UNIX: usize = 8;
const UNIX_DESCRIPTOR: usize = 9;
const UNIX_CYCLE: usize = 10;
const OPTION: usize = 11;
const NETLINK: usize = 12;

static UNITS: &[Unit] = &[
    Unit { kind: TCP, run: |rng| stream("tcp", Family::Four, libc::IPPROTO_TCP, rng) },
    Unit { kind: TCP, run: |rng| stream("tcp6", Family::Six, libc::IPPROTO_TCP, rng) },
    Unit { kind: MULTIPATH, run: |rng| stream("mptcp", Family::Four, libc::IPPROTO_MPTCP, rng) },
    Unit { kind: MULTIPATH, run: |rng| stream("mptcp6", Family::Six, libc::IPPROTO_MPTCP, rng) },
    Unit { kind: SCTP, run: |rng| stream("sctp", Family::Four, libc::IPPROTO_SCTP, rng) },
    Unit { kind: TIME_WAIT, run: time_wait },
    Unit { kind: UDP, run: |rng| datagram("udp6", "[::1]:0", rng) },
    Unit { kind: UDP, run: |rng| datagram("udp", "127.0.0.1:0", rng) },
    Unit { kind: RAW, run: echo },
    Unit { kind: PACKET, run: packet },
    Unit { kind: VSOCK, run: |rng| stream("vsock", Family::Vsock, 0, rng) },
    Unit { kind: UNIX, run: unix_stream },
    Unit { kind: UNIX_DESCRIPTOR, run: pass_descriptor },
    Unit { kind: UNIX_CYCLE, run: cycle },
    Unit { kind: OPTION, run: options },
    Unit { kind: NETLINK, run: netlink },
];

/// Modules that no socket call loads by itself. A guest without them has no such sockets, which the units learn.
fn prepare(_: &Params) -> Result<(), String> {
    for module in ["vsock_loopback", "sctp"] {
        let quiet = || Stdio::null();
        let _ = Command::new("modprobe").args(["-q", module]).stdout(quiet()).stderr(quiet()).status();
    }
    Ok(())
}

fn run(context: &mut Context<'_>) {
    let units: Vec<&Unit> = UNITS.iter().collect();
    units::run(context, &units);
}

/// Families with stream sockets.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Four,
    Six,
    Vsock,
}

impl Family {
    fn domain(self) -> i32 {
        match self {
            Self::Four => libc::AF_INET,
            Self::Six => libc::AF_INET6,
            Self::Vsock => libc::AF_VSOCK,
        }
    }

    /// The loopback address with a port of the kernel's choice; `to`: as a peer names it.
    fn address(self, to: bool) -> (libc::sockaddr_storage, u32) {
        unsafe {
            let mut storage: libc::sockaddr_storage = zeroed();
            let place = &raw mut storage;
            let size = match self {
                Self::Four => {
                    let a = place.cast::<libc::sockaddr_in>();
                    (*a).sin_family = libc::AF_INET as u16;
                    (*a).sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
                    size_of::<libc::sockaddr_in>()
                }
                Self::Six => {
                    let a = place.cast::<libc::sockaddr_in6>();
                    (*a).sin6_family = libc::AF_INET6 as u16;
                    (*a).sin6_addr.s6_addr[15] = 1;
                    size_of::<libc::sockaddr_in6>()
                }
                Self::Vsock => {
                    let a = place.cast::<libc::sockaddr_vm>();
                    (*a).svm_family = libc::AF_VSOCK as u16;
                    (*a).svm_port = libc::VMADDR_PORT_ANY;
                    (*a).svm_cid = if to { libc::VMADDR_CID_LOCAL } else { libc::VMADDR_CID_ANY };
                    size_of::<libc::sockaddr_vm>()
                }
            };
            (storage, size as u32)
        }
    }
}

/// Where a peer connects to reach the bound socket `fd`.
fn reached_at(fd: &Fd, family: Family) -> Result<(libc::sockaddr_storage, u32), Trouble> {
    let (mut bound, mut size) = family.address(false);
    call("getsockname", unsafe { libc::getsockname(fd.0, (&raw mut bound).cast(), &raw mut size) })?;
    if family == Family::Vsock {
        let port = unsafe { (*(&raw const bound).cast::<libc::sockaddr_vm>()).svm_port };
        let (mut to, size) = family.address(true);
        unsafe { (*(&raw mut to).cast::<libc::sockaddr_vm>()).svm_port = port };
        return Ok((to, size));
    }
    Ok((bound, size))
}

fn socket(name: &'static str, domain: i32, kind: i32, protocol: i32) -> Result<Fd, Trouble> {
    Fd::new(name, unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

fn listener(name: &'static str, family: Family, protocol: i32) -> Result<Fd, Trouble> {
    let fd = socket(name, family.domain(), libc::SOCK_STREAM, protocol)?;
    let (address, size) = family.address(false);
    call(name, unsafe { libc::bind(fd.0, (&raw const address).cast(), size) })?;
    call(name, unsafe { libc::listen(fd.0, 4) })?;
    Ok(fd)
}

fn accept(name: &'static str, server: &Fd) -> Result<Fd, Trouble> {
    let (nobody, no_size) = (std::ptr::null_mut(), std::ptr::null_mut());
    Fd::new(name, unsafe { libc::accept4(server.0, nobody, no_size, libc::SOCK_CLOEXEC) })
}

/// A connection, data both ways, and an orderly end.
fn stream(name: &'static str, family: Family, protocol: i32, rng: &mut Rng) -> Outcome {
    let server = listener(name, family, protocol)?;
    let (to, size) = reached_at(&server, family)?;
    let client = socket(name, family.domain(), libc::SOCK_STREAM, protocol)?;
    call(name, unsafe { libc::connect(client.0, (&raw const to).cast(), size) })?;
    let peer = accept(name, &server)?;
    for (from, to) in [(&client, &peer), (&peer, &client)] {
        let len = 1 + rng.index(12_000);
        let data = pattern(rng, len);
        write(name, from.0, &data)?;
        read(name, to.0, &data)?;
    }
    // The listening side ends first, so that the ports in TIME_WAIT are not those that later connections start from.
    call(name, unsafe { libc::shutdown(peer.0, libc::SHUT_WR) })?;
    let mut byte = 0u8;
    let end = call(name, unsafe { libc::read(client.0, (&raw mut byte).cast(), 1) } as i64)?;
    demand(name, end == 0, || format!("{end} bytes after the end"))?;
    reset_on_close(&client)
}

/// Reset instead of closed: thousands of sockets in TIME_WAIT would use up the ports.
fn reset_on_close(fd: &Fd) -> Outcome {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set(fd, libc::SO_LINGER, &linger)
}

fn set<T>(fd: &Fd, option: i32, value: &T) -> Outcome {
    let size = size_of::<T>() as u32;
    call("setsockopt", unsafe {
        libc::setsockopt(fd.0, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size)
    })
    .map(drop)
}

/// The same two ports again and again, while the connection before is in TIME_WAIT: the kernel may let the new one take its place
/// or refuse the address, by its age and settings.
fn time_wait(rng: &mut Rng) -> Outcome {
    let server = listener("time-wait", Family::Four, libc::IPPROTO_TCP)?;
    let (to, size) = reached_at(&server, Family::Four)?;
    let mut port = 0;
    for _ in 0..3 {
        let client = socket("time-wait", libc::AF_INET, libc::SOCK_STREAM, 0)?;
        set(&client, libc::SO_REUSEADDR, &1i32)?;
        let (mut own, own_size) = Family::Four.address(false);
        unsafe { (*(&raw mut own).cast::<libc::sockaddr_in>()).sin_port = port };
        let bound = unsafe { libc::bind(client.0, (&raw const own).cast(), own_size) };
        if bound == -1 && sys::errno() == libc::EADDRINUSE {
            return Ok(()); // somebody else has got the port meanwhile
        }
        call("time-wait-bind", bound)?;
        let (own, _) = reached_at(&client, Family::Four)?;
        port = unsafe { (*(&raw const own).cast::<libc::sockaddr_in>()).sin_port };
        let connected = unsafe { libc::connect(client.0, (&raw const to).cast(), size) };
        if connected == -1 && [libc::EADDRNOTAVAIL, libc::EADDRINUSE].contains(&sys::errno()) {
            continue;
        }
        call("time-wait-connect", connected)?;
        let peer = accept("time-wait-accept", &server)?;
        let data = pattern(rng, 64);
        write("time-wait", client.0, &data)?;
        read("time-wait", peer.0, &data)?;
        // The client ends first: it is its socket that stays in TIME_WAIT.
        call("time-wait", unsafe { libc::shutdown(client.0, libc::SHUT_WR) })?;
        let mut byte = 0u8;
        let end = call("time-wait", unsafe { libc::read(peer.0, (&raw mut byte).cast(), 1) } as i64)?;
        demand("time-wait", end == 0, || format!("{end} bytes after the end"))?;
        drop(peer);
        let end = call("time-wait", unsafe { libc::read(client.0, (&raw mut byte).cast(), 1) } as i64)?;
        demand("time-wait", end == 0, || format!("{end} bytes after the end"))?;
    }
    Ok(())
}

/// Datagrams may be lost even here when memory is short: only what arrives is judged.
fn datagram(name: &'static str, at: &str, rng: &mut Rng) -> Outcome {
    let len = 1 + rng.index(6000);
    let data = pattern(rng, len);
    let a = UdpSocket::bind(at).map_err(trouble(name))?;
    let b = UdpSocket::bind(at).map_err(trouble(name))?;
    b.set_nonblocking(true).map_err(trouble(name))?;
    a.connect(b.local_addr().map_err(trouble(name))?).map_err(trouble(name))?;
    let n = a.send(&data).map_err(trouble("udp-send"))?;
    demand(name, n == len, || format!("{n} of {len} bytes"))?;
    let mut back = vec![0; 8000];
    match b.recv_from(&mut back) {
        Ok((n, _)) => demand(name, back[..n] == data, || format!("{len} bytes sent, {n} arrived")),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(trouble(name)(e)),
    }
}

/// What `fd` has received and starts at `from` like `wanted`; nothing if it has not come.
fn arrived(name: &'static str, fd: &Fd, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>, Trouble> {
    let mut buffer = vec![0u8; 4096];
    for _ in 0..64 {
        let n = unsafe { libc::recv(fd.0, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        if n == -1 && sys::errno() == libc::EAGAIN {
            break;
        }
        let n = call(name, n as i64)? as usize;
        if wanted(&buffer[..n]) {
            return Ok(Some(buffer[..n].to_vec()));
        }
    }
    Ok(None)
}

/// An ICMP echo request and the kernel's own answer.
fn echo(rng: &mut Rng) -> Outcome {
    let fd = socket("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    let payload = pattern(rng, 48);
    let mut message = vec![8, 0, 0, 0];
    message.extend_from_slice(&payload);
    let sum = message.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let (to, size) = Family::Four.address(true);
    let (data, len) = (message.as_ptr().cast(), message.len());
    call("raw-send", unsafe { libc::sendto(fd.0, data, len, 0, (&raw const to).cast(), size) } as i64)?;
    // Behind 20 bytes of IP header: type 0 with the same first bytes is the answer to this request.
    let ours = |p: &[u8]| p.len() >= 36 && p[20] == 0 && p[24..36] == payload[..12];
    match arrived("raw-receive", &fd, ours)? {
        Some(p) => demand("raw-receive", p[24..] == payload[..], || format!("{} bytes, changed", p.len())),
        None => Ok(()), // lost for want of memory, or limited by the kernel
    }
}

/// A datagram as a packet socket sees it.
fn packet(rng: &mut Rng) -> Outcome {
    const IP: u16 = 0x0800;
    let fd = socket("packet", libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(IP.to_be()))?;
    let data = pattern(rng, 200);
    let a = UdpSocket::bind("127.0.0.1:0").map_err(trouble("udp-bind"))?;
    a.send_to(&data, a.local_addr().map_err(trouble("getsockname"))?).map_err(trouble("udp-send"))?;
    // Behind the headers of IP and UDP.
    let ours = |p: &[u8]| p.len() >= 60 && p[28..60] == data[..32];
    match arrived("packet-receive", &fd, ours)? {
        Some(p) => demand("packet-receive", p[28..] == data[..], || format!("{} bytes, changed", p.len())),
        None => Ok(()),
    }
}

/// Room for one descriptor in a control message.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends `data` together with the descriptor `passed`.
fn send_descriptor(via: &Fd, data: &[u8], passed: i32) -> Outcome {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    unsafe {
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(head).cast::<i32>().write_unaligned(passed);
        let n = call("unix-send", libc::sendmsg(via.0, &raw const message, 0) as i64)?;
        demand("unix-send", n as usize == data.len(), || format!("{n} of {} bytes", data.len()))
    }
}

fn unix_pair(kind: i32) -> Result<(Fd, Fd), Trouble> {
    let mut fds = [0; 2];
    call("socketpair", unsafe {
        libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    })?;
    Ok((Fd(fds[0]), Fd(fds[1])))
}

fn any_kind(rng: &mut Rng) -> i32 {
    [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET][rng.index(3)]
}

/// A stream that is read in other pieces than it was written in.
fn unix_stream(rng: &mut Rng) -> Outcome {
    let (a, b) = unix_pair(libc::SOCK_STREAM)?;
    for _ in 0..4 {
        let len = 2 + rng.index(3000);
        let data = pattern(rng, len);
        let (first, second) = data.split_at(1 + rng.index(len - 1));
        write("unix-send", a.0, first)?;
        write("unix-send", a.0, second)?;
        read("unix-receive", b.0, &data)?;
    }
    Ok(())
}

/// A file in memory changes hands, and holds what it held.
fn pass_descriptor(rng: &mut Rng) -> Outcome {
    let (a, b) = unix_pair(any_kind(rng))?;
    let content = pattern(rng, 512);
    let file = sys::memfd(c"klpfarm-passed").map_err(trouble("memfd_create"))?;
    write("write", file.as_raw_fd(), &content)?;
    send_descriptor(&a, b"passed", file.as_raw_fd())?;
    drop(file);
    let (mut control, mut text) = (Control([0; 64]), [0u8; 16]);
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let got = unsafe {
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), 64);
        let n = libc::recvmsg(b.0, &raw mut message, libc::MSG_CMSG_CLOEXEC);
        let n = call("unix-receive", n as i64)?;
        demand("unix-receive", n == 6 && text[..6] == *b"passed", || format!("{n} of 6 bytes"))?;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        demand("unix-receive", !head.is_null(), || "no descriptor came along".into())?;
        Fd(libc::CMSG_DATA(head).cast::<i32>().read_unaligned())
    };
    call("lseek", unsafe { libc::lseek(got.0, 0, libc::SEEK_SET) })?;
    read("unix-receive", got.0, &content)
}

/// Two sockets that hold each other in their queues and that nobody else holds: only the kernel's collector can free them.
fn cycle(rng: &mut Rng) -> Outcome {
    for _ in 0..4 {
        let (a, b) = unix_pair(any_kind(rng))?;
        send_descriptor(&a, b"a", a.0)?;
        send_descriptor(&b, b"b", b.0)?;
    }
    Ok(())
}

/// Options are kept as they were set.
fn options(rng: &mut Rng) -> Outcome {
    let domain = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX][rng.index(3)];
    let kind = [libc::SOCK_STREAM, libc::SOCK_DGRAM][rng.index(2)];
    let fd = socket("socket", domain, kind, 0)?;
    let flag = i32::from(rng.one_in(2));
    for (option, value) in [
        (libc::SO_REUSEADDR, flag),
        (libc::SO_KEEPALIVE, flag),
        (libc::SO_TIMESTAMP, flag),
        (libc::SO_PRIORITY, rng.index(6) as i32),
        (libc::SO_RCVLOWAT, 1 + rng.index(1000) as i32),
    ] {
        if domain == libc::AF_UNIX && option == libc::SO_KEEPALIVE {
            continue;
        }
        set(&fd, option, &value)?;
        let (mut got, mut size) = (-1i32, 4u32);
        call("getsockopt", unsafe {
            libc::getsockopt(fd.0, libc::SOL_SOCKET, option, (&raw mut got).cast(), &raw mut size)
        })?;
        demand("getsockopt", got == value, || {
            format!("option {option} is {got} after it was set to {value}")
        })?;
    }
    Ok(())
}

/// The name of the first device, asked for by its number.
fn netlink(_: &mut Rng) -> Outcome {
    let fd = socket("netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    // struct nlmsghdr (length, type, flags, sequence, port), then struct ifinfomsg of which only the index counts.
    let mut ask = [0u8; 32];
    ask[..4].copy_from_slice(&32u32.to_ne_bytes());
    ask[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    ask[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    ask[20..24].copy_from_slice(&1i32.to_ne_bytes());
    write("netlink", fd.0, &ask)?;
    let mut answer = vec![0u8; 16_384];
    let n = unsafe { libc::recv(fd.0, answer.as_mut_ptr().cast(), answer.len(), 0) };
    let n = call("netlink", n as i64)? as usize;
    let link = n > 32 && answer[4..6] == libc::RTM_NEWLINK.to_ne_bytes();
    let named = answer[..n].windows(3).any(|w| w == b"lo\0");
    demand("netlink", link && named, || format!("{n} bytes, no description of device 1, `lo`"))
}
