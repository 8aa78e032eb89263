//! Listings of a bucket, with a store's answers doubted: keys outside what was asked, out of order or repeated are errors.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use super::super::keys::{TEMPORARY_FOLDER, check_key, invalid};
use super::super::{ObjectEntry, ObjectError, ObjectPage, ObjectVersion};
use super::errors::Failure;
use super::{S3Store, boxed};

/// More than this no store delivers in one answer.
const PAGE_KEYS: usize = 1000;

impl S3Store {
    pub(super) async fn page(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        let full_prefix = self.full_key(prefix);
        let mut after = start_after.map(|after| self.full_key(after));
        let mut page = ObjectPage::default();
        loop {
            let max_keys = i32::try_from(limit.min(PAGE_KEYS)).unwrap_or(1000);
            let answer = self
                .tried(prefix, || async {
                    let request = self.client().await.list_objects_v2().bucket(&self.options.bucket);
                    let request = request.prefix(&full_prefix).max_keys(max_keys).set_start_after(after.clone());
                    boxed(request.send()).await.map_err(|error| self.error(Failure::from(error), prefix))
                })
                .await?;
            for object in answer.contents() {
                let key = object.key().unwrap_or_default();
                if !key.starts_with(&full_prefix) {
                    return Err(invalid(prefix, format!("the store lists {key:?}, which was not asked for")));
                }
                if after.as_deref().is_some_and(|after| key <= after) {
                    return Err(invalid(prefix, "the store's listing is not in order, or ignores where to start"));
                }
                after = Some(key.to_owned());
                // Consoles leave `folder/` objects behind: they are no objects of ours.
                let Some(key) = key.strip_prefix(&self.base).filter(|key| check_key(key).is_ok()) else { continue };
                page.objects.push(ObjectEntry {
                    key: key.to_owned(),
                    size_bytes: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                    modified_us: object.last_modified().map_or(0, super::microseconds),
                    version: object.e_tag().map(|tag| ObjectVersion(tag.to_owned())),
                });
            }
            page.has_more = answer.is_truncated() == Some(true);
            if page.has_more && answer.contents().is_empty() {
                return Err(invalid(prefix, "the store's listing does not move on"));
            }
            // A page of nothing but foreign objects would look like the end.
            if !page.has_more || !page.objects.is_empty() {
                return Ok(page);
            }
        }
    }

    pub(super) async fn folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        let full_prefix = self.full_key(prefix);
        let mut folders: Vec<String> = Vec::new();
        let mut newest = String::new();
        let mut token: Option<String> = None;
        loop {
            let answer: ListObjectsV2Output = self
                .tried(prefix, || async {
                    let request = self.client().await.list_objects_v2().bucket(&self.options.bucket);
                    let request = request.prefix(&full_prefix).delimiter("/").set_continuation_token(token.clone());
                    boxed(request.send()).await.map_err(|error| self.error(Failure::from(error), prefix))
                })
                .await?;
            // Objects and folders come in one order; the greatest of both must grow from page to page.
            let mut page_newest = newest.clone();
            for object in answer.contents() {
                page_newest = page_newest.max(object.key().unwrap_or_default().to_owned());
            }
            for folder in answer.common_prefixes().iter().filter_map(|folder| folder.prefix()) {
                page_newest = page_newest.max(folder.to_owned());
                let Some(name) = folder.strip_prefix(&full_prefix).and_then(|name| name.strip_suffix('/')) else {
                    return Err(invalid(prefix, format!("the store lists {folder:?}, which was not asked for")));
                };
                let is_own = prefix.is_empty() && name == TEMPORARY_FOLDER;
                if !is_own && !name.contains('/') && check_key(name).is_ok() {
                    folders.push(name.to_owned());
                }
            }
            if answer.is_truncated() != Some(true) {
                break;
            }
            if page_newest <= newest || answer.next_continuation_token().is_none() {
                return Err(invalid(prefix, "the store's listing does not move on"));
            }
            newest = page_newest;
            token = answer.next_continuation_token().map(str::to_owned);
        }
        folders.sort_unstable();
        folders.dedup();
        Ok(folders)
    }
}
