"""Clones beside the local disk: how soon they are there, how fast they are written, how soon a store answers on one."""

import os
import shutil
import socket
import statistics
import subprocess
import time

from .base import MIB, RUNS, TOOLS, free_port, median_of_pairs, noise, records, row, speed, timed

PYTHON = os.path.join(TOOLS, "venv/bin/python")

# Keys in their order, values of 4 KiB that do not compress: 64 KiB blocks, tables of some MiB.
MAKE = """
import os, sys, rocksdict
options = rocksdict.Options(raw_mode=True)
options.create_if_missing(True)
db = rocksdict.Rdict(sys.argv[1], options)
noise = os.urandom(64 << 20)
for number in range(int(sys.argv[2])):
    start = number * 4099 % (len(noise) - 4096)
    db.put(b"%012d" % number, noise[start:start + 4096])
db.flush()
db.compact_range(None, None)
db.close()
"""
ASK = """
import sys, rocksdict
db = rocksdict.Rdict(sys.argv[1], rocksdict.Options(raw_mode=True))
for number in (0, int(sys.argv[2]) // 2, int(sys.argv[2]) - 1):
    assert len(db.get(b"%012d" % number)) == 4096
"""


class Clone:
    """A clone that is there for one measurement."""

    def __init__(self, bench, repository, source):
        self.bench, self.repository, self.place = bench, repository, bench.path("clone")
        answer, self.seconds, _ = bench.run(repository, "clone", source, self.place)
        self.process = answer["process"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bench.run(self.repository, "unclone", self.place, "--yes")

    def read_bytes(self):
        """What its process has read, of the repository above all."""
        with open(f"/proc/{self.process}/io", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("rchar"))


def clone(bench):
    directory, path, size = bench.file("random", noise())
    for number in range(15_000 if bench.is_full else 1000):
        with open(os.path.join(directory, f"{number:06}"), "wb") as file:
            file.write(b"small")
    repository = bench.repository("clone-repository")
    bench.run(repository, "snapshot", "files", "--files", directory)
    made, listed = [], []
    for _ in range(RUNS):
        with Clone(bench, repository, "files/latest/random") as there:
            made.append(there.seconds)
            listed.append(timed("ls", "-l", there.place))
    seconds = statistics.median(made)
    row(f"a clone of {size // MIB} MiB and {len(os.listdir(directory)) - 1} files", f"{seconds * 1000:.0f} ms",
        f"first ls -l {statistics.median(listed) * 1000:.0f} ms", "under 300 ms", seconds < 0.3)
    written(bench, repository)
    appended(bench, repository)
    opened(bench)
    loaded(bench)


def written(bench, repository):
    total = 1024 if bench.is_full else 256
    for passthrough, wanted in ((True, 0.8), (False, 0.25)):
        bench.configure("" if passthrough else "[mount]\npassthrough = false\n")
        pairs = []
        with Clone(bench, repository, "files/latest/random") as there:
            # The first pair gives the machine the pages that the others use again: it does not count.
            for _ in range(RUNS + 2):
                pairs.append([])
                for place in (bench.path("written"), os.path.join(there.place, "written")):
                    pairs[-1].append(timed("dd", "if=/dev/zero", f"of={place}", "bs=1M", f"count={total}"))
                    os.unlink(place)
        pairs = pairs[1:]
        limit, seconds, share = median_of_pairs(pairs)
        how = "by the kernel itself" if passthrough else "through the process"
        row(f"write {total} MiB to a new file, {how}", speed(total * MIB, seconds), f"the disk's {speed(total * MIB, limit)}",
            f"{wanted} of it, is {share:.2f}", share >= wanted)
    bench.configure("")


class Redis:
    """A server on a directory."""

    def __init__(self, bench, directory, *options):
        self.bench, self.port = bench, free_port()
        began = time.monotonic()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", directory, "--save", "", *options]
        self.process = bench.serve(command, self.port)
        while self.ask(b"PING\r\n") != b"+PONG\r\n":
            time.sleep(0.005)
        self.seconds = time.monotonic() - began

    def ask(self, command):
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            connection.settimeout(30)
            connection.sendall(command)
            return connection.recv(1 << 16)

    def fill(self, keys):
        """Values of 250 bytes as applications have them, and what is left of them in a dump."""
        pieces, chunk = records(), b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n"
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            for first in range(0, keys, MIB // 250):
                piece = next(pieces)
                for number in range(first, min(first + MIB // 250, keys)):
                    at = (number - first) * 250
                    chunk += b"*3\r\n$3\r\nSET\r\n$12\r\n%012d\r\n$250\r\n%b\r\n" % (number, piece[at:at + 250])
                connection.sendall(chunk)
                chunk = b""
            connection.sendall(chunk + b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$2\r\nON\r\n*1\r\n$4\r\nSAVE\r\n")
            answer = b""
            while answer != b"+OK\r\n+OK\r\n":
                answer += connection.recv(64)

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.bench.servers.remove(self.process)


def appended(bench, repository):
    count = 200_000 if bench.is_full else 50_000

    def sets(directory):
        server = Redis(bench, directory, "--appendonly", "yes", "--appendfsync", "everysec")
        took = timed("redis-benchmark", "-p", str(server.port), "-t", "set", "-n", str(count), "-d", "200", "-q")
        server.end()
        return took

    pairs = []
    for _ in range(RUNS):
        plain = bench.path("plain-redis")
        os.makedirs(plain)
        limit = sets(plain)
        shutil.rmtree(plain)
        with Clone(bench, repository, "files/latest/random") as there:
            inside = os.path.join(there.place, "redis")
            os.makedirs(inside)
            pairs.append((limit, sets(inside)))
    limit, seconds, share = median_of_pairs(pairs)
    row(f"redis-benchmark SET, AOF each second, {count} times", f"{count / seconds:.0f}/s", f"plain directory {count / limit:.0f}/s",
        f"0.9 of it, is {share:.2f}", share >= 0.9)


def opened(bench):
    count = (10 << 30 if bench.is_full else 256 << 20) // 4096
    directory = bench.path("rocksdb")
    subprocess.run([PYTHON, "-c", MAKE, directory, str(count)], check=True)
    size = sum(entry.stat().st_size for entry in os.scandir(directory))
    repository = bench.repository("rocksdb-repository")
    bench.run(repository, "snapshot", "stores", "--files", directory)
    seconds, read = [], []
    for _ in range(RUNS):
        began = time.monotonic()
        with Clone(bench, repository, "stores/latest/rocksdb") as there:
            subprocess.run([PYTHON, "-c", ASK, there.place, str(count)], check=True)
            seconds.append(time.monotonic() - began)
            read.append(there.read_bytes() / size)
    took, share = statistics.median(seconds), statistics.median(read)
    row(f"clone of a RocksDB of {size // MIB} MiB until it answered thrice", f"{took:.2f} s", f"{share * 100:.2f} % of the bytes",
        "3 s and 2 %", took < 3 and share < 0.02)
    linked(bench, repository, size, count)


def process_of_clone(clone):
    """Who serves a clone."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/cmdline", "rb") as file:
                if f"--clone\0{clone}\0".encode() in file.read():
                    return int(number)
        except OSError:
            pass  # it has ended
    raise RuntimeError(f"nobody serves the clone {clone}")


def linked(bench, repository, size, count):
    """The same directory restored by links: from the command to the third answer, and until every file is local."""
    seconds, read, hydrated = [], [], []
    for _ in range(RUNS):
        place = bench.path("linked")
        began = time.monotonic()
        bench.run(repository, "restore", "stores/latest/rocksdb", "--directory", place, "--method", "link", "--no-hydrate")
        subprocess.run([PYTHON, "-c", ASK, place, str(count)], check=True)
        seconds.append(time.monotonic() - began)
        answer, _, _ = bench.run(repository, "clones")
        process = process_of_clone(answer["clones"][0]["clone"]["id"])
        own = sum(entry.stat().st_size for entry in os.scandir(place) if not entry.is_symlink())
        with open(f"/proc/{process}/io", encoding="utf-8") as file:
            read.append((next(int(line.split()[1]) for line in file if line.startswith("rchar")) + own) / size)
        _, took, _ = bench.run(repository, "hydrate", place)
        hydrated.append(took)
        shutil.rmtree(place)
    took, share = statistics.median(seconds), statistics.median(read)
    row(f"restore by links of a RocksDB of {size // MIB} MiB until it answered thrice", f"{took:.2f} s", f"{share * 100:.2f} % of the bytes",
        "3 s and 2 %", took < 3 and share < 0.02)
    row("the same, until every file was local", f"{statistics.median(hydrated):.2f} s", speed(size, statistics.median(hydrated)), "-", True)


def loaded(bench):
    keys = 1_000_000 if bench.is_full else 100_000
    directory = bench.path("dump")
    os.makedirs(directory)
    server = Redis(bench, directory)
    server.fill(keys)
    server.end()
    repository = bench.repository("dump-repository")
    bench.run(repository, "snapshot", "dumps", "--files", directory)
    pairs, cold, restored = [], [], []
    for _ in range(RUNS):
        copied = bench.path("copied")
        _, seconds, _ = bench.run(repository, "restore", "dumps/latest/dump", "--directory", copied, "--yes")
        server = Redis(bench, copied)
        server.end()
        restored.append(seconds + server.seconds)
        shutil.rmtree(copied)
        with Clone(bench, repository, "dumps/latest/dump") as there:
            first = Redis(bench, there.place)
            first.end()
            cold.append(there.seconds + first.seconds)
            plain = Redis(bench, directory)
            plain.end()
            again = Redis(bench, there.place)
            again.end()
            pairs.append((again.seconds, plain.seconds))
    again, plain, share = median_of_pairs(pairs)
    cold, restored = statistics.median(cold), statistics.median(restored)
    row(f"Redis with {keys} keys on a clone, read once before", f"{again:.2f} s", f"local disk {plain:.2f} s",
        f"1.15 of it, is {share:.2f}", share <= 1.15)
    row("the same, clone and start, cold", f"{cold:.2f} s", f"restore and start {restored:.2f} s", "sooner", cold < restored)


CASES = [clone]
