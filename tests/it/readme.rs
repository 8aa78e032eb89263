//! What README says is so: its commands run, its configuration is understood, and no key or right is missing from it.
//!
//! All blocks run in their order in one shell, on a Redis of the test's own, with the system's directories and ports
//! replaced by those of a sandbox. `scripts/demo` and `scripts/test` are left out: the one runs by itself, the other runs this.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tintype::app::config;

use crate::support::redis::{PATIENCE, redis_70};

/// All commands together: seconds on an idle machine.
const LIMIT_SECONDS: u32 = 300;

/// A fenced block.
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(project().join("README.md")).expect("README.md is there")
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(language), None) => open = Some(Block { language: language.to_owned(), line: index + 1, text: String::new() }),
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of README is not closed");
    blocks
}

/// A directory in place of the root, and a Redis in place of the system's.
struct Sandbox {
    directory: tempfile::TempDir,
    port: u16,
    second_port: u16,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

impl Sandbox {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("tintype-readme-").tempdir().expect("a temporary directory");
        for place in ["var/lib/redis", "etc/redis", "etc/tintype", "mnt", "srv", "home"] {
            std::fs::create_dir_all(directory.path().join(place)).expect("a directory");
        }
        let sandbox = Self { directory, port: free_port(), second_port: free_port() };
        sandbox.write_server();
        let is_started = Command::new(sandbox.path("start")).status().expect("a shell").success();
        let log = || std::fs::read_to_string(sandbox.path("redis.log")).unwrap_or_default();
        assert!(is_started && sandbox.is_answered_by_ours(), "redis-server does not start: {}", log());
        sandbox.redis(&["SET", "greeting", "hello"]);
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server as a distribution sets it up: a configuration, and commands that a supervisor would carry out.
    fn write_server(&self) {
        let root = self.directory.path().display();
        let configuration = format!(
            "bind 127.0.0.1\nport {}\ndir {root}/var/lib/redis\npidfile {root}/redis.pid\nlogfile {root}/redis.log\n\
             daemonize yes\nsave 3600 1\n",
            self.port
        );
        std::fs::write(self.path("etc/redis/redis.conf"), configuration).expect("a file");
        let server = redis_70();
        self.script("start", &format!("exec {} {root}/etc/redis/redis.conf", server.display()));
        self.script("stop", &format!("kill \"$(cat {root}/redis.pid)\""));
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    fn redis(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output();
        String::from_utf8_lossy(&output.expect("redis-cli is installed").stdout).into_owned()
    }

    fn is_answered_by_ours(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if self.redis(&["CONFIG", "GET", "dir"]).contains(&*self.directory.path().to_string_lossy()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// The system's names replaced by the sandbox's.
    fn translate(&self, text: &str) -> String {
        let root = self.directory.path().display();
        let mut text = text.to_owned();
        for place in
            ["/etc/tintype", "/etc/redis", "/srv/", "/mnt/backups", "/var/lib/redis", "/var/lib/tintype", "/var/cache/tintype"]
        {
            text = text.replace(place, &format!("{root}{place}"));
        }
        for verb in ["stop", "start"] {
            text = text.replace(&format!("[\"systemctl\", \"{verb}\", \"redis-server\"]"), &format!("[\"{root}/{verb}\"]"));
        }
        for before in ["127.0.0.1:", "127.0.0.1_", "redis-cli -p "] {
            text = text.replace(&format!("{before}6379"), &format!("{before}{}", self.port));
        }
        text.replace("6390", &self.second_port.to_string())
    }

    /// All of README as one shell script.
    fn script_of(&self, blocks: &[Block]) -> String {
        let root = self.directory.path().display();
        let mut script = "set -euo pipefail\nset -x\n".to_owned();
        for block in blocks {
            writeln!(script, ": README.md line {}", block.line).expect("a string");
            match block.language.as_str() {
                "sh" if !block.text.starts_with("scripts/") => script.push_str(&self.translate(&block.text)),
                "toml" => {
                    let (text, file) = (self.translate(&block.text), format!("{root}/etc/tintype/tintype.toml"));
                    writeln!(script, "cat >{file} <<'END'\n{text}END\nexport TINTYPE_CONFIG={file}").expect("a string");
                }
                _ => {}
            }
        }
        script
    }

    fn run(&self, script: &str) -> (bool, String) {
        let programs = Path::new(env!("CARGO_BIN_EXE_tintype")).parent().expect("a directory");
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH"));
        // Until README's own configuration: none of the user's, and not the system's state directory.
        let first = self.path("first.toml");
        std::fs::write(&first, format!("state_directory = \"{}\"\n", self.path("state").display())).expect("a file");
        let file = self.path("readme.sh");
        std::fs::write(&file, script).expect("a file");
        let log = std::fs::File::create(self.path("readme.log")).expect("a file");
        let status = Command::new("timeout")
            .args(["-k", "5", &LIMIT_SECONDS.to_string(), "bash"])
            .arg(&file)
            .current_dir(project())
            .env("PATH", path)
            .env("HOME", self.path("home"))
            .env("TINTYPE_CONFIG", &first)
            .env_remove("TINTYPE_REPOSITORY")
            .env_remove("TINTYPE_PASSWORD_FILE")
            .env_remove("TINTYPE_KEY_FILE")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .status()
            .expect("coreutils are installed");
        (status.success(), std::fs::read_to_string(self.path("readme.log")).unwrap_or_default())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = tintype::app::mount::unmount(&self.path("mnt/backups"));
        // Of the server that README starts on the mount, in case it did not get to stopping it.
        let port = self.second_port.to_string();
        let _ = Command::new("redis-cli").args(["-p", &port, "SHUTDOWN", "NOSAVE"]).stderr(Stdio::null()).status();
        if let Ok(process) = std::fs::read_to_string(self.path("redis.pid")) {
            let _ = Command::new("kill").args(["-KILL", process.trim()]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn every_command_of_readme_does_what_it_says() {
    let sandbox = Sandbox::new();
    let (is_good, log) = sandbox.run(&sandbox.script_of(&blocks(&readme())));
    let from = log.char_indices().rev().nth(6000).map_or(0, |(index, _)| index);
    assert!(is_good, "the last command failed:\n{}", &log[from..]);
    assert_eq!(sandbox.redis(&["GET", "greeting"]).trim(), "hello", "the restored server has its data");
}

#[test]
fn scripts_that_readme_names_can_be_run() {
    let text = readme();
    let named =
        text.split(|character: char| character.is_whitespace() || character == '`').filter(|word| word.starts_with("scripts/"));
    for script in named {
        let mode =
            std::fs::metadata(project().join(script)).unwrap_or_else(|error| panic!("{script}: {error}")).permissions().mode();
        assert_ne!(mode & 0o111, 0, "{script} cannot be run");
    }
}

#[test]
fn the_configuration_of_readme_is_understood() {
    for block in blocks(&readme()).iter().filter(|block| block.language == "toml") {
        config::parse(&block.text, Path::new("README.md")).unwrap_or_else(|error| panic!("line {}: {error}", block.line));
    }
}

#[test]
fn every_key_of_the_configuration_is_in_readme() {
    let text = readme();
    for table in ["", "[repository]", "[mount]", "[cache]", "[clones]", "[clusters.c]", "[clusters.c.nodes.n]"] {
        // The error of an unknown key names all that are known.
        let error = config::parse(&format!("{table}\nnot_a_key_at_all = 1\n"), Path::new("x")).expect_err("unknown");
        let known = error.message.split('`').skip(3).step_by(2);
        for key in known.filter(|key| !["repository", "mount", "cache", "clones", "clusters", "nodes"].contains(key)) {
            assert!(text.contains(&format!("`{key}`")), "{table} {key} is not in README");
        }
    }
}

#[test]
fn the_rights_in_readme_are_those_that_a_snapshot_needs() {
    let text = readme();
    let line = text.lines().find(|line| line.contains("ACL SETUSER tintype on")).expect("an ACL command");
    let granted: Vec<&str> =
        line.split_whitespace().map(|word| word.trim_matches('\'')).filter(|word| word.starts_with('+')).collect();
    assert_eq!(granted, tintype::driver::redis::RIGHTS.split_whitespace().collect::<Vec<_>>());
}
