//! Counting the calls of patched functions with the kernel's function tracer: which can be counted, the shell lines that do it, and what
//! they answer. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Functions that are counted at once: each takes a tracing instance with a buffer for every CPU.
pub(crate) const GROUP: usize = 32;

/// What the shell says where nothing can be counted.
const NO_TRACEFS: &str = "no tracefs";

/// A function as sysfs names it below a livepatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// `object/function,sympos`; without sympos on vanilla 4.4.
    pub(crate) key: String,
    /// `vmlinux`, or the module that the function is in.
    object: String,
    name: String,
}

impl Function {
    /// # Errors
    /// Why calls of this function can't be counted.
    fn read(key: &str) -> Result<Self, String> {
        let (object, function) = key.split_once('/').unwrap_or(("vmlinux", key));
        let (name, position) = function.rsplit_once(',').unwrap_or((function, "1"));
        let plain = |s: &str| {
            !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
        };
        if !plain(name) || !plain(object) || position.parse::<u32>().is_err() {
            return Err("its name holds characters that are not passed on to a shell".to_owned());
        }
        if !matches!(position, "0" | "1") {
            return Err(format!(
                "cannot be determined: it is number {position} of several functions of this name, which the tracer does not keep apart"
            ));
        }
        Ok(Self { key: key.to_owned(), object: object.to_owned(), name: name.to_owned() })
    }
}

/// Name of the function in a key, without object and position.
pub(crate) fn name(key: &str) -> &str {
    let function = key.split_once('/').map_or(key, |(_, function)| function);
    function.rsplit_once(',').map_or(function, |(name, _)| name)
}

/// Functions that can be counted, and why the others can't, by key.
pub(crate) fn countable(keys: &BTreeSet<String>) -> (Vec<Function>, BTreeMap<String, String>) {
    let (mut good, mut bad) = (Vec::new(), BTreeMap::new());
    for key in keys {
        let place = |k: &str| k.rsplit_once(',').map_or(k, |(place, _)| place).to_owned();
        let twins = keys.iter().filter(|k| place(k) == place(key)).count();
        match Function::read(key) {
            Ok(_) if twins > 1 => {
                let reason = format!(
                    "cannot be determined: the patches replace {twins} functions of this name in one object"
                );
                bad.insert(key.clone(), reason);
            }
            Ok(function) => good.push(function),
            Err(reason) => {
                bad.insert(key.clone(), reason);
            }
        }
    }
    (good, bad)
}

/// The shell line that counts calls for `seconds`, by a function tracer in an instance of its own for each. Never before applying: on 4.4 a
/// probe at a function's entry makes a good patch fail. A function tracer does not change the registers a livepatch changes, so that both
/// may sit on one function.
///
/// The filter takes every function of a name, wherever it is: those of other modules are taken out again, and what then stands in the
/// filter is counted only if it is one function. What the shell can do itself is not left to programs: starting one takes long in a loaded
/// guest. A function that the filter does not know may be known to it by another name at the same address: before 4.17 a system call is
/// `sys_X` to a livepatch and `SyS_X` to the tracer.
pub(crate) fn count(functions: &[Function], seconds: u64) -> String {
    let lines = |word: &str| {
        let line = |(n, f): (usize, &Function)| format!("{word} {n} {} {} {}\n", f.object, f.name, f.key);
        functions.iter().enumerate().map(line).collect::<String>()
    };
    format!(
        r#"T=/sys/kernel/tracing; [ -d $T/instances ] || T=/sys/kernel/debug/tracing
[ -d $T/instances ] || {{ echo "{NO_TRACEFS}"; exit 1; }}
look() {{ n=0; ms=; while read -r f m; do case $f in '#'*) ;; *) n=$((n+1)); m=${{m#\[}}; m=${{m%%[] ]*}}; ms="$ms $m";; esac; done < $F; }}
other() {{ a=$(grep -m 1 " $1\$" /proc/kallsyms); a=${{a%% *}}; case $a in *[1-9a-f]*) ;; *) return;; esac
for s in $(grep "^$a " /proc/kallsyms | cut -d ' ' -f 3); do echo $s > $F && look && [ $n = 1 ] && return; done; }}
begin() {{ i=$T/instances/klpfarm_$1; F=$i/set_ftrace_filter
[ -d $i ] && echo nop > $i/current_tracer && rmdir $i
mkdir $i && echo 64 > $i/buffer_size_kb || {{ echo "untraceable $4"; return; }}
if [ $2 = vmlinux ]; then echo $3 > $F; look; [ $n = 0 ] && other $3
for m in $ms; do echo "!$3:mod:$m" >> $F; done
else echo "$3:mod:$2" > $F; fi
look
case $n in 1) echo function > $i/current_tracer || echo "untraceable $4";; 0) echo "untraceable $4";; *) echo "ambiguous $4 $n";; esac; }}
end() {{ i=$T/instances/klpfarm_$1; t=; read -r t < $i/current_tracer; if [ "$t" = function ]; then echo 0 > $i/tracing_on
echo "calls $4 $(awk '/^entries:|^overrun:/ {{ n += $2 }} END {{ print n + 0 }}' $i/per_cpu/cpu*/stats)"; fi
echo nop > $i/current_tracer; rmdir $i; }}
{{ {}sleep {seconds}
{}}} 2>/dev/null
exit 0"#,
        lines("begin"),
        lines("end")
    )
}

/// What the guest says of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Number of calls.
    Calls(u64),
    /// They can't be counted, and why.
    Unable(String),
}

/// Why an answer does not have a function that was to be counted, in a few words: the rest of the answer is of other functions.
pub(crate) fn silence(text: &str) -> &'static str {
    if text.lines().any(|line| line == NO_TRACEFS) {
        "the guest has no tracefs with instances: is CONFIG_FUNCTION_TRACER on?"
    } else if text.trim().is_empty() {
        "the guest did not answer"
    } else {
        "the guest's answer lacks it"
    }
}

/// The guest's answer, by key.
pub(crate) fn read(text: &str) -> BTreeMap<String, Answer> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (word, key, number) = (words.next()?, words.next()?, words.next());
        let answer = match word {
            "calls" => Answer::Calls(number?.parse().ok()?),
            "ambiguous" => Answer::Unable(format!(
                "cannot be determined: {} functions have this name, which the tracer does not keep apart",
                number?
            )),
            "untraceable" => Answer::Unable("the kernel's function tracer does not take it".to_owned()),
            _ => return None,
        };
        Some((key.to_owned(), answer))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|k| (*k).to_owned()).collect()
    }

    #[test]
    fn keys_of_all_kernels() {
        let (good, bad) = countable(&keys(&["vmlinux/do_exit,1", "vmlinux/sys_madvise", "ext4/a.isra.0,1"]));
        let parts: Vec<(&str, &str)> = good.iter().map(|f| (f.object.as_str(), f.name.as_str())).collect();
        assert_eq!(parts, [("ext4", "a.isra.0"), ("vmlinux", "do_exit"), ("vmlinux", "sys_madvise")]);
        assert!(bad.is_empty());
        assert_eq!([name("vmlinux/do_exit,1"), name("ext4/f"), name("f")], ["do_exit", "f", "f"]);
    }

    #[test]
    fn only_plain_names_reach_a_shell() {
        let odd = ["vmlinux/$(reboot),1", "vmlinux/a;b,1", "vmlinux/_RNvCs$x,1", "m y/f,1", "vmlinux/f,x"];
        let (good, bad) = countable(&keys(&odd));
        assert_eq!((good.len(), bad.len()), (0, 5), "{bad:?}");
    }

    #[test]
    fn functions_of_one_name_are_kept_apart_or_not_counted() {
        let (good, bad) =
            countable(&keys(&["ext4/get_block,2", "vmlinux/get_block,1", "xfs/f,1", "xfs/f,2", "xfs/g,1"]));
        let good: Vec<&str> = good.iter().map(|f| f.key.as_str()).collect();
        assert_eq!(good, ["vmlinux/get_block,1", "xfs/g,1"]);
        assert!(bad["ext4/get_block,2"].contains("number 2"), "{bad:?}");
        assert!(bad["xfs/f,1"].contains("2 functions"), "{bad:?}");
    }

    #[test]
    fn answers() {
        let all = read("calls vmlinux/a,1 17\nambiguous vmlinux/b,1 2\nuntraceable ext4/c,1\nno tracefs\n");
        assert_eq!(all["vmlinux/a,1"], Answer::Calls(17));
        assert!(
            matches!(&all["vmlinux/b,1"], Answer::Unable(why) if why.contains("cannot be determined: 2"))
        );
        assert_eq!(all.len(), 3);
        assert!(silence("no tracefs\n").contains("CONFIG_FUNCTION_TRACER"));
        assert!(silence(" \n").contains("did not answer"));
        assert!(!silence("calls vmlinux/a,1 17\nx: not found\n").contains("vmlinux"));
    }

    #[test]
    fn a_guest_without_a_tracer_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (functions, _) = countable(&keys(&["vmlinux/f,1"]));
        let line = count(&functions, 0).replace("/sys/kernel/debug/tracing", "/nowhere");
        assert_eq!(run(dir.path(), &line), format!("{NO_TRACEFS}\n"));
    }

    /// Runs the shell line with a folder in place of tracefs, whose files hold what was written.
    fn run(dir: &std::path::Path, line: &str) -> String {
        let line = line.replace("/sys/kernel/tracing", dir.to_str().unwrap());
        let output = std::process::Command::new("/bin/sh").args(["-c", &line]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_shell_counts_what_its_filter_holds() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("instances")).unwrap();
        let (functions, _) = countable(&keys(&["vmlinux/do_exit,1", "ext4/ext4_sync_file,1"]));
        // There are no CPUs with statistics.
        let line = count(&functions, 0).replace("/per_cpu/cpu*/stats", "/tracing_on");
        assert_eq!(run(dir.path(), &line), "calls ext4/ext4_sync_file,1 0\ncalls vmlinux/do_exit,1 0\n");
        let filter = |n: usize| {
            std::fs::read_to_string(dir.path().join(format!("instances/klpfarm_{n}/set_ftrace_filter")))
                .unwrap()
        };
        assert_eq!((filter(0).trim(), filter(1).trim()), ("ext4_sync_file:mod:ext4", "do_exit"));
    }

    /// On 4.4.220 the filter refuses `sys_madvise` (EIO or EINVAL) and then stands for all functions; it knows `SyS_madvise`.
    #[test]
    fn a_function_with_two_names_is_counted_by_the_one_that_the_tracer_knows() {
        for key in ["vmlinux/sys_madvise", "vmlinux/sys_madvise,1"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("instances")).unwrap();
            let symbols = dir.path().join("kallsyms");
            std::fs::write(
                &symbols,
                "ffffffff81160380 T SyS_madvise\nffffffff81160380 T sys_madvise\nffffffff81160790 T SyS_mremap\n",
            )
            .unwrap();
            let (functions, bad) = countable(&keys(&[key]));
            assert!(bad.is_empty(), "{bad:?}");
            let refused = r"printf '#### all functions enabled ####\n' > $F";
            let line = count(&functions, 0)
                .replace("echo $3 > $F", refused)
                .replace("/proc/kallsyms", symbols.to_str().unwrap())
                .replace("/per_cpu/cpu*/stats", "/stats")
                .replace("echo 0 > $i/tracing_on", "cat $i/set_ftrace_filter >&3")
                .replace("{ begin", "exec 3>&1; { begin");
            // As each CPU's buffer tells it.
            let line = line.replace(
                "mkdir $i &&",
                "mkdir $i && printf 'entries: 204\\noverrun: 7\\nbytes: 11424\\n' > $i/stats &&",
            );
            assert_eq!(run(dir.path(), &line), format!("SyS_madvise\ncalls {key} 211\n"));
        }
    }

    /// What 6.1 lists of a name that the kernel has once and modules have as well, and what is then taken out.
    #[test]
    fn functions_of_other_modules_are_taken_out_of_the_filter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("instances")).unwrap();
        let (functions, _) = countable(&keys(&["vmlinux/get_block,1"]));
        let listed = r"printf 'get_block\nget_block [ext4]\nget_block [xfs 6e2a9d2f]\n#### all\n' > $F";
        let line = count(&functions, 0).replace("echo $3 > $F", listed);
        // A file forgets nothing: what was to be taken out is two lines more.
        assert_eq!(run(dir.path(), &line), "ambiguous vmlinux/get_block,1 5\n");
        let filter =
            std::fs::read_to_string(dir.path().join("instances/klpfarm_0/set_ftrace_filter")).unwrap();
        assert!(filter.ends_with("#### all\n!get_block:mod:ext4\n!get_block:mod:xfs\n"), "{filter}");
        let line =
            count(&functions, 0).replace("echo $3 > $F", "printf '#### all functions enabled ####\\n' > $F");
        std::fs::remove_dir_all(dir.path().join("instances/klpfarm_0")).unwrap();
        assert_eq!(run(dir.path(), &line), "untraceable vmlinux/get_block,1\n");
    }
}
