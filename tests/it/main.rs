//! The integration tests: real servers, the real kernel.

mod object_store;
mod redis_driver;
mod restore;
mod support;
