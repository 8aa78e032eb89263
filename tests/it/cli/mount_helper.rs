//! `mount.tintype`: what mount(8), fstab and systemd's mount units call.

use std::path::Path;
use std::process::Command;

use super::mount::{Mountpoint, is_mounted, look};
use super::{Home, Ran, run};

/// The helper as mount(8) calls it: a link, its arguments, and nothing of a user's environment.
fn helper(home: &Home, arguments: &[&str]) -> Ran {
    let link = home.path("mount.tintype");
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tintype"), &link).expect("a link");
    }
    run(Command::new(link).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/").args(arguments))
}

fn line_of(path: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    table.lines().find(|line| line.split(' ').nth(4) == path.to_str()).expect("is mounted").to_owned()
}

#[test]
fn the_helper_mounts_with_the_options_of_fstab_and_umount_ends_it() {
    let home = Home::with_snapshot();
    let (place, repository) = (Mountpoint::new(&home, "mount"), home.text("repository"));
    let options = format!(
        "ro,allow_other,_netdev,nofail,x-systemd.automount,owner=77:88,deadline=5s,memory=64MiB,key_file={},config={},\
         context=\"system_u:object_r:tmp_t:s0:c1,c2\"",
        home.text("key"),
        home.text("tintype.toml")
    );
    let said = helper(&home, &[&repository, &place.text(), "-o", &options]);
    assert_eq!(said.done().text(), "");
    let line = line_of(&place.0);
    for word in ["ro,nosuid,nodev,noexec", "default_permissions,allow_other", &format!("fuse.tintype {repository} ")] {
        assert!(line.contains(word), "{word} in {line}");
    }
    let shown = look(&["stat", "-c", "%u:%g", &home.text("mount/demo/latest/data/a")]);
    assert_eq!(shown.done().text(), "77:88\n");
    helper(&home, &[&repository, &place.text(), "-o", &options]).refused(32, &["already a mountpoint"]);
    run(Command::new("umount").arg(&place.0)).done();
    assert!(!is_mounted(&place.0));
}

#[test]
fn what_the_helper_cannot_do_has_the_exit_codes_of_mount() {
    let home = Home::with_snapshot();
    let (place, repository) = (Mountpoint::new(&home, "mount"), home.text("repository"));
    let with = |options: &str| {
        let options = format!("key_file={},config={}{options}", home.text("key"), home.text("tintype.toml"));
        helper(&home, &[&repository, &place.text(), "-o", &options])
    };
    with(",rw").refused(1, &["rw", "-o ro"]);
    with(",allow_othr").refused(1, &["allow_othr", "did you mean allow_other?"]);
    with(",memory=lots").refused(1, &["lots"]);
    with(",owner=nobody-at-all:x").refused(1, &["nobody-at-all"]);
    helper(&home, &[&repository]).refused(1, &["target"]);
    let absent = home.text("absent");
    helper(&home, &[&absent, &place.text(), "-o", &format!("config={}", home.text("tintype.toml"))]).refused(32, &["absent"]);
    helper(&home, &[&repository, &place.text(), "-f", "-o", "ro"]).done();
    assert!(!is_mounted(&place.0));
}

/// mount(8) looks for its helpers in /sbin: here one of this test's own, that nobody else sees.
const NAMESPACE: &str = "set -eu; cd \"$HOME\"; mkdir -p sbin; mount --bind /usr/sbin sbin\n\
    mount -t tmpfs none /usr/sbin; ln -s \"$PWD\"/sbin/* /usr/sbin/; ln -s \"$1\" /usr/sbin/mount.tintype\n\
    ln -s \"$1\" /usr/sbin/mount.fuse.tintype\n\
    export PATH=/usr/bin:/bin:/usr/sbin:/sbin; trap 'umount -l mount 2>/dev/null || :' EXIT\n";

#[test]
fn mount_and_fstab_find_the_helper() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "mount");
    let options = format!("key_file={},config={}", home.text("key"), home.text("tintype.toml"));
    let fstab = format!("{} {} tintype ro,nofail,_netdev,{options} 0 0\n", home.text("repository"), place.text());
    std::fs::write(home.path("fstab"), fstab).expect("a file");
    let script = format!(
        "{NAMESPACE}\
         mount -t tintype -o ro,{options} repository mount; cmp data/a mount/demo/latest/data/a; umount mount\n\
         mount -t fuse.tintype -o ro,{options} repository mount; cmp data/a mount/demo/latest/data/a; umount mount\n\
         if mount -t tintype -o rw,{options} repository mount; then exit 2; else test $? = 1; fi\n\
         if mount -t tintype -o {options} repository mount; then exit 2; else test $? = 1; fi\n\
         mount -T fstab mount; cmp data/a mount/demo/latest/data/a; mount -a -T fstab; umount mount\n\
         findmnt mount && exit 1; echo fine"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_tintype")]);
    let ran = run(command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home.path("")));
    assert_eq!(ran.done().text(), "fine\n", "{ran:?}");
}
