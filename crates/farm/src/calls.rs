//! Counting the calls of patched functions with the kernel's function tracer: which can be counted, the shell lines that do it, and what
//! they answer. Pure.
//!
//! Functions of a patch are counted like any other of a module: they begin with a call of the tracer as well, unless they were built
//! without.

use std::collections::{BTreeMap, BTreeSet};

/// Functions that are counted at once.
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

    /// The function of a patch that takes the place of another; where its name is not known, all functions of the patch together. `None`: its
    /// name is not passed on to a shell.
    pub(crate) fn new_code(patch: &str, name: Option<&str>) -> Option<Self> {
        let name = name.unwrap_or(ALL);
        let plain = name == ALL || Self::read(&format!("{patch}/{name}")).is_ok();
        let key = format!("{NEW_CODE}{patch}/{name}");
        plain.then(|| Self { key, object: patch.to_owned(), name: name.to_owned() })
    }

    /// Whether it is a function of a patch.
    pub(crate) fn is_new_code(&self) -> bool {
        Self::is_key_of_new_code(&self.key)
    }

    pub(crate) fn is_key_of_new_code(key: &str) -> bool {
        key.starts_with(NEW_CODE)
    }

    /// Whether it stands for all functions of a module.
    pub(crate) fn is_all(&self) -> bool {
        self.name == ALL
    }
}

/// Before the keys of functions of a patch, which thereby differ from those of functions that are replaced.
const NEW_CODE: &str = "new/";

/// In place of a name: every function that the tracer can take.
const ALL: &str = "*";

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

/// The shell line that counts calls for `seconds`, by one function tracer for all of them. Never before applying: on 4.4 a probe at a
/// function's entry makes a good patch fail. A function tracer does not change the registers a livepatch changes, so that both may sit on
/// one function.
///
/// One tracer, because taking one away waits until every task has been seen outside of the kernel's trampolines, which takes seconds in a
/// starved guest, and holds a lock that taking back a livepatch needs as well: a tracer for each of 32 functions once kept a good patch from
/// being reverted for minutes. Where more calls were made than the buffer holds, its newest part says how they are shared out; functions
/// that do not occur there are `hidden` by the others and are to be counted without these. With the option `sym-offset` a trace names the
/// module of each function, so that a patch's function may be called like the one it replaces.
///
/// A filter takes every function of a name, wherever it is: those of other modules are taken out again, and what then stands in the
/// filter is counted only if it is one function. Each name that is written costs a walk over all functions of the kernel, seconds for
/// 32 of them in a starved guest, so that each is written once and all are looked at together. A function that the filter does not know may
/// be known to it by another name at the same address: before 4.17 a system call is `sys_X` to a livepatch and `SyS_X` to the tracer.
pub(crate) fn count(functions: &[Function], seconds: u64) -> String {
    let in_filter = |f: &Function| match f.object.as_str() {
        "vmlinux" => f.name.clone(),
        module => format!("{}:mod:{module}", f.name),
    };
    let filters: Vec<String> = functions.iter().map(in_filter).collect();
    let wanted: Vec<String> =
        functions.iter().map(|f| format!("{} {} {}", f.name, f.key, f.object)).collect();
    format!(
        r##"T=/sys/kernel/tracing; [ -d $T/instances ] || T=/sys/kernel/debug/tracing
[ -d $T/instances ] || {{ echo "{NO_TRACEFS}"; exit 1; }}
set -f; i=$T/instances/klpfarm; A=$i/set_ftrace_filter; names=; unknown=
away() {{ [ -d $i ] && echo nop > $i/current_tracer && rmdir $i; }}
listed() {{ awk -v wanted="$1" '!/^#/ {{ m = $2; gsub(/[][]/, "", m); n[$1, m]++; if (m != "") {{ mods[$1] = mods[$1] " " m; n["{ALL}", m]++ }} }}
END {{ last = split(wanted, w, " "); for (k = 1; k < last; k += 3) own[w[k], w[k + 2]]; for (k = 1; k < last; k += 3) {{ f = w[k]; o = w[k + 2] == "vmlinux" ? "" : w[k + 2]; c = n[f, o] + 0
if (c == 1 || c && f == "{ALL}") print "good", f, w[k + 1] " " w[k + 2]; else if (c > 1) {{ print "ambiguous", w[k + 1], c; print "drop", f (o == "" ? "" : ":mod:" o) }} else print "unknown", f, w[k + 1] " " w[k + 2]
if (o == "") {{ l = split(mods[f], g, " "); for (j = 1; j <= l; j++) if (!((f, g[j]) in own || ("{ALL}", g[j]) in own)) print "drop", f ":mod:" g[j] }} }} }}' $A; }}
take() {{ while read -r w a b; do case $w in good) names="$names $a $b";; drop) echo "!$a" >> $A;; unknown) unknown="$unknown $a $b";;
ambiguous) echo "$w $a $b";; esac; done <<END
$(listed "$1")
END
}}
others() {{ awk -v names="$unknown" 'BEGIN {{ n = split(names, w, " "); for (k = 1; k < n; k += 3) if (w[k + 2] == "vmlinux") key[w[k]] = w[k + 1] }}
FNR == 1 {{ pass++ }} pass == 1 && $3 in key && !/^0+ / {{ at[$1] = $3 }} pass == 2 && $1 in at && $3 != at[$1] {{ print $3, key[at[$1]] }}' /proc/kallsyms /proc/kallsyms; }}
again() {{ more=; while read -r o k; do [ -n "$o" ] && echo $o >> $A && more="$more $o $k vmlinux"; done <<END
$1
END
set -- $unknown; while [ $# -gt 2 ]; do echo "untraceable $2"; shift 3; done; take "$more"; }}
{{ away; mkdir $i && echo 64 > $i/buffer_size_kb && echo sym-offset > $i/trace_options || {{ echo "no tracing instance"; exit 1; }}
for f in {filters}; do echo $f >> $A; done
take "{wanted}"; [ -n "$unknown" ] && again "$(others)"
[ -n "$names" ] && if echo function > $i/current_tracer; then
sleep {seconds}; echo 0 > $i/tracing_on; set +f
set -- $(awk '/^entries:|^overrun:/ {{ n += $2 }} /^overrun:/ {{ o += $2 }} END {{ print n + 0, o + 0 }}' $i/per_cpu/cpu*/stats)
awk -v total=$1 -v lost=$2 -v names="$names" '/<-/ {{ for (k = 2; k <= NF; k++) if ($k ~ /^<-/) {{ f = $(k - 1); m = "vmlinux"
if (f ~ /\]$/) {{ m = f; gsub(/[][]/, "", m); f = $(k - 2) }} sub(/\+0x.*/, "", f); c[f, m]++; c["{ALL}", m]++; all++; break }} }}
END {{ n = split(names, w, " "); for (k = 1; k < n; k += 3) {{ x = c[w[k], w[k + 2]] + 0; if (n == 3) x = total; else if (lost && x) x = int(x * total / all + 0.5)
print (lost && !x ? "hidden" : "calls"), w[k + 1], x }} }}' $i/trace
else for f in $names; do case $f in */*) echo "untraceable $f";; esac; done; fi
away; }} 2>/dev/null
exit 0"##,
        filters = filters.join(" "),
        wanted = wanted.join(" "),
    )
}

/// What the guest says of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Number of calls.
    Calls(u64),
    /// Other functions of the group were called so often that nothing is left to see of this one.
    Hidden,
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
            "hidden" => Answer::Hidden,
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

    /// The shell line without tracefs: what the filter lists once it is written, and what the tracer leaves once it is switched on.
    fn line(functions: &[Function], listed: &str, stats: &str, trace: &str) -> String {
        let shown = |text: &str| text.replace('\n', "\\n");
        let traced = format!(
            "mkdir -p $i/per_cpu/cpu0 && printf '{}' > $i/per_cpu/cpu0/stats && printf '{}' > $i/trace",
            shown(stats),
            shown(trace)
        );
        count(functions, 0)
            .replace("; do echo $f >> $A; done", &format!("; do :; done; printf '{}' > $A", shown(listed)))
            .replace("echo function > $i/current_tracer", &traced)
    }

    fn instances() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("instances")).unwrap();
        dir
    }

    #[test]
    fn a_shell_counts_what_its_filter_holds() {
        let (functions, _) = countable(&keys(&["vmlinux/do_exit,1", "ext4/ext4_sync_file,1"]));
        // As 6.1 and 4.4 write it, under names with blanks as well.
        let trace = "# tracer: function\n#\n           <...>-512   [000] ...1.   100.1: do_exit <-do_group_exit\n \
                     my prog-7 [001] ....   100.2: do_exit <-__x64_sys_exit\n";
        let dir = instances();
        let listed = "do_exit\next4_sync_file [ext4]\n";
        let line = line(&functions, listed, "entries: 2\noverrun: 0\n", trace);
        assert_eq!(run(dir.path(), &line), "calls ext4/ext4_sync_file,1 0\ncalls vmlinux/do_exit,1 2\n");
        let written = count(&functions, 0);
        assert!(written.contains("for f in ext4_sync_file:mod:ext4 do_exit; do"), "{written}");
    }

    /// A patch's function may be called like the one it replaces, and so may one of a module that has nothing to do with it.
    #[test]
    fn functions_of_one_name_are_counted_by_their_modules() {
        let (mut functions, _) = countable(&keys(&["vmlinux/do_exit,1"]));
        functions.push(Function::new_code("fix", Some("do_exit")).unwrap());
        let trace = "x-1 [0] 1: do_exit+0x4/0xb0 <-do_group_exit+0x1/0x2\n\
                     x-1 [0] 1: do_exit+0x4/0x40 [fix] <-do_group_exit+0x1/0x2 [other]\n\
                     x-1 [0] 1: do_exit+0x4/0x40 [fix] <-klp_x+0x1/0x2 [fix]\n";
        let dir = instances();
        let line = line(&functions, "do_exit\ndo_exit [fix]\ndo_exit [other]\n", "entries: 3\n", trace);
        assert_eq!(run(dir.path(), &line), "calls vmlinux/do_exit,1 1\ncalls new/fix/do_exit 2\n");
        let filter = std::fs::read_to_string(dir.path().join("instances/klpfarm/set_ftrace_filter")).unwrap();
        assert!(filter.ends_with("do_exit [other]\n!do_exit:mod:other\n"), "{filter}");
        assert!(count(&functions, 0).contains("for f in do_exit do_exit:mod:fix; do"));
    }

    #[test]
    fn all_functions_of_a_patch_are_counted_together() {
        let (mut functions, _) = countable(&keys(&["vmlinux/do_exit,1"]));
        functions.push(Function::new_code("fix", None).unwrap());
        let trace = "x-1 [0] 1: do_exit+0x4/0xb0 <-f+0x1/0x2\nx-1 [0] 1: a+0x4/0x40 [fix] <-f+0x1/0x2\n\
                     x-1 [0] 1: b+0x4/0x40 [fix] <-a+0x1/0x2 [fix]\n";
        let dir = instances();
        let line = line(&functions, "do_exit\na [fix]\nb [fix]\n", "entries: 3\n", trace);
        assert_eq!(run(dir.path(), &line), "calls vmlinux/do_exit,1 1\ncalls new/fix/* 2\n");
        // Nothing of it can be traced.
        let dir = instances();
        let line = self::line(&functions, "do_exit\n", "entries: 1\n", "x-1 [0] 1: do_exit+0x4/0xb0 <-f\n");
        assert_eq!(run(dir.path(), &line), "untraceable new/fix/*\ncalls vmlinux/do_exit,1 1\n");
        assert!(Function::new_code("fix", Some("a;b")).is_none());
    }

    #[test]
    fn what_the_buffer_lost_is_shared_out_and_what_it_hides_is_said() {
        let (functions, _) = countable(&keys(&["vmlinux/a,1", "vmlinux/b,1", "vmlinux/c,1"]));
        let trace = "x-1 [0] 1: a <-m\nx-1 [0] 1: a <-m\nx-1 [0] 1: a <-m\nx-1 [0] 1: b <-m\n";
        let dir = instances();
        let said = run(dir.path(), &line(&functions, "a\nb\nc\n", "entries: 4\noverrun: 396\n", trace));
        assert_eq!(said, "calls vmlinux/a,1 300\ncalls vmlinux/b,1 100\nhidden vmlinux/c,1 0\n");
        // One alone needs no trace.
        let dir = instances();
        let said = run(dir.path(), &line(&functions[..1], "a\n", "entries: 4\noverrun: 396\n", ""));
        assert_eq!(said, "calls vmlinux/a,1 400\n");
    }

    /// What 6.1 lists of a name that the kernel has once and modules have as well, and what is then taken out.
    #[test]
    fn functions_of_other_modules_are_taken_out_of_the_filter() {
        let (functions, _) = countable(&keys(&["vmlinux/get_block,1"]));
        let said = |listed: &str| {
            let dir = instances();
            let said = run(dir.path(), &line(&functions, listed, "entries: 7\noverrun: 0\n", ""));
            let filter =
                std::fs::read_to_string(dir.path().join("instances/klpfarm/set_ftrace_filter")).unwrap();
            (said, filter)
        };
        let (calls, filter) = said("get_block\nget_block [ext4]\nget_block [xfs 6e2a9d2f]\n#### all\n");
        assert_eq!(calls, "calls vmlinux/get_block,1 7\n");
        assert!(filter.ends_with("#### all\n!get_block:mod:ext4\n!get_block:mod:xfs\n"), "{filter}");
        let (ambiguous, filter) = said("get_block\nget_block\n");
        assert_eq!(ambiguous, "ambiguous vmlinux/get_block,1 2\n");
        assert!(filter.ends_with("!get_block\n"), "{filter}");
        // An empty filter stands for all functions, and is not traced.
        assert_eq!(said("#### all functions enabled ####\n").0, "untraceable vmlinux/get_block,1\n");
        assert_eq!(said("get_block [ext4]\n").0, "untraceable vmlinux/get_block,1\n");
    }

    /// As 4.4 knows system calls: `sys_X` to livepatch, `SyS_X` to the tracer, both at one address.
    #[test]
    fn a_function_is_counted_under_its_other_name() {
        let dir = instances();
        let symbols =
            "ffffffff811b5e10 T SyS_madvise\nffffffff811b5e10 T sys_madvise\nffffffff811b6000 T sys_getpid\n";
        std::fs::write(dir.path().join("kallsyms"), symbols).unwrap();
        let (functions, _) =
            countable(&keys(&["vmlinux/sys_madvise,1", "vmlinux/sys_getpid", "vmlinux/gone"]));
        let line = line(
            &functions,
            "sys_getpid\n",
            "entries: 9\noverrun: 0\n",
            "x-1 [0] 1: SyS_madvise <-do_syscall\n",
        )
        .replace("/proc/kallsyms", dir.path().join("kallsyms").to_str().unwrap());
        let said = run(dir.path(), &line);
        let said = read(&said);
        assert_eq!(said["vmlinux/sys_madvise,1"], Answer::Calls(1));
        assert_eq!(said["vmlinux/sys_getpid"], Answer::Calls(0));
        assert!(matches!(said["vmlinux/gone"], Answer::Unable(_)));
    }
}
