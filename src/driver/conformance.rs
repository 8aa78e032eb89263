//! The promises of [`super::StoreDriver`] as tests that every driver passes.
