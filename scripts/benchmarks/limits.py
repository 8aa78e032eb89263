"""The project beside the limits of the machine: how fast it stores, pauses, mounts, reads and restores."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time

from .base import MIB, RUNS, TOOLS, digits, free_port, median_of_pairs, noise, records, row, speed, timed


def store(bench):
    store_of(bench, "records", records())
    store_of(bench, "digits", digits())


def store_of(bench, name, megabytes):
    directory, path, size = bench.file(name, megabytes)
    pairs, memory, disk = [], 0, []
    for _ in range(RUNS):
        limit = timed("zstd", "--fast=1", "-T2", "-q", "-f", path, "-o", "/dev/null")
        repository = bench.repository("store")
        answer, seconds, peak = bench.run(repository, "snapshot", "files", "--files", directory)
        pairs.append((limit, seconds))
        memory = max(memory, peak)
        # What the disk alone takes for what is stored, without anybody's cache.
        plain = bench.path("plain")
        disk.append(timed("dd", "if=/dev/zero", f"of={plain}", "bs=16M", f"count={answer['stored_bytes'] // (16 * MIB)}", "oflag=direct",
                          "conv=fsync"))
        os.unlink(plain)
    limit, seconds, share = median_of_pairs(pairs)
    row(f"store {size // MIB} MiB of {name}", speed(size, seconds), f"zstd -T2 alone {speed(size, limit)}, the disk alone "
        f"{speed(size, statistics.median(disk))}", f"0.7 of zstd, is {share:.2f}", share >= 0.7)
    row("its memory", f"{memory:.0f} MiB", "-", "256 MiB", memory <= 256)


def unchanged(bench):
    directory, _, size = bench.file("digits", digits())
    repository = bench.repository("unchanged")
    # An mtime as young as the snapshot is not trusted, and the file would be read again.
    time.sleep(1)
    bench.run(repository, "snapshot", "files", "--files", directory)
    seconds, stored = [], 0
    for _ in range(RUNS):
        answer, took, _ = bench.run(repository, "snapshot", "files", "--files", directory)
        seconds.append(took)
        stored = max(stored, answer["stored_bytes"])
    took = statistics.median(seconds)
    row(f"unchanged {size // MIB} MiB again", f"{took * 1000:.0f} ms", "-", "under 1 s", took < 1)
    row("its new bytes", f"{stored / 1024:.1f} KiB", "-", "under 64 KiB", stored < 64 << 10)


class Pinger(threading.Thread):
    """A client that writes every millisecond and notes the longest wait for an answer."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.connection = socket.create_connection(("127.0.0.1", port), 10)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.longest, self.is_stopped = 0.0, False
        self.start()

    def run(self):
        while not self.is_stopped:
            began = time.monotonic()
            self.connection.sendall(b"SET ping x\r\n")
            self.connection.recv(64)
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.001)
        self.connection.close()


def pause(bench):
    megabytes = 300 if bench.is_full else 50
    ports = [free_port() for _ in range(6)]
    for port in ports:
        directory = bench.path(f"redis-{port}")
        os.makedirs(directory)
        bench.serve(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "",
                     "--enable-debug-command", "local"], port)
        subprocess.run(["redis-cli", "-p", str(port), "DEBUG", "POPULATE", str(megabytes * 1000), "key", "1000"], check=True,
                       stdout=subprocess.DEVNULL)
    nodes = "".join(f'[clusters.six.nodes.m{port}]\naddress = "redis://127.0.0.1:{port}"\n' for port in ports)
    # On two cores the children of six forks are slow to end; the pause itself does not wait for them.
    bench.configure(f'[clusters.six]\nstore = "redis"\n{nodes}')
    repository = bench.repository("pause")
    seen, forks = [], []
    for _ in range(RUNS):
        pingers = [Pinger(port) for port in ports]
        bench.run(repository, "snapshot", "six")
        for pinger in pingers:
            pinger.is_stopped = True
        for pinger in pingers:
            pinger.join()
        seen.append(max(pinger.longest for pinger in pingers) * 1000)
        forks.append(bench.run(repository, "show", "six/latest")[0]["cut"]["capture_us"] / 1000)
    bench.configure("")
    over = statistics.median(a - b for a, b in zip(seen, forks))
    row(f"write pause, six masters of {megabytes} MB", f"{statistics.median(seen):.1f} ms", f"forks {statistics.median(forks):.1f} ms",
        f"forks + 15 ms, is + {over:.1f}", over <= 15)


def mount(bench):
    count = 10_000 if bench.is_full else 300
    directory = bench.path("tiny")
    os.makedirs(directory)
    repository = bench.repository("mount")
    for index in range(count):
        with open(os.path.join(directory, "number"), "w", encoding="utf-8") as file:
            file.write(str(index))
        bench.run(repository, "-q", "snapshot", "tiny", "--files", directory)
    point = bench.path("mnt")
    os.makedirs(point)
    seconds, memory = [], 0
    for _ in range(RUNS):
        began = time.monotonic()
        answer, _, _ = bench.run(repository, "mount", point)
        timed("ls", "-l", os.path.join(point, "tiny/latest/tiny"))
        seconds.append(time.monotonic() - began)
        with open(f"/proc/{answer['process']}/status", encoding="utf-8") as file:
            memory = max(memory, *(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM")))
        bench.run(repository, "unmount", point)
    took = statistics.median(seconds)
    row(f"mount and ls -l, {count} snapshots", f"{took * 1000:.0f} ms", "-", "under 500 ms", took < 0.5)
    row("its memory", f"{memory:.0f} MiB", "-", "under 64 MiB", memory < 64)


def read(bench):
    directory, path, size = bench.file("random", noise())
    port = free_port()
    root = bench.path("s3")
    os.makedirs(os.path.join(root, "plain"))
    os.makedirs(os.path.join(root, "repository"))
    # An object of this server is a file.
    os.link(path, os.path.join(root, "plain", "data"))
    bench.serve([os.path.join(TOOLS, "bin/s3s-fs"), "--host", "127.0.0.1", "--port", str(port), "--access-key", "bench", "--secret-key",
                 "benchmark", root], port)
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="benchmark", AWS_REGION="us-east-1")
    repository = f"s3://repository/bench?endpoint=http://127.0.0.1:{port}&path_style=true"
    bench.run(repository, "init")
    bench.run(repository, "snapshot", "files", "--files", directory)
    with open(bench.path("s3fs-password"), "w", encoding="utf-8") as file:
        file.write("bench:benchmark")
    os.chmod(file.name, 0o600)
    ours, theirs = bench.path("ours"), bench.path("theirs")
    os.makedirs(ours)
    os.makedirs(theirs)
    pairs = []
    for _ in range(RUNS):
        # Each mount is new, so neither the kernel nor the program has read anything.
        peer = subprocess.Popen(["s3fs", "plain", theirs, "-f", "-o", f"url=http://127.0.0.1:{port},use_path_request_style",
                                 "-o", f"passwd_file={file.name}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 20
            while not os.path.ismount(theirs):
                if peer.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("s3fs does not mount")
                time.sleep(0.05)
            limit = timed("dd", f"if={theirs}/data", "of=/dev/null", "bs=1M")
        finally:
            subprocess.run(["umount", "-l", theirs], check=False, stderr=subprocess.DEVNULL)
            peer.send_signal(signal.SIGTERM)
            peer.wait()
        bench.run(repository, "mount", ours)
        try:
            figure = timed("dd", f"if={ours}/files/latest/random/data", "of=/dev/null", "bs=1M")
        finally:
            bench.run(repository, "unmount", ours)
        pairs.append((limit, figure))
    limit, figure, share = median_of_pairs(pairs)
    row(f"cold sequential read of {size // MIB} MiB, S3", speed(size, figure), f"s3fs {speed(size, limit)}", f"as fast, is {share:.2f}", share >= 1)


def restore(bench):
    directory, path, size = bench.file("random", noise())
    repository = bench.repository("restore")
    bench.run(repository, "snapshot", "files", "--files", directory)
    pairs = []
    for _ in range(RUNS):
        limit = timed("sh", "-c", f"cp {path} {bench.path('copied')} && sync -f {bench.path('copied')}")
        os.unlink(bench.path("copied"))
        _, seconds, _ = bench.run(repository, "restore", "files/latest/random", "--directory", bench.path("placed"), "--yes")
        shutil.rmtree(bench.path("placed"))
        pairs.append((limit, seconds))
    limit, seconds, share = median_of_pairs(pairs)
    row(f"restore of {size // MIB} MiB by copy", speed(size, seconds), f"cp and sync {speed(size, limit)}", f"0.7 of it, is {share:.2f}", share >= 0.7)


CASES = [store, unchanged, pause, mount, read, restore]
