//! The integration tests: real servers, the real kernel, the independent reader. One binary, so that linking happens once.

mod agents;
mod cli;
mod consistency;
mod disk_cache;
mod end_to_end;
mod foreign_host;
mod from_replica;
mod golden;
mod kill;
mod mount;
mod object_store;
mod random_reads;
mod reader;
mod reader_s3;
mod readme;
mod redis_driver;
mod restore;
mod restore_kill;
mod restore_owner;
mod ring;
mod semantics;
mod sentinel;
mod spool;
mod support;
mod user_mount;
mod warm;
