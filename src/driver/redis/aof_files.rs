//! Capture of append-only files: opened and measured inside the freeze, once everything acknowledged is in them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use crate::driver::beneath::open_own;
use crate::driver::served::{ServedFile, ServedNode};
use crate::driver::{CapturedContent, CapturedEntry, DriverError, StoredFile};
use crate::model::manifest::{FileClass, FileKind, Fingerprint, Ownership};
use crate::model::names::TreePath;
use crate::payload::aof::{AofFile, AofFileKind, AofScanner, MANIFEST_BYTES_MAX, parse_manifest, write_manifest};

use super::RedisDriver;
use super::collect::{DIRECTORY_MODE, FILE_MODE, STREAMED_BLOCK_BYTES};
use super::reply::Fields;

/// How often the flush is looked for: inside the freeze every millisecond counts.
const POLL: Duration = Duration::from_millis(1);
/// How often the manifest may change under our hands: rewrites of a small file may follow one another.
const ATTEMPTS: usize = 8;

/// The open files of one capture.
#[derive(Debug)]
pub(super) struct AofFiles {
    /// Empty before Redis 7, where one file stands in the data directory itself.
    directory: Option<String>,
    manifest_name: String,
    files: Vec<OpenFile>,
    captured_ns: i64,
}

#[derive(Debug)]
struct OpenFile {
    part: AofFile,
    file: File,
    length_bytes: u64,
    /// It is a link that a restore has left, to a file that the repository has.
    stored: Option<StoredFile>,
}

impl AofFiles {
    /// What the capture was compared with.
    pub(super) fn check(&self) -> String {
        let bytes: u64 = self.files.iter().map(|file| file.length_bytes).sum();
        format!("{} append-only files of {bytes} bytes open, as long as the node says, nothing left to flush", self.files.len())
    }
}

impl RedisDriver {
    pub(super) async fn open_append_only(&mut self, limit: Duration) -> Result<AofFiles, DriverError> {
        let directory = self.data_directory()?;
        let Some(prepared) = self.prepared.clone() else { return Err(self.refused("it was not prepared")) };
        let until = Instant::now() + limit;
        let multi_part = prepared.version >= (7, 0);
        let below = if multi_part { PathBuf::from(&prepared.append_directory) } else { PathBuf::new() };
        let place = directory.join(&below);
        let manifest_name = format!("{}.manifest", prepared.append_name);
        for _ in 0..ATTEMPTS {
            let fields = self.wait_until_flushed(until).await?;
            // What links of a restore lead to is another process's: it may not answer.
            let (from, below, served) = (directory.clone(), below.clone(), self.options.served.clone());
            let name = if multi_part { manifest_name.clone() } else { prepared.append_name.clone() };
            let opening = tokio::task::spawn_blocking(move || match multi_part {
                true => open_parts(&from, &below, &name, &served),
                false => open_single(&from, &name, &served).map(Some),
            });
            let opened = match tokio::time::timeout_at(until, opening).await {
                Ok(opened) => opened.map_err(|error| self.broken(error.to_string()))?,
                Err(_) => return Err(self.void("its append-only files could not be opened inside the pause; look at their disk")),
            };
            let Some(files) = opened.map_err(|error| self.file_error(&place, &error))? else { continue };
            let bytes: u64 = files.iter().map(|file| file.length_bytes).sum();
            let base: u64 = files.iter().filter(|file| file.part.kind == AofFileKind::Base).map(|file| file.length_bytes).sum();
            // Until the first rewrite a server does not count the base that it began with.
            let counted = fields.number("aof_current_size");
            if counted != Some(bytes) && counted != Some(bytes - base) {
                return Err(self.broken(format!(
                    "the append-only files in {} have {bytes} bytes, and the node says {}; is data_directory the node's own (CONFIG GET dir)?",
                    place.display(),
                    fields.get("aof_current_size").unwrap_or("nothing")
                )));
            }
            let directory = multi_part.then(|| prepared.append_directory.clone());
            return Ok(AofFiles { directory, manifest_name, files, captured_ns: nanoseconds_now() });
        }
        Err(self.broken("its append-only files were rewritten again and again; raise auto-aof-rewrite-min-size"))
    }

    /// Under a slow disk an acknowledged write may not be in the file yet.
    async fn wait_until_flushed(&mut self, until: Instant) -> Result<Fields, DriverError> {
        loop {
            let fields = self.control().await?.info(&["persistence"]).await?;
            let waiting = fields.number("aof_buffer_length").unwrap_or(0) + fields.number("aof_pending_bio_fsync").unwrap_or(0);
            if waiting == 0 && fields.get("aof_last_write_status") == Some("ok") {
                return Ok(fields);
            }
            if Instant::now() >= until {
                return Err(
                    self.void("its append-only file was not flushed inside the pause; raise max_pause, or look at its disk")
                );
            }
            sleep(POLL).await;
        }
    }

    /// The entries of the captured files; the last increment is cut at the end of a command.
    pub(super) async fn collect_files(&self, captured: AofFiles, owner: Ownership) -> Result<Vec<CapturedEntry>, DriverError> {
        let node = self.node();
        let bad = |reason: String| DriverError::Broken { node: node.clone(), reason };
        let mut entries = Vec::new();
        let root = match &captured.directory {
            Some(name) => {
                let path = TreePath::root().join(name.as_bytes()).map_err(|error| bad(error.to_string()))?;
                entries.push(CapturedEntry {
                    path: path.clone(),
                    kind: FileKind::Directory,
                    class: FileClass::Rewritten,
                    mode: DIRECTORY_MODE,
                    owner: owner.clone(),
                    modified_ns: captured.captured_ns,
                    block_bytes: STREAMED_BLOCK_BYTES,
                    content: CapturedContent::Nothing,
                });
                path
            }
            None => TreePath::root(),
        };
        let parts: Vec<AofFile> = captured.files.iter().map(|file| file.part.clone()).collect();
        let last = captured.files.len().saturating_sub(1);
        for (index, open) in captured.files.into_iter().enumerate() {
            let path = root.join(&open.part.name).map_err(|error| bad(error.to_string()))?;
            let metadata = open.file.metadata().map_err(|error| bad(format!("{path}: {error}")))?;
            let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
            let base = open.part.kind == AofFileKind::Base;
            let mut length_bytes = open.length_bytes;
            let mut file = open.file;
            let mut stored = open.stored;
            if index == last && !base {
                // Perhaps shorter than what is stored: its bytes are read.
                stored = None;
                let scanned = tokio::task::spawn_blocking(move || safe_length(file, length_bytes, captured.captured_ns));
                let outcome = scanned.await.map_err(|error| bad(error.to_string()))?;
                (file, length_bytes) = outcome.map_err(|reason| DriverError::Corrupt {
                    node: self.node(),
                    path: path.to_string(),
                    reason: format!("{reason}; run redis-check-aof on the node's file"),
                })?;
            }
            entries.push(CapturedEntry {
                path,
                kind: FileKind::File,
                class: if base { FileClass::Immutable } else { FileClass::AppendOnly },
                mode: metadata.mode() & 0o777,
                owner: Ownership { uid: metadata.uid(), gid: metadata.gid(), ..Ownership::default() },
                modified_ns,
                block_bytes: STREAMED_BLOCK_BYTES,
                content: stored.map_or_else(
                    || CapturedContent::File {
                        length_bytes,
                        fingerprint: Some(Fingerprint {
                            device: metadata.dev(),
                            inode: metadata.ino(),
                            modified_ns,
                            captured_ns: captured.captured_ns,
                        }),
                        file,
                    },
                    CapturedContent::Stored,
                ),
            });
        }
        if captured.directory.is_some() {
            entries.push(CapturedEntry {
                path: root.join(captured.manifest_name.as_bytes()).map_err(|error| bad(error.to_string()))?,
                kind: FileKind::File,
                class: FileClass::Rewritten,
                mode: FILE_MODE,
                owner,
                modified_ns: captured.captured_ns,
                block_bytes: STREAMED_BLOCK_BYTES,
                content: CapturedContent::Literal(write_manifest(&parts)),
            });
        }
        Ok(entries)
    }
}

/// The files that the manifest names, without those that wait for their deletion; nothing when it changed meanwhile.
fn open_parts(directory: &Path, below: &Path, manifest_name: &str, served: &[ServedNode]) -> io::Result<Option<Vec<OpenFile>>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        open_own(directory, &below.join(manifest_name))?.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read()?;
    let parts =
        parse_manifest(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{manifest_name}: {error}")))?;
    let mut files = Vec::new();
    for part in parts.into_iter().filter(|part| part.kind != AofFileKind::History) {
        match open_part(directory, below, part, served) {
            Ok(file) => files.push(file),
            // Replaced between the manifest and the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && read()? != text => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok((read()? == text).then_some(files))
}

fn open_single(directory: &Path, name: &str, served: &[ServedNode]) -> io::Result<Vec<OpenFile>> {
    let part = AofFile { name: name.as_bytes().to_vec(), sequence: 1, kind: AofFileKind::Increment };
    Ok(vec![open_part(directory, Path::new(""), part, served)?])
}

fn open_part(directory: &Path, below: &Path, part: AofFile, served: &[ServedNode]) -> io::Result<OpenFile> {
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&part.name);
    let path = below.join(name);
    let (file, stored) =
        match std::fs::read_link(directory.join(&path)).ok().and_then(|target| ServedFile::of_link(served, &target)) {
            Some(found) => found.and_then(|found| Ok((found.open()?, found.stored())))?,
            None => (open_own(directory, &path)?, None),
        };
    let length_bytes = file.metadata()?.len();
    Ok(OpenFile { part, file, length_bytes, stored })
}

/// The longest prefix of the first `length_bytes` that may be loaded. The file keeps its position for nobody.
fn safe_length(file: File, length_bytes: u64, now_ns: i64) -> Result<(File, u64), String> {
    use std::os::unix::fs::FileExt;

    let mut scanner = AofScanner::new(u64::try_from(now_ns / 1_000_000).unwrap_or(0));
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length_bytes {
        let wanted = (length_bytes - at).min(buffer.len() as u64) as usize;
        let read = file.read_at(&mut buffer[..wanted], at).map_err(|error| error.to_string())?;
        if read == 0 {
            return Err(format!("it became shorter than the {length_bytes} bytes of the capture"));
        }
        scanner.feed(&buffer[..read]).map_err(|error| error.to_string())?;
        at += read as u64;
    }
    Ok((file, scanner.safe_length()))
}

fn nanoseconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| i64::try_from(now.as_nanos()).ok()).unwrap_or(0)
}
