//! The integration tests: one binary, so that linking happens once.
mod support {
    pub mod mount;
}
mod mount;
