//! The evidence folder: every file has a size limit, and what is missing is written down with the reason.

use std::path::{Path, PathBuf};

use super::About;
use super::readme::{self, Part};

/// A text file is cut at so many bytes.
const MOST: usize = 2 << 20;

/// Where a trial's evidence goes.
pub(super) struct Kept<'a> {
    about: &'a About,
    dir: PathBuf,
    parts: Vec<Part>,
}

impl<'a> Kept<'a> {
    /// Begin the folder `evidence` in a trial's folder. The page is there from the first moment: whoever is cut short leaves one that
    /// says so.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) async fn begin(trial_dir: &Path, about: &'a About) -> std::io::Result<Self> {
        let dir = trial_dir.join("evidence");
        tokio::fs::create_dir_all(&dir).await?;
        let kept = Self { about, dir, parts: Vec::new() };
        let page = "Gathering evidence was cut short: what lies here may be all there is, and the last file incomplete.\n\n";
        tokio::fs::write(kept.path("README"), page.to_owned() + &readme::text(about, &[])).await?;
        Ok(kept)
    }

    /// A file of the folder.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Keep what was got, or why it was not.
    pub(super) async fn text(&mut self, file: &str, what: &str, got: Result<String, String>) {
        let got = match got {
            Ok(text) if text.trim().is_empty() => Err("there was nothing to tell".to_owned()),
            Ok(mut text) => {
                cut(&mut text, MOST);
                tokio::fs::write(self.path(file), &text)
                    .await
                    .map(|()| text.len() as u64)
                    .map_err(|e| e.to_string())
            }
            Err(why) => Err(why),
        };
        self.note(file, what, got);
    }

    /// Note a file of so many bytes that somebody else wrote, or why it was not.
    pub(super) fn note(&mut self, file: &str, what: &str, got: Result<u64, String>) {
        self.parts.push(Part { file: file.to_owned(), what: what.to_owned(), got });
    }

    /// Write the page; returns files (below the trial's folder) and what they are.
    pub(super) async fn end(self) -> Vec<(String, String)> {
        let page = readme::text(self.about, &self.parts);
        // Without it the files speak for themselves.
        let _ = tokio::fs::write(self.path("README"), page).await;
        let files = self
            .parts
            .into_iter()
            .filter(|p| p.got.is_ok())
            .map(|p| (format!("evidence/{}", p.file), p.what));
        let readme = (
            "evidence/README".to_owned(),
            "what each file is, what is missing and why, how to open them".to_owned(),
        );
        std::iter::once(readme).chain(files).collect()
    }
}

fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let rest = text.len() - most;
        let at = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(at);
        text.push_str(&format!("\n[cut here: {rest} bytes more]\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_tells_what_it_lacks_even_when_cut_short() {
        let dir = std::env::temp_dir().join(format!("klpfarm-kept-{}", std::process::id()));
        let about = About::default();
        let mut kept = Kept::begin(&dir, &about).await.unwrap();
        let page = || std::fs::read_to_string(dir.join("evidence/README")).unwrap();
        assert!(page().starts_with("Gathering evidence was cut short"), "{}", page());
        kept.text("a.txt", "an a", Ok("x".into())).await;
        kept.text("b.txt", "a b", Ok(" \n".into())).await;
        kept.text("c.txt", "a c", Err("no time left".into())).await;
        let files = kept.end().await;
        let names: Vec<&str> = files.iter().map(|(f, _)| f.as_str()).collect();
        assert_eq!(names, ["evidence/README", "evidence/a.txt"]);
        assert!(
            page().contains("no time left")
                && page().contains("nothing to tell")
                && !page().contains("cut short")
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut text = "aé".repeat(3);
        cut(&mut text, 2);
        assert_eq!(text, "a\n[cut here: 7 bytes more]\n");
        let mut text = "ab".to_owned();
        cut(&mut text, 2);
        assert_eq!(text, "ab");
    }
}
