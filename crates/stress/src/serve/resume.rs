//! After the machine was forked from a checkpoint: what must not go on as in its twins.
//!
//! Nothing here or elsewhere in the probe measures with the wall clock, so that setting it makes nobody idle or blocked: the clocks
//! used (`CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`) stand still with the machine and go on from where they stood.

use crate::slots::Area;
use crate::sys;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering::Relaxed;

/// Fewest and most bytes of entropy: an ioctl's size, and what a sane farm sends.
const FEWEST: usize = 32;
const MOST: usize = 1024;

/// `ioctl` numbers of `linux/random.h`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// A wall clock that is off by less is left alone: the farm's time is that old by now, and a jump has its own effects.
const CLOCK_TOLERANCE_MS: i64 = 50;

/// Carries out [`klpfarm_stress::wire::Ask::Resume`]. The generators are stirred whatever else fails.
///
/// # Errors
/// An errno and what it was about: entropy that is no hex of 32 to 1024 bytes (`EINVAL`), or a kernel that does not take entropy or time.
pub(super) fn resume(area: &Area, entropy: &str, unix_ms: u64) -> Result<(), (i32, String)> {
    let bytes = from_hex(entropy).filter(|b| (FEWEST..=MOST).contains(&b.len())).ok_or_else(|| {
        let text = format!("entropy: not {} to {} hex digits; nothing was done", 2 * FEWEST, 2 * MOST);
        (libc::EINVAL, text)
    })?;
    stir(area, &bytes);
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| (e.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {e}"))
    };
    let entropy = add_entropy(&bytes).map_err(failed("entropy is not taken"));
    let clock = set_clock(unix_ms).map_err(failed("the wall clock cannot be set"));
    entropy.and(clock)
}

/// A new word for the workers, never the one they know already.
fn stir(area: &Area, bytes: &[u8]) {
    let mut word = area.stir.load(Relaxed).wrapping_add(1);
    for part in bytes.chunks(8) {
        let mut eight = [0; 8];
        eight[..part.len()].copy_from_slice(part);
        word = crate::work::mix(word ^ u64::from_ne_bytes(eight));
    }
    area.stir.store(word, Relaxed);
}

/// Gives the kernel entropy, credited, and makes its generator use it at once.
fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let mut random = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/urandom")?;
    // Before 4.8 this is the only way straight to the pool that /dev/urandom reads from.
    random.write_all(bytes)?;
    // The layout of `rand_pool_info`: bits, bytes, the bytes.
    let mut words = vec![bytes.len() as u32 * 8, bytes.len() as u32];
    words.extend(bytes.chunks(4).map(|part| {
        let mut four = [0; 4];
        four[..part.len()].copy_from_slice(part);
        u32::from_ne_bytes(four)
    }));
    // SAFETY: the buffer is as long as its second word says, rounded up to words.
    sys::checked(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, words.as_ptr()) })?;
    // SAFETY: no argument. Kernels before 4.17 do not know it; they reseed by themselves.
    match sys::checked(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) }) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => Err(e),
        _ => Ok(()),
    }
}

fn set_clock(unix_ms: u64) -> io::Result<()> {
    let now_ms = (sys::clock_ns(libc::CLOCK_REALTIME) / 1_000_000) as i64;
    if (now_ms - unix_ms as i64).abs() < CLOCK_TOLERANCE_MS {
        return Ok(());
    }
    let time = libc::timespec {
        tv_sec: (unix_ms / 1000) as libc::time_t,
        tv_nsec: (unix_ms % 1000 * 1_000_000) as libc::c_long,
    };
    // SAFETY: a valid time.
    sys::checked(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
    let digits = digits.filter(|d| d.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn hex_is_read_and_anything_else_refused() {
        assert_eq!(from_hex("00fF7a"), Some(vec![0, 255, 0x7a]));
        assert_eq!(from_hex(""), Some(vec![]));
        for wrong in ["0", "0g", "+1", "é0", " 00"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn forks_of_one_word_get_different_ones_and_the_same_entropy_twice_still_stirs() {
        let fd = crate::slots::create().unwrap();
        let area = crate::slots::map(fd.as_fd()).unwrap();
        let mut words = vec![area.stir.load(Relaxed)];
        for bytes in [[1u8; 32], [2; 32], [2; 32]] {
            stir(area, &bytes);
            words.push(area.stir.load(Relaxed));
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 4, "{words:?}");
    }

    #[test]
    fn too_little_entropy_changes_nothing() {
        let fd = crate::slots::create().unwrap();
        let area = crate::slots::map(fd.as_fd()).unwrap();
        let (code, text) = resume(area, &"00".repeat(31), 0).unwrap_err();
        assert_eq!((code, area.stir.load(Relaxed)), (libc::EINVAL, 0), "{text}");
        assert!(text.contains("64 to 2048 hex digits"), "{text}");
    }
}
