//! The mount among the other things of a host: what walks it at night, and containers that are to see it.

use std::process::Command;

use super::mount::Mountpoint;
use super::{Home, Ran, run};

/// A script in mounts of its own, which nobody else sees, with the home's environment.
fn alone(home: &Home, script: &str) -> Ran {
    let inner = home.command(&[]);
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]).arg(inner.get_program());
    outer.env_clear().current_dir(home.path(""));
    for (key, value) in inner.get_envs() {
        outer.env(key, value.unwrap_or_default());
    }
    run(&mut outer)
}

#[test]
fn doctor_says_whether_updatedb_would_walk_the_mount_and_its_fix_works() {
    let home = Home::with_snapshot();
    let script = "cp -r /etc/passwd /etc/group .; mount -t tmpfs none /etc; cp passwd group /etc; \"$1\" doctor\n\
        echo 'PRUNEFS=\"nfs proc\"' > /etc/updatedb.conf\n\
        \"$1\" doctor | tee said; \"$1\" --json doctor | grep -q '\"hint\": \"sed'\n\
        sh -c \"$(sed -n 's/^ *next: \\(sed .*\\)/\\1/p' said)\"; \"$1\" doctor; cat /etc/updatedb.conf";
    let ran = alone(&home, script);
    let said = ran.done().text();
    for line in [
        "ok    updatedb: there is no /etc/updatedb.conf",
        "note  updatedb: updatedb would walk the mount",
        "ok    updatedb: PRUNEFS of /etc/updatedb.conf has fuse.tintype",
        "PRUNEFS=\"fuse.tintype nfs proc\"",
    ] {
        assert!(said.contains(line), "{line} in {ran:?}");
    }
}

#[test]
fn a_container_that_runs_already_sees_a_mount_below_what_is_shared_with_it() {
    let home = Home::with_snapshot();
    let _place = Mountpoint::new(&home, "shared");
    // As `docker run -v shared:shared:rslave` has it: what is mounted on the host below `shared` appears inside, and goes.
    let script = "mount -t tmpfs none shared; mount --make-rshared shared; mkdir shared/mount\n\
        unshare --mount --propagation slave sh -c 'touch ready; exec sleep 60' & container=$!\n\
        until test -e ready; do sleep 0.01; done\n\
        trap 'kill $container; umount -l shared/mount 2>/dev/null || :' EXIT\n\
        \"$1\" mount shared/mount\n\
        nsenter --mount=/proc/$container/ns/mnt cmp \"$PWD/data/a\" \"$PWD/shared/mount/demo/latest/data/a\"\n\
        \"$1\" unmount shared/mount; nsenter --mount=/proc/$container/ns/mnt ls -A \"$PWD/shared/mount\"; echo fine";
    let ran = alone(&home, script);
    assert!(ran.done().text().ends_with("is unmounted\nfine\n"), "{ran:?}");
}
