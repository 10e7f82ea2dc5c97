//! Counting all functions with the guest's own function tracer, for machines that are not emulated. Pure but for the guest.
//!
//! All calls of a busy kernel are too many to be kept. So a few short looks are taken: what the buffer holds at the end of each says how the
//! calls are shared out, and the statistics say how many there were.

use klpfarm_vm::Counts;

/// The shell line: looks of half a second each. Says `looked MILLISECONDS` and `calls ADDRESS NUMBER` for each look, or `no tracer`.
pub(super) const SAMPLE: &str = r##"T=/sys/kernel/tracing; [ -d $T/instances ] || T=/sys/kernel/debug/tracing
i=$T/instances/klpfarm-reach; away() { [ -d $i ] && { echo 0 > $i/tracing_on; echo nop > $i/current_tracer; rmdir $i; }; }
{ away; mkdir $i && echo 0 > $i/tracing_on && echo 1024 > $i/buffer_size_kb && echo sym-addr > $i/trace_options && echo function > $i/current_tracer; } 2>/dev/null || { echo "no tracer"; away; exit 0; }
n=0; while [ $n -lt 10 ]; do n=$((n + 1)); echo > $i/trace
a=$(date +%s%N); echo 1 > $i/tracing_on; sleep 0.5; echo 0 > $i/tracing_on; b=$(date +%s%N); echo "looked $(((b - a) / 1000000))"
set -- $(awk '/^entries:|^overrun:/ { s += $2 } END { print s + 0 }' $i/per_cpu/cpu*/stats)
awk -v total=$1 '!/^#/ { for (k = 1; k <= NF; k++) if ($k ~ /^<ffff[0-9a-f]*>$/) { c[$k]++; all++; break } }
END { for (x in c) { y = x; gsub(/[<>]/, "", y); print "calls", y, int(c[x] * total / all + 0.5) } }' $i/trace
done; away 2>/dev/null; exit 0"##;

/// The guest's answer: calls by the address of the tracer's call, and for how many milliseconds was looked.
///
/// # Errors
/// If it has no tracer, or does not say what it was asked for.
pub(super) fn read(text: &str) -> Result<(Counts, u64), String> {
    let (mut counts, mut looked) = (Counts::new(), 0_u64);
    for line in text.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("looked"), Some(ms), None) => looked += ms.parse::<u64>().unwrap_or(0),
            (Some("calls"), Some(address), Some(calls)) => {
                if let (Ok(address), Ok(calls)) = (u64::from_str_radix(address, 16), calls.parse::<u64>()) {
                    *counts.entry(address).or_default() += calls;
                }
            }
            _ => {}
        }
    }
    match looked {
        0 => Err(format!("the guest has no function tracer that can be used: {}", text.trim())),
        ms => Ok((counts, ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_added_up() {
        let text = "looked 512\ncalls ffffffff81000004 7\nlooked 500\ncalls ffffffff81000004 3\ncalls x y\nsh: odd\n";
        assert_eq!(read(text), Ok(([(0xffff_ffff_8100_0004, 10)].into(), 1012)));
        assert!(read("no tracer\n").unwrap_err().contains("no tracer"));
        assert!(read("").is_err());
    }

    /// The shell line without tracefs: a folder whose files hold what the kernel would say.
    #[test]
    fn a_shell_counts_what_the_trace_holds() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("instances")).unwrap();
        let trace = "# tracer: function\\n a b-1 [000] d..1. 1.0: f <ffffffff81000004> <-g <ffffffff81000104>\\n x-1 [1] 1: f <ffffffff81000004> <-g <ffffffff81000104>\\n";
        let fake = format!(
            "mkdir -p $i/per_cpu/cpu0 && printf 'entries: 2\\noverrun: 8\\n' > $i/per_cpu/cpu0/stats && printf '{trace}' > $i/trace; b=$(date +%s%N)"
        );
        let line = SAMPLE
            .replace("/sys/kernel/tracing", dir.path().to_str().unwrap())
            .replace("/sys/kernel/debug/tracing", "/nowhere")
            .replace("sleep 0.5", "sleep 0.01")
            .replace("b=$(date +%s%N)", &fake);
        let output = std::process::Command::new("/bin/sh").args(["-c", &line]).output().unwrap();
        let (counts, looked) = read(&String::from_utf8(output.stdout).unwrap()).unwrap();
        assert_eq!(counts, [(0xffff_ffff_8100_0004, 100)].into());
        assert!(looked > 0);
    }
}
