//! The example patches as C source: whether they can be what the corpus says of them, and modules of them.

use std::fs;
use std::path::{Path, PathBuf};

use klpfarm_engine::{Kind, image};
use klpfarm_image::Image;
use klpfarm_model::{Example, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// An example that there is no module of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unbuilt {
    /// Its folder in the corpus.
    pub(super) patch: String,
    /// What the compiler said, or what is wrong with what it made.
    pub(super) reason: String,
}

/// What is wrong with examples, before anything is built: all of it, with the lines of the corpus.
pub(super) fn check(corpus: &Path, text: &str, base: &Path, examples: &[Example]) -> Result<(), Failure> {
    let problems: Vec<String> = examples
        .iter()
        .filter_map(|example| {
            let problem = problem(&base.join(&example.patch), example.name())?;
            let line =
                text.lines().position(|l| l.trim_end().ends_with(&format!("patch: {}", example.patch)));
            let at = line.map(|n| format!(":{}", n + 1)).unwrap_or_default();
            Some(format!("{}{at}: examples: patch: {problem}", corpus.display()))
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::inputs(&problems)) }
}

fn problem(source: &Path, name: &str) -> Option<String> {
    if !source.is_dir() {
        return Some(format!("no folder {}", source.display()));
    }
    let modules = objects(source)?;
    (modules != [name]).then(|| {
        format!(
            "{} makes {}, and must make {name}.ko: a module is named like its folder",
            source.display(),
            match modules.as_slice() {
                [] => "no module".to_owned(),
                all => all.iter().map(|m| format!("{m}.ko")).collect::<Vec<_>>().join(" and "),
            }
        )
    })
}

/// Names of the modules that a folder makes, as far as its makefile says so in plain words: kbuild takes a `Kbuild` before a `Makefile`. `None`
/// where only make itself can tell.
fn objects(source: &Path) -> Option<Vec<String>> {
    let text = ["Kbuild", "Makefile"].iter().find_map(|name| fs::read_to_string(source.join(name)).ok())?;
    let lists: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("obj-m"))
        .filter_map(|rest| rest.trim_start().trim_start_matches([':', '+']).strip_prefix('='))
        .collect();
    let plain = !lists.is_empty() && lists.iter().all(|list| !list.contains('$') && !list.contains('\\'));
    let words = lists.iter().flat_map(|list| list.split('#').next().unwrap_or_default().split_whitespace());
    plain.then(|| words.map(|word| word.trim_end_matches(".o").to_owned()).collect())
}

/// Build what is not built yet: a module is kept below the home by what it is made of. One that can't be built keeps no other from being
/// tried; those that could be, with their modules, and those that could not.
pub(super) async fn modules(
    image: &Image,
    base: &Path,
    examples: Vec<Example>,
    home: &Path,
) -> Result<(Vec<(Example, PathBuf)>, Vec<Unbuilt>), Failure> {
    let (mut built, mut unbuilt) = (Vec::new(), Vec::new());
    let shelf = home.join("modules").join(image.id());
    let total = examples.len();
    for (n, example) in examples.into_iter().enumerate() {
        let source = base.join(&example.patch);
        let digest = digest(&source).map_err(|e| Failure::input(e).about(source.display()))?;
        let place = shelf.join(digest);
        let module = place.join(format!("{}.ko", example.name()));
        if !module.is_file() {
            tell!("klpfarm: building {} ({} of {total})", example.patch, n + 1);
            let reason = match image::module(image, &source, &place).await {
                Ok(made) if made == module => None,
                Ok(made) => Some(format!(
                    "it makes {}, and must make {}.ko: a module is named like its folder",
                    made.file_name().unwrap_or_default().to_string_lossy(),
                    example.name()
                )),
                Err(error) if error.kind() == Kind::Input => Some(error.to_string()),
                Err(error) => return Err(error),
            };
            if let Some(reason) = reason {
                for line in reason.lines() {
                    tell!("klpfarm: {}", klpfarm_report::printable(line));
                }
                unbuilt.push(Unbuilt { patch: example.patch, reason });
                continue;
            }
        }
        built.push((example, module));
    }
    Ok((built, unbuilt))
}

/// The first digits of the SHA-256 of all files in a folder, those it links to included.
fn digest(dir: &Path) -> std::io::Result<String> {
    let mut files = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if fs::metadata(&path)?.is_dir() { left.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let data = fs::read(&file)?;
        hash.update(file.strip_prefix(dir).unwrap_or(&file).as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update((data.len() as u64).to_le_bytes());
        hash.update(data);
    }
    Ok(hex(&hash.finalize()[..6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(patch: &str) -> Example {
        let text = format!("examples:\n- {{patch: {patch}, class: x}}\n");
        klpfarm_model::Corpus::parse(Path::new("c.yaml"), &text).unwrap().examples.remove(0)
    }

    /// Before anything is built, all at once, and where it stands.
    #[test]
    fn folders_that_cannot_make_their_module_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        for (name, file, text) in [
            ("right", "Kbuild", "# x\nobj-m := right.o\nccflags-y := -g\n"),
            ("other", "Kbuild", "obj-m += wrong.o\n"),
            ("two", "Makefile", "obj-m := two.o three.o # both\n"),
            ("computed", "Makefile", "obj-m := $(NAME).o\n"),
            ("of-make", "Makefile", "include common/module.mk\n"),
        ] {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        }
        let text = "examples:\n  - patch: right\n  - patch: other\n  - patch: two\n  - patch: none\n";
        let names = ["right", "other", "two", "computed", "of-make", "none"];
        let examples: Vec<Example> = names.map(example).into();
        let Err(said) = check(Path::new("c.yaml"), text, dir.path(), &examples) else {
            panic!("it is let through")
        };
        let said = said.to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{said}");
        assert!(
            lines[0].starts_with("c.yaml:3: examples: patch: ") && lines[0].contains("makes wrong.ko"),
            "{said}"
        );
        assert!(lines[1].starts_with("c.yaml:4:") && lines[1].contains("two.ko and three.ko"), "{said}");
        assert!(lines[2].starts_with("c.yaml:5:") && lines[2].contains("no folder"), "{said}");
        assert!(check(Path::new("c.yaml"), text, dir.path(), &examples[..1]).is_ok());
    }
}
