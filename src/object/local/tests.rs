//! What only a directory store promises.

use super::super::conformance;
use super::*;

#[tokio::test]
async fn a_directory_keeps_every_promise() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let capabilities = super::super::Capabilities { checks_uploads: false, ..conformance::EVERYTHING };
    let store = LocalStore::new(folder.path());
    conformance::all(&store, &capabilities).await;
    conformance::one_of_racing_creates_wins(&store).await;
}
