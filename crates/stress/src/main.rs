//! The guest side of klpfarm: the probe (`serve`), the stressors it runs (`work`), four small helpers of theirs
//! (`reader`, `console`, `load`, `child`), and `traffic` for scripts. One static binary, so that it runs in any guest from Linux 4.4 on.

mod load;
mod params;
mod procfs;
mod serve;
mod slots;
mod sys;
mod traffic;
mod work;

use klpfarm_stress::hist;
use std::process::ExitCode;

const USAGE: &str = "\
usage: klpfarm-stress serve [--daemon] [--port PATH]...
       klpfarm-stress work NAME [key=value]... [--seconds N]
       klpfarm-stress list
       klpfarm-stress traffic listen|connect tcp|udp ADDRESS:PORT [BYTES]

serve   the probe: talks to the farm over the first usable port (virtio port klpfarm.probe, /dev/ttyS1, or the
        given paths: a character device or a Unix socket) and runs workloads for it; --daemon returns at once
work    runs one stressor by itself and prints what it found; exit status 1 if it found a fault
list    names the stressors with their parameters
traffic sends what can be verified through any network, for scripts: `listen` answers, `connect` asks, compares and counts";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let rest = args.get(1..).unwrap_or(&[]);
    match args.first().map(String::as_str) {
        Some("serve") => serve::main(rest),
        Some("work") => work::main(rest),
        Some("list") => work::list(),
        Some("load") => load::main(rest),
        Some("traffic") => traffic::main(rest),
        Some("reader") => serve::reader::main(),
        Some("console") => serve::console::main(),
        Some("child") => work::child::main(rest),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
