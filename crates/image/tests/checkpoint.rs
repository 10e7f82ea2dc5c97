//! Checkpoints with real files and made-up content: what is seen of one while, after and instead of its making.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use klpfarm_image::{
    Begun, BuildOptions, CHECKPOINT_FILES, CHECKPOINT_KEY, Checkpoint, CheckpointStore, Draft, Error, Image,
    Key, Made, Progress, Recipe, Store,
};
use serde_json::{Value, json};
use tar::{EntryType, Header};

struct World {
    dir: tempfile::TempDir,
    images: Store,
    image: Image,
    store: CheckpointStore,
}

/// A host whose image is a user's own disk: that one needs no tools but ssh-keygen.
async fn host() -> World {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.img"), "golden").unwrap();
    let recipe = "name: golden\nprebuilt:\n  disk: {path: d.img, format: raw}\n  seed: nocloud\n";
    let recipe = Recipe::parse(&dir.path().join("golden.yaml"), recipe).unwrap();
    let home = dir.path().join("home");
    let images = Store::open(&home).unwrap();
    let image = images.build(&recipe, &BuildOptions::default(), &mut |_| {}).await.unwrap();
    World { images, image, store: CheckpointStore::open(&home).unwrap(), dir }
}

impl World {
    fn key(&self) -> Key {
        Key {
            image: self.image.id().to_owned(),
            image_hash: self.image.identity(),
            cpus: 1,
            memory_mib: 8,
            accel: "tcg".into(),
            qemu: "QEMU emulator version 10.0.2".into(),
            workloads: json!(["madvise-allocator"]),
            aging: Value::Null,
            farm: "f".into(),
            parent: None,
        }
    }

    async fn draft(&self, key: &Key) -> Draft {
        match self.store.begin(key, &mut |_| {}).await.unwrap() {
            Begun::Draft(draft) => *draft,
            Begun::There(checkpoint) => panic!("{} is there", checkpoint.id()),
        }
    }

    async fn checkpoint(&self) -> Checkpoint {
        let draft = self.draft(&self.key()).await;
        fill(draft.dir());
        fs::write(draft.dir().join(CHECKPOINT_KEY), "key").unwrap();
        let host_key = Some("ssh-ed25519 AAAA".into());
        draft.publish(Made { release: "6.1".into(), uptime_s: 42.0, host_key, ..Made::default() }).unwrap()
    }

    /// Names in the store, lock files left out.
    fn entries(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.store.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with(".lock-")).collect()
    }

    fn archive(&self) -> PathBuf {
        self.dir.path().join("c.tar")
    }
}

/// 8 MiB of memory that is mostly holes, an overlay's header, and some text.
fn fill(dir: &Path) {
    let ram = File::create(dir.join("ram")).unwrap();
    ram.set_len(8 << 20).unwrap();
    ram.write_all_at(&[7; 5000], 3 << 20).unwrap();
    fs::write(dir.join("state"), b"state").unwrap();
    let mut overlay = vec![0; 65536];
    overlay[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(dir.join("disk.qcow2"), overlay).unwrap();
    fs::write(dir.join("console.log"), b"Linux version 6.1\n").unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_checkpoint_is_made_in_one_step_kept_private_and_found() {
    let world = host().await;
    let key = world.key();
    assert!(world.store.get(&key).unwrap().is_none());
    let draft = world.draft(&key).await;
    fill(draft.dir());
    assert!(world.store.list().unwrap().is_empty() && world.store.get(&key).unwrap().is_none());
    let made = draft.publish(Made { uptime_s: 42.0, ..Made::default() }).unwrap();
    assert_eq!(world.entries(), [key.id()]);
    assert_eq!(mode(&made.dir), 0o700);
    assert_eq!(mode(world.store.dir()), 0o700);
    for name in CHECKPOINT_FILES.into_iter().chain(["manifest.json"]) {
        assert_eq!(mode(&made.dir.join(name)), 0o600, "{name}");
    }
    made.verify().unwrap();
    assert!(made.disk_bytes() < 1 << 20, "{}", made.disk_bytes());
    assert_eq!(world.store.get(&key).unwrap().unwrap(), made);
    assert_eq!(world.store.find(&key.id()[..10]).unwrap(), made);
    assert!(
        matches!(world.store.begin(&key, &mut |_| {}).await.unwrap(), Begun::There(there) if *there == made)
    );

    let second = Key { parent: Some(key.id()), ..key.clone() };
    let draft = world.draft(&second).await;
    made.copy_into(&draft).unwrap();
    let copied = fs::metadata(draft.dir().join("ram")).unwrap();
    assert!(copied.blocks() * 512 < 1 << 20, "holes were filled");
    fs::write(draft.dir().join("console.log"), "").unwrap();
    let older = draft.publish(Made::default()).unwrap();
    assert_eq!(older.manifest.files[..3], made.manifest.files[..3]);
    let both = world.store.find("golden").unwrap_err();
    assert!(matches!(&both, Error::AmbiguousCheckpoint { ids, .. } if ids.len() == 2), "{both}");
    assert_eq!(world.store.list().unwrap(), [made, older]);
}

#[tokio::test]
async fn one_with_keys_of_its_own_keeps_them_private_and_says_how_to_log_in() {
    let world = host().await;
    let (image, checkpoint) = (world.image.ssh(), world.checkpoint().await);
    let own = checkpoint.ssh(image.clone());
    assert_eq!(own.key, checkpoint.dir.join(CHECKPOINT_KEY));
    assert_eq!((own.host_key.as_deref(), &own.user), (Some("ssh-ed25519 AAAA"), &image.user));
    assert_eq!(mode(&own.key), 0o600);
    // The next one is not given this one's key.
    let draft = world.draft(&Key { parent: Some(checkpoint.id().into()), ..world.key() }).await;
    checkpoint.copy_into(&draft).unwrap();
    assert!(!draft.dir().join(CHECKPOINT_KEY).exists());
    fs::write(draft.dir().join("console.log"), "").unwrap();
    assert_eq!(draft.publish(Made::default()).unwrap().ssh(image.clone()), image);
}

#[tokio::test]
async fn one_in_use_is_not_removed() {
    let world = host().await;
    let checkpoint = world.checkpoint().await;
    let (one, two) = (checkpoint.hold().unwrap(), checkpoint.hold().unwrap());
    drop(one);
    assert!(matches!(world.store.remove(checkpoint.id()), Err(Error::CheckpointBusy(_))));
    drop(two);
    assert_eq!(world.store.remove("golden").unwrap(), checkpoint.id());
    assert!(world.entries().is_empty());
    assert!(matches!(checkpoint.hold(), Err(Error::NoCheckpoint { .. })));
    assert!(matches!(world.store.remove("golden"), Err(Error::NoCheckpoint { .. })));
}

#[tokio::test]
async fn damage_is_named_with_what_to_do_and_can_be_removed() {
    let world = host().await;
    type Damage = fn(&Path);
    let damages: [(&str, &str, Damage); 6] = [
        ("ram", "No such file", |f| fs::remove_file(f).unwrap()),
        ("ram", "bytes, the manifest says 8388608", |f| {
            File::options().write(true).open(f).unwrap().set_len(4096).unwrap();
        }),
        ("ram", "has changed", |f| {
            File::options().write(true).open(f).unwrap().write_all_at(b"x", 6 << 20).unwrap();
        }),
        ("state", "has changed", |f| fs::write(f, b"stat3").unwrap()),
        ("disk.qcow2", "No such file", |f| fs::remove_file(f).unwrap()),
        ("ssh_key", "has changed", |f| fs::write(f, "kex").unwrap()),
    ];
    for (name, words, damage) in damages {
        let checkpoint = world.checkpoint().await;
        damage(&checkpoint.dir.join(name));
        let error = checkpoint.verify().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(words), "{error}");
        assert!(error.contains(&format!("klpfarm checkpoint rm {}", checkpoint.id())), "{error}");
        world.store.remove(checkpoint.id()).unwrap();
    }
    let checkpoint = world.checkpoint().await;
    fs::write(checkpoint.dir.join("manifest.json"), "{").unwrap();
    let error = world.store.get(&world.key()).unwrap_err().to_string();
    assert!(error.contains("manifest.json") && error.contains("checkpoint rm"), "{error}");
    assert!(world.store.list().unwrap().is_empty());
    world.store.remove(checkpoint.id()).unwrap();
    assert!(world.entries().is_empty());
    // One of another klpfarm's is none of ours, but it is there to be removed.
    let checkpoint = world.checkpoint().await;
    let manifest = checkpoint.dir.join("manifest.json");
    let other = fs::read_to_string(&manifest).unwrap().replace("\"schema\": 2", "\"schema\": 1");
    fs::write(&manifest, other).unwrap();
    assert!(world.store.list().unwrap().is_empty() && world.store.get(&world.key()).unwrap().is_none());
    assert_eq!(world.store.of_other_schema().unwrap(), [checkpoint.id()]);
    world.store.remove(checkpoint.id()).unwrap();
    assert!(world.store.of_other_schema().unwrap().is_empty());
}

#[tokio::test]
async fn nothing_is_seen_of_a_maker_that_gave_up_or_died() {
    let world = host().await;
    let key = world.key();
    let draft = world.draft(&key).await;
    fill(draft.dir());
    drop(draft);
    assert!(world.entries().is_empty());

    // One that lacks a file is not published.
    let draft = world.draft(&key).await;
    fill(draft.dir());
    fs::remove_file(draft.dir().join("state")).unwrap();
    let error = draft.publish(Made::default()).unwrap_err().to_string();
    assert!(error.contains("state"), "{error}");
    assert!(world.entries().is_empty());

    // Killed: the lock is gone, the folder is not. Another one's next beginning removes it; a living one's stays.
    for name in [".tmp-golden-dead", ".old-golden-dead", ".tmp-golden-alive"] {
        fs::create_dir(world.store.dir().join(name)).unwrap();
    }
    let alive = File::create(world.store.dir().join(".lock-golden-alive")).unwrap();
    alive.lock().unwrap();
    assert!(world.store.list().unwrap().is_empty());
    let checkpoint = world.checkpoint().await;
    let mut entries = world.entries();
    entries.sort();
    assert_eq!(entries, [".tmp-golden-alive", checkpoint.id()]);
}

#[tokio::test]
async fn a_second_maker_waits_and_takes_what_the_first_made() {
    let world = host().await;
    let key = world.key();
    let draft = world.draft(&key).await;
    fill(draft.dir());
    let mut first = Some(draft);
    // The first one goes on only when the second has said that it waits.
    let mut news = |n: Progress| {
        assert_eq!(n, Progress::Waiting { id: key.id() });
        first.take().unwrap().publish(Made::default()).unwrap();
    };
    let begun = world.store.begin(&key, &mut news).await.unwrap();
    assert!(matches!(begun, Begun::There(there) if there.id() == key.id()));
}

#[tokio::test]
async fn an_exported_checkpoint_is_the_same_when_imported_and_stays_sparse() {
    let world = host().await;
    let checkpoint = world.checkpoint().await;
    world.store.export("golden", &world.archive()).unwrap();
    assert!(fs::metadata(world.archive()).unwrap().len() < 1 << 20);
    assert_eq!(mode(&world.archive()), 0o600);
    assert!(world.store.export("golden", &world.archive()).unwrap_err().to_string().contains("exists"));
    let there = world.store.import(&world.archive(), &world.images).unwrap_err();
    assert!(matches!(there, Error::CheckpointThere(_)), "{there}");

    world.store.remove("golden").unwrap();
    let imported = world.store.import(&world.archive(), &world.images).unwrap();
    assert_eq!(imported, checkpoint);
    imported.verify().unwrap();
    assert!(imported.disk_bytes() < 1 << 20, "holes were filled");

    // Another host, where the same recipe was built separately, and one without the image.
    let other = host().await;
    let error = other.store.import(&world.archive(), &other.images).unwrap_err().to_string();
    assert!(error.contains("golden") && error.contains("image"), "{error}");
    let bare = Store::open(&other.dir.path().join("bare")).unwrap();
    let error = other.store.import(&world.archive(), &bare).unwrap_err().to_string();
    assert!(error.contains(world.image.id()) && error.contains("klpfarm image build"), "{error}");
    assert!(other.entries().is_empty());

    fs::write(checkpoint.dir.join("state"), "x").unwrap();
    let to = world.dir.path().join("damaged.tar");
    assert!(matches!(world.store.export("golden", &to), Err(Error::Damaged { .. })));
    assert!(!to.exists());
}

/// An entry of a tar file, with a name that the library would refuse to write.
fn entry(name: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    if kind == EntryType::Symlink {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[tokio::test]
async fn nothing_strange_is_taken_out_of_an_archive() {
    let world = host().await;
    let checkpoint = world.checkpoint().await;
    let kept = world.dir.path().join("kept");
    fs::rename(&checkpoint.dir, &kept).unwrap();
    let read = |name: &str| fs::read(kept.join(name)).unwrap();
    let manifest = String::from_utf8(read("manifest.json")).unwrap();
    let file = |name: &str| entry(name, EntryType::Regular, &read(name));
    let all = || CHECKPOINT_FILES.into_iter().chain([CHECKPOINT_KEY]);
    let files: Vec<u8> = all().flat_map(file).collect();
    let without = |left: &str| all().filter(|n| *n != left).flat_map(file).collect::<Vec<u8>>();
    let first = |text: &str| entry("manifest.json", EntryType::Regular, text.as_bytes());
    let good = [first(&manifest), files.clone()].concat();
    let changed = |from: &str, to: &str| {
        assert!(manifest.contains(from), "{from}");
        [first(&manifest.replacen(from, to, 1)), files.clone()].concat()
    };
    let stranger = |extra: Vec<u8>| [first(&manifest), extra, files.clone()].concat();
    let overlay = |at: usize, byte: u8| {
        let mut bytes = read("disk.qcow2");
        bytes[at] = byte;
        bytes
    };
    let id = checkpoint.id().to_owned();
    let outside = world.dir.path().join("outside");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("it is empty", vec![]),
        ("", b"no tar file at all, but long enough to be taken for one".repeat(20)),
        ("does not begin with `manifest.json`", files.clone()),
        ("does not belong", stranger(entry("../outside", EntryType::Regular, b"x"))),
        ("does not belong", stranger(entry(outside.to_str().unwrap(), EntryType::Regular, b"x"))),
        ("does not belong", stranger(entry("authorized_keys", EntryType::Regular, b"x"))),
        ("does not belong", [good.clone(), file_again(&good)].concat()),
        ("`ram` is not a regular file but Symlink", stranger(entry("ram", EntryType::Symlink, b""))),
        ("`state` is not a regular file but Link", stranger(entry("state", EntryType::Link, b""))),
        ("`state` is not a regular file but Directory", stranger(entry("state", EntryType::Directory, b""))),
        ("is missing", [first(&manifest), without("state")].concat()),
        (
            "`state` has 3 bytes",
            [first(&manifest), without("state"), entry("state", EntryType::Regular, b"abc")].concat(),
        ),
        (
            "longer than announced",
            [first(&manifest), without("state"), entry("state", EntryType::Regular, &[1; 999])].concat(),
        ),
        (
            "`state` does not have the hash",
            [first(&manifest), without("state"), entry("state", EntryType::Regular, b"stat3")].concat(),
        ),
        ("", good[..good.len() / 2].to_vec()),
        ("schema is 3", changed("\"schema\": 2", "\"schema\": 3")),
        ("id is not the one of its key", changed(&format!("\"id\": \"{id}\""), "\"id\": \"../../x\"")),
        ("id is not the one of its key", changed("\"cpus\": 1", "\"cpus\": 2")),
        ("lists other files", changed("\"name\": \"state\"", "\"name\": \"../state\"")),
        ("lists other files", changed("\"host_key\": \"ssh-ed25519 AAAA\"", "\"host_key\": null")),
        ("`ssh_key` is missing", [first(&manifest), without("ssh_key")].concat()),
        ("not that of the machine's memory", changed("\"size\": 8388608", "\"size\": 8388609")),
    ];
    for (words, bytes) in cases {
        let path = world.archive();
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let error = world.store.import(&path, &world.images).unwrap_err();
        assert!(matches!(error, Error::Archive { .. }), "{words}: {error}");
        let error = error.to_string();
        assert!(error.contains("c.tar") && error.contains(words), "{words}: {error}");
        assert!(world.entries().is_empty(), "{words}: {:?}", world.entries());
        assert!(!outside.exists() && !world.store.dir().join("../outside").exists());
    }
    // An overlay that leads to other files, made by somebody who can compute hashes.
    for (at, byte) in [(15, 1), (79, 4)] {
        let key = world.key();
        let draft = world.draft(&key).await;
        fill(draft.dir());
        fs::write(draft.dir().join("disk.qcow2"), overlay(at, byte)).unwrap();
        draft.publish(Made::default()).unwrap();
        fs::remove_file(world.archive()).unwrap();
        world.store.export(&key.id(), &world.archive()).unwrap();
        world.store.remove(&key.id()).unwrap();
        let error = world.store.import(&world.archive(), &world.images).unwrap_err().to_string();
        assert!(error.contains("refers to other files of its host"), "{error}");
        assert!(world.entries().is_empty());
    }
    fs::write(world.archive(), good).unwrap();
    world.store.import(&world.archive(), &world.images).unwrap().verify().unwrap();
}

/// The first entry behind the manifest once more.
fn file_again(archive: &[u8]) -> Vec<u8> {
    let mut tar = tar::Archive::new(archive);
    let entry = tar.entries().unwrap().nth(1).unwrap().unwrap();
    let start = usize::try_from(entry.raw_header_position()).unwrap();
    archive[start..start + 512 + (8 << 20)].to_vec()
}
