//! The integration tests: real servers, the real kernel.

mod support {
    pub mod s3;
}
mod object_store;
