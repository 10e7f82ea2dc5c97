//! Names to recipes: a path, the user's folders, or one shipped inside the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{Error, Recipe, Result};

/// The recipe taken where a pipeline names none.
pub const DEFAULT: &str = "debian-12";

macro_rules! shipped_recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../images/", $name, ".yaml")))),*]
    };
}

const SHIPPED: &[(&str, &str)] = shipped_recipes![
    "debian-12",
    "debian-11",
    "debian-13",
    "debian-12-generic",
    "debian-13-generic",
    "ubuntu-16.04",
    "ubuntu-16.04-cloud"
];

/// The recipes shipped inside the program, as name and YAML text, the default first.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    SHIPPED
}

/// The recipe `what`: a path to a YAML file (anything with a slash or ending in `.yaml`), else `what.yaml` in
/// `search_dirs` in order, else a shipped one.
///
/// # Errors
/// [`Error::UnknownRecipe`] with all names there are; [`Error::Recipe`] when the file is wrong.
pub fn find(what: &str, search_dirs: &[PathBuf]) -> Result<Recipe> {
    if what.contains('/') || what.ends_with(".yaml") || what.ends_with(".yml") {
        return Recipe::read(Path::new(what));
    }
    for dir in search_dirs {
        let file = dir.join(format!("{what}.yaml"));
        if file.is_file() {
            return Recipe::read(&file);
        }
    }
    match SHIPPED.iter().find(|(name, _)| *name == what) {
        Some((name, text)) => Recipe::parse(&PathBuf::from(format!("images/{name}.yaml")), text),
        None => Err(Error::UnknownRecipe { name: what.to_owned(), known: known(search_dirs) }),
    }
}

fn known(search_dirs: &[PathBuf]) -> Vec<String> {
    let mut names: BTreeSet<String> = SHIPPED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for entry in search_dirs.iter().filter_map(|dir| dir.read_dir().ok()).flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_recipe_is_found_under_its_own_name() {
        for (name, _) in shipped() {
            assert_eq!(find(name, &[]).unwrap().name, *name);
        }
        assert_eq!(shipped()[0].0, DEFAULT);
    }

    #[test]
    fn folders_come_before_the_shipped_ones_and_paths_before_both() {
        let dir = tempfile::tempdir().unwrap();
        let mine = shipped()[0].1.replace("description:", "description: mine;");
        std::fs::write(dir.path().join("debian-12.yaml"), &mine).unwrap();
        std::fs::write(dir.path().join("golden.yaml"), mine.replace("name: debian-12", "name: golden"))
            .unwrap();
        let dirs = [dir.path().to_owned()];
        assert!(find("debian-12", &dirs).unwrap().description.starts_with("mine;"));
        assert!(!find("debian-12", &[]).unwrap().description.starts_with("mine;"));
        let path = dir.path().join("golden.yaml");
        assert_eq!(find(path.to_str().unwrap(), &[]).unwrap().file, path);
        let error = find("debian-21", &dirs).unwrap_err().to_string();
        assert!(
            error.contains("debian-21") && error.contains("golden") && error.contains("debian-12"),
            "{error}"
        );
    }
}
