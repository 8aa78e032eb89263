//! Append-only files: where commands end, and the manifest that names the files.
