//! `klpfarm image`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use klpfarm_engine::catalog;
use klpfarm_engine::image::{find, store};
use klpfarm_image::{BuildOptions, Image, Progress};
use serde_json::json;

use crate::failure::{Failure, print, print_json};

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

pub(crate) async fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Build { recipe, force } => {
            let recipe = catalog::recipe(Path::new("."), &recipe)?;
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
            for id in store()?.remove(&name).await? {
                print(&format!("removed {id}\n"));
            }
        }
    }
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
    for image in store.list()?.iter().filter(|image| image.disk().0 == disk) {
        tell!("klpfarm: image {} was made of this disk: run `klpfarm image build` for it again", image.id());
    }
    Ok(())
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
        result = building => result.map_err(Failure::from),
        () = crate::interrupt::first() => Err(Failure::interrupted("interrupted; partial files were removed")),
    };
    bar.finish_and_clear();
    result
}

fn list(json: bool) -> Result<(), Failure> {
    let images = store()?.list()?;
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
