"""The cases: each takes a bed, fails with a reason, or returns what was seen in a line."""

import os
import shutil
import time

from .cases import PHASES, ROUND_TRIP_SECONDS, SLOW_UPLOAD, claim, tell
from .network import wait_until
from .redis import Client, counters, key_on
from .world import CLUSTER, CONTROL, PAUSE_SECONDS, SECOND, STORE

# Without a pause nearly every snapshot is torn: as many without one would be a harness that does not see.
TRIES_WITHOUT_PAUSE = 30
SKEW_SECONDS = 0.02
RESTORED_PORT = 6380
# What nobody renews is over after two minutes, and another host may have it then.
LEASE_SECONDS = 120
# Between two tries of the other host, with the snapshot that succeeds.
LEASE_MARGIN_SECONDS = 20


def digest(client):
    return client.ask("DEBUG", "DIGEST")


def rounds(bed, phases=PHASES):
    """Scene and phase of each round: every phase near, and the pause also at a distance, where it is long enough to be hit for sure."""
    for phase in phases:
        # There is one instant before everything, and it takes the longest.
        count = 1 if phase == "before" else bed.effort(1, 6)
        for _ in range(count):
            yield bed.near(), phase
        for _ in range(count if phase == "pause" or bed.is_full else 0):
            yield bed.distant(), phase


class Restored:
    """Servers on the restored data of all nodes, each on its own host."""

    def __init__(self, world, name="latest"):
        self.world, self.servers = world, []
        self.directory = world.path("restored")
        os.makedirs(self.directory)
        for node in world.nodes:
            place = os.path.join(self.directory, node.name)
            world.run("restore", f"{CLUSTER}/{name}/{world.node_name(node)}", "--directory", place, "--quiet")
            process = world.spawn(node, "restored", world.tools.redis, "--port", str(RESTORED_PORT), "--dir", place, "--save", "",
                                  "--enable-debug-command", "local")
            self.servers.append(process)
        self.clients = []

    def __enter__(self):
        for node, process in zip(self.world.nodes, self.servers):
            def answers(node=node, process=process):
                claim(process.poll() is None, f"{node.name}: the server on restored data ended: {self.world.log(node, 'restored')}")
                try:
                    client = Client(node, port=RESTORED_PORT)
                except OSError:
                    return None
                if client.info("persistence")["loading"] == "0":
                    return client
                client.close()
                return None

            self.clients.append(wait_until(30, f"{node.name}: a server on restored data", answers))
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.close()
        for process in self.servers:
            process.kill()
            process.wait()
            self.world.processes.remove(process)
        shutil.rmtree(self.directory)

    def counters(self, keys):
        found = {}
        for client in self.clients:
            values = client.ask_all([("GET", key) for key in keys])
            found.update({key: int(value) for key, value in zip(keys, values) if value is not None})
        return found


def restore(bed):
    """All is stored through the agents while writers write, restored, and loaded by servers."""
    scene = bed.near()
    scene.fresh("restore")
    world, count, pauses = scene.world, bed.effort(3, 50), []
    for number in range(count):
        snapshot = world.begin()
        claim(snapshot.wait() == 0, f"snapshot {number}: {snapshot.text()}{snapshot.result}")
        for node in world.nodes:
            claim(snapshot.has_said(f"{world.node_name(node)} by https://{node.address}"), f"{node.name} was not stored by its agent: {snapshot.text()}")
        claim(snapshot.has_said("through this one: 0"), snapshot.text())
        torn = scene.writers.violations(world.counters())
        claim(not torn, f"snapshot {number}: torn: {torn}")
        pauses.append(world.run("show", f"{CLUSTER}/latest")["cut"]["pause_us"])
    keys = [key for chain in scene.writers.chains for key in chain]
    with Restored(world) as restored:
        found = restored.counters(keys)
        claim(len(found) == len(keys), f"{len(keys) - len(found)} counters are not in what was restored")
        torn = scene.writers.violations(found)
        claim(not torn, f"servers on restored data: torn: {torn}")
    # With nobody writing, what is restored is what is there, to the last byte of every value.
    scene.hush()
    wanted = []
    for node in world.nodes:
        with world.client(node) as client:
            wanted.append((digest(client), client.ask("DBSIZE")))
    world.snapshot()
    with Restored(world) as restored:
        loaded = [(digest(client), client.ask("DBSIZE")) for client in restored.clients]
    claim(loaded == wanted, f"what was restored is not what was stored: {loaded}, {wanted}")
    world.run("verify", CLUSTER, "--depth", "hashed", "--quiet")
    scene.write()
    return f"{count} snapshots under writers, 0 violations, median pause {sorted(pauses)[count // 2] / 1000:.1f} ms; digests equal after a restore"


RESTORE = ("restore", f"{CLUSTER}/latest", "--yes", "--confirm", CLUSTER)


def back(bed):
    """All nodes are restored in their places by the agents of their hosts; an agent that dies in it leaves all of them old or all restored."""
    scene = bed.near()
    scene.fresh("back")
    scene.hush()
    world = scene.world

    def mark(value):
        for shard, node in enumerate(world.nodes):
            with world.client(node) as client:
                client.ask("SET", key_on(shard, len(world.nodes), "mark"), value)

    def held():
        found = []
        for shard, node in enumerate(world.nodes):
            with world.client(node) as client:
                found.append(client.ask("GET", key_on(shard, len(world.nodes), "mark")).decode())
        return found

    def digests():
        found = []
        for node in world.nodes:
            with world.client(node) as client:
                found.append(digest(client))
        return found

    mark("stored")
    world.snapshot()
    wanted = digests()
    mark("newer")
    restored = world.command(*RESTORE)
    claim(restored.wait(300) == 0, f"the restore: {restored.text()}{restored.result}")
    world.wait_for_ring()
    claim(digests() == wanted, "what was restored in place is not what was stored")
    outcomes = []
    steps = ("stage", "stop", "swap", "start") * bed.effort(1, 5)
    for step in steps:
        mark("newer")
        restored = world.command(*RESTORE)
        claim(restored.comes_to(step), f"it never came to {step}: {restored.text()}")
        time.sleep(bed.random.uniform(0, 0.05))
        victim = bed.random.choice(world.nodes)
        world.kill_agent(victim)
        world.start_agent(victim)
        code = restored.wait(300)
        wait_until(90, f"{step}: all nodes answer", lambda: all(world.is_up(node) for node in world.nodes))
        world.wait_for_ring()
        value = "stored" if code == 0 else "newer"
        claim(held() == [value] * len(world.nodes), f"{step}, the agent of {victim.name} killed, exit code {code}: {held()}: {restored.text()}{restored.result}")
        outcomes.append(f"{step}: all {value}")
    world.run("settle", CLUSTER, "--yes", codes=(0, 4))
    scene.write()
    return f"six nodes restored in place, digests equal; an agent killed at {', '.join(outcomes)}"


def without_pause(scene, random):
    """The dumps of all masters, one after the other, and nobody held back: what a script of cron's would do."""
    found = {}
    for node in random.sample(scene.world.nodes, len(scene.world.nodes)):
        with scene.world.client(node) as client:
            client.ask("BGSAVE")
            wait_until(20, f"{node.name}: a save", lambda client=client: client.info("persistence")["rdb_bgsave_in_progress"] == "0", 0.002)
        with open(scene.world.path(node.name, "dump.rdb"), "rb") as file:
            found.update(counters(file.read()))
        time.sleep(random.uniform(0, SKEW_SECONDS))
    return found


def skew(bed):
    """Orders reach the nodes at different times: snapshots show one instant all the same, and dumps without a pause do not."""
    scene = bed.distant()
    scene.fresh("skew")
    count = bed.effort(4, 100)
    try:
        for number in range(count):
            places = {name: bed.random.uniform(0, SKEW_SECONDS) for name in scene.world.hosts}
            for name, seconds in places.items():
                scene.world.network.place(name, seconds)
            scene.good(f"snapshot {number} with {places}")
    finally:
        scene.world.network.round_trip(ROUND_TRIP_SECONDS)
    for tried in range(1, TRIES_WITHOUT_PAUSE + 1):
        torn = scene.writers.violations(without_pause(scene, bed.random))
        if torn:
            return f"{count} snapshots with skew, 0 violations; without a pause torn at try {tried}, {len(torn)} writers, such as {torn[0]}"
    claim(False, f"{TRIES_WITHOUT_PAUSE} times without a pause and nothing is torn: the harness does not see")


def far(bed):
    """20 ms of round trip on every connection."""
    scene = bed.distant()
    scene.fresh("far")
    count, pauses = bed.effort(3, 30), []
    for number in range(count):
        cut = scene.good(f"snapshot {number}")["cut"]
        claim(cut["pause_us"] <= PAUSE_SECONDS * 1e6, f"snapshot {number}: {cut}")
        # Every order and its answer pass the distance, or it is not there.
        claim(cut["pause_us"] >= 3 * ROUND_TRIP_SECONDS * 1e6, f"snapshot {number}: a pause that is too short for the distance: {cut}")
        pauses.append(cut["pause_us"])
    return f"{count} snapshots, 0 violations, median pause {sorted(pauses)[count // 2] / 1000:.1f} ms"


def agents(bed):
    """One agent is killed at each phase."""
    seen, longest = [], 0.0
    for scene, phase in rounds(bed):
        world = scene.world
        victim, is_partial = bed.random.choice(world.nodes), phase == "before" or bed.random.random() < 0.3
        scene.fresh(f"agents-{phase}", SLOW_UPLOAD if phase == "upload" else "")
        scene.good("the first snapshot")
        settings, since = world.settings(), time.monotonic()
        if phase == "before":
            world.kill_agent(victim)
        snapshot = world.begin(*(["--partial"] if is_partial else []))
        instant = scene.at(snapshot, phase)
        is_long = phase == "before" or (bed.is_full and bed.random.random() < 0.5)
        if phase != "before":
            world.kill_agent(victim)
        if is_long:
            # For good, as far as a snapshot is concerned: in an upload an agent counts as away after three quarters of a minute.
            snapshot.process.wait(90)
        else:
            # As soon as a supervisor would.
            time.sleep(bed.random.uniform(0.1, 1.5))
            world.start_agent(victim)
        what = f"agent of {victim.name} killed {instant}, partial {is_partial}"
        # All is stored when it is published, and an agent may be done before the others.
        codes = {"before": (3,), "publish": (0,)}.get(phase, (0, 1, 3) if is_partial else (0, 1))
        code = scene.fate(snapshot, codes, what)
        if code != 0:
            told = world.run("status", snapshot.uuid(), codes=(1, 3))["nodes"].get(world.node_name(victim), {})
            claim(told.get("status") in ("missing", "failed"), f"{what}: its status is {told}")
            claim(victim.address in snapshot.result + snapshot.text() + str(told), f"{what}: it is not named: {snapshot.result}")
        if is_long:
            world.start_agent(victim)
        wait = scene.settled(what, since, settings)
        longest = max(longest, wait)
        seen.append(f"{phase}{'+' if scene.world.is_distant else ''} {code}")
        tell(f"  {what}: ended with {code}, longest wait {wait:.2f} s")
    return f"exit codes {', '.join(seen)}; longest wait of a write {longest:.2f} s"


def hosts(bed):
    """One host is cut off at each phase, and comes back."""
    seen, longest = [], 0.0
    for scene, phase in rounds(bed):
        world = scene.world
        victim = bed.random.choice(world.nodes)
        # Away for good as far as a snapshot is concerned, or for a moment.
        is_long = phase == "before" or (bed.is_full and bed.random.random() < 0.5)
        scene.fresh(f"hosts-{phase}", SLOW_UPLOAD if phase == "upload" else "")
        scene.good("the first snapshot")
        settings, since = world.settings(), time.monotonic()
        try:
            if phase == "before":
                world.network.cut(victim.name)
            snapshot = world.begin()
            instant = scene.at(snapshot, phase)
            if phase != "before":
                world.network.cut(victim.name)
            if is_long:
                # It may be a long way: an agent counts as away in an upload only after three quarters of a minute.
                snapshot.process.wait(90)
            else:
                time.sleep(bed.random.uniform(1.0, 2.5))
        finally:
            world.network.mend(victim.name)
        what = f"{victim.name} cut off {instant}, {'until the end' if is_long else 'for a moment'}"
        # What holds no writes back outlives a moment.
        codes = {"before": (1,), "publish": (0,)}.get(phase, (0, 1) if phase in ("prepare", "pause") or is_long else (0,))
        code = scene.fate(snapshot, codes, what)
        if code != 0:
            claim(victim.address in snapshot.result + snapshot.text(), f"{what}: it is not named: {snapshot.result}{snapshot.text()}")
        world.wait_for_ring()
        wait = scene.settled(what, since, settings)
        longest = max(longest, wait)
        seen.append(f"{phase}{'+' if scene.world.is_distant else ''} {code}")
        tell(f"  {what}: ended with {code}, longest wait {wait:.2f} s at the server itself")
    return f"exit codes {', '.join(seen)}; longest wait of a write {longest:.2f} s"


def store(bed):
    """The object store is cut off during the upload, for a moment and for good."""
    scene, seen = bed.near(), []
    world = scene.world
    for number in range(bed.effort(2, 12)):
        is_long = number % 2 == 1
        # One try: it need not be waited for longer than for one.
        scene.fresh(f"store-{number}", SLOW_UPLOAD, 1 if is_long else 4)
        scene.good("the first snapshot")
        settings, since = world.settings(), time.monotonic()
        snapshot = world.begin()
        instant = scene.at(snapshot, "upload")
        began = time.monotonic()
        world.network.cut(STORE)
        try:
            if is_long:
                snapshot.process.wait(150)
            else:
                time.sleep(bed.random.uniform(2.0, 4.0))
        finally:
            world.network.mend(STORE)
        what = f"the object store cut off {instant}, {'until the end' if is_long else 'for a moment'}"
        code = scene.fate(snapshot, (1,) if is_long else (0, 1), what)
        took = time.monotonic() - began
        if code != 0:
            message = snapshot.error()["message"]
            claim(world.hosts[STORE].address in message or "store" in message, f"{what}: it does not say so: {message}")
            tell(f"  it said: {message}")
        scene.settled(what, since, settings)
        seen.append(f"{'long' if is_long else 'brief'} {code}")
        tell(f"  {what}: ended with {code} after {took:.1f} s")
    return f"exit codes {', '.join(seen)}"


def killed(bed, scene, phase):
    """A coordinator that is killed at a phase: what it was, and when."""
    scene.fresh(f"coordinator-{phase}", SLOW_UPLOAD if phase == "upload" else "")
    scene.good("the first snapshot")
    settings, since = scene.world.settings(), time.monotonic()
    snapshot = scene.world.begin()
    uuid = snapshot.uuid()
    instant = scene.at(snapshot, phase)
    snapshot.kill()
    snapshot.wait()
    return snapshot, uuid, f"coordinator killed {instant}", settings, since


def told(scene, uuid, host):
    """What `status` says of a run that died; nothing where nobody knows of it."""
    answer = scene.world.run("status", uuid, host=host, codes=(0, 1))
    if "error" in answer:
        claim(answer["error"]["code"] == "not_found", f"status {uuid}: {answer}")
        return None
    return answer["status"]


def coordinator(bed):
    """The coordinator is killed at each phase; another host respects its lease, and the same host knows that it is dead."""
    seen, longest = [], 0.0
    for scene, phase in rounds(bed):
        world = scene.world
        snapshot, uuid, what, settings, since = killed(bed, scene, phase)
        has_ended = snapshot.process.returncode == 0
        before = told(scene, uuid, SECOND)
        if before == "processing":
            refused = world.run("snapshot", CLUSTER, host=SECOND, codes=(1,))
            claim(CONTROL in refused["error"]["message"], f"{what}: another host is refused with {refused}")
        wait = scene.settled(what, since, settings, uuid)
        after = told(scene, uuid, SECOND)
        wanted = ["completed"] if uuid in world.listed() else ["failed", None] if before is None else ["failed"]
        claim(after in wanted, f"{what}: its status is {after}, and not {wanted}")
        longest = max(longest, wait)
        seen.append(f"{phase}{'+' if world.is_distant else ''} {after or 'unknown'}")
        tell(f"  {what}: ended {has_ended}, status {before}, then {after}; longest wait {wait:.2f} s")
    return f"status {', '.join(seen)}; longest wait of a write {longest:.2f} s"


def lease(bed):
    """The coordinator's host is gone with it: another host takes over when the lease is over."""
    seen, longest = [], 0.0
    scene = bed.distant()
    world = scene.world
    for phase in bed.effort(["pause"], list(PHASES)):
        snapshot, uuid, what, settings, since = killed(bed, scene, phase)
        ended = time.monotonic()
        world.network.cut(CONTROL)
        refusals = 0
        try:
            while True:
                second = world.begin(host=SECOND)
                code = second.wait(LEASE_SECONDS + 60)
                took = time.monotonic() - ended
                if code == 0:
                    break
                refusals += 1
                claim(CONTROL in second.error().get("message", ""), f"{what}: another host is refused with {second.result}{second.text()}")
                claim(took < LEASE_SECONDS, f"{what}: another host was still refused after {took:.0f} s: {second.result}")
                time.sleep(3)
        finally:
            world.network.mend(CONTROL)
        claim(took < LEASE_SECONDS + LEASE_MARGIN_SECONDS, f"{what}: another host had its snapshot only {took:.0f} s later")
        scene.expected[second.uuid()] = True
        after = told(scene, uuid, SECOND)
        claim(after in ("failed", "completed") or (after is None and phase == "before"), f"{what}: its status is {after}")
        claim((after == "completed") == (uuid in world.listed()), f"{what}: its status is {after}")
        wait = scene.settled(what, since, settings, uuid)
        longest = max(longest, wait)
        seen.append(f"{phase} {after} after {took:.0f} s")
        tell(f"  {what}: {refusals} refusals, another host had its snapshot {took:.0f} s later, status {after}; longest wait {wait:.2f} s")
    return f"{', '.join(seen)}; longest wait of a write {longest:.2f} s"


# In this order; those beside run in a world of their own while the others do, since they wait most of the time.
CASES = {case.__name__: case for case in (restore, back, skew, far, agents, hosts, store, coordinator, lease)}
BESIDE = ("back", "lease")
