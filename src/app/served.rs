//! The mounts of this host, and what each says of itself in the extended attributes of its root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use super::clone::CLONE;
use super::linked::shown;
use super::mount::MountOptions;
use super::mountpoint::{PATIENCE, within};
use super::output::size;
use crate::cache::{DiskCache, FileCache};
use crate::fs::About;
use crate::fuse::PassthroughState;
use crate::fuse::mounts;

const REPOSITORY: &str = "user.tintype.repository";
const STORE: &str = "user.tintype.store";
const CACHE: &str = "user.tintype.cache_directory";
const CLONE_CACHE: &str = "user.tintype.cache";
const CACHE_USED: &str = "user.tintype.cache_used_bytes";
const CACHE_LIMIT: &str = "user.tintype.cache_limit_bytes";
const PASSTHROUGH: &str = "user.tintype.passthrough";

/// What a mount says of itself.
pub(super) fn about(options: &MountOptions, disk: Option<Arc<DiskCache>>, passthrough: PassthroughState) -> About {
    let (repository, store) = (options.repository.clone(), options.store.clone());
    passthrough.lock().unwrap_or_else(PoisonError::into_inner).push_str("off");
    About::new(move || {
        let mut facts = vec![(PASSTHROUGH, passthrough.lock().unwrap_or_else(PoisonError::into_inner).clone())];
        facts.extend(repository.iter().map(|repository| (REPOSITORY, repository.clone())));
        facts.extend(store.iter().map(|store| {
            let away = store.away_for().map_or("answers".to_owned(), |away| format!("away for {} s", away.as_secs()));
            (STORE, away)
        }));
        if let Some(disk) = &disk {
            facts.push((CACHE, disk.directory().display().to_string()));
            facts.push((CACHE_USED, disk.used_bytes().to_string()));
            facts.push((CACHE_LIMIT, disk.limit_bytes().to_string()));
        }
        facts
    })
}

/// A mount of ours, of whichever process.
#[derive(Debug)]
pub struct Served {
    /// Where.
    pub mountpoint: PathBuf,
    /// Absent when it does not answer.
    facts: Option<BTreeMap<String, String>>,
}

impl Served {
    /// Somebody serves it.
    pub fn answers(&self) -> bool {
        self.facts.is_some()
    }

    fn fact(&self, name: &str) -> Option<&str> {
        self.facts.as_ref()?.get(name).map(String::as_str)
    }

    /// The UUID of what it shows.
    pub fn repository(&self) -> Option<&str> {
        self.fact(REPOSITORY)
    }

    /// The directory of its cache.
    pub fn cache_directory(&self) -> Option<&Path> {
        self.fact(CACHE).map(Path::new)
    }

    /// The directory whose links lead to it, and how they are.
    fn links(&self) -> Option<(&str, &str)> {
        shown(|name| self.fact(name))
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let place = self.mountpoint.display();
        if !self.answers() {
            return format!("{place}  does not answer");
        }
        let (store, passthrough) = (self.fact(STORE).unwrap_or("unknown"), self.fact(PASSTHROUGH).unwrap_or("unknown"));
        if let (Some(source), Some((directory, state))) = (self.fact(CLONE), self.links()) {
            return format!("{place}  links of {directory} to {source}: {state}; store {store}");
        }
        if let Some(source) = self.fact(CLONE) {
            let cache = self.fact(CLONE_CACHE).unwrap_or("unknown");
            return format!("{place}  clone of {source}; store {store}; cache: {cache}; passthrough {passthrough}");
        }
        let bytes = |name| self.fact(name).and_then(|text| text.parse().ok()).map_or("?".to_owned(), size);
        let cache = match self.cache_directory() {
            Some(directory) => format!("{} of {} cached in {}", bytes(CACHE_USED), bytes(CACHE_LIMIT), directory.display()),
            None => "no cache on a disk".to_owned(),
        };
        format!("{place}  store {store}; {cache}; passthrough {passthrough}")
    }

    /// The same for scripts.
    pub fn value(&self) -> serde_json::Value {
        let number = |name| self.fact(name).and_then(|text| text.parse::<u64>().ok());
        serde_json::json!({
            "mountpoint": self.mountpoint,
            "answers": self.answers(),
            "clone": self.fact(CLONE),
            "links_of": self.links().map(|(directory, _)| directory),
            "links": self.links().map(|(_, state)| state),
            "repository": self.repository(),
            "store": self.fact(STORE),
            "clone_cache": self.fact(CLONE_CACHE),
            "cache_directory": self.cache_directory(),
            "cache_used_bytes": number(CACHE_USED),
            "cache_limit_bytes": number(CACHE_LIMIT),
            "passthrough": self.fact(PASSTHROUGH),
        })
    }
}

/// All mounts of ours on this host; those that hang cost two seconds each.
pub fn mounts() -> Vec<Served> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let ours = mounts::parse(&table).into_iter().filter(mounts::MountEntry::is_ours);
    ours.map(|entry| {
        let path = entry.mountpoint.clone();
        let facts = within(PATIENCE, move || read_facts(&path)).and_then(Result::ok);
        Served { mountpoint: entry.mountpoint, facts }
    })
    .collect()
}

fn read_facts(path: &Path) -> rustix::io::Result<BTreeMap<String, String>> {
    // Some paths of some hundred bytes.
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::listxattr(path, &mut buffer[..])?;
    let names = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut facts = BTreeMap::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let length = rustix::fs::getxattr(path, name, &mut buffer[..])?;
        facts.insert(name.to_owned(), String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    Ok(facts)
}
