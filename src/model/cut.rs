//! The coordinated cut as a pure state machine.
