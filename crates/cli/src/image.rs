//! `klpfarm image` and `klpfarm module`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use klpfarm_image::{BuildOptions, Error, Image, Progress, Store};
use serde_json::json;

use crate::catalog;
use crate::failure::{Failure, print, print_json};
use crate::home::home;

/// Build and manage images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Build an image from its recipe, unless it exists already.
    Build {
        /// Recipe: a name (debian-12, debian-11, debian-13, ubuntu-16.04, ...) or a path to a YAML file.
        #[arg(default_value = klpfarm_image::DEFAULT)]
        recipe: String,
        /// Rebuild the image even if it exists.
        #[arg(long)]
        force: bool,
    },
    /// List the images that have been built.
    List {
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show an image: its files and what it contains.
    Show {
        /// Image name or id.
        name: String,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put a kernel's modules onto a raw disk with an ext file system and no partitions, such as a copy of one of klpfarm's own. Needs no root.
    AddModules {
        /// The disk, from which no machine may run now.
        #[arg(long, value_name = "DISK")]
        disk: PathBuf,
        /// Folder of the modules, DIR/lib/modules/RELEASE.
        modules: PathBuf,
    },
    /// Remove an image.
    Rm {
        /// Image name or id; a name removes all images built from that recipe.
        name: String,
    },
}

/// Build kernel modules.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ModuleCommand {
    /// Build a kernel module from C source for the kernel of an image, with that image's own compiler.
    Build {
        /// Source: a folder with a Makefile or Kbuild, or a single C file.
        source: PathBuf,
        /// Image: a name, an id or a recipe file.
        #[arg(long, default_value = klpfarm_image::DEFAULT)]
        image: String,
        /// Folder to put the module in.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Recipe(_) | Error::UnknownRecipe { .. } | Error::NoImage { .. } | Error::Module { .. } => {
            Failure::input(error)
        }
        error => Failure::farm(error),
    }
}

pub(crate) fn store() -> Result<Store, Failure> {
    Store::open(&home()?).map_err(failure)
}

pub(crate) async fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Build { recipe, force } => {
            let recipe = catalog::recipe(Path::new("."), &recipe).map_err(Failure::Input)?;
            let image = build(&recipe, force).await?;
            print(&format!("{}\n", image.id()));
        }
        Command::List { json } => list(json)?,
        Command::Show { name, json } => show(&name, json)?,
        Command::AddModules { disk, modules } => {
            let disk = std::path::absolute(&disk).map_err(Failure::input)?;
            add_modules(&disk, &modules).await?;
        }
        Command::Rm { name } => {
            for id in store()?.remove(&name).await.map_err(failure)? {
                print(&format!("removed {id}\n"));
            }
        }
    }
    Ok(0)
}

pub(crate) async fn run_module(command: ModuleCommand) -> Result<u8, Failure> {
    let ModuleCommand::Build { source, image, out } = command;
    let module = module(&find(&image)?, &source, &out).await?;
    print(&format!("{}\n", module.display()));
    Ok(0)
}

/// Machines and checkpoints hold what they changed on a disk beside it, which a change of the disk itself would break: of those that klpfarm made
/// none is written to, and an image of a user's own disk has to be built again.
async fn add_modules(disk: &Path, modules: &Path) -> Result<(), Failure> {
    let store = store()?;
    if disk.starts_with(store.dir()) {
        return Err(Failure::input(format!(
            "{} is an image's own disk, from which machines run: copy it (`cp --sparse=always`), and give the copy",
            disk.display()
        )));
    }
    let number = klpfarm_image::add_modules(disk, modules).await.map_err(Failure::input)?;
    print(&format!("{number} files written to {}\n", disk.display()));
    for image in store.list().map_err(failure)?.iter().filter(|image| image.disk().0 == disk) {
        tell!("klpfarm: image {} was made of this disk: run `klpfarm image build` for it again", image.id());
    }
    Ok(())
}

/// Build the module in `source` into `out`. The sidecar goes along, so that a run of the module finds it.
pub(crate) async fn module(image: &Image, source: &Path, out: &Path) -> Result<PathBuf, Failure> {
    let module = image.build_module(source, out).await.map_err(failure)?;
    let sidecar = module.with_extension("yaml");
    if let Some(name) = sidecar.file_name().map(|n| source.join(n)).filter(|f| f.is_file()) {
        std::fs::copy(&name, &sidecar).map_err(|e| Failure::farm(format!("{}: {e}", sidecar.display())))?;
    }
    Ok(module)
}

/// An image by name, id or recipe.
pub(crate) fn find(name: &str) -> Result<Image, Failure> {
    let store = store()?;
    named(&store, name)?
        .ok_or_else(|| failure(Error::NoImage { name: name.to_owned(), dir: store.dir().to_owned() }))
}

/// The image of this name or id, or of this recipe, which then must have been built; `None` if it is none of the three.
pub(crate) fn named(store: &Store, name: &str) -> Result<Option<Image>, Failure> {
    match store.lookup(name) {
        Ok(image) => return Ok(Some(image)),
        Err(Error::NoImage { .. }) => {}
        Err(error) => return Err(failure(error)),
    }
    match catalog::recipe(Path::new("."), name) {
        Ok(recipe) => built(store, &recipe).map(Some),
        Err(problem) if catalog::is_path(name) => Err(Failure::input(problem)),
        Err(_) => Ok(None),
    }
}

/// What `klpfarm image build` must be given for this recipe: its name, where that leads to it, else its file.
fn buildable(recipe: &klpfarm_image::Recipe) -> String {
    let by_name = catalog::recipe(Path::new("."), &recipe.name).is_ok_and(|r| r.source == recipe.source);
    if by_name { recipe.name.clone() } else { recipe.file.display().to_string() }
}

/// The image of a recipe, which must have been built.
pub(crate) fn built(store: &Store, recipe: &klpfarm_image::Recipe) -> Result<Image, Failure> {
    store.get(recipe).map_err(failure)?.ok_or_else(|| {
        let (name, how) = (&recipe.name, buildable(recipe));
        Failure::input(format!(
            "image {name} is not built (or its recipe or files have changed): run `klpfarm image build {how}`"
        ))
    })
}

async fn build(recipe: &klpfarm_image::Recipe, force: bool) -> Result<Image, Failure> {
    let live = std::io::stderr().is_terminal();
    let bar = if live { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let name = recipe.name.clone();
    let shown = bar.clone();
    let mut progress = move |news: Progress| match news {
        Progress::Waiting { id } => tell!("{id}: waiting for another process that is building it"),
        Progress::Step { number, total, title } => {
            if live {
                shown.set_prefix(format!("{name} [{number}/{total}] {title}"));
                shown.set_message("");
            } else {
                tell!("{name} [{number}/{total}] {title}");
            }
        }
        Progress::Line(line) => shown.set_message(klpfarm_report::one_line(&line, 200)),
        Progress::Bytes { done, total } => {
            let total = total.map(|t| format!(" of {}", t >> 20)).unwrap_or_default();
            shown.set_message(format!("{}{total} MiB", done >> 20));
        }
    };
    let options = BuildOptions { force, ..BuildOptions::default() };
    let store = store()?;
    let building = store.build(recipe, &options, &mut progress);
    // A build that is given up removes what it made so far.
    let result = tokio::select! {
        result = building => result.map_err(failure),
        () = crate::interrupt::first() => Err(Failure::Interrupted("interrupted; partial files were removed".into())),
    };
    bar.finish_and_clear();
    result
}

fn list(json: bool) -> Result<(), Failure> {
    let images = store()?.list().map_err(failure)?;
    if json {
        print_json(&images.iter().map(facts).collect::<Vec<_>>());
        return Ok(());
    }
    if images.is_empty() {
        print("no images: run `klpfarm image build`\n");
    }
    for image in images {
        let m = &image.manifest;
        print(&format!(
            "{:<28} {:<28} {}\n",
            m.id,
            m.release.as_deref().unwrap_or("kernel unknown"),
            m.created
        ));
    }
    Ok(())
}

fn facts(image: &Image) -> serde_json::Value {
    json!({
        "id": image.id(),
        "name": image.manifest.name,
        "dir": image.dir,
        "release": image.release(),
        "disk": image.disk().0,
        "kernel": image.kernel(),
        "initrd": image.initrd(),
        "headers": image.headers(),
        "rootfs": image.rootfs(),
        "ssh": image.ssh(),
        "manifest": image.manifest,
    })
}

fn show(name: &str, json: bool) -> Result<(), Failure> {
    let image = find(name)?;
    if json {
        print_json(&facts(&image));
        return Ok(());
    }
    let path = |p: Option<PathBuf>| p.map_or_else(|| "-".to_owned(), |p| p.display().to_string());
    let m = &image.manifest;
    let ssh = image.ssh();
    print(&format!(
        "id        {}\nkernel    {}\ncreated   {}\ndisk      {}\nvmlinuz   {}\ninitrd    {}\nheaders   {}\nrootfs    {}\nlogin     {}, key {}\nsources   {}\npackages  {}\n",
        m.id,
        m.release.as_deref().unwrap_or("unknown until first boot"),
        m.created,
        image.disk().0.display(),
        path(image.kernel()),
        path(image.initrd()),
        path(image.headers()),
        path(image.rootfs()),
        ssh.user,
        ssh.key.display(),
        m.sources.join("\n          "),
        m.packages.len(),
    ));
    Ok(())
}

/// Packages that a workload needs and an image made here does not have.
pub(crate) fn missing_packages<'a>(workload: &'a klpfarm_model::Workload, image: &Image) -> Vec<&'a str> {
    let there = &image.manifest.packages;
    let is_missing = |package: &&String| !there.is_empty() && !there.iter().any(|t| t.name == **package);
    workload.packages.iter().filter(is_missing).map(String::as_str).collect()
}

/// What a plan says of an image.
pub(crate) fn image_facts(image: &Image) -> klpfarm_model::ImageFacts {
    klpfarm_model::ImageFacts {
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
        let error = |name: &str| match named(&store, name) {
            Err(Failure::Input(text)) => text,
            other => panic!("{name}: {:?}", other.map(|i| i.map(|i| i.dir))),
        };
        let file = dir.path().join("mine.yaml");
        let recipe = "name: my-guest\nprebuilt:\n  disk: {path: disk.img, format: raw}\n  ssh: {user: root, key: key}\n";
        std::fs::write(&file, recipe).unwrap();
        let file = file.to_str().unwrap();
        assert!(error(file).ends_with(&format!("run `klpfarm image build {file}`")), "{}", error(file));
        assert!(
            error("debian-13").ends_with("run `klpfarm image build debian-13`"),
            "{}",
            error("debian-13")
        );
        assert!(error("./none.yaml").contains("none.yaml"), "{}", error("./none.yaml"));
        assert!(named(&store, "debian-12-44-b937c8eb4684").unwrap().is_none(), "it may be a checkpoint");
    }
}
