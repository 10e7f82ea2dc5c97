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
fn find(name: &str) -> Result<Image, Failure> {
    let store = store()?;
    match store.lookup(name) {
        Ok(image) => Ok(image),
        Err(missing) => {
            let recipe = catalog::recipe(Path::new("."), name).map_err(|_| failure(missing))?;
            built(&store, &recipe)
        }
    }
}

/// The image of a recipe, which must have been built.
pub(crate) fn built(store: &Store, recipe: &klpfarm_image::Recipe) -> Result<Image, Failure> {
    store.get(recipe).map_err(failure)?.ok_or_else(|| {
        let name = &recipe.name;
        Failure::input(format!("image {name} is not built (or its recipe or files have changed): run `klpfarm image build {name}`"))
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
    print(&format!(
        "id        {}\nkernel    {}\ncreated   {}\ndisk      {}\nvmlinuz   {}\ninitrd    {}\nheaders   {}\nrootfs    {}\nsources   {}\npackages  {}\n",
        m.id,
        m.release.as_deref().unwrap_or("unknown until first boot"),
        m.created,
        image.disk().0.display(),
        path(image.kernel()),
        path(image.initrd()),
        path(image.headers()),
        path(image.rootfs()),
        m.sources.join("\n          "),
        m.packages.len(),
    ));
    Ok(())
}
