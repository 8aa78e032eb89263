//! What the kernel knows of a clone: the numbers that it holds, and by which names they are reached.
//!
//! A number is that of the inode in the upper layer. It is reached by a name, which follows every rename; when its last known
//! name goes while the kernel still holds it, it is held open itself, which also keeps the local file system from giving its
//! number to another.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::Result;

/// The root's number, whatever the upper layer calls it.
pub const ROOT: u64 = 1;

type Name = (u64, Vec<u8>);

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_name: HashMap<Name, u64>,
}

#[derive(Debug, Default)]
struct Node {
    names: Vec<Name>,
    /// Of which the kernel will tell us that it forgot them.
    lookups: u64,
    /// Names in `by_name` that lie in it.
    children: u64,
    /// A directory that is known to be opened.
    is_opened: bool,
    /// It has lost its names.
    held: Option<OwnedFd>,
}

/// How a node is reached.
#[derive(Debug)]
pub(super) enum Way<'a> {
    /// By a path from the root.
    Path(PathBuf),
    /// It has no name any more.
    Held(&'a OwnedFd),
}

impl Nodes {
    /// The kernel is told of `number` as `name` in `parent`.
    pub(super) fn found(&mut self, parent: u64, name: &[u8], number: u64) {
        self.name(parent, name, number);
        self.nodes.entry(number).or_default().lookups += 1;
    }

    fn name(&mut self, parent: u64, name: &[u8], number: u64) {
        let key = (parent, name.to_vec());
        match self.by_name.insert(key.clone(), number) {
            Some(before) if before == number => return,
            Some(before) => self.unname(before, &key),
            None => self.nodes.entry(parent).or_default().children += 1,
        }
        let node = self.nodes.entry(number).or_default();
        node.names.push(key);
        node.held = None;
    }

    fn unname(&mut self, number: u64, key: &Name) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.names.retain(|name| name != key);
        }
        self.drop_unused(number);
    }

    /// The number that this name has, if the kernel knows it by it.
    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.by_name.get(&(parent, name.to_vec())).copied()
    }

    /// It loses its last known name when this one goes.
    pub(super) fn is_last_name(&self, number: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.names.len() <= 1)
    }

    /// The name is gone; `held` is what it led to, where the kernel may still ask for that. Gives it back if it does not.
    pub(super) fn gone(&mut self, parent: u64, name: &[u8], held: Option<OwnedFd>) -> Option<OwnedFd> {
        let key = (parent, name.to_vec());
        let Some(number) = self.by_name.remove(&key) else { return held };
        if let Some(node) = self.nodes.get_mut(&number) {
            node.names.retain(|name| *name != key);
            if node.names.is_empty() {
                node.held = held;
            }
        }
        self.lost_child(parent);
        self.drop_unused(number)
    }

    /// What was `from` is `to` now; what was there is gone already.
    pub(super) fn moved(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) {
        let Some(number) = self.named(from.0, from.1) else { return };
        // The new name first, so that it is not forgotten in between.
        self.name(to.0, to.1, number);
        self.gone(from.0, from.1, None);
    }

    /// The two names led to each other's.
    pub(super) fn exchanged(&mut self, one: (u64, &[u8]), other: (u64, &[u8])) {
        let (first, second) = (self.named(one.0, one.1), self.named(other.0, other.1));
        for (number, from, to) in [(first, one, other), (second, other, one)] {
            let (from, to) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
            match number {
                Some(number) => {
                    if let Some(node) = self.nodes.get_mut(&number) {
                        node.names.retain(|name| *name != from);
                        node.names.push(to.clone());
                    }
                    if self.by_name.insert(to.clone(), number).is_none() {
                        self.nodes.entry(to.0).or_default().children += 1;
                    }
                }
                None => {
                    if self.by_name.remove(&to).is_some() {
                        self.lost_child(to.0);
                    }
                }
            }
        }
    }

    fn lost_child(&mut self, parent: u64) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children -= 1;
        }
        self.drop_unused(parent);
    }

    /// The kernel has forgotten `lookups` of it. Gives what was held of it, when it was the last.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) -> Option<OwnedFd> {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(lookups);
        }
        self.drop_unused(number)
    }

    /// Nobody asks for it any more, nor for anything in it: nor for its parents, perhaps.
    fn drop_unused(&mut self, number: u64) -> Option<OwnedFd> {
        let is_unused = |node: &Node| node.lookups == 0 && node.children == 0;
        if number == ROOT || !self.nodes.get(&number).is_some_and(is_unused) {
            return None;
        }
        let node = self.nodes.remove(&number)?;
        for name in node.names {
            self.by_name.remove(&name);
            self.lost_child(name.0);
        }
        node.held
    }

    /// How it is reached; `ESTALE` for what the kernel was never told of.
    pub(super) fn way(&self, number: u64) -> Result<Way<'_>> {
        let mut names = Vec::new();
        let mut at = number;
        while at != ROOT {
            let node = self.nodes.get(&at).ok_or(Errno::STALE)?;
            match (node.names.first(), &node.held) {
                (Some((parent, name)), _) => {
                    names.push(OsString::from_vec(name.clone()));
                    at = *parent;
                }
                (None, Some(held)) if at == number => return Ok(Way::Held(held)),
                // In a directory that was removed: nothing can be there.
                (None, _) => return Err(Errno::NOENT),
            }
        }
        if names.is_empty() {
            return Ok(Way::Path(PathBuf::from(".")));
        }
        Ok(Way::Path(names.into_iter().rev().collect()))
    }

    /// The directory is known to be opened.
    pub(super) fn is_opened(&self, number: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.is_opened)
    }

    /// The directory is opened, and stays so.
    pub(super) fn opened(&mut self, number: u64) {
        if number == ROOT || self.nodes.contains_key(&number) {
            self.nodes.entry(number).or_default().is_opened = true;
        }
    }

    /// How many are known.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.nodes.len(), self.by_name.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(nodes: &Nodes, number: u64) -> String {
        match nodes.way(number) {
            Ok(Way::Path(path)) => path.display().to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_follow_renames_and_nothing_is_left_when_all_is_forgotten() {
        let mut nodes = Nodes::default();
        nodes.found(ROOT, b"a", 10);
        nodes.found(10, b"b", 11);
        nodes.found(11, b"f", 12);
        nodes.found(ROOT, b"hard", 12);
        assert_eq!(path(&nodes, 12), "a/b/f");
        nodes.moved((ROOT, b"a"), (ROOT, b"z"));
        assert_eq!(path(&nodes, 12), "z/b/f");
        nodes.forget(10, 1);
        nodes.forget(11, 1);
        assert_eq!(path(&nodes, 12), "z/b/f", "kept for what is in them");
        nodes.gone(11, b"f", None);
        assert_eq!(path(&nodes, 12), "hard");
        nodes.found(ROOT, b"x", 13);
        nodes.exchanged((ROOT, b"x"), (ROOT, b"hard"));
        assert_eq!((path(&nodes, 12), path(&nodes, 13)), ("x".to_owned(), "hard".to_owned()));
        nodes.exchanged((ROOT, b"x"), (ROOT, b"unknown"));
        assert_eq!((path(&nodes, 12), nodes.named(ROOT, b"x")), ("unknown".to_owned(), None));
        nodes.forget(12, 2);
        nodes.forget(13, 1);
        assert_eq!(nodes.count(), (1, 0), "the root");
        assert_eq!(nodes.way(12).expect_err("forgotten"), Errno::STALE);
    }

    #[test]
    fn what_lost_its_name_is_held_until_it_is_forgotten() {
        let mut nodes = Nodes::default();
        nodes.found(ROOT, b"a", 10);
        assert!(nodes.is_last_name(10));
        let held = OwnedFd::from(std::fs::File::open("/dev/null").expect("opens"));
        nodes.gone(ROOT, b"a", Some(held));
        assert!(matches!(nodes.way(10), Ok(Way::Held(_))));
        nodes.found(ROOT, b"other", 10);
        assert_eq!(path(&nodes, 10), "other", "it had a second name that the kernel had not asked for");
        nodes.forget(10, 2);
        assert_eq!(nodes.count(), (1, 0));
    }
}
