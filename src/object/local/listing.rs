//! Listings of a directory store, in byte order of whole keys.
//!
//! A folder sorts as its name with the slash: `a.b` comes before `a/b` though `a` comes before `a.b`. Folders that lie wholly
//! before the start or beside the prefix are not opened; only what is returned is asked for size and time.

use std::io;
use std::ops::ControlFlow;

use super::super::keys::{LONGEST_KEY_BYTES, TEMPORARY_FOLDER};
use super::super::{ObjectEntry, ObjectPage};
use super::disk::{Disk, EntryKind};
use super::entry_of;

/// One page in the making.
pub(super) struct Listing<'a> {
    disk: &'a dyn Disk,
    prefix: &'a str,
    start_after: Option<&'a str>,
    limit: usize,
    page: ObjectPage,
}

impl<'a> Listing<'a> {
    pub(super) fn new(disk: &'a dyn Disk, prefix: &'a str, start_after: Option<&'a str>, limit: usize) -> Self {
        Self { disk, prefix, start_after, limit, page: ObjectPage::default() }
    }

    pub(super) fn page(mut self) -> io::Result<ObjectPage> {
        let folder = self.prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        match self.collect(folder) {
            Ok(_) => Ok(self.page),
            Err(error) if is_absent(&error) && self.disk.has_root() => Ok(self.page),
            Err(error) => Err(error),
        }
    }

    fn collect(&mut self, folder: &str) -> io::Result<ControlFlow<()>> {
        let base = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        // Whole keys of objects, and of folders with their slash: their byte order is the listing's.
        let mut entries: Vec<String> = Vec::new();
        self.disk.visit(folder, &mut |name, kind| {
            let path = match kind {
                EntryKind::File => format!("{base}{name}"),
                EntryKind::Folder if base.is_empty() && name == TEMPORARY_FOLDER => return ControlFlow::Continue(()),
                EntryKind::Folder => format!("{base}{name}/"),
                EntryKind::Other => return ControlFlow::Continue(()),
            };
            if self.may_hold(&path) {
                entries.push(path);
            }
            ControlFlow::Continue(())
        })?;
        entries.sort_unstable();
        for path in entries {
            let flow = match path.strip_suffix('/') {
                Some(folder) => match self.collect(folder) {
                    Ok(flow) => flow,
                    // Removed, or replaced by a link, since its parent was read.
                    Err(error) if is_absent(&error) => ControlFlow::Continue(()),
                    Err(error) => return Err(error),
                },
                None => self.add(&path)?,
            };
            if flow.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether the object, or any object below the folder, can be part of the page.
    fn may_hold(&self, path: &str) -> bool {
        let is_folder = path.ends_with('/');
        let fits_prefix = path.starts_with(self.prefix) || is_folder && self.prefix.starts_with(path);
        let comes_after = self.start_after.is_none_or(|after| path > after || is_folder && after.starts_with(path));
        fits_prefix && comes_after && path.len() <= LONGEST_KEY_BYTES
    }

    fn add(&mut self, key: &str) -> io::Result<ControlFlow<()>> {
        if self.page.objects.len() == self.limit {
            self.page.has_more = true;
            return Ok(ControlFlow::Break(()));
        }
        match self.disk.status(key) {
            Ok(status) if status.kind == EntryKind::File => {
                let entry: ObjectEntry = entry_of(key, &status);
                self.page.objects.push(entry);
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The folders of `prefix` that hold an object at any depth.
pub(super) fn folders(disk: &dyn Disk, prefix: &str) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let visited = disk.visit(prefix.trim_end_matches('/'), &mut |name, kind| {
        if kind == EntryKind::Folder && !(prefix.is_empty() && name == TEMPORARY_FOLDER) {
            names.push(name.to_owned());
        }
        ControlFlow::Continue(())
    });
    match visited {
        Ok(()) => {}
        Err(error) if is_absent(&error) && disk.has_root() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    names.sort_unstable();
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        if holds_object(disk, &format!("{prefix}{name}"))? {
            found.push(name);
        }
    }
    Ok(found)
}

fn holds_object(disk: &dyn Disk, folder: &str) -> io::Result<bool> {
    let mut has_file = false;
    let mut below: Vec<String> = Vec::new();
    let visited = disk.visit(folder, &mut |name, kind| {
        match kind {
            EntryKind::File => {
                has_file = true;
                return ControlFlow::Break(());
            }
            EntryKind::Folder => below.push(format!("{folder}/{name}")),
            EntryKind::Other => {}
        }
        ControlFlow::Continue(())
    });
    match visited {
        Ok(()) => {}
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    if has_file {
        return Ok(true);
    }
    for folder in below {
        if holds_object(disk, &folder)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Not there, or no folder (any more): nothing to list.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) || error.kind() == io::ErrorKind::NotFound
}
