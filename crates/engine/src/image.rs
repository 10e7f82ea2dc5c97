//! Images by name, and what a plan needs to know of one.

use std::path::{Path, PathBuf};

use klpfarm_image::{Error as ImageError, Image, Recipe, Store};
use klpfarm_model::{ImageFacts, Workload};

use crate::{Error, Remedy, Result, catalog, home};

impl From<ImageError> for Error {
    /// A wrong name or a mistake in a recipe is bad input; everything else is a failure of the host.
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Recipe(_)
            | ImageError::UnknownRecipe { .. }
            | ImageError::NoImage { .. }
            | ImageError::Module { .. }
            | ImageError::NoCheckpoint { .. }
            | ImageError::AmbiguousCheckpoint { .. }
            | ImageError::CheckpointThere(_)
            | ImageError::Archive { .. }
            | ImageError::NoImageOf { .. } => Self::input(error),
            error => Self::farm(error),
        }
    }
}

/// The store of images in [`home`].
///
/// # Errors
/// If it can't be opened.
pub fn store() -> Result<Store> {
    Ok(Store::open(&home()?)?)
}

/// An image by name, id or recipe.
///
/// # Errors
/// If there is none, or its recipe has not been built.
pub fn find(name: &str) -> Result<Image> {
    let store = store()?;
    named(&store, name)?
        .ok_or_else(|| ImageError::NoImage { name: name.to_owned(), dir: store.dir().to_owned() }.into())
}

/// The image of this name or id, or of this recipe, which then must have been built; `None` if it is none of the three.
///
/// # Errors
/// If the recipe is not sound or not built.
pub fn named(store: &Store, name: &str) -> Result<Option<Image>> {
    match store.lookup(name) {
        Ok(image) => return Ok(Some(image)),
        Err(ImageError::NoImage { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match catalog::recipe(Path::new("."), name) {
        Ok(recipe) => built(store, &recipe).map(Some),
        Err(problem) if catalog::is_path(name) => Err(problem),
        Err(_) => Ok(None),
    }
}

/// The image of a recipe.
///
/// # Errors
/// If it has not been built.
pub fn built(store: &Store, recipe: &Recipe) -> Result<Image> {
    store.get(recipe)?.ok_or_else(|| {
        let text = format!("image {} is not built (or its recipe or files have changed)", recipe.name);
        Error::input(text).with(Remedy::BuildImage(buildable(recipe)))
    })
}

/// What a build must be given for this recipe: its name, where that leads to it, else its file.
fn buildable(recipe: &Recipe) -> String {
    let by_name = catalog::recipe(Path::new("."), &recipe.name).is_ok_and(|r| r.source == recipe.source);
    if by_name { recipe.name.clone() } else { recipe.file.display().to_string() }
}

/// Build the module in `source` into `out`. The sidecar goes along, so that a run of the module finds it.
///
/// # Errors
/// If it does not compile (bad input), or a file can't be written.
pub async fn module(image: &Image, source: &Path, out: &Path) -> Result<PathBuf> {
    let module = image.build_module(source, out).await?;
    let sidecar = module.with_extension("yaml");
    if let Some(name) = sidecar.file_name().map(|n| source.join(n)).filter(|f| f.is_file()) {
        std::fs::copy(&name, &sidecar).map_err(|e| Error::farm(e).about(sidecar.display()))?;
    }
    Ok(module)
}

/// Packages that a workload needs and an image made here does not have.
pub fn missing_packages<'a>(workload: &'a Workload, image: &Image) -> Vec<&'a str> {
    let there = &image.manifest.packages;
    let is_missing = |package: &&String| !there.is_empty() && !there.iter().any(|t| t.name == **package);
    workload.packages.iter().filter(is_missing).map(String::as_str).collect()
}

/// What a plan says of an image.
pub fn facts(image: &Image) -> ImageFacts {
    ImageFacts {
        name: image.manifest.name.clone(),
        hash: image.manifest.recipe_hash.clone(),
        release: image.release().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is suggested is what works: a recipe that was given as a file is not found by its name.
    #[test]
    fn an_image_that_is_not_built_says_how_to_build_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let error = |name: &str| named(&store, name).expect_err(name);
        let remedy = |name: &str| error(name).remedy().cloned();
        let file = dir.path().join("mine.yaml");
        let recipe = "name: my-guest\nprebuilt:\n  disk: {path: disk.img, format: raw}\n  ssh: {user: root, key: key}\n";
        std::fs::write(&file, recipe).unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(remedy(file), Some(Remedy::BuildImage(file.to_owned())));
        assert_eq!(remedy("debian-13"), Some(Remedy::BuildImage("debian-13".to_owned())));
        assert!(error("./none.yaml").to_string().contains("none.yaml"), "{}", error("./none.yaml"));
        assert!(named(&store, "debian-12-44-b937c8eb4684").unwrap().is_none(), "it may be a checkpoint");
    }
}
