"""What all cases share: worlds with writers at work, instants that are drawn, and what has to hold after every fault."""

import contextlib
import os
import random
import shutil
import sys
import tempfile
import time

from .network import wait_until
from .world import CLIENTS, CLUSTER, PAUSE_SECONDS, World
from .writers import Writers

# A server looks for the end of its pause ten times a second, and the machine is busy with ten hosts.
MARGIN_SECONDS = 1.0
ROUND_TRIP_SECONDS = 0.02
# Each comes after its word: at most so late in the near world and in the distant one.
PHASES = {
    "before": None,
    "prepare": ("preparing", 0.15, 0.6),
    "pause": ("pausing writes", 0.03, 0.1),
    "upload": ("storing", 0.8, 1.0),
    "publish": ("publishing", 0.06, 0.5),
}
# Two megabytes of a node take two seconds then: an upload that is long enough to be hit.
SLOW_UPLOAD = 'limits = { bandwidth = "1MiB" }'


class Failed(Exception):
    """A claim that does not hold."""


def claim(is_so, what):
    if not is_so:
        raise Failed(what)


class Scene:
    """A world with writers in it."""

    def __init__(self, bed, place, is_distant):
        self.bed, self.world = bed, World(bed.tools, place, is_distant)
        self.writers = None
        self.expected = {}
        try:
            if is_distant:
                self.world.network.round_trip(ROUND_TRIP_SECONDS)
            self.write()
        except BaseException:
            self.end()
            raise

    def write(self):
        """Writers begin, or begin again."""
        if not self.writers:
            self.writers = Writers(self.world.hosts[CLIENTS], self.world.nodes, self.bed.seed, self.world.path("writers.log"))

    def hush(self):
        """No writer writes any more."""
        self.writers.stop()
        self.writers = None

    def fresh(self, name, limits="", tries=4):
        self.world.fresh(name, limits, tries)
        self.expected = {}

    def end(self):
        if self.writers:
            self.writers.end()
        self.world.end()

    def at(self, snapshot, phase):
        """Waits for an instant of a phase, which is drawn; says which."""
        if PHASES[phase] is None:
            return "before it began"
        word, near, far = PHASES[phase]
        delay = self.bed.random.uniform(0, far if self.world.is_distant else near)
        began = snapshot.said(word)
        time.sleep(max(0.0, began + delay - time.monotonic()))
        return f"{delay * 1000:.1f} ms after {word!r}"

    def good(self, what, *arguments, host="control"):
        """A snapshot that has to succeed and to be of one instant."""
        report = self.world.snapshot(*arguments, host=host)
        claim(report["cut"]["consistent"] == "proved", f"{what}: the cut is {report['cut']}")
        self.expected[report["uuid"]] = True
        torn = self.writers.violations(self.world.counters()) if self.writers else []
        claim(not torn, f"{what}: torn: {torn}")
        return report

    def settled(self, what, since, settings, is_listed=None):
        """What holds after every fault: nothing is paused or changed, no write waited too long, what is listed is whole, and the
        next snapshot succeeds. `is_listed` is the UUID of one that may have been published or not. Returns the longest wait."""
        world = self.world
        for node in world.nodes:
            with world.client(node, PAUSE_SECONDS + MARGIN_SECONDS) as client:
                client.ask("PUBLISH", "taken", "again")
                # Who ended the pause by a command may be about to hang up.
                wait_until(1, f"{what}: {node.name} is thawed", lambda client=client: b"name=tintype-frozen" not in client.ask("CLIENT", "LIST"))
        longest = max(self.writers.waits(since)["local"].values(), default=0.0)
        claim(longest <= PAUSE_SECONDS + MARGIN_SECONDS, f"{what}: a write waited {longest:.2f} s")
        # Nothing that is of one instant because nobody wrote: a connection over a link that was down takes a while to notice.
        rounds = self.writers.waits(since)["rounds"]
        wait_until(30, f"{what}: the writers go on", lambda: all(
            now > before + 1 for now, before in zip(self.writers.waits(since)["rounds"], rounds)))
        # Sent before the fault, a command may be executed a little later.
        wait_until(5, f"{what}: settings as they were", lambda: world.settings() == settings)
        listed = world.listed()
        if is_listed and is_listed in listed:
            self.expected[is_listed] = listed[is_listed]
        claim(listed == self.expected, f"{what}: listed are {listed}, and not {self.expected}")
        if listed:
            world.run("verify", f"{CLUSTER}/latest" if any(listed.values()) else CLUSTER, "--depth", "hashed", "--quiet")
        self.good(f"{what}: the next snapshot")
        return longest

    def fate(self, snapshot, codes, what):
        """Waits for a snapshot that something happened to. An exit code that says failure comes with a reason."""
        code = snapshot.wait()
        claim(code in codes, f"{what}: it ended with {code}: {snapshot.result}{snapshot.text()}")
        if code == 1:
            claim(snapshot.error().get("message"), f"{what}: a failure without a reason: {snapshot.result}")
        if code in (0, 3):
            self.expected[snapshot.uuid()] = code == 0
        return code


class Bed:
    """What a run has: programs, a seed, and worlds that are made when a case first wants them."""

    def __init__(self, tools, place, seed, is_full):
        self.tools, self.place, self.seed, self.is_full = tools, place, seed, is_full
        self.random = random.Random(seed)
        self.scenes = {}

    def fork(self):
        """Another bed, for a case that runs beside the others."""
        return Bed(self.tools, tempfile.mkdtemp(prefix="beside-", dir=self.place), self.random.getrandbits(32), self.is_full)

    def effort(self, small, full):
        return full if self.is_full else small

    def scene(self, is_distant):
        if is_distant not in self.scenes:
            place = os.path.join(self.place, "distant" if is_distant else "near")
            os.makedirs(place)
            self.scenes[is_distant] = Scene(self, place, is_distant)
        return self.scenes[is_distant]

    def near(self):
        return self.scene(False)

    def distant(self):
        return self.scene(True)

    def forget(self):
        """After a failure nobody knows what state they are in."""
        for scene in self.scenes.values():
            scene.end()
            shutil.rmtree(scene.world.place, ignore_errors=True)
        self.scenes = {}

    def end(self):
        self.forget()

    @contextlib.contextmanager
    def explained(self):
        """What the agents of a world wrote is shown where a case did not pass."""
        try:
            yield
        except Exception:
            for scene in self.scenes.values():
                for node in scene.world.nodes:
                    tell(f"  -- {node.name}: {scene.world.log(node, 'agent')}")
            raise


BEGAN = time.monotonic()


def tell(text):
    print(f"{time.monotonic() - BEGAN:6.1f} s {text}", file=sys.stderr, flush=True)
