//! Building modules on the host against a made-up kernel build tree. The real ones are built in an image's tree, which
//! needs a real image.

use std::fs;
use std::path::{Path, PathBuf};

use klpfarm_image::{BuildOptions, Error, Image, Recipe, Store};

/// A kernel's Makefile as far as `make -C TREE M=DIR modules` goes: each C file becomes a module, `bad.c` does not compile.
const TREE: &str = "\
modules:
\t@for c in $(M)/*.c; do case $$c in */bad.c) echo \"$$c:7: error: no\" >&2; exit 1;; esac; \\
\tcp $$c $${c%.c}.ko; done
";

async fn image(dir: &Path) -> Image {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("Makefile"), TREE).unwrap();
    fs::write(dir.join("disk"), "").unwrap();
    fs::write(dir.join("key"), "").unwrap();
    let text = "name: g\nprebuilt: {disk: {path: disk, format: raw}, ssh: {key: key}, headers: tree}\n";
    let recipe = Recipe::parse(&dir.join("g.yaml"), text).unwrap();
    let store = Store::open(&dir.join("home")).unwrap();
    store.build(&recipe, &BuildOptions::default(), &mut |_| {}).await.unwrap()
}

fn sources(dir: &Path, files: &[(&str, &str)]) -> PathBuf {
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    for (name, text) in files {
        fs::write(source.join(name), text).unwrap();
    }
    source
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_module_is_delivered_and_the_sources_stay_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path()).await;
    let source = sources(dir.path(), &[("fix.c", "code"), ("stale.ko", "of another kernel")]);
    let out = dir.path().join("out/deep");
    let module = image.build_module(&source, &out).await.unwrap();
    assert_eq!(module, out.join("fix.ko"));
    assert_eq!(fs::read_to_string(&module).unwrap(), "code");
    assert_eq!(names(&source), ["fix.c", "stale.ko"]);
    assert_eq!(names(&out), ["fix.ko"]);
}

#[tokio::test]
async fn a_compiler_error_reaches_the_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path()).await;
    let source = sources(dir.path(), &[("bad.c", "")]);
    let error = image.build_module(&source, dir.path()).await.unwrap_err();
    let Error::Module { output, .. } = &error else { panic!("{error}") };
    assert_eq!(output.lines().next().unwrap(), format!("{}:7: error: no", source.join("bad.c").display()));
}

#[tokio::test]
async fn a_folder_that_makes_no_module_or_several_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path()).await;
    let source = sources(dir.path(), &[("a.c", ""), ("b.c", "")]);
    let error = image.build_module(&source, dir.path()).await.unwrap_err().to_string();
    assert!(error.contains("no Makefile or Kbuild, and 2 C files"), "{error}");
    fs::write(source.join("Makefile"), "obj-m := a.o b.o\n").unwrap();
    let error = image.build_module(&source, dir.path()).await.unwrap_err().to_string();
    assert!(error.contains("more than one .ko"), "{error}");
}

#[tokio::test]
async fn several_builds_at_a_time_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path()).await;
    let source = sources(dir.path(), &[("fix.c", "code")]);
    let outs: Vec<_> = (0..4).map(|n| dir.path().join(format!("out{n}"))).collect();
    let (a, b, c, d) = tokio::join!(
        image.build_module(&source, &outs[0]),
        image.build_module(&source, &outs[1]),
        image.build_module(&source, &outs[2]),
        image.build_module(&source, &outs[3]),
    );
    for (module, out) in [a, b, c, d].into_iter().zip(&outs) {
        assert_eq!(module.unwrap(), out.join("fix.ko"));
    }
}
