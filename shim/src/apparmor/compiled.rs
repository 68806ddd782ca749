//! Profiles of `/etc/apparmor.d`, compiled by the node's `apparmor_parser`. The texts are the node administrator's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::MAX_BYTES;
use super::loaded::content;
use crate::error::bounded;
use crate::sync::{Cancelled, blocking};

/// Where profiles have their place on a node.
pub(super) const DIRECTORY: &str = "/etc/apparmor.d";
/// Where the parser may be.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// Longest text of a profile that is looked at, in bytes.
const MAX_TEXT: u64 = 1 << 20;
/// Most files that the parser is asked about.
const MAX_FILES: usize = 16;
/// Longest message of the parser that is passed on, in bytes.
const MAX_MESSAGE: usize = 512;

/// Where profiles come from, and what compiles them.
#[derive(Debug)]
pub(super) struct Sources {
    pub directory: PathBuf,
    /// `None` if the node has none.
    pub parser: Option<PathBuf>,
}

impl Sources {
    pub(super) fn of_the_node() -> Self {
        let parser = PARSERS.iter().map(PathBuf::from).find(|path| path.exists());
        Self { directory: DIRECTORY.into(), parser }
    }

    /// Compiles the file that has the profile `name`; otherwise says why it cannot, as the end of a sentence.
    pub(super) async fn compile(&self, name: &str) -> Result<Vec<u8>, String> {
        let Some(parser) = &self.parser else {
            return Err("the node has no apparmor_parser to compile it".to_owned());
        };
        let (directory, asked) = (self.directory.clone(), name.to_owned());
        let files = blocking(move || Ok::<_, Cancelled>(candidates(&directory, &asked))).await;
        for file in files.map_err(|error| error.to_string())? {
            // A file that the parser cannot read has no profiles either: another one may be meant.
            let Ok(names) = run(parser, &["--names"], &file).await else { continue };
            if String::from_utf8_lossy(&names).lines().any(|line| line == name) {
                let arguments = ["--skip-kernel-load", "--skip-cache", "--stdout"];
                return run(parser, &arguments, &file).await;
            }
        }
        Err(format!("no file in {} has it", self.directory.display()))
    }
}

/// The files that mention the profile, the one of its name first.
fn candidates(directory: &Path, name: &str) -> Vec<PathBuf> {
    // What the names of profiles in it begin with, as a file writes it.
    let outermost = name.split("//").next().unwrap_or(name);
    let of_its_name = directory.join(outermost.trim_start_matches('/').replace('/', "."));
    let mentions = |path: &PathBuf| {
        let text = if path.is_file() { content(path, MAX_TEXT).unwrap_or_default() } else { Vec::new() };
        text.windows(outermost.len().max(1)).any(|words| words == outermost.as_bytes())
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(mentions).collect();
    files.sort_by_key(|path| (*path != of_its_name, path.clone()));
    files.truncate(MAX_FILES);
    files
}

/// What the parser writes about a file; its words if it fails. Dropped, it ends the parser.
async fn run(parser: &Path, arguments: &[&str], file: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be run: {error}", parser.display());
    let mut command = Command::new(parser);
    command.args(arguments).arg("--").arg(file).env_clear().kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (out, words) = (child.stdout.take(), child.stderr.take());
    let (out, words) = tokio::try_join!(read(out), read(words)).map_err(failed)?;
    let status = child.wait().await.map_err(failed)?;
    if out.len() as u64 > MAX_BYTES {
        return Err(format!("{} compiles to more than {} KiB", file.display(), MAX_BYTES >> 10));
    }
    if status.success() && !out.is_empty() {
        return Ok(out);
    }
    let words = bounded(String::from_utf8_lossy(&words).trim(), MAX_MESSAGE);
    Err(format!("{} does not compile ({status}): {words}", file.display()))
}

/// All that comes, of which one byte more than a policy may have is kept.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(MAX_BYTES + 1).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}
