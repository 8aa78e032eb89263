//! A file of a clone that still has pages of the base.
//!
//! **What is durable when.** The stored map says which pages the upper layer has. It is written only after those pages, and
//! a shorter limit only after the file was shortened on the disk: a map that lost its newest changes describes an older state
//! of the same file, a limit behind the file's end is the file's end, and no page is ever said to be there before it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Result;
use super::base::BaseFile;
use super::pages::{Layer, PAGE_BYTES, PageMap, Stretch};
use super::storage::Storage;

/// Opens the file that the map is stored in, and makes it if there is none, durably.
pub(super) type OpenMap = Box<dyn Fn() -> Result<Arc<dyn Storage>> + Send + Sync>;

/// See the head of this file.
pub(super) struct LayeredFile {
    upper: Arc<dyn Storage>,
    base: Arc<dyn BaseFile>,
    open_map: OpenMap,
    pages: Mutex<PageMap>,
    /// Held by who changes content, over the fetch of what it completes.
    writing: tokio::sync::Mutex<()>,
    /// Held by who saves the map; its file, once there is one.
    saving: Mutex<Option<Arc<dyn Storage>>>,
    /// Data could not be made durable, and the system tells that only once: nothing written here is durable any more.
    failed: Mutex<Option<Errno>>,
}

impl std::fmt::Debug for LayeredFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayeredFile").field("base", &self.base).finish_non_exhaustive()
    }
}

impl LayeredFile {
    /// `upper` as it is on the disk; `map` as it was stored, where it was; the base has `base_bytes` bytes.
    pub(super) fn open(
        upper: Arc<dyn Storage>,
        base: Arc<dyn BaseFile>,
        base_bytes: u64,
        map: Option<Arc<dyn Storage>>,
        open_map: OpenMap,
    ) -> Result<Self> {
        let mut pages = match &map {
            None => PageMap::new(base_bytes).ok_or(Errno::FBIG)?,
            Some(map) => {
                let mut stored = vec![0; usize::try_from(map.length()?).map_err(|_| Errno::FBIG)?];
                map.read(&mut stored, 0)?;
                // Made, and the host went down before the first save: then there is nothing to be known of.
                if stored.iter().all(|byte| *byte == 0) {
                    PageMap::new(base_bytes).ok_or(Errno::FBIG)?
                } else {
                    PageMap::parse(&stored, base_bytes).ok_or_else(|| {
                        tracing::error!(base = ?base, "the map of a clone's file is damaged");
                        Errno::IO
                    })?
                }
            }
        };
        pages.cut(upper.length()?);
        let (pages, saving) = (Mutex::new(pages), Mutex::new(map));
        let file =
            Self { upper, base, open_map, pages, writing: tokio::sync::Mutex::default(), saving, failed: Mutex::default() };
        file.keep_limit()?;
        Ok(file)
    }

    fn pages(&self) -> MutexGuard<'_, PageMap> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length in bytes.
    pub(super) fn length(&self) -> Result<u64> {
        self.upper.length()
    }

    /// The base is not needed any more, and the map that says so is stored.
    pub(super) fn is_local(&self) -> bool {
        let pages = self.pages();
        !pages.is_unsaved() && pages.is_whole()
    }

    /// It has changes that only memory knows of.
    pub(super) fn is_unsaved(&self) -> bool {
        self.pages().is_unsaved()
    }

    /// Where a read ends, and whose bytes it gives.
    fn stretches(&self, offset: u64, length: u64) -> Result<(u64, Vec<Stretch>)> {
        let end = offset.saturating_add(length).min(self.upper.length()?);
        Ok((end, self.pages().stretches(offset, end)))
    }

    /// Bytes from `offset`: `length` of them, or up to the end of the file.
    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        let (end, stretches) = self.stretches(offset, length)?;
        if let [(_, Layer::Base)] = stretches[..] {
            return self.base.read(offset, end - offset).await;
        }
        let mut found = BytesMut::with_capacity(end.saturating_sub(offset) as usize);
        for (range, layer) in stretches {
            let (from, bytes) = (found.len(), (range.end - range.start) as usize);
            match layer {
                Layer::Base => found.extend_from_slice(&self.base.read(range.start, bytes as u64).await?),
                Layer::Upper => {
                    found.resize(from + bytes, 0);
                    self.upper.read(&mut found[from..], range.start)?;
                }
            }
        }
        Ok(found.freeze())
    }

    /// The same when nothing has to be waited for.
    pub(super) fn read_ready(&self, offset: u64, length: u64) -> Option<Result<Bytes>> {
        let (end, stretches) = match self.stretches(offset, length) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        match stretches[..] {
            [] => Some(Ok(Bytes::new())),
            [(_, Layer::Base)] => self.base.read_cached(offset, end - offset).map(Ok),
            [(_, Layer::Upper)] => {
                let mut bytes = vec![0; (end - offset) as usize];
                Some(self.upper.read(&mut bytes, offset).map(|()| bytes.into()))
            }
            _ => None,
        }
    }

    /// Copies from the base what shares a page with `offset..end` and is not covered by it.
    async fn complete(&self, offset: u64, end: u64) -> Result<()> {
        let wanted = self.pages().to_complete(offset, end);
        for range in wanted {
            let bytes = self.base.read(range.start, range.end - range.start).await?;
            self.upper.write_all(&bytes, range.start)?;
            self.pages().take(range.start, range.end);
        }
        Ok(())
    }

    /// Has the limit stored, before the file may get longer: the base must not show again behind a cut.
    fn keep_limit(&self) -> Result<()> {
        let is_unsaved = self.pages().is_limit_unsaved();
        if is_unsaved { self.save(true) } else { Ok(()) }
    }

    /// Writes `bytes` at `offset`; how many of them, where the disk has no room for all.
    pub(super) async fn write(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        let _writing = self.writing.lock().await;
        self.keep_limit()?;
        self.complete(offset, offset + bytes.len() as u64).await?;
        self.write_whole(bytes, offset)
    }

    /// The same when nothing has to be waited for.
    pub(super) fn write_ready(&self, bytes: &[u8], offset: u64) -> Option<Result<usize>> {
        let _writing = self.writing.try_lock().ok()?;
        let end = offset + bytes.len() as u64;
        let is_ready = {
            let pages = self.pages();
            !pages.is_limit_unsaved() && pages.to_complete(offset, end).is_empty()
        };
        is_ready.then(|| self.write_whole(bytes, offset))
    }

    /// Writes what shares no page with the base, or only pages that were completed.
    fn write_whole(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        let written = self.upper.write(bytes, offset)?;
        let mut pages = self.pages();
        let end = offset + written as u64;
        if written == bytes.len() || !pages.is_below_limit(offset) {
            pages.take(offset, end);
            return Ok(written);
        }
        // Of the page that the write broke off in, the rest is still the base's.
        let whole = end / PAGE_BYTES * PAGE_BYTES;
        if whole <= offset {
            return Err(Errno::NOSPC);
        }
        pages.take(offset, whole);
        Ok((whole - offset) as usize)
    }

    /// Cuts or extends; what an extension adds is zeros.
    pub(super) async fn set_length(&self, length: u64) -> Result<()> {
        let _writing = self.writing.lock().await;
        self.keep_limit()?;
        if self.pages().would_cut(length) {
            // What may need room comes first: a cut that is refused must not have happened.
            self.map(&mut self.saving())?;
        }
        self.upper.set_length(length)?;
        self.pages().cut(length);
        self.keep_limit()
    }

    /// As `fallocate(2)`, for reserving, holes and zeros.
    pub(super) async fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        let _writing = self.writing.lock().await;
        self.keep_limit()?;
        let clears = how.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        let end = offset.saturating_add(length);
        if clears {
            self.complete(offset, end).await?;
        }
        self.upper.allocate(how, offset, length)?;
        if clears {
            self.pages().take(offset, end);
        }
        Ok(())
    }

    /// Returns when all that was written before is durable.
    pub(super) fn sync(&self, data_only: bool) -> Result<()> {
        self.save(data_only)
    }

    /// The file of the map, made with a header where there is none: bits without one would be damage.
    fn map<'a>(&self, map: &'a mut Option<Arc<dyn Storage>>) -> Result<&'a Arc<dyn Storage>> {
        if map.is_none() {
            let (file, header) = ((self.open_map)()?, self.pages().header());
            file.write_all(&header, 0)?;
            file.sync(true)?;
            *map = Some(file);
        }
        map.as_ref().ok_or(Errno::IO)
    }

    fn saving(&self) -> MutexGuard<'_, Option<Arc<dyn Storage>>> {
        self.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data, and then what the map says of it.
    fn save(&self, data_only: bool) -> Result<()> {
        let mut map = self.saving();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = *failed {
            return Err(error);
        }
        // What comes while the data is made durable is for the next time.
        let unsaved = {
            let mut pages = self.pages();
            pages.is_unsaved().then(|| pages.unsaved())
        };
        let synced = self.upper.sync(data_only).inspect_err(|error| *failed = Some(*error));
        let saved = synced.and_then(|()| {
            let Some(unsaved) = &unsaved else { return Ok(()) };
            let file = self.map(&mut map)?;
            for (offset, bytes) in &unsaved.writes {
                file.write_all(bytes, *offset)?;
            }
            file.sync(true)
        });
        if let Some(unsaved) = unsaved {
            match saved {
                Ok(()) => self.pages().saved(),
                Err(_) => self.pages().restore(unsaved),
            }
        }
        saved
    }
}

#[cfg(test)]
#[path = "layered_tests.rs"]
mod tests;
