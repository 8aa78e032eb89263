//! The integration tests: real servers, the real kernel, the independent reader. One binary, so that linking happens once.

mod end_to_end;
mod golden;
mod mount;
mod object_store;
mod reader;
mod redis_driver;
mod restore;
mod support;
