//! The real `tintype`, with a home, a key and a repository of its own.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A local repository with a key file, and commands on it.
pub struct Workplace {
    directory: TempDir,
}

impl Workplace {
    /// An empty place.
    pub fn new() -> Self {
        use std::io::Write;
        let directory = tempfile::Builder::new().prefix("tintype-command-").tempdir().expect("a temporary directory");
        let mut key = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.path().join("key"))
            .expect("a key file");
        key.write_all(&[42; 32]).expect("a key");
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration that its user's commands find.
    pub fn configure(&self, text: &str) {
        let path = self.path(".config/tintype/tintype.toml");
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        std::fs::write(&path, format!("state_directory = {:?}\n{text}", self.path("state"))).expect("a configuration");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    }

    /// Gives everything to a user, and lets that user in.
    pub fn give_to(&self, user: u32) {
        std::fs::set_permissions(self.directory.path(), std::fs::Permissions::from_mode(0o700)).expect("a mode");
        let configuration = [".config", ".config/tintype", ".config/tintype/tintype.toml"].map(|name| self.path(name));
        for path in [self.directory.path().to_owned(), self.path("key")].into_iter().chain(configuration) {
            if path.exists() {
                std::os::unix::fs::chown(path, Some(user), Some(user)).expect("this test runs as root");
            }
        }
    }

    /// Settings of a command, whatever it is started by.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env_remove("TINTYPE_PASSWORD_FILE")
            .env_remove("TINTYPE_CONFIG")
            .env("HOME", self.directory.path())
            .env("TINTYPE_REPOSITORY", self.path("repository"))
            .env("TINTYPE_KEY_FILE", self.path("key"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
    }

    /// `tintype` with arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tintype());
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("tintype starts")
    }

    /// Runs it, and it must succeed: its standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        succeeded(&format!("{arguments:?}"), &self.run(arguments))
    }
}

/// The standard output of a command that succeeded.
pub fn succeeded(what: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

/// The binary under test.
pub fn tintype() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tintype"))
}
