//! What must hold for a recipe beyond its shape: every problem at once, each with its place.

use std::path::{Path, PathBuf};

use klpfarm_model::yaml::{self, YamlError};

use crate::recipe::{BuildSpec, PrebuiltSpec};

/// Bytes of `4G`, `512M`, `1024`.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Collects problems, each with its place.
pub(crate) struct Check<'a> {
    file: &'a Path,
    text: &'a str,
    pub(crate) problems: Vec<YamlError>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        Self { file, text, problems: Vec::new() }
    }

    pub(crate) fn problem(&mut self, path: &[&str], message: impl Into<String>) {
        // The line of the nearest key that is there: a missing field is reported at its parent.
        let at = (1..=path.len()).rev().find_map(|n| yaml::line_of(self.text, &path[..n]));
        self.problems.push(YamlError {
            file: self.file.to_owned(),
            at: at.map(|line| (line, 1)),
            field: path.join("."),
            message: message.into(),
        });
    }

    pub(crate) fn name(&mut self, name: &str) {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if name.is_empty() || !name.chars().all(good) || name.starts_with(['.', '-']) {
            let message = format!(
                "`{name}`: a name is lower-case letters, digits, `-` and `.`, a letter or digit first"
            );
            self.problem(&["name"], message);
        }
    }

    /// Words that become arguments of apt: no spaces, no options.
    fn word(&mut self, path: &[&str], word: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || "+-.:~=/_".contains(c);
        if word.is_empty() || word.starts_with('-') || !word.chars().all(good) {
            self.problem(
                path,
                format!("`{word}` is not a name of this kind: letters, digits and `+-.:~=/_`"),
            );
        }
    }

    fn mirror(&mut self, path: &[&str], mirror: &str) {
        let known =
            ["http://", "https://", "file:///", "copy:///"].iter().any(|scheme| mirror.starts_with(scheme));
        if !known || mirror.contains(char::is_whitespace) {
            self.problem(
                path,
                format!(
                    "`{mirror}`: an archive's address starts with http://, https://, file:/// or copy:///"
                ),
            );
        }
    }

    pub(crate) fn build(&mut self, build: &BuildSpec) {
        self.word(&["build", "suite"], &build.suite);
        self.mirror(&["build", "mirror"], &build.mirror);
        if let Some(security) = &build.security {
            self.mirror(&["build", "security", "mirror"], &security.mirror);
            self.word(&["build", "security", "suite"], &security.suite);
        }
        if build.components.is_empty() {
            self.problem(&["build", "components"], "empty: name at least `main`");
        }
        build.components.iter().for_each(|w| self.word(&["build", "components"], w));
        build.updates.iter().for_each(|w| self.word(&["build", "updates"], w));
        build.packages.iter().for_each(|w| self.word(&["build", "packages"], w));
        self.word(&["build", "kernel", "image"], &build.kernel.image);
        self.word(&["build", "kernel", "headers"], &build.kernel.headers);
        match parse_size(&build.disk) {
            None => self.problem(
                &["build", "disk"],
                format!("`{}` is not a valid size: write a number with K, M or G", build.disk),
            ),
            // The tree with compiler and headers takes about 700 MiB.
            Some(bytes) if bytes < 2 << 30 => self.problem(&["build", "disk"], "too small: at least 2G"),
            Some(_) => {}
        }
    }

    pub(crate) fn prebuilt(&mut self, p: &PrebuiltSpec) {
        self.file_source(&["prebuilt", "disk"], &p.disk.path, &p.disk.url, &p.disk.sha256);
        for (name, file) in [("kernel", &p.kernel), ("initrd", &p.initrd)] {
            if let Some(file) = file {
                self.file_source(&["prebuilt", name], &file.path, &file.url, &file.sha256);
            }
        }
        if p.kernel.is_none() {
            for (name, given) in [("initrd", p.initrd.is_some()), ("cmdline", p.cmdline.is_some())] {
                if given {
                    self.problem(
                        &["prebuilt", name],
                        "has no effect without `kernel`: the boot loader of the disk decides",
                    );
                }
            }
        }
        match (p.seed, &p.ssh) {
            (None, None) => self.problem(
                &["prebuilt"],
                "no way to log in: write `seed: nocloud` for a guest with cloud-init, otherwise `ssh: {user, key}`",
            ),
            (Some(_), Some(_)) => {
                self.problem(&["prebuilt", "ssh"], "cannot be combined with `seed`, which adds its own key");
            }
            _ => {}
        }
    }

    fn file_source(
        &mut self,
        at: &[&str],
        path: &Option<PathBuf>,
        url: &Option<String>,
        sha256: &Option<String>,
    ) {
        let below = |field: &'static str| at.iter().copied().chain([field]).collect::<Vec<_>>();
        match (path, url) {
            (Some(_), Some(_)) => self.problem(&below("url"), "either `path` or `url`, not both"),
            (None, None) => self.problem(at, "neither `path` nor `url`"),
            (None, Some(url)) if !url.starts_with("https://") && !url.starts_with("http://") => {
                self.problem(&below("url"), format!("`{url}`: only http:// and https:// can be downloaded"));
            }
            _ => {}
        }
        let is_hash = |h: &String| h.len() == 64 && h.chars().all(|c| c.is_ascii_hexdigit());
        if sha256.as_ref().is_some_and(|hash| !is_hash(hash)) {
            self.problem(&below("sha256"), "not a SHA-256: 64 hexadecimal digits");
        }
    }
}
