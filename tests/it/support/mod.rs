//! What the integration tests share.

pub mod mount;
pub mod redis;
pub mod s3;
