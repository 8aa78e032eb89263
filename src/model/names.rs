//! Names of clusters, nodes and files: what is allowed is decided here, once.
//!
//! Cluster and node names become object keys, directory names and terminal text, so their character set is narrow.
//! File names may hold any byte that a Unix directory allows.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest cluster or node name, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest single component of a path, bytes: what Linux file systems allow.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Longest path within a node, bytes: `PATH_MAX` without its end marker.
pub const PATH_BYTES_MAX: usize = 4095;

/// A name was not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not allowed as a {what}: {reason}")]
pub struct BadName {
    /// The name, escaped for display.
    pub name: String,
    /// What it was to name.
    pub what: &'static str,
    /// Why not.
    pub reason: &'static str,
}

macro_rules! narrow_name {
    ($name:ident, $what:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Letters, digits, `.`, `_` and `-`, a letter or digit first, at most [`NAME_BYTES_MAX`] bytes.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let name = name.into();
                match narrow_name_fault(&name) {
                    None => Ok(Self(name)),
                    Some(reason) => Err(BadName { name, what: $what, reason }),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

narrow_name!(ClusterName, "cluster name", "Name of a cluster.");
narrow_name!(NodeName, "node name", "Name of a node within its cluster.");

fn narrow_name_fault(name: &str) -> Option<&'static str> {
    let first = name.bytes().next();
    if first.is_none() {
        Some("it is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Some("it is longer than 128 bytes")
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        Some("only letters, digits, '.', '_' and '-' are")
    } else if !first.is_some_and(|byte| byte.is_ascii_alphanumeric()) {
        Some("it must begin with a letter or a digit")
    } else {
        None
    }
}

/// A path inside a node's tree: components joined by `/`, none of them empty, `.` or `..`; the root is the empty path.
///
/// Order: a directory's own entries stand together (compared by parent first, then by name), which is the order of
/// the pages of the stored tree.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The node's own directory.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks and takes a relative path.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, BadName> {
        let path = path.into();
        if path.is_empty() {
            return Ok(Self(path));
        }
        let fault = if path.len() > PATH_BYTES_MAX {
            Some("it is longer than 4095 bytes")
        } else {
            path.split(|byte| *byte == b'/').find_map(component_fault)
        };
        match fault {
            None => Ok(Self(path)),
            Some(reason) => Err(BadName { name: escape(&path), what: "path", reason }),
        }
    }

    /// This path with one more component.
    pub fn join(&self, component: &[u8]) -> Result<Self, BadName> {
        if let Some(reason) = component_fault(component) {
            return Err(BadName { name: escape(component), what: "file name", reason });
        }
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        Self::new(path)
    }

    /// Raw bytes, components joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the node's own directory.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        Some(Self(self.parent_bytes().to_vec()))
    }

    /// The last component; empty for the root.
    pub fn file_name(&self) -> &[u8] {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    /// As a relative path of the host.
    pub fn to_path_buf(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0.clone()))
    }

    /// As the host's string type.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes of [`TreePath::parent`] without a copy; empty for entries of the root.
    pub fn parent_bytes(&self) -> &[u8] {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => &self.0[..slash],
            None => &[],
        }
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The root itself has no name and comes first of all.
        (self.parent_bytes(), self.file_name()).cmp(&(other.parent_bytes(), other.file_name()))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", escape(&self.0))
    }
}

fn component_fault(component: &[u8]) -> Option<&'static str> {
    match component {
        b"" => Some("it has an empty component"),
        b"." | b".." => Some("it has '.' or '..' as a component"),
        _ if component.len() > COMPONENT_BYTES_MAX => Some("a component is longer than 255 bytes"),
        _ if component.contains(&0) => Some("it has a zero byte"),
        _ if component.contains(&b'/') => Some("it has a '/' inside a name"),
        _ => None,
    }
}

/// Bytes as text that is safe on a terminal: control characters and invalid UTF-8 as `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Bytes inside JSON: a string when they are UTF-8, else `{"base64": "…"}`.
pub mod json_bytes {
    use super::{Deserialize, Deserializer, Engine, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Base64 { base64: String },
    }

    /// For `#[serde(with)]`.
    pub fn serialize<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Form::Base64 { base64: base64::engine::general_purpose::STANDARD.encode(bytes) }.serialize(serializer),
        }
    }

    /// For `#[serde(with)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(text.into_bytes()),
            Form::Base64 { base64 } => base64::engine::general_purpose::STANDARD.decode(base64).map_err(serde::de::Error::custom),
        }
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json_bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(json_bytes::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in ["", ".", "..", ".hidden", "_snapshots", "a/b", "a\0", "ä", "-rf", &"x".repeat(129)] {
            assert!(ClusterName::new(name).is_err(), "{name:?}");
            assert!(NodeName::new(name).is_err(), "{name:?}");
        }
        assert!(NodeName::new("10.0.0.1_6379").is_ok());
    }

    #[test]
    fn paths_that_could_leave_their_node_are_refused() {
        let long = "x".repeat(256);
        for path in ["/", "/etc", "a//b", "a/", "../x", "a/../b", ".", "a/.", "a\0b", &long, &"a/".repeat(2100)] {
            assert!(TreePath::new(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn entries_of_one_directory_stand_together() {
        let mut paths: Vec<_> =
            ["a/z", "b", "a", "a/b/c", "a/b", "c", ""].iter().map(|path| TreePath::new(*path).expect("legal")).collect();
        paths.sort();
        let order: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(order, ["", "a", "b", "c", "a/b", "a/z", "a/b/c"]);
    }

    #[test]
    fn names_that_are_not_utf8_survive_json() {
        let path = TreePath::new(b"dir/\xff\x01".to_vec()).expect("legal");
        let json = serde_json::to_string(&path).expect("serializes");
        assert_eq!(serde_json::from_str::<TreePath>(&json).expect("reads back"), path);
        assert_eq!(path.to_string(), "dir/\\xff\\u{1}");
    }
}
