//! What the integration tests share.

pub mod chains;
pub mod command;
pub mod effort;
pub mod mount;
pub mod redis;
pub mod s3;
pub mod store;
