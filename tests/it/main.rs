//! The integration tests: real servers, the real kernel, the independent reader.

mod golden;
mod reader;
