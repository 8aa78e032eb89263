"""What is measured: the project's mount, the mounts of other tools in the settings that their users would choose, a disk.

Each is mounted in the foreground by one command, so that its processes, their time and their memory are known by process id.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

from .rig import KEY, SECRET, cpu_seconds, drop_caches, peak_memory_mib, rclone_program

MOUNT_SECONDS_MAX = 60
INSTALL = "scripts/install-needs peers"


class System:
    """A way to read the data: its name and where in its tree the data is."""

    is_mounted = True

    def __init__(self, bench, rig, name):
        self.bench, self.rig, self.name = bench, rig, name

    def where(self, data):
        return data

    def command(self, point, cache, port):
        raise NotImplementedError

    def absent(self):
        """What is missing, if anything."""
        return None


class Ours(System):
    """The project; with `--cache-dir` where it has a disk."""

    def __init__(self, bench, rig, name="tintype", disk_bytes=0):
        super().__init__(bench, rig, name)
        self.disk_bytes = disk_bytes

    def where(self, data):
        return f"{data}/latest/{data}"

    def command(self, point, cache, port):
        more = ["--cache-dir", cache, "--cache-size", str(self.disk_bytes)] if self.disk_bytes else []
        place = ["--config", self.bench.config, "--repository", self.rig.repository(port)]
        return [self.bench.tintype, *place, "mount", "--foreground", point, *more]


class Rclone(System):
    SETTINGS = {
        "rclone": ["--vfs-cache-mode", "off"],
        "rclone-streams": ["--vfs-cache-mode", "off", "--vfs-read-chunk-size", "8Mi", "--vfs-read-chunk-streams", "4", "--no-checksum",
                           "--no-modtime"],
        "rclone-full": ["--vfs-cache-mode", "full"],
    }

    def command(self, point, cache, port):
        config = self.bench.path(f"rclone-{port}.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[store]\ntype = s3\nprovider = Other\naccess_key_id = {KEY}\nsecret_access_key = {SECRET}\n"
                       f"endpoint = http://127.0.0.1:{port}\nregion = us-east-1\nforce_path_style = true\n")
        place = ["--config", config, "--cache-dir", cache]
        return [rclone_program(), *place, "mount", "store:plain", point, "--read-only", *self.SETTINGS[self.name]]

    def absent(self):
        return None if rclone_program() else "rclone"


class S3fs(System):
    SETTINGS = {
        "s3fs": "",
        "s3fs-cache": ",use_cache={cache}",
        "s3fs-tuned": ",use_cache={cache},kernel_cache,parallel_count=8,multipart_size=16,enable_noobj_cache,stat_cache_expire=3600,"
                      "max_stat_cache_size=200000",
    }

    def command(self, point, cache, port):
        password = self.bench.path("s3fs-password")
        with open(password, "w", encoding="utf-8") as file:
            file.write(f"{KEY}:{SECRET}")
        os.chmod(password, 0o600)
        return ["s3fs", "plain", point, "-f", "-o", f"ro,url=http://127.0.0.1:{port},use_path_request_style,passwd_file={password}"
                + self.SETTINGS[self.name].format(cache=cache)]

    def absent(self):
        return None if shutil.which("s3fs") else "s3fs"


class Restic(System):
    def where(self, data):
        return f"snapshots/latest/{data}"

    def repository(self, port):
        return f"s3:http://127.0.0.1:{port}/restic"

    def command(self, point, cache, port):
        return ["restic", "-q", "-r", self.repository(port), "--cache-dir", cache, "mount", point]

    def store(self, plain):
        """Backs up all of the data."""
        place = ["restic", "-q", "-r", self.repository(self.rig.port), "--cache-dir", self.bench.path("restic-cache")]
        for command in (["init"], ["backup", *sorted(os.listdir(plain))]):
            subprocess.run([*place, *command], check=True, cwd=plain, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def absent(self):
        return None if shutil.which("restic") else "restic"


class Disk(System):
    """The same files on the machine's disk: what the kernel and the disk can do."""

    is_mounted = False

    def where(self, data):
        return data


def peers(bench, rig):
    """All peers that are there; says which are not."""
    found = [Rclone(bench, rig, name) for name in Rclone.SETTINGS] + [S3fs(bench, rig, name) for name in S3fs.SETTINGS]
    found.append(Restic(bench, rig, "restic"))
    missing = {one.absent() for one in found if one.absent()} | (set() if shutil.which("fio") else {"fio"})
    for name in sorted(missing):
        print(f"  {name} is absent, so nothing is measured with it; to have it: {INSTALL}", file=sys.stderr)
    return [one for one in found if not one.absent()]


class Mounted:
    """A system that serves, newly mounted and with nothing cached; `seconds` from its command to the first listing."""

    def __init__(self, system, data, port, keep_cache=False):
        bench = system.bench
        self.system, self.process = system, None
        cache = bench.path(f"cache-{system.name}")
        if not keep_cache:
            shutil.rmtree(cache, ignore_errors=True)
        os.makedirs(cache, exist_ok=True)
        drop_caches()
        self.point = bench.path("disk") if not system.is_mounted else bench.path(f"mnt-{system.name}")
        self.directory = os.path.join(self.point, system.where(data))
        self.seconds = 0.0
        if system.is_mounted:
            os.makedirs(self.point, exist_ok=True)
            self.start(system.command(self.point, cache, port))

    def start(self, command):
        log = self.system.bench.path(f"log-{self.system.name}")
        with open(log, "ab") as out:
            began = time.monotonic()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            while True:
                if os.path.ismount(self.point):
                    try:
                        if os.listdir(self.directory):
                            break
                    except OSError:
                        pass  # not served yet
                if self.process.poll() is not None or time.monotonic() - began > MOUNT_SECONDS_MAX:
                    with open(log, encoding="utf-8", errors="replace") as file:
                        raise RuntimeError(f"{self.system.name} does not mount: {file.read()[-500:].strip()}")
                time.sleep(0.002)
        except BaseException:
            self.end()
            raise
        self.seconds = time.monotonic() - began

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid) if self.process else 0.0

    def peak_memory_mib(self):
        return peak_memory_mib(self.process.pid) if self.process else 0.0

    def end(self):
        if not self.process:
            return
        for _ in range(50):
            # What still reads is given a moment.
            if not os.path.ismount(self.point) or subprocess.run(["umount", self.point], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", self.point], check=False)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
