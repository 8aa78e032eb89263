//! Agents' processes: real `tintyped`, each with a configuration and a state of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::command::Workplace;
use super::redis::{PATIENCE, Server};

/// What all agents of a test have in their token file.
pub const TOKEN: &str = "a token that all hosts share";

/// Nobody listens there now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// A file that only its owner reads.
pub fn private(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("makes");
    std::fs::write(path, text).expect("writes");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("permits");
}

/// An agent's process, with its own configuration and state.
pub struct Agent<'a> {
    pub work: &'a Workplace,
    pub port: u16,
    pub configuration: PathBuf,
    pub process: Child,
}

impl<'a> Agent<'a> {
    /// `keys` stand under `[agent]`, `clusters` behind it. It answers when this returns.
    pub fn start(work: &'a Workplace, name: &str, keys: &str, clusters: &str) -> Self {
        let port = free_port();
        let configuration = work.path(&format!("agents/{name}/tintype.toml"));
        let state = work.path(&format!("agents/{name}/state"));
        private(
            &configuration,
            &format!("state_directory = {state:?}\n[agent]\nlisten = \"127.0.0.1:{port}\"\n{keys}\n{clusters}"),
        );
        let process = Self::spawn(work, &configuration).spawn().expect("tintyped starts");
        let agent = Self { work, port, configuration, process };
        agent.wait();
        agent
    }

    pub fn with_token(work: &'a Workplace, name: &str, clusters: &str) -> Self {
        private(&work.path("token"), TOKEN);
        Self::start(work, name, &format!("token_file = {:?}", work.path("token")), clusters)
    }

    pub fn spawn(work: &Workplace, configuration: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tintyped"));
        work.prepare(&mut command);
        let log = configuration.with_file_name("log");
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a log");
        command.arg("--config").arg(configuration).stdout(Stdio::null()).stderr(log);
        command
    }

    pub fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "no answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.configuration.with_file_name("log")).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        self.process.kill().expect("a child");
        self.process.wait().expect("a child");
    }

    pub fn start_again(&mut self) {
        self.process = Self::spawn(self.work, &self.configuration).spawn().expect("tintyped starts");
        self.wait();
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Status and body of a request.
    pub fn request(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("sets");
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Type: application/json\r\n{token}");
        // It may be hung up on before all is sent.
        let _sent = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ended_before = self.process.kill();
        let _reaped_before = self.process.wait();
    }
}

/// Everything that a command has said.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The name of a discovered server.
pub fn name(server: &Server) -> String {
    format!("127.0.0.1_{}", server.port)
}
