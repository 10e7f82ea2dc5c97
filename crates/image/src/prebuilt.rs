//! Images from a user's own disk.
//!
//! Files given by path are only referred to, never copied or written: a golden image may be huge. Their length and time
//! of change are kept, and an image whose files have changed since is made anew. Downloads go into the image's folder.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::check::Check;
use crate::manifest::{FileEntry, Manifest, SCHEMA, Ssh, stamp_of};
use crate::recipe::PrebuiltSpec;
use crate::sandbox::{self, Sandbox};
use crate::{Error, Progress, Recipe, Result, Sink, command, fsutil, kernel, rootfs, seed};

/// A file of a recipe: where to get it and where it goes.
struct Wanted<'a> {
    field: &'static str,
    path: Option<&'a Path>,
    url: Option<&'a str>,
    sha256: Option<&'a str>,
    name: &'static str,
}

/// Collect the recipe's files in `dir` and describe the result.
pub(crate) async fn make(
    recipe: &Recipe,
    spec: &PrebuiltSpec,
    dir: &Path,
    sandbox: &Sandbox,
    lock: &File,
    progress: Sink<'_>,
) -> Result<Manifest> {
    let files = wanted(spec);
    check(recipe, spec, &files)?;
    let missing = sandbox::missing_for_keys(sandbox.search_path());
    if spec.ssh.is_none() && !missing.is_empty() {
        return Err(Error::MissingTools(missing));
    }
    let total = files.len() + usize::from(spec.ssh.is_none());
    let mut entries = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let origin = file.url.map_or_else(|| display(file.path), str::to_owned);
        progress(Progress::Step { number: index + 1, total, title: format!("{}: {origin}", file.field) });
        entries.push((file.field, fetch(file, dir, progress).await?));
    }
    let mut take = |field: &str| {
        let index = entries.iter().position(|(name, _)| *name == field)?;
        Some(entries.swap_remove(index).1)
    };
    let (disk, kernel, initrd) = (take("disk"), take("kernel"), take("initrd"));
    let disk = disk.ok_or_else(|| Error::Unexpected("a ready-made image without a disk".to_owned()))?;
    let (ssh, seed) = match &spec.ssh {
        Some(ssh) => {
            let key = ssh.key.clone();
            (Ssh { user: ssh.user.clone(), key, host_key: ssh.host_key.clone() }, None)
        }
        None => {
            progress(Progress::Step {
                number: total,
                total,
                title: "SSH keys and cloud-init seed".to_owned(),
            });
            nocloud(recipe, dir, sandbox, lock, progress).await?
        }
    };
    Ok(Manifest {
        schema: SCHEMA,
        name: recipe.name.clone(),
        id: String::new(),
        description: recipe.description.clone(),
        recipe_hash: String::new(),
        release: kernel.as_ref().and_then(|file| kernel::release_of_bzimage(&dir.join(&file.path))),
        disk,
        disk_format: spec.disk.format,
        cmdline: match kernel {
            Some(_) => spec.cmdline.clone().unwrap_or_else(|| "root=/dev/vda rw".to_owned()),
            None => String::new(),
        },
        kernel,
        initrd,
        seed,
        headers: spec.headers.clone(),
        rootfs: None,
        ssh,
        sources: files.iter().map(|f| f.url.map_or_else(|| display(f.path), str::to_owned)).collect(),
        packages: Vec::new(),
        created: jiff::Timestamp::now().to_string(),
        tools: vec![format!("klpfarm {}", env!("CARGO_PKG_VERSION"))],
    })
}

fn display(path: Option<&Path>) -> String {
    path.map(|p| p.display().to_string()).unwrap_or_default()
}

fn wanted(spec: &PrebuiltSpec) -> Vec<Wanted<'_>> {
    let mut files = vec![Wanted {
        field: "disk",
        path: spec.disk.path.as_deref(),
        url: spec.disk.url.as_deref(),
        sha256: spec.disk.sha256.as_deref(),
        name: "disk.img",
    }];
    for (field, file, name) in [("kernel", &spec.kernel, "vmlinuz"), ("initrd", &spec.initrd, "initrd.img")] {
        files.extend(file.as_ref().map(|f| Wanted {
            field,
            path: f.path.as_deref(),
            url: f.url.as_deref(),
            sha256: f.sha256.as_deref(),
            name,
        }));
    }
    files
}

/// Everything that can be known to be missing, at once and before anything is fetched.
fn check(recipe: &Recipe, spec: &PrebuiltSpec, files: &[Wanted<'_>]) -> Result<()> {
    let text = recipe.text();
    let mut check = Check::new(&recipe.file, &text);
    for file in files {
        match file.path {
            Some(path) if !path.is_file() => {
                check.problem(&["prebuilt", file.field, "path"], format!("no file {}", path.display()));
            }
            None if file.sha256.is_none() => check.problem(
                &["prebuilt", file.field, "sha256"],
                "missing: a download without a known hash could be anything; copy the recipe and fill in the SHA-256 \
                 that its publisher lists (SHA256SUMS)",
            ),
            _ => {}
        }
    }
    if let Some(ssh) = spec.ssh.as_ref().filter(|ssh| !ssh.key.is_file()) {
        check.problem(&["prebuilt", "ssh", "key"], format!("no file {}", ssh.key.display()));
    }
    if let Some(headers) = spec.headers.as_ref().filter(|headers| !headers.join("Makefile").is_file()) {
        check.problem(&["prebuilt", "headers"], format!("{} is not a kernel build tree", headers.display()));
    }
    if check.problems.is_empty() { Ok(()) } else { Err(Error::Recipe(check.problems)) }
}

async fn fetch(file: &Wanted<'_>, dir: &Path, progress: Sink<'_>) -> Result<FileEntry> {
    let (path, stamp, found) = match (file.path, file.url) {
        (Some(path), _) => {
            // The stamp first: a change while hashing then shows as a change.
            let stamp = stamp_of(path);
            // Reading a disk of many GB takes minutes: only to compare it with a promise.
            let found = match (file.field, file.sha256) {
                ("disk", None) => None,
                _ => Some(fsutil::sha256(path, progress).await?),
            };
            (path.to_owned(), stamp, found)
        }
        (None, url) => {
            let found = download(url.unwrap_or_default(), &dir.join(file.name), progress).await?;
            (PathBuf::from(file.name), None, Some(found))
        }
    };
    if let (Some(expected), Some(found)) = (file.sha256, &found)
        && !expected.eq_ignore_ascii_case(found)
    {
        let what = file.url.map_or_else(|| display(file.path), str::to_owned);
        return Err(Error::WrongHash { what, expected: expected.to_owned(), found: found.clone() });
    }
    Ok(FileEntry { path, sha256: found, stamp })
}

/// Download to `target`; returns the SHA-256. Proxies come from the environment.
async fn download(url: &str, target: &Path, progress: Sink<'_>) -> Result<String> {
    let failed = |error: reqwest::Error| Error::Download { url: url.to_owned(), message: causes(&error) };
    // Fails only when another part of the program has chosen a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        // No limit on the whole: images are large and lines slow. A silent server is what must not hang us.
        .connect_timeout(std::time::Duration::from_secs(30))
        .read_timeout(std::time::Duration::from_secs(60))
        .build()
        .map_err(failed)?;
    let mut response = client.get(url).send().await.and_then(|r| r.error_for_status()).map_err(failed)?;
    let total = response.content_length();
    if let (Some(total), Some(dir)) = (total, target.parent()) {
        fsutil::require_space(dir, total)?;
    }
    let mut file = File::create(target).map_err(Error::io("create", target))?;
    let mut hash = Sha256::new();
    let (mut done, mut told) = (0, 0);
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        file.write_all(&chunk).map_err(Error::io("write", target))?;
        hash.update(&chunk);
        done += chunk.len() as u64;
        if done - told >= 1 << 20 {
            told = done;
            progress(Progress::Bytes { done, total });
        }
    }
    file.sync_all().map_err(Error::io("sync", target))?;
    Ok(fsutil::hex(&hash.finalize()))
}

fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn nocloud(
    recipe: &Recipe,
    dir: &Path,
    sandbox: &Sandbox,
    lock: &File,
    progress: Sink<'_>,
) -> Result<(Ssh, Option<PathBuf>)> {
    for command in [command::user_key(dir), command::host_key(dir)] {
        sandbox.run(&command, Some(lock), None, progress).await?;
    }
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let (user_public, host_private, host_public) =
        (read("ssh_key.pub")?, read("ssh_host_key")?, read("ssh_host_key.pub")?);
    let settings = seed::Settings {
        instance: &recipe.name.replace('.', "-"),
        user_public: user_public.trim(),
        host_private: host_private.trim(),
        host_public: host_public.trim(),
    };
    seed::write(&settings, &dir.join("seed.img"))?;
    let host_key = Some(rootfs::public_key(&dir.join("ssh_host_key.pub"))?);
    Ok((Ssh { user: "root".into(), key: "ssh_key".into(), host_key }, Some("seed.img".into())))
}
