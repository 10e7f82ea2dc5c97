//! What a machine is made of, and the QEMU command line that follows from it. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use klpfarm_model::Accel;

use crate::{Group, Origin};

/// Everything QEMU needs to know of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The guest's disk; never written: changes go to an unnamed temporary file that dies with QEMU, or to the origin's overlay.
    pub disk: PathBuf,
    /// `raw` or `qcow2`.
    pub disk_format: String,
    /// Booted directly; without it the disk's own boot loader is used.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of `kernel`.
    pub initrd: Option<PathBuf>,
    /// Kernel command line of the image, for example `root=/dev/vda rw`; the farm adds its own words.
    pub cmdline: String,
    /// NoCloud seed disk.
    pub seed: Option<PathBuf>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// KVM or emulation.
    pub accel: Accel,
    /// Power-on, or a checkpoint. A fork must be given the other fields as its template had them.
    pub origin: Origin,
    /// What keeps it together with the other machines of its run.
    pub group: Group,
    /// Count the entries into each block of the guest's kernel ([`crate::Machine::counts`]); under emulation only.
    pub counted: bool,
}

/// The words klpfarm adds to the kernel command line. `ignore_loglevel`: stack lines otherwise never reach the console;
/// `sysrq_always_enabled`: evidence from a guest that no longer answers; `panic=0`: stay for it.
const CMDLINE: &str = "console=ttyS0,115200 ignore_loglevel printk.time=1 panic=0 sysrq_always_enabled=1 \
     net.ifnames=0 systemd.show_status=0 rd.systemd.show_status=0 log_buf_len=4M";

/// Sockets of a machine, all in one private folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sockets {
    pub(crate) qmp: PathBuf,
    pub(crate) console: PathBuf,
    pub(crate) probe: PathBuf,
    pub(crate) uart: PathBuf,
    /// Where the plugin that counts is asked.
    pub(crate) counts: PathBuf,
}

impl Sockets {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            qmp: dir.join("qmp"),
            console: dir.join("console"),
            probe: dir.join("probe"),
            uart: dir.join("uart"),
            counts: dir.join("counts"),
        }
    }
}

impl Spec {
    /// The kernel command line of this machine.
    pub fn kernel_cmdline(&self) -> String {
        format!("{} {CMDLINE}", self.cmdline)
    }

    /// QEMU's arguments; `plugin` is the file of the plugin that counts. It starts paused, so that nothing is missed before its sockets are read.
    pub(crate) fn qemu_args(&self, sockets: &Sockets, plugin: Option<&Path>) -> Vec<OsString> {
        let mut args = Args::default();
        args.add("-nodefaults").add("-no-user-config").add("-S");
        args.add("-display").add("none");
        // Threads get names: how long the CPUs' wait for the host's is watched.
        args.add("-name").add("klpfarm,debug-threads=on");
        args.memory(self);
        match self.accel {
            Accel::Kvm => args.add("-accel").add("kvm").add("-cpu").add("host"),
            Accel::Tcg => args.add("-accel").add("tcg,thread=multi").add("-cpu").add("max"),
        };
        args.add("-smp").add(self.cpus.to_string());
        if let Some(kernel) = &self.kernel {
            args.add("-kernel").add(kernel);
            if let Some(initrd) = &self.initrd {
                args.add("-initrd").add(initrd);
            }
            args.add("-append").add(self.kernel_cmdline());
        }
        args.root_disk(self);
        if let Some(seed) = &self.seed {
            args.disk(seed, "raw", "readonly=on");
        }
        args.socket("console", &sockets.console).add("-serial").add("chardev:console");
        args.socket("uart", &sockets.uart).add("-serial").add("chardev:uart");
        args.socket("probe", &sockets.probe);
        args.add("-device").add("virtio-serial-pci");
        args.add("-device")
            .add(format!("virtserialport,chardev=probe,name={}", klpfarm_stress::wire::PORT_NAME));
        args.socket("qmp", &sockets.qmp).add("-mon").add("chardev=qmp,mode=control");
        // Port 0: the kernel chooses a free one; QEMU tells it on request. `restrict`: no way out of the guest.
        args.add("-netdev").add("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22");
        args.add("-device").add("virtio-net-pci,netdev=net");
        args.add("-device").add("virtio-rng-pci");
        // The ISA form: the only one that 4.4 has a driver for.
        args.add("-device").add("pvpanic");
        // Whatever happens, stay for the evidence.
        args.add("-action").add("reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause");
        args.add("-sandbox").add("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        if let Some(plugin) = plugin {
            args.add("-plugin").add(format!("{},socket={}", escaped(plugin), escaped(&sockets.counts)));
        }
        if self.origin.is_resumed() {
            args.add("-incoming").add("defer");
        }
        args.0
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn add(&mut self, arg: impl Into<OsString>) -> &mut Self {
        self.0.push(arg.into());
        self
    }

    /// The guest's RAM: anonymous, or a file. A fork opens it for reading only and maps it privately: what it writes is its own.
    fn memory(&mut self, spec: &Spec) {
        self.add("-m").add(format!("{}M", spec.memory_mib));
        let Some(files) = spec.origin.files() else {
            self.add("-machine").add("q35");
            return;
        };
        let sharing = match spec.origin {
            Origin::Fork(_) => "share=off,readonly=on,rom=off",
            Origin::Boot | Origin::Template(_) | Origin::Continue(_) => "share=on",
        };
        let mut object =
            OsString::from(format!("memory-backend-file,id=mem,size={}M,mem-path=", spec.memory_mib));
        object.push(escaped(&files.ram));
        object.push(format!(",{sharing}"));
        self.add("-machine").add("q35,memory-backend=mem").add("-object").add(object);
    }

    /// `cache=unsafe`: the guest's flushes are not passed on; what a checkpoint needs is synced when it is taken.
    fn root_disk(&mut self, spec: &Spec) {
        const CACHE: &str = "cache=unsafe";
        const THROW_AWAY: &str = "snapshot=on,cache=unsafe";
        let (files, keep) = match &spec.origin {
            Origin::Boot => {
                self.disk(&spec.disk, &spec.disk_format, THROW_AWAY);
                return;
            }
            Origin::Template(files) | Origin::Continue(files) => (files, CACHE),
            Origin::Fork(files) => (files, THROW_AWAY),
        };
        let backing = format!(
            "backing.driver={},backing.file.driver=file,backing.file.filename={},{keep}",
            spec.disk_format,
            escaped(&spec.disk)
        );
        self.disk(&files.disk, "qcow2", &backing);
    }

    fn disk(&mut self, file: &Path, format: &str, options: &str) -> &mut Self {
        let mut arg = OsString::from("if=virtio,file=");
        arg.push(escaped(file));
        arg.push(format!(",format={format},{options}"));
        self.add("-drive").add(arg)
    }

    /// QEMU connects to us: our end listens before QEMU starts, so nobody waits for a socket to appear.
    fn socket(&mut self, id: &str, path: &Path) -> &mut Self {
        let mut arg = OsString::from(format!("socket,id={id},path="));
        arg.push(escaped(path));
        self.add("-chardev").add(arg)
    }
}

/// In QEMU's option lists a comma in a value is written twice.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Files;

    fn spec() -> Spec {
        Spec {
            disk: "/images/a,b/disk.img".into(),
            disk_format: "raw".into(),
            kernel: Some("/images/vmlinuz".into()),
            initrd: None,
            cmdline: "root=/dev/vda rw".into(),
            seed: None,
            cpus: 2,
            memory_mib: 1024,
            accel: Accel::Tcg,
            origin: Origin::Boot,
            group: Group::Alone,
            counted: false,
        }
    }

    fn line(spec: &Spec) -> String {
        let args = spec.qemu_args(&Sockets::new(Path::new("/run/x")), None);
        args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn paths_with_commas_are_escaped_and_the_disk_is_never_written() {
        assert!(
            line(&spec()).contains("file=/images/a,,b/disk.img,format=raw,snapshot=on"),
            "{}",
            line(&spec())
        );
    }

    /// The devices must be the same, or the state does not fit; only RAM, root disk and `-incoming` differ.
    #[test]
    fn origins_differ_in_ram_disk_and_start_only() {
        let files = Files::in_dir(Path::new("/checkpoints/a,b"));
        let overlay = "if=virtio,file=/checkpoints/a,,b/disk.qcow2,format=qcow2,backing.driver=raw,\
                       backing.file.driver=file,backing.file.filename=/images/a,,b/disk.img";
        let ram = "memory-backend-file,id=mem,size=1024M,mem-path=/checkpoints/a,,b/ram";
        let with = |origin: Origin| line(&Spec { origin, ..spec() });
        let bare = |line: &str| {
            let (before, rest) = line.split_once(" -m 1024M ").unwrap();
            let rest = rest.split_once(" -accel ").unwrap().1;
            let (middle, rest) = rest.split_once(" -drive ").unwrap();
            let rest = rest.split_once(" -chardev ").unwrap().1;
            format!("{before}|{middle}|{}", rest.trim_end_matches(" -incoming defer"))
        };
        let boot = with(Origin::Boot);
        let template = with(Origin::Template(files.clone()));
        let fork = with(Origin::Fork(files.clone()));
        let older = with(Origin::Continue(files));
        for other in [&template, &fork, &older] {
            assert_eq!(bare(other), bare(&boot));
            assert!(other.contains(overlay) && other.contains(ram), "{other}");
            assert!(other.contains("-machine q35,memory-backend=mem -object "), "{other}");
        }
        assert!(boot.contains("-machine q35 ") && !boot.contains("memory-backend"));
        for (line, shared, resumed) in [(&template, true, false), (&fork, false, true), (&older, true, true)]
        {
            assert_eq!(line.contains(",share=on "), shared, "{line}");
            assert_eq!(line.contains(",share=off,readonly=on,rom=off "), !shared, "{line}");
            assert_eq!(line.contains(",snapshot=on"), !shared, "{line}");
            assert_eq!(line.contains(" -incoming defer"), resumed, "{line}");
        }
    }

    #[test]
    fn a_machine_is_closed_to_the_outside() {
        let line = line(&spec());
        for part in ["restrict=on", "hostfwd=tcp:127.0.0.1:0-:22", "-sandbox on", "spawn=deny", "-nodefaults"]
        {
            assert!(line.contains(part), "{line} lacks {part}");
        }
    }

    #[test]
    fn without_a_kernel_the_disk_boots_itself() {
        let bare = Spec { kernel: None, seed: Some("/seed.img".into()), ..spec() };
        assert!(!line(&bare).contains("-append"));
        assert!(line(&bare).contains("file=/seed.img,format=raw,readonly=on"));
    }
}
