"""The mount beside its peers on a distant server: 30 ms to the first byte of each answer, 90 MB/s on each connection."""

import sys

from . import work
from .base import MIB, RUNS
from .figures import TOO_LONG, Figure, Figures
from .near import MEMORY_MIB, RANGE_BYTES, prepared, title
from .rig import FIRST_BYTE_MS, MEGABYTES_PER_SECOND, Attempts, Noise, drop_caches
from .systems import Mounted, Ours

# An open may ask for the table of a file, then for its first block, which takes its time on the line.
FIRST_BYTE_WANTED_MS = 2 * FIRST_BYTE_MS + 1000 * MIB / (MEGABYTES_PER_SECOND * 1e6) + 5

FIGURES = [
    Figure("mount", "mount to first ls", "ms", 1, is_more_better=False),
    Figure("first", "first byte of a cold open", "ms", 1, FIRST_BYTE_WANTED_MS, is_more_better=False),
    Figure("first-requests", "its requests", "", None, is_more_better=False),
    Figure("cold1", "cold sequential, one reader", "MB/s", 1),
    Figure("cold1", "of the bare client, 8 connections", "MB/s", 0.8, "bare, 8"),
    Figure("cold1", "of the bare client, 24 connections", "MB/s", 0.8, "bare, 24"),
    Figure("cold2", "two readers", "MB/s", 1),
    Figure("dropped", "again, page cache dropped", "MB/s", 1),
    Figure("fetched", "fetched, of what is stored", "", 1, 1.05, is_more_better=False, digits=3),
    Figure("requests", "requests of a sequential read", "", None, is_more_better=False),
    Figure("connections", "connections open at once", "", None),
    Figure("small", "many files of 64 KiB, cold", "s", 1, is_more_better=False, digits=2),
    Figure("list", "ls -l of a large directory, cold", "s", 1, is_more_better=False, digits=2),
    Figure("memory", "peak memory of the daemon", "MiB", 1, MEMORY_MIB, is_more_better=False),
]


class Round:
    """One round of one system, through a relay of its own, so that what it asked for can be counted."""

    def __init__(self, rig, data, figures, system, is_first, attempts):
        self.rig, self.data, self.figures, self.system, self.is_first, self.attempts = rig, data, figures, system, is_first, attempts
        self.memory = 0.0

    def add(self, key, value):
        self.figures.add(key, self.system.name, value)
        return value is not TOO_LONG

    def all(self):
        steps = [(self.first, "first"), (self.sequential, "cold1"), (self.parallel, "cold2")]
        # Tools that make a round trip for each file take minutes for these, and the same minutes each time.
        if self.is_first or isinstance(self.system, Ours):
            steps += [(self.small, "small"), (self.list, "list")]
        for step, key in steps:
            if self.figures.is_too_long(key, self.system.name):
                continue
            relay = self.rig.relay()
            try:
                self.attempts.attempt(step, relay)
            finally:
                relay.end()
                self.rig.relays.remove(relay)
        self.add("memory", self.memory)

    def mounted(self, data, relay):
        return Mounted(self.system, data, relay.port)

    def first(self, relay):
        with self.mounted("big", relay) as mounted:
            self.add("mount", mounted.seconds * 1000)
            before = relay.counts()["requests"]
            self.add("first", work.first_byte(mounted.path("data")) * 1000)
            self.add("first-requests", relay.counts()["requests"] - before)

    def sequential(self, relay):
        size = self.data.big_bytes
        stored = self.data.stored_bytes["big"] if isinstance(self.system, Ours) else size
        with self.mounted("big", relay) as mounted:
            before, path = relay.counts(), mounted.path("data")
            if self.add("cold1", work.sequential(path, size)):
                after = relay.counts()
                self.add("fetched", (after["answered_bytes"] - before["answered_bytes"]) / stored)
                self.add("requests", after["requests"] - before["requests"])
                self.add("connections", after["most_open"])
                drop_caches()
                self.add("dropped", work.sequential(path, size))
            self.memory = max(self.memory, mounted.peak_memory_mib())

    def parallel(self, relay):
        with self.mounted("big", relay) as mounted:
            self.add("cold2", work.sequential(mounted.path("data"), self.data.big_bytes, 2))
            self.memory = max(self.memory, mounted.peak_memory_mib())

    def small(self, relay):
        with self.mounted("small", relay) as mounted:
            self.add("small", work.all_files(mounted.directory))
            self.memory = max(self.memory, mounted.peak_memory_mib())

    def list(self, relay):
        with self.mounted("list", relay) as mounted:
            self.add("list", work.listing(mounted.directory))


def bare(rig, data, figures):
    relay = rig.relay()
    for connections in (8, 24):
        answer = rig.bare(relay.port, "big", "sequential", RANGE_BYTES, connections)
        figures.add("cold1", f"bare, {connections}", data.big_bytes / 1e6 / answer["seconds"])
    busy = relay.cpu_seconds() / (2 * data.big_bytes / (1 << 30))
    print(f"    the relay took {busy:.2f} s of CPU per GiB", file=sys.stderr)
    relay.end()
    rig.relays.remove(relay)


def measured(bench, examples, chosen):
    """All figures on the distant server, as a text, and how many failed."""
    rig, data, found = prepared(bench, examples, chosen)
    figures = Figures(title(data).replace("Near", "Distant", 1), "tintype", [peer.name for peer in found])
    noise, attempts = Noise(), Attempts()
    try:
        for number in range(RUNS):
            for system in [Ours(bench, rig), *found]:
                print(f"  round {number + 1}: {system.name}", file=sys.stderr, flush=True)
                noise.sample()
                Round(rig, data, figures, system, number == 0, attempts).all()
            attempts.attempt(bare, rig, data, figures)
    finally:
        rig.end()
    return figures.table(FIGURES) + f"\n\nNoise: {noise}.\n", attempts.failures
