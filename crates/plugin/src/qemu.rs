//! What is used of QEMU's plugin interface (version 2), and all that is unsafe about it.

/// A translation block, QEMU's own.
#[repr(C)]
pub(crate) struct Block {
    _private: [u8; 0],
}

/// A table with an element for each virtual CPU, QEMU's own.
#[repr(C)]
struct Board {
    _private: [u8; 0],
}

/// A 64-bit number in each element of a scoreboard.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    board: *mut Board,
    offset: usize,
}

/// QEMU's name for adding to a number in translated code.
const ADD_U64: u32 = 0;

// SAFETY: as QEMU's documentation of its plugin interface declares them; they are in the program that loads this library.
unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: extern "C" fn(u64, *mut Block));
    fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    fn qemu_plugin_scoreboard_new(element: usize) -> *mut Board;
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block: *mut Block, op: u32, at: Place, by: u64);
    fn qemu_plugin_u64_sum(at: Place) -> u64;
}

/// Have `call` called for each block that QEMU translates.
pub(crate) fn on_translation(id: u64, call: extern "C" fn(u64, *mut Block)) {
    // SAFETY: the id is the one QEMU gave, and this library is never unloaded.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, call) }
}

/// The guest's virtual address of a block.
///
/// # Safety
/// The block must be one that QEMU has just handed in.
pub(crate) unsafe fn address(block: *const Block) -> u64 {
    // SAFETY: the caller's.
    unsafe { qemu_plugin_tb_vaddr(block) }
}

/// Room for counters, for each virtual CPU; never freed.
#[derive(Clone, Copy)]
pub(crate) struct Scoreboard(*mut Board);

// SAFETY: QEMU's functions that are given the pointer may be called in any thread, and nothing here looks behind it.
unsafe impl Send for Scoreboard {}

impl Scoreboard {
    /// Room for so many counters, all zero.
    pub(crate) fn new(counters: usize) -> Self {
        // SAFETY: a plain number.
        Self(unsafe { qemu_plugin_scoreboard_new(counters * size_of::<u64>()) })
    }

    /// Its counter of this number.
    pub(crate) fn counter(self, index: usize) -> Counter {
        Counter(Place { board: self.0, offset: index * size_of::<u64>() })
    }
}

/// One counter, summed over the virtual CPUs.
#[derive(Clone, Copy)]
pub(crate) struct Counter(Place);

// SAFETY: as for `Scoreboard`.
unsafe impl Send for Counter {}

impl Counter {
    /// From now on, each entry into the block adds one.
    ///
    /// # Safety
    /// The block must be one that QEMU has just handed in.
    pub(crate) unsafe fn add_at(self, block: *mut Block) {
        // SAFETY: the caller's; the scoreboard is never freed.
        unsafe { qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD_U64, self.0, 1) }
    }

    /// Its value. A virtual CPU that counts meanwhile may or may not be in it.
    pub(crate) fn sum(self) -> u64 {
        // SAFETY: the scoreboard is never freed.
        unsafe { qemu_plugin_u64_sum(self.0) }
    }
}
