//! The promises of [`super::ObjectStore`] as tests that every implementation and wrapper passes.
