use std::path::Path;

use super::*;

const GOOD: &str = "\
name: mine
build:
  suite: bookworm
  mirror: http://deb.debian.org/debian
  keyring: keys/mine.gpg
  kernel: {image: linux-image-amd64, headers: linux-headers-amd64}
";

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parse(text: &str) -> Result<Recipe, Error> {
    Recipe::parse(Path::new("/etc/farm/r.yaml"), text)
}

/// The problems' texts, file name cut off.
fn problems(text: &str) -> Vec<String> {
    match parse(text) {
        Err(Error::Recipe(list)) => {
            list.iter().map(|p| p.to_string().replace("/etc/farm/r.yaml", "")).collect()
        }
        other => panic!("not refused as a recipe: {other:?}"),
    }
}

#[test]
fn defaults_and_paths_relative_to_the_recipe() {
    let recipe = parse(GOOD).unwrap();
    let Source::Build(build) = recipe.source else { panic!("not a build") };
    assert_eq!(build.keyring, Path::new("/etc/farm/keys/mine.gpg"));
    assert_eq!(build.components, ["main"]);
    assert_eq!(build.disk_bytes(), 4 << 30);
    assert_eq!(build.source_lines(), ["deb http://deb.debian.org/debian bookworm main"]);
}

#[test]
fn the_shape_is_checked_with_line_and_field() {
    let unknown = problems(&GOOD.replace("  suite:", "  siute:"));
    assert!(unknown[0].starts_with(":3:3: build.siute: unknown field"), "{unknown:?}");
    let missing = problems(&GOOD.replace("  mirror: http://deb.debian.org/debian\n", ""));
    assert!(missing[0].contains("missing field `mirror`"), "{missing:?}");
    let kind = problems(&GOOD.replace("keys/mine.gpg", "keys/mine.gpg\n  packages: gcc"));
    assert!(kind[0].starts_with(":6:13: build.packages: invalid type"), "{kind:?}");
}

#[test]
fn every_wrong_value_is_reported_at_once() {
    let text = "\
name: Mine!
build:
  suite: book worm
  mirror: ftp://old
  components: []
  updates: [bookworm-updates]
  security: {mirror: gopher, suite: ok}
  keyring: k
  packages: [gcc, --purge]
  kernel:
    image: a b
    headers: h
  disk: 4T
";
    let found = problems(text);
    let starts = [
        ":1:1: name: `Mine!`",
        ":3:1: build.suite: `book worm`",
        ":4:1: build.mirror: `ftp://old`",
        ":7:1: build.security.mirror: `gopher`",
        ":5:1: build.components: empty",
        ":9:1: build.packages: `--purge`",
        ":11:1: build.kernel.image: `a b`",
        ":13:1: build.disk: `4T`",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(start), "{found} should start with {start}");
    }
    assert!(problems(&format!("{GOOD}  disk: 1G\n"))[0].contains("at least 2G"));
}

#[test]
fn exactly_one_of_build_and_prebuilt() {
    assert!(problems("name: x\n")[0].contains("neither `build` nor `prebuilt`"));
    let both = format!("{GOOD}prebuilt: {{disk: {{path: d, format: raw}}, seed: nocloud}}\n");
    assert_eq!(problems(&both), [":7:1: prebuilt: a recipe has either `build` or `prebuilt`, not both"]);
}

#[test]
fn prebuilt_files_and_login() {
    let good = format!(
        "name: g\nprebuilt:\n  disk: {{path: d.qcow2, sha256: {HASH}, format: qcow2}}\n  \
         kernel: {{path: /boot/vmlinuz}}\n  cmdline: root=/dev/vda1\n  ssh: {{key: id}}\n"
    );
    let Source::Prebuilt(spec) = parse(&good).unwrap().source else { panic!("not prebuilt") };
    assert_eq!(spec.disk.path.as_deref(), Some(Path::new("/etc/farm/d.qcow2")));
    assert_eq!(spec.kernel.unwrap().path.as_deref(), Some(Path::new("/boot/vmlinuz")));
    let ssh = spec.ssh.unwrap();
    assert_eq!((ssh.user.as_str(), ssh.key.as_path()), ("root", Path::new("/etc/farm/id")));

    let bad = "\
name: g
prebuilt:
  disk:
    path: d
    url: ftp://x/d
    sha256: 12ab
    format: raw
  initrd: {}
  cmdline: quiet
";
    let found = problems(bad);
    let starts = [
        ":5:1: prebuilt.disk.url: either `path` or `url`",
        ":6:1: prebuilt.disk.sha256: not a SHA-256",
        ":8:1: prebuilt.initrd: neither `path` nor `url`",
        ":8:1: prebuilt.initrd: has no effect without `kernel`",
        ":9:1: prebuilt.cmdline: has no effect without `kernel`",
        ":2:1: prebuilt: no way to log in",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(start), "{found} should start with {start}");
    }
}

#[test]
fn sizes() {
    assert_eq!(parse_size("4G"), Some(4 << 30));
    assert_eq!(parse_size("512M"), Some(512 << 20));
    assert_eq!(parse_size("1024"), Some(1024));
    for bad in ["", "G", "4g", "-1G", "1.5G", "4GG", "99999999999999999G"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}
