//! The integration tests: real servers, the real kernel. One binary, so that linking happens once.

mod cli;
mod mount;
mod object_store;
mod redis_driver;
mod support;
