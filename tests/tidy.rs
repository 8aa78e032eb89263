//! The architecture, held as a test.
