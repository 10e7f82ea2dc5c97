//! Prints how fast the classifier reads ordinary console text and text full of reports, in MB/s on one core.

use klpfarm_kmsg::Classifier;
use std::time::Instant;

const ORDINARY: &str = "\
[    0.512345] pci 0000:00:02.0: reg 0x10: [mem 0xfd000000-0xfdffffff pref]
[    1.204411] EXT4-fs (vda): mounted filesystem with ordered data mode. Opts: (null)
[    1.899001] systemd[1]: Starting Journal Service...
[    2.000371][  T112] virtio_net virtio0 ens3: renamed from eth0
[  OK  ] Started OpenSSH server daemon.
Debian GNU/Linux 12 host ttyS0
[   93.115000] audit: type=1400 audit(1604311200.123:12): apparmor=\"STATUS\" operation=\"profile_load\" pid=312
[   94.000001] perf: interrupt took too long (2507 > 2500), lowering kernel.perf_event_max_sample_rate to 79750
";

fn main() {
    let reports = include_str!("../tests/corpus/001-soft-lockup-6.1.txt");
    for (name, block) in [("ordinary", ORDINARY), ("reports", reports)] {
        let text = block.repeat((64 << 20) / block.len());
        let start = Instant::now();
        let mut classifier = Classifier::new();
        let mut signals = 0;
        for chunk in text.as_bytes().chunks(64 << 10) {
            signals += classifier.push(chunk).len();
        }
        signals += classifier.finish().len();
        let speed = text.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
        println!("{name}: {speed:.0} MB/s, {signals} signals");
    }
}
