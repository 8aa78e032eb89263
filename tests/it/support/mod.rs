//! What the integration tests share.

pub mod redis;
pub mod s3;
