//! `tintype warm`: fetch a node of a snapshot, or a part of it, into the cache on this host's disk.
//!
//! A cache belongs to one process. Where a mount of this repository has it, that mount is asked to fetch; otherwise the
//! cache is opened and filled here.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::runtime::Handle;

use super::super::control_args::WarmArgs;
use super::super::disk_cache;
use super::super::failure::{Exit, Failure};
use super::super::output::size;
use super::super::served;
use super::super::wiring::Session;
use super::browse::open_entry;
use crate::cache::{DiskCache, MemoryCache};
use crate::fs::names::SnapshotNames;
use crate::fuse::request;
use crate::model::extent::LITERAL_BYTES_MAX;
use crate::model::manifest::FileKind;
use crate::read::{BlockReader, FileMap, ReadOptions};
use crate::repo::{ListedSnapshot, NodeTree, PlacedEntry, Repository, SnapshotSource};

/// Files under way at a time: small ones each wait for an answer of the store.
const FILES_AT_A_TIME: usize = 8;
/// One request: some seconds of a slow line, and a step of the progress.
const STEP_BYTES: u64 = 16 << 20;
/// Of what nobody waits for in a call.
const DEADLINE: Duration = Duration::from_secs(300);

/// Who has the cache.
enum Way {
    /// A mount; the directory of the node in it.
    Mount(PathBuf),
    /// This process.
    Here(Arc<BlockReader>),
}

/// Fetches, and says how much of it is there.
pub async fn run(session: &Session, args: WarmArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    let (name, listed) = session.find(repository.as_ref(), &args.source).await?;
    let Some(node) = name.node.clone() else {
        return Err(
            Failure::usage("no node was named").hint("say CLUSTER/DATE/NODE[/PATH]; `tintype list CLUSTER/DATE` shows the nodes")
        );
    };
    let (tree, entry) = open_entry(session, &repository, &name).await?;
    let (way, directory) = way(session, &args, &repository, &listed, node.as_str()).await?;
    let files = files(&repository, &tree, entry).await?;
    let bytes: u64 = files.iter().map(|file| file.entry.size_bytes()).sum();
    let bar = session.output.bar(&args.source);
    bar.set_length(bytes);
    let work = files.iter().map(|file| warm_file(&way, &tree, file, &bar));
    let done: Vec<_> = futures::stream::iter(work).buffer_unordered(FILES_AT_A_TIME).collect().await;
    bar.finish_and_clear();
    let (mut cached, mut whole) = (0, 0);
    for file in done {
        let (there, of) = file?;
        cached += there;
        whole += usize::from(there == of);
    }
    let mountpoint = if let Way::Mount(path) = &way { Some(path) } else { None };
    let by = mountpoint.map_or(String::new(), |path| format!(", by the mount: {}", path.display()));
    let (count, place) = (files.len(), format!("{}/{}/{node}", listed.cluster, listed.date));
    let text = format!(
        "{place}  {} of {} cached in {}, {whole} of {count} files whole{by}\n",
        size(cached),
        size(bytes),
        directory.display()
    );
    let value = json!({
        "cluster": listed.cluster, "date": listed.date, "node": node, "cache_directory": directory, "mountpoint": mountpoint,
        "bytes": bytes, "cached_bytes": cached, "files": count, "whole_files": whole,
    });
    session.output.result(&text, &value);
    if whole == count {
        return Ok(Exit::Done);
    }
    session.output.note(
        "tintype: not all of it is in the cache: it is full, or its disk is\n  next: raise [cache] size, then run this again",
    );
    Ok(Exit::Partly)
}

/// The cache that is meant, and who has it.
async fn way(
    session: &Session,
    args: &WarmArgs,
    repository: &Arc<Repository>,
    listed: &ListedSnapshot,
    node: &str,
) -> Result<(Way, PathBuf), Failure> {
    // Without its size it is still a name for a mount's cache.
    let named = args.cache_dir.as_ref().or(session.config.cache.directory.as_ref());
    let named = named.map(|path| disk_cache::resolved(path));
    let uuid = repository.descriptor().repository.to_string();
    let mounts = tokio::task::spawn_blocking(served::mounts).await.unwrap_or_default();
    for mount in mounts.iter().filter(|mount| mount.repository() == Some(&uuid)) {
        let Some(directory) = mount.cache_directory() else { continue };
        if named.as_ref().is_none_or(|named| *named == disk_cache::resolved(directory)) {
            let shown = SnapshotNames::new(repository.snapshots(&listed.cluster).await?, None);
            let shown = shown.shown().iter().find(|shown| shown.listed.uuid == listed.uuid).map(|shown| shown.name.to_string());
            let date = shown.unwrap_or_else(|| listed.date.to_string());
            let path = mount.mountpoint.join(listed.cluster.as_str()).join(date).join(node);
            return Ok((Way::Mount(path), directory.to_owned()));
        }
    }
    let Some(options) = disk_cache::merge(args.cache_dir.as_ref(), args.cache_size, &session.config.cache)? else {
        return Err(Failure::usage("nothing says which cache is meant, and no mount of this repository has one")
            .hint("say --cache-dir DIRECTORY --cache-size SIZE, or write them under [cache] into the configuration"));
    };
    let others: Vec<_> = session.repository_directory()?.into_iter().collect();
    disk_cache::check_place(&options.directory, &others)?;
    let directory = options.directory.clone();
    let disk = tokio::task::spawn_blocking(move || {
        let disk = DiskCache::open(options)?;
        // Before, nothing would be put.
        disk.wait_counted(DEADLINE);
        Ok::<_, Failure>(disk)
    });
    let disk = disk.await.map_err(|error| Failure::new("internal", error.to_string()))??;
    let options = ReadOptions { deadline: DEADLINE, ..ReadOptions::default() };
    let source: Arc<dyn SnapshotSource> = repository.clone();
    let blocks = BlockReader::new(source, Arc::new(MemoryCache::new(0)), Some(Arc::new(disk)), options, Handle::current());
    Ok((Way::Here(blocks), directory))
}

/// The files at and below an entry, large ones first: they take longest.
async fn files(repository: &Repository, tree: &NodeTree, entry: PlacedEntry) -> Result<Vec<PlacedEntry>, Failure> {
    let (mut files, mut open) = (Vec::new(), vec![entry]);
    while let Some(placed) = open.pop() {
        match placed.entry.kind {
            FileKind::Directory => open.extend(repository.directory(tree, &placed.entry.path).await?),
            FileKind::File => files.push(placed),
            FileKind::Link => {}
        }
    }
    files.sort_by_key(|placed| std::cmp::Reverse(placed.entry.size_bytes()));
    Ok(files)
}

/// Bytes of a file that are there in the end, and its length.
async fn warm_file(way: &Way, tree: &NodeTree, file: &PlacedEntry, bar: &ProgressBar) -> Result<(u64, u64), Failure> {
    let length = file.entry.size_bytes();
    // What stands in the tables themselves is there with them.
    if length <= LITERAL_BYTES_MAX as u64 {
        bar.inc(length);
        return Ok((length, length));
    }
    let cached = match way {
        Way::Here(blocks) => {
            let map = FileMap::new(blocks.clone(), tree.clone(), file.clone());
            let mut cached = 0;
            for step in steps(length) {
                cached = map.warm(step, step.saturating_add(STEP_BYTES)).await?;
                bar.inc(STEP_BYTES.min(length - step));
            }
            cached
        }
        Way::Mount(node) => {
            let (path, bar) = (node.join(file.entry.path.to_path_buf()), bar.clone());
            let warming = tokio::task::spawn_blocking(move || warm_mounted(&path, length, &bar));
            warming.await.map_err(|error| Failure::new("internal", error.to_string()))??
        }
    };
    Ok((cached, length))
}

fn steps(length: u64) -> impl Iterator<Item = u64> {
    (0..length).step_by(STEP_BYTES as usize)
}

fn warm_mounted(path: &Path, length: u64, bar: &ProgressBar) -> Result<u64, Failure> {
    let wrong = |error: std::io::Error| {
        Failure::new("mount", format!("{}: {error}", path.display()))
            .hint("see what the mount says: tintype doctor; then run this again")
    };
    let file = File::open(path).map_err(wrong)?;
    let mut cached = 0;
    for step in steps(length) {
        cached = request::warm(&file, step, STEP_BYTES).map_err(wrong)?;
        bar.inc(STEP_BYTES.min(length - step));
    }
    Ok(cached)
}
