//! `bpf-programs`: BPF programs and maps loaded, run, attached and freed. Numbers are those of `include/uapi/linux/bpf.h`.

// SAFETY, for every `unsafe` block here: system calls on values, descriptors and buffers that belong to this unit alone,
// with lengths taken from those buffers.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::syscall_ipc::{pattern, trouble};
use super::syscall_units::Fd;
use super::units::{self, Outcome, Trouble, Unit, call, demand, fails};
use super::{Context, Rng, Stressor};
use crate::params::Params;
use crate::sys;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

pub(super) static STRESSOR: Stressor = Stressor {
    name: "bpf-programs",
    about: "BPF programs verified, run, attached and freed, and maps with their contents verified",
    params: &[],
    processes: "1",
    threads: "1",
    nice: "0",
    singles: super::no_singles,
    kinds: &["load", "refuse", "run", "filter", "link", "map", "yardstick"],
    run,
    prepare,
    clean: super::nothing_to_clean,
};

const LOAD: usize = 0;
const REFUSE: usize = 1;
const RUN: usize = 2;
const FILTER: usize = 3;
const LINK: usize = 4;
const MAP: usize = 5;

static UNITS: &[Unit] = &[
    Unit { kind: LOAD, run: load_and_free },
    Unit { kind: REFUSE, run: refuse },
    Unit { kind: RUN, run: run_once },
    Unit { kind: FILTER, run: filter },
    Unit { kind: LINK, run: link },
    Unit { kind: MAP, run: map },
];

/// Older kernels count programs and maps as locked memory, and give it back only later.
fn prepare(_: &Params) -> Result<(), String> {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const all) };
    Ok(())
}

fn run(context: &mut Context<'_>) {
    let units: Vec<&Unit> = UNITS.iter().collect();
    units::run(context, &units);
}

/// The `union bpf_attr` of a call: what is not set is zero, and older kernels demand that of what they do not know.
struct Attributes([u8; 120]);

impl Attributes {
    fn new(fields: &[(usize, u64, usize)]) -> Self {
        let mut bytes = [0u8; 120];
        for &(at, value, size) in fields {
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Self(bytes)
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

fn address<T>(of: &[T]) -> u64 {
    of.as_ptr() as u64
}

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const RAW_TRACEPOINT_OPEN: i32 = 17;

/// The call itself; it changes `attributes` where the kernel answers in them.
fn bpf(command: i32, attributes: &mut Attributes) -> i64 {
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), attributes.0.len()) }
}

/// A command that older kernels do not have: they answer EINVAL, which is learned as ENOSYS would be.
fn newer(name: &'static str, command: i32, attributes: &mut Attributes) -> Result<i64, Trouble> {
    match call(name, bpf(command, attributes)) {
        Err(Trouble::Errno(name, libc::EINVAL)) => Err(Trouble::Errno(name, libc::ENOSYS)),
        other => other,
    }
}

const SOCKET_FILTER: u64 = 1;
const RAW_TRACEPOINT: u64 = 17;

/// An instruction: operation, registers, offset, immediate value.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(value as u32) << 32
}

/// A program that sends `value` through its stack, at `slot` (negative) from the frame's top, and returns it.
fn through_the_stack(value: i32, slot: i16) -> [u64; 5] {
    [
        instruction(0xb7, 0, 0, 0, value), // r0 = value
        instruction(0x7b, 10, 0, slot, 0), // *(u64 *)(r10 + slot) = r0
        instruction(0xb7, 0, 0, 0, 0),     // r0 = 0
        instruction(0x79, 0, 10, slot, 0), // r0 = *(u64 *)(r10 + slot)
        instruction(0x95, 0, 0, 0, 0),     // return r0
    ]
}

fn load_attributes(kind: u64, program: &[u64]) -> Attributes {
    let license = c"GPL".as_ptr() as u64;
    Attributes::new(&[(0, kind, 4), (4, program.len() as u64, 4), (8, address(program), 8), (16, license, 8)])
}

fn load(kind: u64, program: &[u64]) -> Result<Fd, Trouble> {
    Fd::new("bpf-load", bpf(PROG_LOAD, &mut load_attributes(kind, program)))
}

fn slot(rng: &mut Rng) -> i16 {
    -8 * (1 + rng.index(64) as i16)
}

fn load_and_free(rng: &mut Rng) -> Outcome {
    load(SOCKET_FILTER, &through_the_stack(rng.next() as i32, slot(rng))).map(drop)
}

/// What would write outside of its stack must not get past the verifier.
fn refuse(rng: &mut Rng) -> Outcome {
    let outside = [8, -520, 0, -1024][rng.index(4)];
    let program = through_the_stack(1, outside);
    let loaded = bpf(PROG_LOAD, &mut load_attributes(SOCKET_FILTER, &program));
    if loaded >= 0 {
        drop(Fd(loaded as i32));
        let detail = format!("a program that writes at {outside} from the top of its stack was loaded");
        return Err(Trouble::Wrong("bpf-refuse", detail));
    }
    // A kernel that lets nobody load anything says EPERM to every program; one without BPF ENOSYS.
    if [libc::EPERM, libc::ENOSYS].contains(&sys::errno()) {
        return Err(Trouble::Errno("bpf-refuse", sys::errno()));
    }
    fails("bpf-refuse", libc::EACCES, loaded)
}

fn run_once(rng: &mut Rng) -> Outcome {
    let value = rng.next() as i32;
    let program = load(SOCKET_FILTER, &through_the_stack(value, slot(rng)))?;
    let packet = pattern(rng, 64);
    let mut attributes =
        Attributes::new(&[(0, program.0 as u64, 4), (8, packet.len() as u64, 4), (16, address(&packet), 8)]);
    newer("bpf-run", PROG_TEST_RUN, &mut attributes)?;
    let got = attributes.u32_at(4);
    demand("bpf-run", got == value as u32, || format!("the program returned {got}, not {}", value as u32))
}

/// A filter lets through as many bytes as it returns: none, or some.
fn filter(rng: &mut Rng) -> Outcome {
    const UDP_HEADER: usize = 8;
    let data = pattern(rng, 100);
    let kept = rng.index(2) * (1 + rng.index(100));
    let returned = if kept == 0 { 0 } else { (kept + UDP_HEADER) as i32 };
    let program = load(SOCKET_FILTER, &through_the_stack(returned, slot(rng)))?;
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(trouble("udp-bind"))?;
    socket.set_nonblocking(true).map_err(trouble("fcntl"))?;
    let (value, size) = (program.0, 4u32);
    call("attach-filter", unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const value).cast(),
            size,
        )
    })?;
    drop(program); // the socket keeps it
    socket
        .send_to(&data, socket.local_addr().map_err(trouble("getsockname"))?)
        .map_err(trouble("udp-send"))?;
    let mut back = [0u8; 200];
    match socket.recv_from(&mut back) {
        Ok((n, _)) => demand("bpf-filter", n == kept && back[..n] == data[..n], || {
            format!("{n} bytes came through a filter that keeps {kept}")
        }),
        // Datagrams may be lost for want of memory as well.
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(trouble("udp-receive")(e)),
    }
}

/// A program at a tracepoint for a moment: a link that goes with its last descriptor.
fn link(rng: &mut Rng) -> Outcome {
    let program = match load(RAW_TRACEPOINT, &through_the_stack(0, slot(rng))) {
        Err(Trouble::Errno(name, libc::EINVAL)) => return Err(Trouble::Errno(name, libc::ENOSYS)),
        other => other?,
    };
    let name = c"sched_process_exit".as_ptr() as u64;
    let mut attributes = Attributes::new(&[(0, name, 8), (8, program.0 as u64, 4)]);
    Fd::new("bpf-link", newer("bpf-link", RAW_TRACEPOINT_OPEN, &mut attributes)?).map(drop)
}

/// A hash of eight entries, which holds what was put in and forgets what was deleted.
fn map(rng: &mut Rng) -> Outcome {
    const HASH: u64 = 1;
    let mut create = Attributes::new(&[(0, HASH, 4), (4, 8, 4), (8, 16, 4), (12, 8, 4)]);
    let fd = Fd::new("bpf-map", bpf(MAP_CREATE, &mut create))?;
    let entries: Vec<(u64, Vec<u8>)> = (0..8).map(|i| (rng.next() << 3 | i, pattern(rng, 16))).collect();
    let of = |key: &u64, value: u64| {
        Attributes::new(&[(0, fd.0 as u64, 4), (8, std::ptr::from_ref(key) as u64, 8), (16, value, 8)])
    };
    for (key, value) in &entries {
        call("bpf-map-update", bpf(MAP_UPDATE, &mut of(key, address(value))))?;
    }
    let mut got = [0u8; 16];
    for (key, value) in &entries {
        call("bpf-map-lookup", bpf(MAP_LOOKUP, &mut of(key, got.as_mut_ptr() as u64)))?;
        demand("bpf-map-lookup", got[..] == value[..], || "another value than was put in".into())?;
    }
    let (first, _) = &entries[0];
    call("bpf-map-delete", bpf(MAP_DELETE, &mut of(first, 0)))?;
    fails("bpf-map-lookup", libc::ENOENT, bpf(MAP_LOOKUP, &mut of(first, got.as_mut_ptr() as u64)))
}
