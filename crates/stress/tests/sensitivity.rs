//! A stressor that finds nothing may be blind: here the kernel is made to lie, by a seccomp filter that answers certain
//! calls without carrying them out, and the lie must be told as a fault.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Answers `call` with `errno` (0: success) without carrying it out, if its argument `index` has this value.
fn lie(call: i64, index: u32, value: u32, errno: u32) -> [libc::sock_filter; 6] {
    let load =
        |k| libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k };
    let unless_equal = |k, skip| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let answer = |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    [
        load(0),
        unless_equal(call as u32, 3),
        load(16 + 8 * index),
        unless_equal(value, 1),
        answer(libc::SECCOMP_RET_ERRNO | errno),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Runs a stressor under a lie until it has ended by itself; its output.
fn run(args: &[&str], filter: [libc::sock_filter; 6]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_klpfarm-stress"));
    command.arg("work").args(args).args(["--seconds", "3"]);
    let install = move || {
        let program = libc::sock_fprog { len: 6, filter: filter.as_ptr().cast_mut() };
        // SAFETY: two system calls with a filter that lives as long as this closure; nothing is allocated.
        unsafe {
            let no = 0usize;
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, no, no, no) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    let output = unsafe { command.pre_exec(install) }.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "no fault was found: {text}");
    text
}

const MADVISE: &[&str] = &["madvise-allocator", "processes=1", "threads=1", "map=1M"];

#[test]
fn advice_that_frees_nothing_is_wrong_content() {
    let text = run(MADVISE, lie(libc::SYS_madvise, 2, libc::MADV_DONTNEED as u32, 0));
    assert!(text.contains("WrongContent madvise-dontneed"), "{text}");
}

#[test]
fn advice_that_is_not_refused_any_more_is_a_wrong_errno() {
    let text = run(MADVISE, lie(libc::SYS_madvise, 2, 12345, 0));
    assert!(text.contains("WrongErrno madvise-error"), "{text}");
}

#[test]
fn advice_that_is_refused_is_a_wrong_errno_even_from_the_start() {
    let text = run(MADVISE, lie(libc::SYS_madvise, 2, libc::MADV_FREE as u32, libc::EINVAL as u32));
    assert!(text.contains("WrongErrno madvise-free"), "{text}");
}

#[test]
fn a_file_that_is_not_cut_is_wrong_content() {
    let dir = tempfile::tempdir().unwrap();
    let dir = format!("dir={}", dir.path().display());
    let filter = lie(libc::SYS_fallocate, 1, 3, 0);
    let text = run(&["file-io-fsync", "processes=1", "size=4M", &dir], filter);
    assert!(text.contains("WrongContent punch"), "{text}");
}

#[test]
fn a_call_that_does_nothing_is_found_by_the_mix() {
    let text =
        run(&["syscall-mix", "processes=1"], lie(libc::SYS_epoll_ctl, 1, libc::EPOLL_CTL_DEL as u32, 0));
    assert!(text.contains("epoll_ctl"), "{text}");
}

const AGING: &[&str] =
    &["aging", "processes=1", "cache=0", "files=100", "fragment=2M", "residents=1", "churn=5"];

fn aging(filter: [libc::sock_filter; 6]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let dir = format!("dir={}", dir.path().display());
    let args: Vec<&str> = AGING.iter().copied().chain([dir.as_str()]).collect();
    run(&args, filter)
}

#[test]
fn aging_sees_memory_that_is_not_given_back() {
    let text = aging(lie(libc::SYS_madvise, 2, libc::MADV_DONTNEED as u32, 0));
    assert!(text.contains("WrongContent memory"), "{text}");
}

#[test]
fn aging_sees_a_lock_that_does_not_lock() {
    let exclusive = (libc::LOCK_EX | libc::LOCK_NB) as u32;
    let text = aging(lie(libc::SYS_flock, 1, exclusive, 0));
    assert!(text.contains("WrongContent flock"), "{text}");
}
