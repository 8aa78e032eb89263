//! A dump that comes faster than it can be stored.

use crate::support::command::Workplace;
use crate::support::redis::{Server, redis_70};

#[test]
fn a_dump_that_is_stored_slowly_is_read_at_once_and_waits_on_the_disk() {
    let server = Server::start(&redis_70(), &["--rdbcompression", "no"]);
    server.fill(1800, 60_000);
    let work = Workplace::new();
    let node = format!("[clusters.prod.nodes.node-1]\naddress = \"{}\"\n", server.url());
    // Four seconds between two packs.
    let limits = "limits = { bandwidth = \"8MiB\", spool = \"1GiB\" }";
    work.configure(&format!("[repository]\ncompression = \"none\"\n[clusters.prod]\n{limits}\n{node}"));
    work.succeed(&["init"]);
    let mut running = work.command(&["snapshot", "prod"]).spawn().expect("tintype starts");
    // The server is rid of its dump while three quarters of it are still to be stored.
    let is_read = |server: &Server| server.info("total_forks") == "1" && server.info("rdb_bgsave_in_progress") == "0";
    server.wait_for("the dump and its end", is_read);
    assert!(running.try_wait().expect("a child").is_none(), "it was stored before the server had ended");
    assert!(running.wait().expect("a child").success());
    work.succeed(&["verify", "prod/latest", "--depth", "hashed", "--quiet"]);
    assert_eq!(std::fs::read_dir(work.path("state/spool")).expect("it was used").count(), 0, "it leaves nothing");
}
