//! What the integration tests share.

pub mod agent;
pub mod chains;
pub mod child;
pub mod command;
pub mod disk;
pub mod dynomite;
pub mod effort;
pub mod mapping;
pub mod mount;
pub mod readers;
pub mod redis;
pub mod s3;
pub mod store;
