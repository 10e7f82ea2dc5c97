//! The page that says what lies in an evidence folder, of what, and how to open it. Pure.

use std::fmt::Write;

use super::About;

/// One piece of evidence, gathered or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// File name in the folder.
    pub(super) file: String,
    /// What it is.
    pub(super) what: String,
    /// Its size in bytes, or why it is not there.
    pub(super) got: Result<u64, String>,
}

/// The page.
pub(super) fn text(about: &About, parts: &[Part]) -> String {
    let mut out =
        format!("Evidence of trial {} ({}), gathered by klpfarm {}\n\n", about.trial, about.arm, about.farm);
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<11} {value}");
    };
    if about.patches.is_empty() {
        fact("patch", "none");
    }
    for patch in &about.patches {
        fact("patch", patch);
    }
    fact("image", &about.image);
    fact("kernel", if about.release.is_empty() { "unknown" } else { &about.release });
    fact("machine", &about.machine);
    for finding in &about.findings {
        fact("finding", &finding.replace(['\n', '\r', '\u{1b}'], " "));
    }
    out.push_str("\nThe console from the beginning is ../console.log, all that was seen ../../../journal.jsonl.\n\nFiles\n");
    for part in parts {
        if let Ok(size) = part.got {
            let _ = writeln!(out, "  {:<18} {:>9}  {}", part.file, human(size), part.what);
        }
    }
    let mut missing = parts.iter().filter_map(|p| p.got.as_ref().err().map(|why| (p, why))).peekable();
    if missing.peek().is_some() {
        out.push_str("\nNot there\n");
    }
    for (part, why) in missing {
        let _ = writeln!(out, "  {:<18} {}: {}", part.file, part.what, why.trim().replace('\n', "; "));
    }
    out.push_str(&how_to_open(about, parts.iter().any(|p| p.file == super::DUMP && p.got.is_ok())));
    out
}

fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn how_to_open(about: &About, dumped: bool) -> String {
    let release = if about.release.is_empty() { "RELEASE" } else { &about.release };
    let vmlinux = format!("/usr/lib/debug/boot/vmlinux-{release}");
    let module = about.modules.first().map_or("NAME", String::as_str);
    let mut text = format!(
        "\nHow to open them\n\
         Text files are plain. `klpfarm triage ../console.log` names what the kernel reported.\n\n\
         An address in a stack, FUNCTION+0x1c2/0x310, becomes a line of the source with gdb and debug symbols:\n\
         \x20   gdb -batch -ex 'list *(FUNCTION+0x1c2)' {vmlinux}\n\
         \x20   gdb -batch -ex 'list *(FUNCTION+0x1c2)' {module}.ko        (a function of the patch, if built with -g)\n\
         Debug symbols of exactly this kernel: on Debian the package linux-image-{release}-dbg, which puts them in\n\
         {vmlinux}; on Ubuntu linux-image-{release}-dbgsym.\n"
    );
    if dumped {
        text.push_str(&format!(
            "\n{dump} is the guest's physical memory in the format of kdump. It holds whatever the guest knew, keys included.\n\
             \x20   crash {vmlinux} {dump}\n\
             \x20   crash> foreach UN bt               stacks of all tasks in uninterruptible sleep\n\
             \x20   crash> bt -a                       what each CPU did\n\
             \x20   crash> task -R mm PID              then: struct mm_struct.mmap_lock ADDRESS, whose owner field is a task\n\
             \x20   crash> mod -s {module} {module}.ko   symbols of the patch\n\
             crash finds out by itself where the kernel was put (KASLR). Where it lists only a few tasks (8.0.2 does of a 6.1 kernel), all are in\n\
             \x20   crash> list task_struct.tasks -s task_struct.pid,comm,__state -h init_task\n\
             gdb does not read this format.\n",
            dump = super::DUMP
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_what_is_not_and_how_to_open_it() {
        let about = About {
            trial: 3,
            arm: klpfarm_model::Arm::Loaded,
            farm: "0.1".into(),
            patches: vec!["p.ko (p, sha256 12ab)".into()],
            modules: vec!["p".into()],
            image: "debian-12".into(),
            release: "6.1.0-1".into(),
            machine: "2 CPUs, 1024 MiB, tcg".into(),
            findings: vec!["[hung-task] INFO\u{1b}[2J".into()],
        };
        let part = |file: &str, got: Result<u64, String>| Part {
            file: file.into(),
            what: format!("what {file} is"),
            got,
        };
        let parts =
            [part("blocked.txt", Ok(2048)), part(crate::evidence::DUMP, Err("the disk\nis full".into()))];
        let page = text(&about, &parts);
        for wanted in [
            "trial 3 (loaded)",
            "6.1.0-1",
            "sha256 12ab",
            "2 KiB  what blocked.txt is",
            "the disk; is full",
            "6.1.0-1-dbg",
        ] {
            assert!(page.contains(wanted), "{page}\nlacks {wanted}");
        }
        assert!(
            !page.contains("crash>") && !page.contains('\u{1b}'),
            "without a dump nobody needs crash: {page}"
        );
        let page = text(&about, &[part(crate::evidence::DUMP, Ok(70 << 20))]);
        assert!(
            page.contains("70 MiB") && page.contains("crash /usr/lib/debug/boot/vmlinux-6.1.0-1 dump.kdump"),
            "{page}"
        );
        assert!(!page.contains("Not there"), "{page}");
    }
}
