//! This program again, as a process of its own that runs one of its tests.

use std::io::Read;
use std::process::{ChildStdout, Command};

/// The program with one test, which says what it has to say by itself.
pub fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--include-ignored", "--nocapture", "--quiet"]);
    command
}

/// Waits until a line is said.
pub fn hear(output: &mut ChildStdout, line: &str) {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(format!("{line}\n").as_bytes()) {
        assert_ne!(output.read(&mut byte).expect("readable"), 0, "died: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
}
