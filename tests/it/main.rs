//! The integration tests: real servers, the real kernel. One binary, so that linking happens once.

mod consistency;
mod foreign_host;
mod kill;
mod mount;
mod object_store;
mod redis_driver;
mod support;
