//! The page that says what lies in an evidence folder, of what, and how to open it. Pure.

use std::fmt::Write;

use super::{About, Symbols};

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

/// The kernel with debug symbols, and how to come by it.
fn vmlinux(about: &About) -> (String, String) {
    let release = if about.release.is_empty() { "RELEASE" } else { &about.release };
    match &about.symbols {
        Symbols::Package => {
            let file = format!("/usr/lib/debug/boot/vmlinux-{release}");
            let how = format!(
                "Debug symbols of exactly this kernel: on Debian the package linux-image-{release}-dbg, which puts them in\n\
                 {file}; on Ubuntu linux-image-{release}-dbgsym.\n"
            );
            (file, how)
        }
        Symbols::Tree(tree) => {
            let how = "That file is in the kernel's build tree, as the image's recipe names it. It has lines of the source only if the kernel was built with\n\
                       CONFIG_DEBUG_INFO, and it fits as long as the tree has not been built again since.\n";
            (tree.join("vmlinux").display().to_string(), how.to_owned())
        }
        Symbols::Builder => {
            let how = "vmlinux stands for this kernel with its debug symbols: from whoever built it, with CONFIG_DEBUG_INFO, or from the distribution's package\n\
                       of debug symbols. The image's recipe names no build tree that has it (`headers`).\n";
            ("vmlinux".to_owned(), how.to_owned())
        }
    }
}

fn how_to_open(about: &About, dumped: bool) -> String {
    let (vmlinux, how) = vmlinux(about);
    let module = about.modules.first().map_or("NAME", String::as_str);
    let mut text = format!(
        "\nHow to open them\n\
         Text files are plain. `klpfarm triage ../console.log` names what the kernel reported.\n\n\
         An address in a stack, FUNCTION+0x1c2/0x310, becomes a line of the source with gdb and debug symbols:\n\
         \x20   gdb -batch -ex 'list *(FUNCTION+0x1c2)' {vmlinux}\n\
         \x20   gdb -batch -ex 'list *(FUNCTION+0x1c2)' {module}.ko        (a function of the patch, if built with -g)\n\
         {how}"
    );
    if dumped {
        let version = klpfarm_model::version(&about.release);
        let before = |v| version.is_some_and(|release| release < v);
        // 5.8 gave the lock its present name; 5.14 the state.
        let (lock, owner) = if before((5, 8)) {
            ("mmap_sem", "whose owner is the task that writes (readers leave none)")
        } else {
            ("mmap_lock", "whose owner field is a task")
        };
        let state = if before((5, 14)) { "state" } else { "__state" };
        text.push_str(&format!(
            "\n{dump} is the guest's physical memory in the format of kdump. It holds whatever the guest knew, keys included.\n\
             \x20   crash {vmlinux} {dump}\n\
             \x20   crash> foreach UN bt               stacks of all tasks in uninterruptible sleep\n\
             \x20   crash> bt -a                       what each CPU did\n\
             \x20   crash> task -R mm PID              then: struct mm_struct.{lock} ADDRESS, {owner}\n\
             \x20   crash> mod -s {module} {module}.ko   symbols of the patch\n\
             crash finds out by itself where the kernel was put (KASLR). Where it lists only a few tasks (8.0.2 does of a 6.1 kernel), all are in\n\
             \x20   crash> list task_struct.tasks -s task_struct.pid,comm,{state} -h init_task\n\
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
            symbols: Symbols::Package,
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

    /// On 4.4 the lock has another name, and a kernel of the user's own comes in no package.
    #[test]
    fn a_kernel_of_the_users_own_is_opened_with_its_own_files() {
        let page = |symbols, release: &str| {
            let about = About { symbols, release: release.into(), ..About::default() };
            let part = Part { file: crate::evidence::DUMP.into(), what: "memory".into(), got: Ok(1) };
            text(&about, &[part])
        };
        let own = page(Symbols::Tree("/src/linux".into()), "4.4.220-mine");
        for wanted in
            ["/src/linux/vmlinux", "mm_struct.mmap_sem ADDRESS", "pid,comm,state ", "CONFIG_DEBUG_INFO"]
        {
            assert!(own.contains(wanted), "{own}\nlacks {wanted}");
        }
        let lost = page(Symbols::Builder, "4.4.220-mine");
        assert!(lost.contains("crash vmlinux dump.kdump") && lost.contains("names no build tree"), "{lost}");
        for page in [own, lost] {
            assert!(
                !page.contains("-dbg ") && !page.contains("mmap_lock") && !page.contains("/usr/lib"),
                "{page}"
            );
        }
        assert!(page(Symbols::Package, "6.1.0-1").contains("mm_struct.mmap_lock"));
        // Nothing is known of the kernel: that of a shipped image is likelier.
        assert!(page(Symbols::Package, "").contains("mm_struct.mmap_lock"));
    }
}
