//! `traffic`: data through any network, verified at both ends, for workloads that are scripts. Its lines are those of a script:
//! `klpfarm: ops N` for what arrived whole, `klpfarm: fault ...` for what arrived changed. That a connection breaks or a datagram is
//! lost is no fault: networks are made to do so.

use crate::work::{Rng, mix};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Nothing is waited for longer than this: a peer that lost its network may never answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a datagram is waited for before the next one is sent.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(500);
/// Most bytes that a request may ask for.
const MOST: usize = 1 << 20;
/// Most bytes of a datagram.
const MOST_DATAGRAM: usize = 60_000;

/// `listen|connect tcp|udp ADDRESS:PORT [BYTES]`.
pub(crate) fn main(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (role, protocol, address, bytes) = match words[..] {
        [role, protocol, address] => (role, protocol, address, "65536"),
        [role, protocol, address, bytes] => (role, protocol, address, bytes),
        _ => return wrong("needs a role, a protocol and an address"),
    };
    let Ok(address) = address.parse::<SocketAddr>() else { return wrong("the address is not IP:PORT") };
    let Ok(bytes) = bytes.parse::<usize>() else { return wrong("the size is not a number") };
    let result = match (role, protocol) {
        ("listen", "tcp") => listen(address),
        ("connect", "tcp") => connect(address, bytes.clamp(1, MOST)),
        ("listen", "udp") => echo(address),
        ("connect", "udp") => ask(address, bytes.clamp(16, MOST_DATAGRAM)),
        _ => return wrong("the role is listen or connect, the protocol tcp or udp"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("klpfarm-stress traffic {role} {protocol} {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("klpfarm-stress traffic: {what}; see `klpfarm-stress help`");
    ExitCode::from(2)
}

/// What belongs to a seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| rng.next().to_ne_bytes()).take(len).collect()
}

fn fault(operation: &str, wanted: &[u8], got: &[u8]) {
    let at = wanted.iter().zip(got).position(|(a, b)| a != b).unwrap_or(wanted.len().min(got.len()));
    println!(
        "klpfarm: fault wrong-content {operation} of {} bytes {} arrived, and from byte {at} on they differ from what was sent",
        wanted.len(),
        got.len()
    );
}

/// Counts operations, and says so four times a second at most.
struct Counter {
    ops: u64,
    said: Instant,
}

impl Counter {
    fn new() -> Self {
        Self { ops: 0, said: Instant::now() }
    }

    fn count(&mut self) {
        self.ops += 1;
        if self.said.elapsed() >= Duration::from_millis(250) {
            println!("klpfarm: ops {}", self.ops);
            *self = Self::new();
        }
    }
}

/// Answers each connection, one after the other, in threads of their own.
fn listen(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    for stream in listener.incoming().flatten() {
        // What breaks off is the other end's business.
        let _ = std::thread::Builder::new().spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = [0u8; 16];
    stream.read_exact(&mut head)?;
    let (seed, len) = head.split_at(8);
    let number = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap_or_default());
    let (seed, len) = (number(seed), number(len).min(MOST as u64) as usize);
    let mut got = vec![0; len];
    stream.read_exact(&mut got)?;
    let wanted = pattern(seed, len);
    if got != wanted {
        fault("tcp-receive", &wanted, &got);
    }
    stream.write_all(&pattern(seed ^ 1, len))
}

fn connect(address: SocketAddr, bytes: usize) -> io::Result<()> {
    let (mut counter, mut rng) = (Counter::new(), Rng::new(mix(crate::sys::now_ns())));
    loop {
        let (seed, len) = (rng.next(), 1 + rng.index(bytes));
        match exchange(address, seed, len) {
            Ok(()) => counter.count(),
            // Refused at once, perhaps: not again at once.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn exchange(address: SocketAddr, seed: u64, len: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = seed.to_le_bytes().to_vec();
    head.extend_from_slice(&(len as u64).to_le_bytes());
    stream.write_all(&head)?;
    stream.write_all(&pattern(seed, len))?;
    let (mut got, wanted) = (vec![0; len], pattern(seed ^ 1, len));
    stream.read_exact(&mut got)?;
    if got != wanted {
        fault("tcp-receive", &wanted, &got);
    }
    Ok(())
}

/// Sends every datagram back as it came.
fn echo(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}

fn ask(address: SocketAddr, bytes: usize) -> io::Result<()> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    let (mut counter, mut rng) = (Counter::new(), Rng::new(mix(crate::sys::now_ns())));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let seed = rng.next();
        let mut data = seed.to_le_bytes().to_vec();
        data.extend(pattern(seed, rng.index(bytes)));
        if socket.send_to(&data, address).is_err() {
            // No route for the moment, perhaps.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        // An answer to an earlier one may come first.
        while let Ok((n, _)) = socket.recv_from(&mut buffer) {
            let Some((head, body)) = buffer[..n].split_first_chunk::<8>() else { break };
            let wanted = pattern(u64::from_le_bytes(*head), body.len());
            if body != wanted {
                fault("udp-receive", &wanted, body);
            }
            if head[..] == data[..8] {
                counter.count();
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_a_datagram_come_back_as_they_were_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|s| drop(answer(s))));
        for len in [1, 8, 100_000] {
            exchange(address, 7, len).unwrap();
        }
        assert_eq!(pattern(7, 100)[..50], pattern(7, 50)[..]);
        assert_ne!(pattern(7, 100), pattern(6, 100));
    }

    #[test]
    fn mistakes_end_with_status_2() {
        let main = |words: &str| main(&words.split(' ').map(String::from).collect::<Vec<_>>());
        for words in ["listen tcp", "listen tcp nowhere", "wait tcp 127.0.0.1:1", "listen tcp 127.0.0.1:1 x"]
        {
            assert_eq!(format!("{:?}", main(words)), format!("{:?}", ExitCode::from(2)), "{words}");
        }
    }
}
