"""Restoring by copy beside the commands that others copy with, from one server with the same data onto the same disk.

Each begins with an empty directory and an empty page cache, and is done when everything is on the disk: `sync` is part of it.
Each round begins with another tool: whoever comes after one that wrote gigabytes through the page cache finds pages there that
the machine need not be given again.
"""

import os
import shutil
import subprocess
import sys
import time

from . import work
from .base import MIB, RUNS, TOOLS
from .figures import Figure, Figures
from .near import RANGE_BYTES, prepared
from .rig import Attempts, Noise, drop_caches, rclone_program
from .systems import Rclone, Restic

SETS = {"big": "one file", "real": "dump and tables", "small": "many files of 64 KiB"}
PEERS = ["aws", "rclone", "restic"]
WANTED = 0.7
TEXTS = [(f"restore of {text}, with sync", name) for name, text in SETS.items()]
FIGURES = [Figure(name, text, "MB/s", 1) for text, name in TEXTS]
FIGURES += [Figure(name, f"the same, of {peer} alone", "MB/s", 1, peer) for _, name in TEXTS for peer in PEERS]
FIGURES.append(Figure("big", "one file, of the smaller of client and disk", "MB/s", WANTED, "limit"))


def commands(bench, rig, name, target):
    """What each tool copies a set of the data with."""
    repository = rig.repository(rig.port)
    rclone = Rclone(bench, rig, "rclone").command("-", bench.path("rclone-cache"), rig.port)
    found = {
        "tintype": [bench.tintype, "--config", bench.config, "--repository", repository, "-q", "restore", f"{name}/latest/{name}",
                    "--directory", target],
        # Its own default of ten requests at once.
        "aws": [os.path.join(TOOLS, "peers/bin/aws"), "--endpoint-url", f"http://127.0.0.1:{rig.port}", "s3", "cp", "--recursive", "--only-show-errors", f"s3://plain/{name}",
                target],
        "rclone": [rclone[0], *rclone[1:rclone.index("mount")], "copy", f"store:plain/{name}", target],
        "restic": ["restic", "-q", "-r", Restic(bench, rig, "restic").repository(rig.port), "--cache-dir", bench.path("restic-cache"), "restore",
                   "latest", "--include", f"/{name}", "--target", target],
    }
    return {tool: command for tool, command in found.items() if tool == "tintype" or shutil.which(command[0]) or os.path.exists(command[0])}


def copied(bench, rig, data, figures, tool, name, sums):
    target = bench.path("target")
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    drop_caches()
    command = commands(bench, rig, name, target)[tool]
    began = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", "-f", target], check=True)
    figures.add(name, tool, data.size(name) / 1e6 / (time.monotonic() - began))
    if (tool, name) not in sums:
        # Older versions of restic know no folders of a snapshot, only what is to be taken of it.
        sums[tool, name] = work.content(os.path.join(target, name) if tool == "restic" else target)
        if sums[tool, name] != sums.setdefault(("source", name), work.content(os.path.join(data.plain, name))):
            raise RuntimeError(f"{tool}: {name} has OTHER BYTES than what was stored")
    shutil.rmtree(target)


def limit(bench, rig, data, figures):
    """The smaller of what the S3 client alone fetches and what the disk takes."""
    answer = rig.bare(rig.port, "big", "sequential", RANGE_BYTES, 8)
    fetched = data.big_bytes / 1e6 / answer["seconds"]
    target = bench.path("written")
    os.sync()
    began = time.monotonic()
    subprocess.run(["dd", f"if={os.path.join(data.plain, 'big', 'data')}", f"of={target}", "bs=4M", "conv=fsync"], check=True, stderr=subprocess.DEVNULL)
    written = data.big_bytes / 1e6 / (time.monotonic() - began)
    os.remove(target)
    figures.add("big", "bare client", fetched)
    figures.add("big", "disk", written)
    figures.add("big", "limit", min(fetched, written))


def measured(bench, examples, chosen):
    """All figures, as a text, and how many failed."""
    rig, data, _ = prepared(bench, examples, chosen or ["restic"])
    figures, noise, attempts, sums = Figures(title(data), "tintype", PEERS), Noise(), Attempts(), {}
    try:
        for number in range(RUNS):
            for name in SETS:
                tools = list(commands(bench, rig, name, "-"))
                for tool in tools[number:] + tools[:number]:
                    print(f"  round {number + 1}: {tool} {name}", file=sys.stderr, flush=True)
                    noise.sample()
                    attempts.attempt(copied, bench, rig, data, figures, tool, name, sums)
            attempts.attempt(limit, bench, rig, data, figures)
    finally:
        rig.end()
    return figures.table(FIGURES) + f"\n\nNoise: {noise}.\n", attempts.failures


def title(data):
    return (f"Restore by copy: a file of {data.big_bytes // MIB} MiB, dump and tables of {data.size('real') // MIB} MiB (stored as "
            f"{data.stored_bytes['real'] // MIB}), {data.small_files} files of 64 KiB; medians of {RUNS}")
