"""The mount beside its peers on a near server, where nothing but their own work takes time."""

import os
import shutil
import sys

from . import work
from .base import MIB, RUNS
from .data import Data
from .figures import TOO_LONG, Figure, Figures
from .rig import Attempts, Noise, Rig, drop_caches
from .systems import Disk, Mounted, Ours, Restic, peers

# What the mount promises to take: its memory for blocks, and the rest of it.
MEMORY_MIB = 256 + 32
# Bytes that a mount asks for at once.
RANGE_BYTES = 4 * MIB
BLOCK_BYTES = 64 << 10
COLD_READS = 400

FIGURES = [
    Figure("mount", "mount to first ls", "ms", 1, is_more_better=False),
    Figure("cold1", "cold sequential, one reader", "MB/s", 1),
    Figure("cold2", "the same, two readers", "MB/s", 1),
    Figure("cold4", "the same, four readers", "MB/s", 1),
    Figure("cold1", "one reader, of the bare client", "MB/s", 0.8, "bare client"),
    Figure("real", "cold sequential, dump and tables", "MB/s", 1),
    Figure("cpu", "daemon's CPU per GiB, cold", "s", 1, is_more_better=False, digits=2),
    Figure("again", "sequential again", "MB/s", 0.8, "disk"),
    Figure("dropped", "again, page cache dropped", "MB/s", 1),
    Figure("kept", "the same, with a cache on the disk", "MB/s", 0.8, "disk"),
    Figure("random-cold-iops", "4 KiB at random, cold", "reads/s", 1),
    # Peers that fetch megabytes at a time find most reads fetched, and wait long for the others: their medians say little.
    Figure("random-cold-p50", "its median, of one GET of a block", "us", 0.7, "bare client", is_more_better=False),
    Figure("random-cold-p99", "its 99th percentile", "us", 1, is_more_better=False),
    Figure("random-cold-p99", "its 99th percentile, of one GET", "us", 0.7, "bare client", is_more_better=False),
    Figure("random-big-iops", "4 KiB at random in the big file, cold", "reads/s", 1),
    Figure("random-warm-iops", "4 KiB at random, warm", "reads/s", 0.8, "disk"),
    Figure("small", "many files of 64 KiB, cold", "s", 1, is_more_better=False, digits=2),
    Figure("list", "ls -l of a large directory, cold", "s", 1, is_more_better=False, digits=2),
    Figure("list-again", "ls -l again", "s", 1, is_more_better=False, digits=2),
    Figure("memory", "peak memory of the daemon", "MiB", 1, MEMORY_MIB, is_more_better=False),
]


class Round:
    """One round of one system: a value for each figure, mounted anew for each that is to be cold."""

    def __init__(self, data, figures, system, port, sums, attempts):
        self.data, self.figures, self.system, self.port, self.sums, self.attempts = data, figures, system, port, sums, attempts
        self.memory = 0.0

    def is_hopeless(self, key):
        return self.figures.is_too_long(key, self.system.name)

    def add(self, key, value):
        self.figures.add(key, self.system.name, value)
        return value is not TOO_LONG

    def mounted(self, data, **more):
        return Mounted(self.system, data, self.port, **more)

    def leave(self, mounted):
        self.memory = max(self.memory, mounted.peak_memory_mib())

    def same(self, name, mounted):
        """Compares all bytes with the source, once for each system."""
        done = self.sums.setdefault(self.system.name, set())
        if name in done:
            return
        done.add(name)
        if name not in self.sums:
            self.sums[name] = work.content(os.path.join(self.data.plain, name))
        if work.content(mounted.directory) != self.sums[name]:
            raise RuntimeError(f"{self.system.name}: {name} has OTHER BYTES than what was stored")

    def all(self):
        for step in (self.sequential, self.parallel, self.real, self.random, self.small, self.list):
            self.attempts.attempt(step)
        if self.system.is_mounted:
            self.add("memory", self.memory)

    def sequential(self):
        if self.is_hopeless("cold1"):
            return
        size = self.data.big_bytes
        with self.mounted("big") as mounted:
            if self.system.is_mounted:
                self.add("mount", mounted.seconds * 1000)
            path, before = mounted.path("data"), mounted.cpu_seconds()
            if not self.add("cold1", work.sequential(path, size)):
                return
            if self.system.is_mounted:
                self.add("cpu", (mounted.cpu_seconds() - before) / (size / (1 << 30)))
            self.add("again", work.sequential(path, size))
            drop_caches()
            self.add("dropped", work.sequential(path, size))
            self.leave(mounted)
            self.same("big", mounted)

    def parallel(self):
        for readers in (2, 4):
            if self.is_hopeless(f"cold{readers}"):
                continue
            with self.mounted("big") as mounted:
                self.add(f"cold{readers}", work.sequential(mounted.path("data"), self.data.big_bytes, readers))
                self.leave(mounted)

    def real(self):
        if self.is_hopeless("real"):
            return
        with self.mounted("real") as mounted:
            seconds = work.all_files(mounted.directory)
            self.add("real", seconds and self.data.size("real") / 1e6 / seconds)
            self.leave(mounted)
            self.same("real", mounted)

    def random(self):
        if not shutil.which("fio") or self.is_hopeless("random-cold-iops"):
            return
        with self.mounted("random") as mounted:
            answer = work.random_reads(mounted.directory, count=COLD_READS)
            for key, value in zip(("random-cold-p50", "random-cold-p99", "random-cold-iops"), answer or (TOO_LONG,) * 3):
                self.add(key, value)
            if not self.is_hopeless("random-warm-iops") and work.all_files(mounted.directory) is not None:
                answer = work.random_reads(mounted.directory, seconds=2)
                self.add("random-warm-iops", answer and answer[2])
            self.leave(mounted)
        with self.mounted("big") as mounted:
            answer = work.random_reads(mounted.directory, count=COLD_READS)
            self.add("random-big-iops", answer and answer[2])
            self.leave(mounted)

    def small(self):
        if self.is_hopeless("small"):
            return
        with self.mounted("small") as mounted:
            if self.add("small", work.all_files(mounted.directory)):
                self.same("small", mounted)
            self.leave(mounted)

    def list(self):
        if self.is_hopeless("list"):
            return
        with self.mounted("list") as mounted:
            if self.add("list", work.listing(mounted.directory)):
                self.add("list-again", work.listing(mounted.directory))
            self.leave(mounted)


def kept_on_disk(data, figures, rig, bench, port):
    """The mount with a cache on the disk, mounted again with nothing in memory, and the disk alone."""
    system = Ours(bench, rig, "tintype-cache", disk_bytes=2 * data.big_bytes)
    with Mounted(system, "big", port) as mounted:
        path = mounted.path("data")
        # What the disk is too slow for is not kept: reading goes on until all is there.
        for _ in range(10):
            work.sequential(path, data.big_bytes)
            if int(os.getxattr(path, "user.tintype.cached_bytes")) >= data.big_bytes:
                break
            drop_caches()
        else:
            print("  the cache on the disk is not whole after ten readings", file=sys.stderr)
    with Mounted(system, "big", port, keep_cache=True) as mounted:
        figures.add("kept", "tintype", work.sequential(mounted.path("data"), data.big_bytes))
    with Mounted(Disk(bench, rig, "disk"), "big", port) as mounted:
        figures.add("kept", "disk", work.sequential(mounted.path("data"), data.big_bytes))


def bare(data, figures, rig, port):
    sequential = max((rig.bare(port, "big", "sequential", RANGE_BYTES, connections) for connections in (4, 8)),
                     key=lambda answer: answer["bytes"] / answer["seconds"])
    # In bytes of the file, as the mount's.
    figures.add("cold1", "bare client", data.big_bytes / 1e6 / sequential["seconds"])
    one = rig.bare(port, "random", "random", BLOCK_BYTES, COLD_READS)
    figures.add("random-cold-p50", "bare client", one["p50_us"])
    figures.add("random-cold-p99", "bare client", one["p99_us"])


def prepared(bench, examples, chosen):
    """A rig with all data in it, and the systems to be measured."""
    rig = Rig(bench, examples)
    try:
        found = [peer for peer in peers(bench, rig) if not chosen or peer.name in chosen]
        data = Data(bench, rig)
        data.make()
        for peer in found:
            if isinstance(peer, Restic):
                peer.store(data.plain)
    except BaseException:
        rig.end()
        raise
    return rig, data, found


def measured(bench, examples, chosen):
    """All figures on the near server, as a text, and how many failed."""
    rig, data, found = prepared(bench, examples, chosen)
    figures, noise, attempts, sums = Figures(title(data), "tintype", [peer.name for peer in found]), Noise(), Attempts(), {}
    try:
        for number in range(RUNS):
            for system in [Ours(bench, rig), *found, Disk(bench, rig, "disk")]:
                print(f"  round {number + 1}: {system.name}", file=sys.stderr, flush=True)
                noise.sample()
                Round(data, figures, system, rig.port, sums, attempts).all()
            attempts.attempt(bare, data, figures, rig, rig.port)
            attempts.attempt(kept_on_disk, data, figures, rig, bench, rig.port)
    finally:
        rig.end()
    return figures.table(FIGURES) + f"\n\nNoise: {noise}.\n", attempts.failures


def title(data):
    real = data.size("real")
    return (f"Near server: a file of {data.big_bytes // MIB} MiB, dump and tables of {real // MIB} MiB (stored as "
            f"{data.stored_bytes['real'] // MIB}), {data.random_files} files of 4 MiB for random reads, {data.small_files} of 64 KiB, "
            f"a directory of {data.listed_files:,} entries; medians of {RUNS}")
