//! A driver of functions, for tests of those who use drivers.
