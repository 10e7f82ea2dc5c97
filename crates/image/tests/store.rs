//! The store with real files and made-up tools: what is seen of an image while, after and instead of a build.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use klpfarm_image::{BuildOptions, Error, Image, Progress, Recipe, Store};

const RECIPE: &str = "\
name: tiny
description: a test
build:
  suite: nowhere
  mirror: http://127.0.0.1:1/debian
  keyring: keys.gpg
  kernel: {image: k, headers: h}
";

/// Makes, in milliseconds, a tree with what an image is taken from. Asked for its version, it does nothing.
const GOOD_MMDEBSTRAP: &str = r#"#!/bin/sh
set -eu
for arg; do case $arg in */rootfs) root=$arg;; esac; done
[ -n "${root:-}" ] || exit 0
echo run >>"$(dirname "$0")/runs"
mkdir -p "$root/boot" "$root/lib/modules/9.9.9-test" "$root/usr/src/hdr" "$root/var/lib/dpkg" "$root/tmp"
: >"$root/usr/src/hdr/Makefile"
ln -s /usr/src/hdr "$root/lib/modules/9.9.9-test/build"
{ head -c 514 /dev/zero; printf HdrS; head -c 8 /dev/zero; printf '\000\001'; head -c 240 /dev/zero
  printf '9.9.9-test (x)\0'; } >"$root/boot/vmlinuz-9.9.9-test"
echo initrd >"$root/boot/initrd.img-9.9.9-test"
printf 'Package: k\nStatus: install ok installed\nVersion: 1\n\n' >"$root/var/lib/dpkg/status"
echo "I: success"
"#;

const GOOD_MKFS: &str = "#!/bin/sh\nfor arg; do case $arg in */disk.img) echo disk >\"$arg\";; esac; done\n";

struct World {
    dir: tempfile::TempDir,
    store: Store,
    recipe: Recipe,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("keys.gpg"), "").unwrap();
        let recipe = Recipe::parse(&dir.path().join("tiny.yaml"), RECIPE).unwrap();
        let store = Store::open(&dir.path().join("home")).unwrap();
        let world = Self { dir, store, recipe };
        world.tool("mmdebstrap", GOOD_MMDEBSTRAP);
        world.tool("mkfs.ext4", GOOD_MKFS);
        world
    }

    fn tool(&self, name: &str, text: &str) {
        let file = self.dir.path().join("bin").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn options(&self, force: bool) -> BuildOptions {
        BuildOptions { force, tools: Some(self.dir.path().join("bin")) }
    }

    async fn build(&self, force: bool) -> Result<Image, Error> {
        self.store.build(&self.recipe, &self.options(force), &mut |_| {}).await
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.dir.path().join("bin/runs")).map_or(0, |text| text.lines().count())
    }

    /// Names in the store, lock files left out.
    fn entries(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.store.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with(".lock-")).collect()
    }

    fn assert_no_image(&self) {
        assert!(self.store.list().unwrap().is_empty());
        assert!(self.store.get(&self.recipe).unwrap().is_none());
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_store_that_others_could_read_is_closed() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("images");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(home.path()).unwrap();
    assert_eq!(mode(&dir), 0o700);
}

#[tokio::test]
async fn an_image_is_built_once_and_described() {
    let world = World::new();
    world.assert_no_image();
    let mut news = Vec::new();
    let image = world.store.build(&world.recipe, &world.options(false), &mut |n| news.push(n)).await.unwrap();
    assert_eq!(world.entries(), [image.id()]);
    assert_eq!(image.release(), Some("9.9.9-test"));
    assert_eq!(fs::read_to_string(image.disk().0).unwrap(), "disk\n");
    assert_eq!(fs::read_to_string(image.initrd().unwrap()).unwrap(), "initrd\n");
    assert!(image.cmdline().contains("root=/dev/vda"));
    assert!(image.headers().unwrap().join("Makefile").exists());
    assert_eq!(image.manifest.packages.len(), 1);
    assert_eq!(image.manifest.sources, ["deb http://127.0.0.1:1/debian nowhere main"]);
    assert_eq!(mode(&image.ssh().key), 0o600);
    assert_eq!(mode(world.store.dir()), 0o700);
    assert!(image.ssh().host_key.unwrap().starts_with("ssh-ed25519 AAAA"));
    assert!(news.iter().any(|n| matches!(n, Progress::Step { number: 5, total: 5, .. })), "{news:?}");
    assert!(news.contains(&Progress::Line("I: success".into())), "{news:?}");

    assert_eq!(world.build(false).await.unwrap(), image);
    assert_eq!(world.runs(), 1, "an image that is there is not built again");
    let again = world.build(true).await.unwrap();
    assert_eq!(world.runs(), 2);
    assert_ne!(again.ssh().host_key, image.ssh().host_key);
    assert_eq!(world.entries(), [image.id()]);
}

#[tokio::test]
async fn another_recipe_is_another_image_but_another_description_is_not() {
    let world = World::new();
    let image = world.build(false).await.unwrap();
    let parse = |text: &str| Recipe::parse(&world.dir.path().join("tiny.yaml"), text).unwrap();
    let described = parse(&RECIPE.replace("a test", "a better text"));
    assert!(world.store.get(&described).unwrap().is_some());
    let larger = parse(&format!("{RECIPE}  disk: 8G\n"));
    assert!(world.store.get(&larger).unwrap().is_none());
    let other = world.store.build(&larger, &world.options(false), &mut |_| {}).await.unwrap();
    assert_eq!(world.store.lookup(image.id()).unwrap(), image);
    assert_eq!(world.store.lookup("tiny").unwrap(), other, "the newest of a name");
    assert_eq!(world.store.remove(other.id()).await.unwrap(), [other.id()]);
    assert_eq!(world.store.remove("tiny").await.unwrap(), [image.id()]);
    assert!(world.entries().is_empty());
    assert!(matches!(world.store.remove("tiny").await, Err(Error::NoImage { .. })));
}

#[tokio::test]
async fn a_failing_tool_leaves_nothing_and_its_words_reach_the_error() {
    let fail = "#!/bin/sh\nfor arg; do case $arg in */rootfs) mkdir -p $arg/x;; esac; done\n\
                echo 'E: Unable to locate package k' >&2; exit 3\n";
    for tool in ["ssh-keygen", "mmdebstrap", "mkfs.ext4"] {
        let world = World::new();
        world.tool(tool, fail);
        let error = world.build(false).await.unwrap_err().to_string();
        assert!(error.contains(tool) && error.contains("exit status: 3"), "{error}");
        assert!(error.contains("Unable to locate") && error.contains("check `packages`"), "{error}");
        assert!(world.entries().is_empty(), "{tool}: {:?}", world.entries());
        world.assert_no_image();
    }
}

#[tokio::test]
async fn a_build_killed_at_any_stage_leaves_no_image_and_the_next_one_works() {
    // The tool says that it is at work, and then works for ever.
    let hang = "#!/bin/sh\nfor arg; do case $arg in */rootfs) mkdir -p $arg/x;; esac; done\necho here; exec sleep 1000\n";
    for (tool, good) in [("mmdebstrap", GOOD_MMDEBSTRAP), ("mkfs.ext4", GOOD_MKFS)] {
        let world = World::new();
        world.tool(tool, hang);
        let (started, here) = tokio::sync::oneshot::channel();
        let mut started = Some(started);
        let mut sink = |news| {
            if news == Progress::Line("here".into()) {
                started.take().map(|s| s.send(()));
            }
        };
        let options = world.options(false);
        tokio::select! {
            result = world.store.build(&world.recipe, &options, &mut sink) => panic!("{tool}: {result:?}"),
            _ = here => {}
        }
        assert!(world.entries().iter().all(|name| name.starts_with(".tmp-")), "{:?}", world.entries());
        world.assert_no_image();
        world.tool(tool, good);
        let image = world.build(false).await.unwrap();
        assert_eq!(world.entries(), [image.id()], "the half-made folder is gone");
    }
}

#[tokio::test]
async fn leftovers_of_other_images_are_swept_unless_their_build_is_alive() {
    let world = World::new();
    let dir = world.store.dir().to_owned();
    for name in [".tmp-dead-1", ".tmp-alive-1", ".old-dead-2"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let alive = fs::File::create(dir.join(".lock-alive-1")).unwrap();
    alive.lock().unwrap();
    let image = world.build(false).await.unwrap();
    let mut entries = world.entries();
    entries.sort();
    assert_eq!(entries, [".tmp-alive-1", image.id()]);
}

#[tokio::test]
async fn a_second_build_waits_for_the_first_and_takes_its_image() {
    let world = World::new();
    // The first goes on only when the second has said that it waits.
    let gate = world.dir.path().join("gate");
    world.tool("mkfs.ext4", &format!("{GOOD_MKFS}while [ ! -e {} ]; do sleep 0.02; done\n", gate.display()));
    let waited = Arc::new(Mutex::new(0));
    let sink = || {
        let (waited, gate) = (Arc::clone(&waited), gate.clone());
        move |news| {
            if matches!(news, Progress::Waiting { .. }) {
                *waited.lock().unwrap() += 1;
                fs::write(&gate, "").unwrap();
            }
        }
    };
    let (mut one, mut two) = (sink(), sink());
    let options = world.options(false);
    let both = async {
        tokio::join!(
            world.store.build(&world.recipe, &options, &mut one),
            world.store.build(&world.recipe, &options, &mut two)
        )
    };
    let (one, two) = tokio::time::timeout(Duration::from_secs(120), both).await.unwrap();
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!((world.runs(), *waited.lock().unwrap()), (1, 1));
}

#[tokio::test]
async fn a_held_image_is_not_removed() {
    let world = World::new();
    let image = world.build(false).await.unwrap();
    let (one, two) = (image.hold().unwrap(), image.hold().unwrap());
    assert!(matches!(world.store.remove("tiny").await, Err(Error::Busy(_))));
    drop(one);
    assert!(matches!(world.store.remove("tiny").await, Err(Error::Busy(_))));
    drop(two);
    assert_eq!(world.store.remove("tiny").await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_missing_on_the_host_is_said_before_anything_is_made() {
    let world = World::new();
    let keyring = world.dir.path().join("keys.gpg");
    fs::remove_file(&keyring).unwrap();
    let error = world.build(false).await.unwrap_err().to_string();
    assert!(error.contains("build.keyring: no keyring") && error.contains("keys.gpg"), "{error}");
    assert!(world.entries().is_empty());
    assert_eq!(world.runs(), 0);

    let ubuntu = RECIPE.replace("keys.gpg", "/nowhere/ubuntu-archive-keyring.gpg");
    let ubuntu = Recipe::parse(Path::new("/r.yaml"), &ubuntu).unwrap();
    let error = world.store.build(&ubuntu, &world.options(false), &mut |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("package ubuntu-keyring"), "{error}");
}

#[tokio::test]
async fn a_tree_without_or_with_another_kernel_is_no_image() {
    let world = World::new();
    world.tool("mmdebstrap", &GOOD_MMDEBSTRAP.replace("printf '9.9.9-test (x)", "printf '1.1.1-other (x)"));
    let error = world.build(false).await.unwrap_err().to_string();
    assert!(error.contains("a kernel of another release than its name says"), "{error}");
    assert!(world.entries().is_empty());
}

const WRONG_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn prebuilt(dir: &Path, body: &str) -> Recipe {
    let file: PathBuf = dir.join("golden.yaml");
    Recipe::parse(&file, &format!("name: golden\nprebuilt:\n{body}")).unwrap()
}

#[tokio::test]
async fn a_users_own_disk_is_referred_to_and_watched_for_changes() {
    let world = World::new();
    let dir = world.dir.path();
    fs::write(dir.join("d.img"), "golden").unwrap();
    let recipe = |hash: &str| {
        prebuilt(dir, &format!("  disk: {{path: d.img, sha256: {hash}, format: raw}}\n  seed: nocloud\n"))
    };
    let error = world.store.build(&recipe(WRONG_HASH), &world.options(false), &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::WrongHash { .. }), "{error}");
    assert!(world.entries().is_empty());

    // Of "golden", by sha256sum.
    let right = recipe("dd56de4137951d9c92681b03416ec15f886b4482a27e3a517d32f085244cbe5d");
    let image = world.store.build(&right, &world.options(false), &mut |_| {}).await.unwrap();
    assert_eq!(image.disk().0, dir.join("d.img"));
    assert_eq!((image.kernel(), image.release(), image.cmdline()), (None, None, ""));
    assert!(image.seed().unwrap().exists());
    assert_eq!(image.ssh().user, "root");
    assert!(world.store.get(&right).unwrap().is_some());
    fs::write(dir.join("d.img"), "golden, repaired").unwrap();
    assert!(world.store.get(&right).unwrap().is_none(), "the disk is not the one it was");
    let module = image.build_module(dir, dir).await.unwrap_err();
    assert!(matches!(module, Error::NoHeaders { .. }), "{module}");
}

#[tokio::test]
async fn a_download_without_a_hash_and_missing_files_are_refused_together() {
    let world = World::new();
    let body = "  disk: {url: \"http://127.0.0.1:1/d.img\", format: qcow2}\n  kernel: {path: none}\n  ssh: {key: none}\n";
    let recipe = prebuilt(world.dir.path(), body);
    let error = world.store.build(&recipe, &world.options(false), &mut |_| {}).await.unwrap_err().to_string();
    for field in
        ["prebuilt.disk.sha256: missing", "prebuilt.kernel.path: no file", "prebuilt.ssh.key: no file"]
    {
        assert!(error.contains(field), "{field} in {error}");
    }
    assert!(world.entries().is_empty());
    let cloud = klpfarm_image::find("ubuntu-16.04-cloud", &[]).unwrap();
    let error = world.store.build(&cloud, &world.options(false), &mut |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("fill in the SHA-256"), "{error}");
}

/// A web server for one request.
async fn serve(body: &'static [u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/d.img", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
    });
    url
}

#[tokio::test]
async fn a_download_is_verified() {
    let world = World::new();
    let recipe = |url: &str, hash: &str| {
        let body = format!("  disk: {{url: \"{url}\", sha256: {hash}, format: raw}}\n  seed: nocloud\n");
        prebuilt(world.dir.path(), &body)
    };
    let wrong = recipe(&serve(b"disk\n").await, WRONG_HASH);
    let error = world.store.build(&wrong, &world.options(false), &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::WrongHash { .. }), "{error}");
    assert!(world.entries().is_empty());
    // Of "disk" and a line end, by sha256sum.
    let hash = "e4afa146b6cac84107134c69a12c93b983d4a09d5f628f325d11aa7347a8e895";
    let right = recipe(&serve(b"disk\n").await, hash);
    let image = world.store.build(&right, &world.options(false), &mut |_| {}).await.unwrap();
    assert_eq!(fs::read(image.disk().0).unwrap(), b"disk\n");
    assert!(image.disk().0.starts_with(&image.dir));
}
