//! Where the pages of a tree end: a pure decision (FORMAT.md section 7).
//!
//! Ends are chosen by the paths themselves, so that one more file moves one boundary, not all that follow, and the
//! pages of unchanged parts are the same bytes as before.

use crate::model::manifest::TreeEntry;

const ENTRIES_MIN: usize = 128;
const ENTRIES_MAX: usize = 2048;
/// One boundary in this many entries.
const BOUNDARY: u16 = 512;
const PAGE_BYTES: usize = 1024 * 1024;
/// What an entry takes in JSON besides its path, its target and the slices of large files.
const ENTRY_BYTES: usize = 600;
const SLICE_BYTES: usize = 320;

/// Splits sorted entries into pages, as lengths that add up to `entries.len()`.
pub(super) fn page_lengths(entries: &[TreeEntry]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for entry in entries {
        let weight = weight(entry);
        let ends_before =
            count >= ENTRIES_MAX || (count > 0 && bytes + weight > PAGE_BYTES) || (count >= ENTRIES_MIN && is_boundary(entry));
        if ends_before {
            lengths.push(count);
            (count, bytes) = (0, 0);
        }
        count += 1;
        bytes += weight;
    }
    if count > 0 {
        lengths.push(count);
    }
    lengths
}

fn is_boundary(entry: &TreeEntry) -> bool {
    let hash = blake3::hash(entry.path.as_bytes());
    u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]).is_multiple_of(BOUNDARY)
}

fn weight(entry: &TreeEntry) -> usize {
    // Twice: bytes that are not UTF-8 or need escapes take more room in JSON.
    let slices = entry.content.as_ref().map_or(0, |content| content.tables.len().saturating_sub(1));
    ENTRY_BYTES + 2 * entry.path.as_bytes().len() + 2 * entry.target.as_ref().map_or(0, Vec::len) + SLICE_BYTES * slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{FileKind, Ownership};
    use crate::model::names::TreePath;

    fn entries(count: usize) -> Vec<TreeEntry> {
        (0..count)
            .map(|number| TreeEntry {
                path: TreePath::new(format!("file-{number:08}")).expect("legal"),
                kind: FileKind::Directory,
                mode: 0o755,
                owner: Ownership::default(),
                modified_ns: 0,
                content: None,
                target: None,
            })
            .collect()
    }

    fn pages(entries: &[TreeEntry]) -> Vec<Vec<TreePath>> {
        let mut rest = entries;
        page_lengths(entries)
            .into_iter()
            .map(|length| {
                let (page, tail) = rest.split_at(length);
                rest = tail;
                page.iter().map(|entry| entry.path.clone()).collect()
            })
            .collect()
    }

    #[test]
    fn all_entries_are_in_a_page_and_no_page_is_large() {
        let entries = entries(20_000);
        let pages = pages(&entries);
        assert_eq!(pages.iter().map(Vec::len).sum::<usize>(), entries.len());
        assert!(pages.iter().all(|page| (1..=ENTRIES_MAX).contains(&page.len())));
        assert!(pages.len() > 10);
    }

    #[test]
    fn one_more_file_changes_few_pages() {
        let mut entries = entries(20_000);
        let before = pages(&entries);
        entries.remove(5_000);
        let after = pages(&entries);
        let changed = after.iter().filter(|page| !before.contains(page)).count();
        assert!(changed <= 3, "{changed} of {}", after.len());
    }

    #[test]
    fn nothing_makes_no_page() {
        assert_eq!(page_lengths(&[]), Vec::<usize>::new());
    }
}
