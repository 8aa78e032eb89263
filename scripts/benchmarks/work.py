"""What is done with a mounted tree while the clock runs. Each returns `None` when it took too long."""

import hashlib
import json
import os
import subprocess
import time

from .base import MIB

SECONDS_MAX = 90


def timed_shell(command, directory="/"):
    """Seconds of a shell command, all of its processes ended with it."""
    began = time.monotonic()
    process = subprocess.Popen(["sh", "-c", command], cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return None
    if process.returncode != 0:
        raise RuntimeError(f"{command}: {errors.decode(errors='replace').strip()[-200:]}")
    return time.monotonic() - began


def sequential(path, size, readers=1):
    """Megabytes a second over all readers, each with its own stretch of the file."""
    each = -(-size // readers // MIB)
    command = "".join(f"dd if={path} of=/dev/null bs=1M skip={number * each} count={each} & p{number}=$!; " for number in range(readers))
    seconds = timed_shell(command + " && ".join(f"wait $p{number}" for number in range(readers)))
    return seconds and size / 1e6 / seconds


def all_files(directory):
    return timed_shell("cat -- * > /dev/null", directory)


def listing(directory):
    return timed_shell("ls -l .", directory)


def first_byte(path):
    """Seconds from opening a file to its first byte."""
    began = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        if len(file.read(1)) != 1:
            raise RuntimeError(f"{path} is empty")
    return time.monotonic() - began


def random_reads(directory, count=None, seconds=None):
    """4 KiB at random places of the files of a directory by one thread: p50 and p99 in microseconds, reads a second."""
    command = ["fio", "--name=random", f"--opendir={directory}", "--file_service_type=random", "--rw=randread", "--bs=4k", "--direct=0",
               "--ioengine=psync", "--invalidate=0", "--readonly", "--norandommap", "--randseed=7", "--output-format=json"]
    command += [f"--runtime={seconds}", "--time_based"] if seconds else [f"--number_ios={count}"]
    try:
        done = subprocess.run(command, cwd="/", check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"fio: {error.stderr.decode(errors='replace').strip()[-200:]}") from error
    text = done.stdout.decode()
    read = json.loads(text[text.index("{"):])["jobs"][0]["read"]
    percentiles = read["clat_ns"]["percentile"]
    return percentiles["50.000000"] / 1000, percentiles["99.000000"] / 1000, read["iops"]


def content(directory):
    """One hash over all files of a directory."""
    whole = hashlib.sha256()
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            while piece := file.read(4 * MIB):
                whole.update(piece)
    return whole.hexdigest()
