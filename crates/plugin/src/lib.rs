//! A plugin of QEMU's emulator (TCG) that counts how often each translation block of the guest's kernel is entered, by its virtual
//! address. A call leads to the start of a block, so that the count at a function's address is the number of its calls. It knows no
//! symbols: names come from the guest afterwards.
//!
//! It is given `socket=PATH`, connects to that Unix socket, and answers each byte it reads there with a snapshot: the number N of entries
//! as a 64-bit number, then N pairs of address and count, all least byte first. Whoever asks subtracts two snapshots, so that nothing has
//! to be saved when QEMU ends, in whatever way.
//!
//! The counters are QEMU's own, one for each virtual CPU, added to by the translated code itself: no function is called while the guest
//! runs. See `docs/decisions/0021-count-calls-in-the-emulator.md`.

mod qemu;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, Mutex, PoisonError};

use qemu::{Counter, Scoreboard};

/// Addresses from here on are the kernel's.
const KERNEL: u64 = 1 << 63;

/// Counters of one scoreboard. A power of two, so that finding a virtual CPU's takes a shift.
const CHUNK: usize = 4096;

/// All counters, by address.
#[derive(Default)]
struct Counters {
    by_address: HashMap<u64, Counter>,
    /// The scoreboard that still has room.
    last: Option<Scoreboard>,
}

impl Counters {
    /// The counter of the block at this address: the same one whenever QEMU translates it again.
    fn at(&mut self, address: u64) -> Counter {
        if let Some(counter) = self.by_address.get(&address) {
            return *counter;
        }
        let index = self.by_address.len() % CHUNK;
        let board = match self.last {
            Some(board) if index > 0 => board,
            _ => *self.last.insert(Scoreboard::new(CHUNK)),
        };
        let counter = board.counter(index);
        self.by_address.insert(address, counter);
        counter
    }
}

static COUNTERS: LazyLock<Mutex<Counters>> = LazyLock::new(Mutex::default);

/// Version of QEMU's plugin interface: 2 has counters for each virtual CPU (QEMU 9.0), and later versions of QEMU still take it.
// SAFETY: QEMU looks a plugin's version up by this name, and nothing else is called so.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 2;

/// Called by QEMU when it loads the plugin; other than 0 makes it give up.
///
/// # Safety
/// `argv` must hold `argc` C strings.
// SAFETY: QEMU calls a plugin by this name, and nothing else is called so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let socket = (0..usize::try_from(argc).unwrap_or(0)).find_map(|n| {
        // SAFETY: there are `argc` of them, as QEMU says.
        let argument = unsafe { CStr::from_ptr(*argv.add(n)) };
        argument.to_str().ok()?.strip_prefix("socket=")
    });
    let Some(path) = socket else {
        eprintln!("klpfarm's plugin: give it `socket=PATH`");
        return 1;
    };
    match UnixStream::connect(path) {
        Ok(stream) => {
            qemu::on_translation(id, translated);
            let serving = std::thread::Builder::new().name("klpfarm-calls".into());
            // It ends when the other side closes the socket, or with QEMU.
            match serving.spawn(move || serve(stream)) {
                Ok(_) => 0,
                Err(error) => {
                    eprintln!("klpfarm's plugin: no thread: {error}");
                    1
                }
            }
        }
        Err(error) => {
            eprintln!("klpfarm's plugin: {path}: {error}");
            1
        }
    }
}

/// QEMU has translated a block, which is going to count its own entries.
extern "C" fn translated(_id: u64, block: *mut qemu::Block) {
    // SAFETY: QEMU hands in a block that is there until this returns.
    let address = unsafe { qemu::address(block) };
    if address >= KERNEL {
        let counter = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).at(address);
        // SAFETY: as above.
        unsafe { counter.add_at(block) };
    }
}

/// Answer with a snapshot as often as somebody asks.
fn serve(mut stream: UnixStream) {
    let mut ask = [0];
    while stream.read_exact(&mut ask).is_ok() {
        if stream.write_all(&snapshot()).is_err() {
            return;
        }
    }
}

/// Blocks that have been entered, as [`serve`] sends them.
fn snapshot() -> Vec<u8> {
    // Adding up takes longer than copying: a virtual CPU that translates meanwhile must not wait for it.
    let all: Vec<(u64, Counter)> = {
        let counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
        counters.by_address.iter().map(|(address, counter)| (*address, *counter)).collect()
    };
    let entered: Vec<(u64, u64)> =
        all.into_iter().map(|(address, counter)| (address, counter.sum())).filter(|(_, n)| *n > 0).collect();
    let mut bytes = Vec::with_capacity(8 + 16 * entered.len());
    bytes.extend((entered.len() as u64).to_le_bytes());
    for (address, count) in entered {
        bytes.extend(address.to_le_bytes());
        bytes.extend(count.to_le_bytes());
    }
    bytes
}
