//! The integration tests: real servers, the real kernel.

mod redis_driver;
mod support;
