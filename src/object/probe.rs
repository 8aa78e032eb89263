//! Tries out what an object store really does: some say yes to everything.
//!
//! **Invariant**: what the probe put it takes away again, also when it finds something wrong.

use bytes::Bytes;
use uuid::Uuid;

use super::{Capabilities, ObjectError, ObjectStore, PutMode, list_all};

/// Puts a few small objects below `probe/` and sees what the store refuses and what it serves.
///
/// An error is one of the store's: not reachable, no bucket, no permission to put, get, list or delete. Whatever is merely not
/// kept is a `false` in the answer.
pub async fn probe(store: &dyn ObjectStore) -> Result<Capabilities, ObjectError> {
    // One name, not a folder: a directory store never removes folders.
    let prefix = format!("probe/{}", Uuid::new_v4());
    let found = try_out(store, &prefix).await;
    let cleaned = clean_up(store, &prefix).await;
    let capabilities = found?;
    cleaned?;
    Ok(capabilities)
}

async fn try_out(store: &dyn ObjectStore, prefix: &str) -> Result<Capabilities, ObjectError> {
    Ok(Capabilities {
        refuses_second_create: refuses_second_create(store, &format!("{prefix}-create")).await?,
        refuses_stale_replace: refuses_stale_replace(store, &format!("{prefix}-replace")).await?,
        checks_uploads: checks_uploads(store, &format!("{prefix}-checksum")).await?,
        serves_ranges: serves_ranges(store, &format!("{prefix}-range")).await?,
    })
}

async fn refuses_second_create(store: &dyn ObjectStore, key: &str) -> Result<bool, ObjectError> {
    let first = body(1);
    match store.put(key, first.clone(), PutMode::Create).await {
        Ok(_) => {}
        // It cannot do conditional puts at all; that it can do others shows below.
        Err(ObjectError::Invalid { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    let is_refused = is_refused(store.put(key, body(2), PutMode::Create).await.map(|_| ()))?;
    // One that refuses and overwrites all the same has kept nothing.
    Ok(is_refused && store.get(key, None).await? == first)
}

async fn refuses_stale_replace(store: &dyn ObjectStore, key: &str) -> Result<bool, ObjectError> {
    let stale = store.put(key, body(1), PutMode::Replace).await?.version;
    let fresh = store.put(key, body(2), PutMode::Replace).await?.version;
    if stale == fresh || !is_refused(store.put(key, body(3), PutMode::IfMatch(stale)).await.map(|_| ()))? {
        return Ok(false);
    }
    // One that refuses everything is of no use either.
    let is_replaced = !is_refused(store.put(key, body(4), PutMode::IfMatch(fresh)).await.map(|_| ()))?;
    Ok(is_replaced && store.get(key, None).await? == body(4))
}

async fn checks_uploads(store: &dyn ObjectStore, key: &str) -> Result<bool, ObjectError> {
    match store.put_with_wrong_checksum(key, body(1)).await {
        Ok(()) => Ok(false),
        // Some servers say no and leave the object there: whoever puts is told all the same, and refers to nothing.
        Err(ObjectError::Invalid { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

async fn serves_ranges(store: &dyn ObjectStore, key: &str) -> Result<bool, ObjectError> {
    let whole = body(5);
    store.put(key, whole.clone(), PutMode::Replace).await?;
    let end = whole.len() as u64;
    // The second is as long as what comes before it: a store that delivers the beginning instead is found out.
    for range in [0..1, end / 2..end, 100..200, end - 1..end] {
        match store.get(key, Some(range.clone())).await {
            Ok(found) if found == whole[range.start as usize..range.end as usize] => {}
            Ok(_) | Err(ObjectError::Invalid { .. } | ObjectError::ShortRange { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    match store.get(key, Some(end - 1..end + 1)).await {
        Err(ObjectError::ShortRange { .. }) => Ok(true),
        Ok(_) | Err(ObjectError::Invalid { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refused because of its condition, or because the store knows no conditions of this kind.
fn is_refused(answer: Result<(), ObjectError>) -> Result<bool, ObjectError> {
    match answer {
        Ok(()) => Ok(false),
        Err(ObjectError::Conflict { .. } | ObjectError::Invalid { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Different at every place and for every `seed`.
fn body(seed: u8) -> Bytes {
    (0..1024u32).map(|index| (index as u8).wrapping_mul(7) ^ ((index >> 8) as u8).wrapping_mul(31) ^ seed).collect()
}

async fn clean_up(store: &dyn ObjectStore, prefix: &str) -> Result<(), ObjectError> {
    for name in ["create", "replace", "checksum", "range"] {
        store.delete(&format!("{prefix}-{name}")).await?;
    }
    // The listing is a right of its own, and a store that lists what was deleted is not to be trusted with a snapshot.
    match list_all(store, prefix).await?.first() {
        None => Ok(()),
        Some(left) => Err(ObjectError::Invalid {
            key: left.key.clone(),
            reason: "the store still lists an object that it deleted".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::conformance::EVERYTHING;
    use super::super::faulty::{Fault, FaultyStore, Operation, Rule};
    use super::super::memory::MemoryStore;
    use super::*;

    fn faulty() -> FaultyStore {
        FaultyStore::new(Arc::new(MemoryStore::new()))
    }

    #[tokio::test]
    async fn a_store_that_can_do_all_is_seen_to_and_left_empty() {
        let store = MemoryStore::new();
        assert_eq!(probe(&store).await.expect("probe"), EVERYTHING);
        assert_eq!(store.total_bytes(), 0);
    }

    #[tokio::test]
    async fn a_store_that_says_yes_to_a_second_create_is_reported() {
        let store = faulty();
        store.add(Rule::nth(Operation::Put, 2, Fault::Dropped).on_key("-create"));
        let found = probe(&store).await.expect("probe");
        assert_eq!(found, Capabilities { refuses_second_create: false, ..EVERYTHING });
    }

    #[tokio::test]
    async fn a_store_that_serves_wrong_ranges_is_reported() {
        let store = faulty();
        store.add(Rule::nth(Operation::Get, 2, Fault::FlipBit(0)).on_key("-range"));
        assert!(!probe(&store).await.expect("probe").serves_ranges);
    }

    #[tokio::test]
    async fn a_probe_that_fails_cleans_up() {
        let inner = MemoryStore::new();
        let store = FaultyStore::new(Arc::new(inner.clone()));
        let error = ObjectError::Denied { key: "probe".to_owned(), reason: "AccessDenied".to_owned() };
        store.add(Rule::nth(Operation::Get, 1, Fault::Fail(error)).on_key("-range"));
        probe(&store).await.expect_err("denied");
        assert_eq!(inner.total_bytes(), 0);
    }
}
