"""The server that the mount and its peers read from: objects in memory, as near or as distant as wanted.

Objects are files of a file system in memory. `rclone serve s3` speaks S3 over them and takes what is written; in front of it
nginx answers plain GETs and HEADs of objects with sendfile, so that the server is not what is measured. It checks no
signatures: it is a rig for speed, and none to test against. `Relay` puts a distance between it and its clients.
"""

import json
import os
import shutil
import subprocess
import sys
import time

from .base import TOOLS, free_port

KEY, SECRET = "benchmark", "benchmark-secret"
BUCKETS = ("plain", "repository", "restic")
# Where Debian and scripts/install-needs put them.
NGINX_MODULE = "/usr/lib/nginx/modules/ngx_http_headers_more_filter_module.so"
FIRST_BYTE_MS, MEGABYTES_PER_SECOND = 30, 90

# No tcp_nopush: over loopback it holds the end of an answer of 64 KiB back until the client's delayed acknowledgement, 40 ms later.
# Everything but reading an object goes to the server behind: other methods, buckets, and queries about objects. nginx names
# versions of objects in its own way, so conditions that carry a version from behind are taken out of what it answers itself.
NGINX = """
load_module {module};
worker_processes 2; worker_rlimit_nofile 16384; daemon off; pid {place}/nginx.pid; error_log {place}/nginx-errors; {user}
events {{ worker_connections 2048; }}
http {{
  access_log off; types {{ }} default_type application/octet-stream;
  sendfile on; sendfile_max_chunk 1m; tcp_nodelay on;
  keepalive_timeout 600; keepalive_requests 10000000;
  open_file_cache max=4000 inactive=60s; open_file_cache_valid 5s;
  client_max_body_size 0; client_body_temp_path {place}/bodies; proxy_temp_path {place}/answers;
  fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
  upstream behind {{ server 127.0.0.1:{behind}; keepalive 16; }}
  map $args $asks {{ default 0; "~(^|&)(list-type|prefix|delimiter|location|uploads|uploadId|versioning|versions|acl|policy|tagging|attributes)" 1; }}
  map "$request_method $asks" $is_read {{ default 0; "GET 0" 1; "HEAD 0" 1; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024; root {ram};
    location @behind {{
      proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Connection "";
      proxy_request_buffering off;
    }}
    location ~ ^/[^/]*/?$ {{ error_page 418 = @behind; return 418; }}
    location / {{
      error_page 418 = @behind;
      if ($is_read = 0) {{ return 418; }}
      more_clear_input_headers If-Match If-None-Match;
      try_files $uri @behind;
    }}
  }}
}}
"""


def rclone_program():
    own = os.path.join(TOOLS, "peers/bin/rclone")
    return own if os.path.exists(own) else shutil.which("rclone")


def nginx_program():
    return shutil.which("nginx") or (os.path.exists("/usr/sbin/nginx") and "/usr/sbin/nginx") or None


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="utf-8") as file:
        file.write("3\n")


def processes_of(process):
    """A process and its descendants."""
    found, at = [process], 0
    while at < len(found):
        try:
            with open(f"/proc/{found[at]}/task/{found[at]}/children", encoding="utf-8") as file:
                found += map(int, file.read().split())
        except OSError:
            pass  # it ended meanwhile
        at += 1
    return found


def cpu_seconds(process):
    ticks = 0
    for one in processes_of(process):
        try:
            with open(f"/proc/{one}/stat", encoding="utf-8", errors="replace") as file:
                ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
        except OSError:
            pass
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory_mib(process):
    kilobytes = 0
    for one in processes_of(process):
        try:
            with open(f"/proc/{one}/status", encoding="utf-8") as file:
                kilobytes += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        except OSError:
            pass
    return kilobytes / 1024


class Rig:
    """A running server with empty buckets."""

    def __init__(self, bench, examples):
        if os.geteuid() != 0:
            raise RuntimeError("needs root: it mounts a file system in memory and drops the kernel's caches")
        nginx, rclone = nginx_program(), rclone_program()
        missing = [name for name, is_there in (("nginx-light", nginx), ("libnginx-mod-http-headers-more-filter", os.path.exists(NGINX_MODULE)),
                                               ("rclone", rclone)) if not is_there]
        if missing:
            raise RuntimeError(f"needs {', '.join(missing)}: run scripts/install-needs peers")
        self.bench, self.examples, self.relays = bench, examples, []
        self.ram = bench.path("ram")
        os.makedirs(self.ram)
        # More than is ever in it; only what is in it takes memory.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%,mode=0755", "tintype-bench", self.ram], check=True)
        try:
            self.start(nginx, rclone)
        except BaseException:
            self.end()
            raise

    def start(self, nginx, rclone):
        for bucket in BUCKETS:
            os.makedirs(os.path.join(self.ram, bucket))
        self.port, behind = free_port(), free_port()
        self.bench.serve([rclone, "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{behind}", "--vfs-cache-mode", "off",
                          "--dir-cache-time", "12h", self.ram], behind)
        config = self.bench.path("nginx.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(NGINX.format(module=NGINX_MODULE, place=self.bench.path(), user="user root;", behind=behind, port=self.port, ram=self.ram))
        self.nginx = self.bench.serve([nginx, "-c", config], self.port)
        os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1", RESTIC_PASSWORD="benchmark")

    def end(self):
        for relay in self.relays:
            relay.end()
        # Its workers end with it only when it is asked.
        if getattr(self, "nginx", None):
            self.nginx.terminate()
            self.nginx.wait()
            with open(self.bench.path("nginx-errors"), encoding="utf-8", errors="replace") as file:
                for line in file.read().splitlines()[-5:]:
                    print(f"  nginx: {line[:300]}", file=sys.stderr)
        self.bench.end()
        self.bench.servers.clear()
        subprocess.run(["umount", self.ram], check=False)

    def relay(self):
        relay = Relay(os.path.join(self.examples, "relay"), self.port)
        self.relays.append(relay)
        return relay

    def repository(self, port):
        return f"s3://repository/bench?endpoint=http://127.0.0.1:{port}&path_style=true"

    def packs(self, name):
        """The prefix of a node's packs, and how many bytes they have."""
        prefix = f"bench/clusters/{name}/{name}/packs/"
        directory = os.path.join(self.ram, "repository", prefix)
        return prefix, sum(entry.stat().st_size for entry in os.scandir(directory))

    def bare(self, port, name, mode, range_bytes, count):
        """The S3 client alone over the packs of a node."""
        command = [os.path.join(self.examples, "bare_client"), f"http://127.0.0.1:{port}", "repository", self.packs(name)[0], mode,
                   str(range_bytes), str(count)]
        return json.loads(subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout)


class Relay:
    """The server at a distance."""

    def __init__(self, program, target):
        self.process = subprocess.Popen([program, str(target), str(FIRST_BYTE_MS), str(MEGABYTES_PER_SECOND)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def counts(self):
        """Connections, requests and bytes since it began."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Attempts:
    """Does one step after the other; one that fails is told and counted, and the others still have their figures."""

    def __init__(self):
        self.failures = 0

    def attempt(self, step, *arguments):
        try:
            step(*arguments)
        except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as error:
            self.failures += 1
            print(f"  not measured: {error}", file=sys.stderr, flush=True)


class Noise:
    """How much the machine itself varies while figures are taken: the same work again and again."""

    def __init__(self):
        self.seconds = []

    def sample(self):
        began = time.monotonic()
        total = 0
        for number in range(1_000_000):
            total += number
        self.seconds.append(time.monotonic() - began)

    def __str__(self):
        least, most = min(self.seconds), max(self.seconds)
        middle = sorted(self.seconds)[len(self.seconds) // 2]
        return (f"the same computation took {middle * 1000:.0f} ms, from {least * 1000:.0f} to {most * 1000:.0f} "
                f"({len(self.seconds)} times); load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"
                + ("; a BUSY machine: believe ratios, not figures" if most > 1.5 * least else ""))
