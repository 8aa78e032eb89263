//! The kernel's side of the mount.
