//! What the programs say when something went wrong: a code for scripts, a message, and the command to run next.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Value, json};

use crate::agent::NodeErrorKind;
use crate::app::mount::MountError;
use crate::cluster::coordinator::SnapshotError;
use crate::driver::DriverError;
use crate::model::names::BadName;
use crate::model::snapshot_name::{BadSnapshotName, NoSingleSnapshot};
use crate::node::UploadError;
use crate::object::ObjectError;
use crate::read::ReadError;
use crate::repo::RepoError;

/// How a program ends. The numbers are promised to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// It was not done.
    Failed = 1,
    /// The command line or the configuration makes no sense.
    Usage = 2,
    /// Some nodes were done.
    Partly = 3,
    /// There was nothing to do.
    Nothing = 4,
}

/// Something that went wrong, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For scripts: a word that does not change between versions.
    pub code: Cow<'static, str>,
    /// For people: what, and which thing.
    pub message: String,
    /// What to run or change next.
    pub hint: Option<String>,
    /// How the program ends.
    pub exit: Exit,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: None, exit: Exit::Failed }
    }

    /// The command line or the configuration makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new("usage", message) }
    }

    /// The same with what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What scripts get, and what a daemon tells who started it.
    pub fn to_json(&self) -> Value {
        json!({"code": self.code, "message": self.message, "hint": self.hint})
    }

    /// The same failure from its JSON; `None` for any other text.
    pub fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let word = |key: &str| value.get(key)?.as_str().map(str::to_owned);
        let (code, message) = (word("code")?, word("message")?);
        let exit = if code == "usage" { Exit::Usage } else { Exit::Failed };
        Some(Self { hint: word("hint"), exit, ..Self::new(code, message) })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ObjectError> for Failure {
    fn from(error: ObjectError) -> Self {
        let (code, hint) = match &error {
            ObjectError::NotFound { .. } => ("not_found", "run `tintype verify` to see what is missing"),
            ObjectError::NoStore { .. } => (
                "no_store",
                "create the bucket or directory, or correct the repository URL; `tintype init` makes a local directory by itself",
            ),
            ObjectError::Conflict { .. } => ("conflict", "somebody else wrote at the same time; run the command again"),
            ObjectError::ShortRange { .. } => ("corrupt", "run `tintype verify --depth hashed`"),
            ObjectError::Denied { .. } => (
                "denied",
                "check the credentials (`aws sts get-caller-identity`) and the rights on the bucket or directory; `tintype doctor` tries each",
            ),
            ObjectError::NoSpace { .. } => (
                "no_space",
                "free some space; nothing that was stored before was touched, and the next attempt goes on from what is there",
            ),
            ObjectError::Unavailable { .. } | ObjectError::DeadlineExceeded { .. } => (
                "unavailable",
                "check the network and the endpoint with `tintype doctor`, then run the command again: what was stored is reused",
            ),
            ObjectError::Invalid { .. } => ("invalid", "check the repository URL and its options"),
        };
        Self::new(code, error.to_string()).hint(hint)
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        let (code, hint) = match &error {
            RepoError::Object(object) => return object.clone().into(),
            RepoError::NotFound { what } if what.starts_with("a repository") => {
                ("no_repository", "make one with `tintype init`, or correct --repository")
            }
            RepoError::NotFound { .. } => ("not_found", "see what there is with `tintype list`"),
            RepoError::Conflict { .. } => {
                ("conflict", "wait for it to end or see `tintype status`; for `init`, choose an empty place")
            }
            RepoError::Corrupt { .. } => (
                "corrupt",
                "nothing wrong was used; run `tintype verify --depth hashed` to see what else is damaged, and take another snapshot",
            ),
            RepoError::TooNew { .. } => ("too_new", "install a newer tintype"),
            RepoError::WrongKey { .. } => {
                ("wrong_key", "check the file named by password_file, --password-file or $TINTYPE_PASSWORD_FILE")
            }
            RepoError::NoKey { .. } => {
                ("no_key", "set password_file in the configuration, $TINTYPE_PASSWORD_FILE or --password-file")
            }
            RepoError::Refused { .. } => ("refused", "correct what it names and run the command again"),
            RepoError::Source { .. } => ("source", "see what is wrong with the file that it names, then run the command again"),
        };
        Self::new(code, error.to_string()).hint(hint)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Repo(error) => error.into(),
            ReadError::DeadlineExceeded { .. } | ReadError::BrokenOff { .. } => {
                Self::new("read", error.to_string()).hint("check the object store: tintype doctor")
            }
        }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let (code, hint) = match &error {
            DriverError::Unreachable { .. } => {
                ("unreachable", "check the address and that the store runs; with --partial a snapshot may leave the node out")
            }
            DriverError::Denied { .. } => {
                ("denied", "give the user the right that is named; `tintype doctor` prints the whole ACL line")
            }
            DriverError::Refused { .. } => ("refused", "mend what it names and run the command again; nothing was paused"),
            DriverError::Void { .. } => {
                ("void", "nothing was published and all nodes run; run the command again when the cause is gone")
            }
            DriverError::Broken { .. } | DriverError::Corrupt { .. } => (
                "broken",
                "see what is wrong with the files or the store that it names (a server's own log says more); what was stored is reused by the next attempt",
            ),
            DriverError::DeadlineExceeded { .. } => ("deadline", "see whether the store hangs, then run the command again"),
        };
        Self::new(code, error.to_string()).hint(hint)
    }
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Driver(error) => error.into(),
            UploadError::Repository(error) => error.into(),
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let message = error.to_string();
        match error {
            SnapshotError::Repository(error) => error.into(),
            SnapshotError::Superseded => Self::new("superseded", message).hint("nothing was published, and no store is paused by this run; see `tintype status` for the other one"),
            SnapshotError::Interrupted => Self::new("interrupted", "interrupted: nothing was published, and no store is paused").hint("what was stored is reused by the next attempt"),
            SnapshotError::Void(_) => Self::new("void", message).hint("nothing was published and all stores run; a void cut is not repeated by itself: run the command again when the cause is gone"),
            SnapshotError::Stranger { .. } => Self::new("stranger", message).hint("give this cluster a name of its own, or say --adopt if the name is to belong to it from now on"),
            SnapshotError::Incomplete { .. } => Self::new("refused", message).hint("name a node with each of them in the configuration, or say discover there to find all of the ring; --partial leaves their keys out; nothing was paused"),
            SnapshotError::Memory(_) => Self::new("memory", message).hint("choose some of its nodes with --node, or free memory on that host; nothing was paused"),
            SnapshotError::Node { error, .. } => {
                let (code, hint) = match error.kind {
                    NodeErrorKind::Unreachable => ("unreachable", "check the address and that the store runs; --partial leaves the node out"),
                    NodeErrorKind::Denied => ("denied", "give the user the right that is named, `tintype doctor` prints the whole ACL line; for an agent, token_file and tls under [agent] have to fit on both hosts"),
                    NodeErrorKind::Refused => ("refused", "mend what it names and run the command again; nothing was paused"),
                    NodeErrorKind::Void => ("void", "nothing was published and all stores run; run the command again when the cause is gone"),
                    NodeErrorKind::Broken => ("broken", "see what is wrong with the files or the store that it names (a server's own log says more); what was stored is reused by the next attempt"),
                    NodeErrorKind::Repository => ("repository", "see `tintype doctor`; what was stored is reused by the next attempt"),
                };
                Self::new(code, message).hint(hint)
            }
        }
    }
}

impl From<&MountError> for Failure {
    fn from(error: &MountError) -> Self {
        match error {
            MountError::Cache(failure) => failure.clone(),
            error => Self::new("mount", error.to_string()).hint(error.hint()),
        }
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self::from(&error)
    }
}

impl From<BadName> for Failure {
    fn from(error: BadName) -> Self {
        Self::usage(error.to_string()).hint("see the names in use with `tintype list`, or choose another one")
    }
}

impl From<BadSnapshotName> for Failure {
    fn from(error: BadSnapshotName) -> Self {
        Self::usage(error.to_string()).hint("name it as CLUSTER/DATE[/NODE[/PATH]]; `tintype list CLUSTER` shows the dates")
    }
}

impl From<NoSingleSnapshot> for Failure {
    fn from(error: NoSingleSnapshot) -> Self {
        let failure = Self::new("not_found", error.to_string());
        match error.candidates.as_slice() {
            [] => failure.hint("see what there is with `tintype list`"),
            candidates => failure.hint(format!("nearest: {}", candidates.join(", "))),
        }
    }
}
