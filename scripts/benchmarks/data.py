"""The data that mounts are read from: plain objects, the project's repository, a restic repository, files on the disk.

All of it is made from the same files, which lie in the bucket `plain`, since an object of the rig is a file.
"""

import os
import resource
import shutil
import subprocess
import sys

from .base import MIB, TOOLS, free_port, noise, records

# Descriptors that a snapshot needs besides those of the captured files.
DESCRIPTORS_RESERVED = 400
FILES_WANTED = 32_768
RANDOM_FILE_BYTES = 4 * MIB


class Data:
    """Sizes of a run, and the files in their places."""

    def __init__(self, bench, rig):
        self.bench, self.rig = bench, rig
        self.plain = os.path.join(rig.ram, "plain")
        is_full = bench.is_full
        self.big_bytes = (2048 if is_full else 256) * MIB
        self.random_files = 256 if is_full else 32
        self.small_files = 2000 if is_full else 200
        self.listed_files = min(20_000 if is_full else 1000, open_files_max() - DESCRIPTORS_RESERVED)
        self.real_bytes = (1024 if is_full else 128) * MIB
        self.stored_bytes = {}

    def make(self):
        self.write("big", [("data", self.big_bytes)])
        # The longest files that are stored in blocks of 64 KiB.
        self.write("random", [(f"{number:04}", RANDOM_FILE_BYTES) for number in range(self.random_files)])
        self.write("small", [(f"{number:05}.sst", 64 << 10) for number in range(self.small_files)])
        self.write("list", [(f"{number:05}", 16) for number in range(self.listed_files)])
        os.makedirs(os.path.join(self.plain, "real"))
        self.dump(os.path.join(self.plain, "real"))
        self.tables(os.path.join(self.plain, "real"))
        for name in sorted(os.listdir(self.plain)):
            print(f"  storing {name}", file=sys.stderr, flush=True)
            if name == "big":
                self.bench.run(self.rig.repository(self.rig.port), "init")
            answer, _, _ = self.bench.run(self.rig.repository(self.rig.port), "snapshot", name, "--files", os.path.join(self.plain, name))
            self.stored_bytes[name] = answer["stored_bytes"]
        # On the disk, and not only on its way there.
        shutil.copytree(self.plain, self.bench.path("disk"))
        os.sync()

    def write(self, name, files):
        directory = os.path.join(self.plain, name)
        os.makedirs(directory)
        pieces = noise()
        for file, length in files:
            with open(os.path.join(directory, file), "wb") as out:
                while length > 0:
                    out.write(next(pieces)[:length] if length >= 4096 else os.urandom(length))
                    length -= MIB

    def size(self, name):
        return sum(entry.stat().st_size for entry in os.scandir(os.path.join(self.plain, name)))

    def dump(self, directory):
        """A dump that redis-server wrote, of records."""
        port = free_port()
        server = self.bench.serve(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""], port)
        loader = subprocess.Popen(["redis-cli", "-p", str(port), "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        length, pieces, number = 1024, records(), 0
        for _ in range(self.real_bytes // 2 // MIB):
            piece = next(pieces)
            commands = []
            for start in range(0, MIB, length):
                key = b"user:%d" % number
                commands.append(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, length, piece[start:start + length]))
                number += 1
            loader.stdin.write(b"".join(commands))
        loader.stdin.close()
        if loader.wait() != 0:
            raise RuntimeError("redis-cli --pipe did not load the records")
        subprocess.run(["redis-cli", "-p", str(port), "SAVE"], check=True, stdout=subprocess.DEVNULL)
        server.kill()
        server.wait()
        self.bench.servers.remove(server)

    def tables(self, directory):
        """Sorted tables that RocksDB wrote, of records; without its module for Python there are none."""
        python = os.path.join(TOOLS, "peers/bin/python")
        program = ("import sys; from rocksdict import Rdict, Options\n"
                   "sys.path.insert(0, sys.argv[3]); from benchmarks.base import records\n"
                   "options = Options(raw_mode=True); options.create_if_missing(True); store = Rdict(sys.argv[1], options); pieces = records()\n"
                   "for number in range(int(sys.argv[2])):\n"
                   "    piece = next(pieces)\n"
                   "    for start in range(0, len(piece), 1024): store[b'%08d%08d' % (number, start)] = piece[start:start + 1024]\n"
                   "store.flush(); store.close()\n")
        place = self.bench.path("rocks")
        scripts = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
        try:
            subprocess.run([python, "-B", "-c", program, place, str(self.real_bytes // 2 // MIB), scripts], check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            print("  rocksdict is absent, so there are no RocksDB tables in the data; to have them: scripts/install-needs peers", file=sys.stderr)
            return
        for name in os.listdir(place):
            if name.endswith(".sst"):
                shutil.move(os.path.join(place, name), os.path.join(directory, name))
        shutil.rmtree(place)


def open_files_max():
    """A snapshot holds every captured file open: as many as this process may let its children have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FILES_WANTED:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, FILES_WANTED))
        except (ValueError, OSError):
            return hard
    return FILES_WANTED
