//! A mount by somebody who is not root: `fusermount3` makes it and takes it away.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::command::{Workplace, succeeded, tintype};
use crate::support::mount::wait_for;

/// `nobody`.
const USER: u32 = 65534;
const SOON: Duration = Duration::from_secs(10);

/// A mount namespace where everybody may use `/dev/fuse`, as udev has it: in a container it may be root's alone.
struct World {
    holder: Child,
}

impl World {
    fn new(work: &Workplace) -> Self {
        let (device, ready) = (work.path("device"), work.path("ready"));
        std::fs::create_dir(&device).expect("a directory");
        let script = "set -e; mount -t tmpfs -o mode=0755 none \"$1\"; mknod -m 666 \"$1/fuse\" c 10 229\n\
            mount --bind \"$1/fuse\" /dev/fuse; touch \"$2\"; exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(device).arg(&ready);
        let world = Self { holder: command.stdin(Stdio::null()).spawn().expect("util-linux is installed") };
        wait_for("a mount namespace", SOON, || ready.exists());
        world
    }

    /// A program inside, run to its end by a user without rights.
    fn run(&self, work: &Workplace, user: u32, program: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "2", "60", "nsenter", &format!("--mount=/proc/{}/ns/mnt", self.holder.id()), "setpriv"]);
        command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups", "--"]);
        // Entering leads to the root.
        command.args(["env", "--chdir"]).arg(work.path("")).args(program);
        work.prepare(&mut command);
        command.output().expect("util-linux is installed")
    }

    /// Its line in the table of mounts.
    fn mounted(&self, path: &Path) -> Option<String> {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).expect("readable");
        table.lines().find(|line| line.split(' ').nth(4) == path.to_str()).map(str::to_owned)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // All its mounts go with the last process in it; a daemon of a test that failed ends with its mount.
        let inside = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let _ = Command::new("nsenter").args([&inside, "umount", "--all", "--lazy", "--types", "fuse.tintype"]).output();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn daemon(program: &Path) -> Option<PathBuf> {
    let processes = std::fs::read_dir("/proc").expect("lists").flatten().map(|entry| entry.path());
    processes.into_iter().find(|process| std::fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program))
}

#[test]
fn who_is_not_root_mounts_looks_and_unmounts_and_nothing_is_left() {
    let helper = Command::new("fusermount3").arg("--version").output();
    assert!(helper.is_ok_and(|output| output.status.success()), "fusermount3 is missing: run scripts/install-needs (fuse3)");
    let work = Workplace::new();
    // The build directory may be closed to other users.
    for name in ["tintype", "tintyped"] {
        std::fs::copy(tintype().with_file_name(name), work.path(name)).expect("a copy of the program");
    }
    let world = World::new(&work);
    work.give_to(USER);
    let text = |name: &str| work.path(name).display().to_string();
    let run = |user: u32, program: &[&str]| world.run(&work, user, program);
    let succeed = |program: &[&str]| succeeded(&format!("{program:?}"), &run(USER, program));
    let program = text("tintype");

    let content: Vec<u8> = (0..2_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    succeed(&["mkdir", "-p", "data/sub", "mount"]);
    std::fs::write(work.path("data/sub/file"), &content).expect("writes");
    succeed(&[&program, "init"]);
    succeed(&[&program, "snapshot", "demo", "--files", "data"]);

    succeed(&[&program, "mount", &text("mount")]);
    let line = world.mounted(&work.path("mount")).expect("is mounted");
    for option in ["ro,nosuid,nodev", " fuse.tintype tintype ", &format!("user_id={USER},group_id={USER}")] {
        assert!(line.contains(option), "{option} in {line}");
    }
    assert_eq!(succeed(&["ls", &text("mount/demo/latest/data")]), "sub\n");
    let read = run(USER, &["cat", &text("mount/demo/latest/data/sub/file")]);
    assert!(read.status.success() && read.stdout == content, "{}", String::from_utf8_lossy(&read.stderr));
    // Without --allow-other it is that user's alone, also before root.
    assert!(!run(0, &["ls", &text("mount")]).status.success());

    let server = daemon(&work.path("tintyped")).expect("the daemon runs");
    succeed(&[&program, "unmount", &text("mount")]);
    assert_eq!(world.mounted(&work.path("mount")), None);
    // Nobody need have taken note of its end: a process that is none any more has no program.
    wait_for("the end of the daemon", SOON, || std::fs::read_link(server.join("exe")).is_err());
    assert_eq!(succeed(&["ls", "-A", &text("mount")]), "");
    let log = std::fs::read_to_string(work.path(".local/state/tintype/mount.log")).expect("the daemon's log");
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}
