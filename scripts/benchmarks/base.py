"""What all parts of the benchmark share: one run's directories and servers, its data, its table."""

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
TOOLS = os.path.join(PROJECT, "target/tools")
MIB = 1 << 20
RUNS = 3
ROWS = []


class Bench:
    """Directories, programs and servers of one run."""

    def __init__(self, is_full, programs, place):
        self.is_full, self.place = is_full, place
        self.tintype = os.path.join(programs, "tintype")
        self.servers = []
        with open(self.path("key"), "wb") as file:
            file.write(os.urandom(32))
        os.chmod(self.path("key"), 0o600)
        self.config = self.path("tintype.toml")
        self.configure("")

    def path(self, *parts):
        return os.path.join(self.place, *parts)

    def configure(self, more):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(f'state_directory = "{self.path("state")}"\n[repository]\nkey_file = "{self.path("key")}"\n{more}')
        os.chmod(self.config, 0o600)

    def run(self, repository, *arguments):
        """One command of tintype: its JSON, its seconds, the most memory it took in MiB."""
        command = [self.tintype, "--config", self.config, "--repository", repository, "--json", *arguments]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            began = time.monotonic()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - began
            out.seek(0)
            errors.seek(0)
            text = out.read().decode()
            if process.returncode != 0:
                raise RuntimeError(f"tintype {' '.join(arguments)}: {text or errors.read().decode()}")
        return (json.loads(text) if text.strip() else {}), seconds, usage.ru_maxrss / 1024

    def repository(self, name):
        place = self.path(name)
        shutil.rmtree(place, ignore_errors=True)
        self.run(place, "init")
        return place

    def file(self, name, megabytes):
        """A directory with one file, of the size of this run, out of pieces of one MiB."""
        directory = self.path(name)
        path = os.path.join(directory, "data")
        if not os.path.exists(path):
            os.makedirs(directory)
            with open(path, "wb") as out:
                for _ in range(2048 if self.is_full else 256):
                    out.write(next(megabytes))
                out.flush()
                os.fsync(out.fileno())
        return directory, path, os.path.getsize(path)

    def serve(self, command, port):
        """Starts a server and waits until it accepts connections."""
        log = open(self.path(f"log-{port}"), "wb")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.servers.append(process)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return process
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command[0]} does not start, see {log.name}")
                time.sleep(0.05)

    def end(self):
        for process in self.servers:
            process.kill()
            process.wait()


def noise():
    """Nothing to compress."""
    while True:
        yield os.urandom(MIB)


def digits():
    """1.6 times compressible, and the easiest work that a compressor can have: every other part of a run weighs more."""
    while True:
        yield os.urandom(384 << 10).hex().encode() + os.urandom(256 << 10)


def records():
    """What applications keep in such stores: records with fields, names, numbers and a token each."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 9))) for _ in range(5000)]
    pieces = []
    for _ in range(32):
        piece = bytearray()
        while len(piece) < MIB:
            key, name, token = chance.randrange(10**9), " ".join(chance.choices(words, k=2)), chance.randbytes(16).hex()
            items = ",".join(f'{{"sku":"{chance.choice(words)}-{chance.randrange(10**5)}","count":{chance.randint(1, 9)}}}' for _ in range(3))
            piece += (f'user:{key}{{"id":{key},"name":"{name}","mail":"{name.replace(" ", ".")}@example.org","token":"{token}",'
                      f'"seen":{chance.randrange(1_700_000_000, 1_800_000_000)},"cart":[{items}]}}').encode()
        pieces.append(bytes(piece[:MIB]))
    while True:
        # Farther apart than the compressor looks, and none is a block that was there.
        for piece in pieces:
            yield os.urandom(32) + piece[32:]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def timed(*command):
    began = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def row(what, figure, limit, wanted, is_good):
    ROWS.append((what, figure, limit, wanted, "yes" if is_good else "NO"))
    print(f"  {what}: {figure} ({limit}); wanted {wanted}", file=sys.stderr)


def speed(size, seconds):
    return f"{size / seconds / MIB:.0f} MiB/s"


def median_of_pairs(pairs):
    """Medians of limit and figure, and of their quotient in each pair."""
    limits, figures = zip(*pairs)
    return statistics.median(limits), statistics.median(figures), statistics.median(a / b for a, b in pairs)


def table():
    rows = [("figure", "measured", "limit", "wanted", "met"), *ROWS]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
