"""Ten hosts and what runs on them: a Redis Cluster of six masters with an agent each, an object store, and three that only ask.

Every server is a child of this process and is ended by its id. Configurations differ from host to host as they would anywhere:
its own address, its own certificate, its own state.
"""

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from .network import Bridged, Distant, wait_until
from .redis import PORT, Client, counters, key_on, shard_range

NODES = [f"node-{number}" for number in range(1, 7)]
STORE, CONTROL, SECOND, CLIENTS = "store", "control", "second", "clients"
CLUSTER = "ring"
STORE_PORT, AGENT_PORT = 9000, 7070
BUCKET = "backups"
# The default of the program, written down so that the cases hold on it.
PAUSE_SECONDS = 2.0
# Longer than most faults: a master that the others took for dead stays so for twice this time after it is back.
CLUSTER_TIMEOUT_MS = 30000
FILL_BYTES, VALUE_BYTES = 2 << 20, 64 << 10
SETTINGS = ("repl-diskless-sync", "repl-diskless-sync-delay", "save")


def private(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w" if isinstance(text, str) else "wb") as file:
        file.write(text)
    os.chmod(path, 0o600)


class Snapshot:
    """A `tintype snapshot` that runs: what it says, and when."""

    def __init__(self, command, environment):
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=environment)
        self.notes, self.is_told = [], threading.Condition()
        self.result = ""
        self.reader = threading.Thread(target=self.read)
        self.answer = threading.Thread(target=self.read_result)
        self.reader.start()
        self.answer.start()

    def read(self):
        for line in self.process.stderr:
            with self.is_told:
                self.notes.append((time.monotonic(), line.rstrip()))
                self.is_told.notify_all()
        with self.is_told:
            self.notes.append((time.monotonic(), None))
            self.is_told.notify_all()

    def read_result(self):
        self.result = self.process.stdout.read()

    def said(self, word):
        """When it said a line with the word in it; it fails when it ends before."""
        with self.is_told:
            while True:
                for at, line in self.notes:
                    if line is None:
                        raise RuntimeError(f"the snapshot never came to {word!r}: {self.text()}")
                    if word in line:
                        return at
                self.is_told.wait()

    def comes_to(self, step, limit=60):
        """Waits until it says that it begins a step, which is a line of its own; whether it did."""
        with self.is_told:
            return self.is_told.wait_for(lambda: any(line == step or line is None for _, line in self.notes), limit) and self.has_begun(step)

    def has_begun(self, step):
        return any(line == step for _, line in self.notes)

    def has_said(self, word):
        with self.is_told:
            return any(line and word in line for _, line in self.notes)

    def uuid(self):
        self.said("snapshot ")
        return next(line.split()[1] for _, line in self.notes if line.startswith("snapshot "))

    def kill(self):
        self.process.kill()

    def wait(self, limit=120):
        """Its exit code."""
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RuntimeError(f"the snapshot did not end within {limit} s: {self.text()}") from None
        finally:
            self.process.wait()
            self.reader.join()
            self.answer.join()
            self.process.stdout.close()
            self.process.stderr.close()
        return self.process.returncode

    def text(self):
        return "; ".join(line for _, line in self.notes if line)

    def error(self):
        """What it says of a failure; empty where there is none."""
        try:
            return json.loads(self.result).get("error") or {}
        except ValueError:
            return {}


class World:
    """A network of all hosts, with everything started."""

    def __init__(self, tools, place, is_distant, fill_bytes=FILL_BYTES, is_for_figures=False):
        """The object store is moto, which keeps the conditions of puts also when several come at once, as leases want it; for figures
        it is s3s-fs, which is quick, and servers do not try to compress what does not: six hosts have the cores of one."""
        self.tools, self.place, self.is_distant = tools, place, is_distant
        self.fill_bytes, self.is_for_figures, self.store = fill_bytes, is_for_figures, None
        self.processes, self.agents, self.running = [], {}, []
        self.environment = {**os.environ, "HOME": place, "AWS_ACCESS_KEY_ID": "test-access", "AWS_SECRET_ACCESS_KEY": "test-secret",
                            "AWS_REGION": "us-east-1", "TINTYPE_LOG": "warn", "TMPDIR": place}
        for name in ("TINTYPE_CONFIG", "TINTYPE_REPOSITORY", "TINTYPE_PASSWORD_FILE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            self.environment.pop(name, None)
        self.repository, self.limits, self.tries = "first", "", 4
        names = [*NODES, STORE, CONTROL, SECOND, CLIENTS]
        self.network = Distant(names, tools.switch) if is_distant else Bridged(names)
        self.hosts = self.network.hosts
        self.nodes = [self.hosts[name] for name in NODES]
        try:
            self.start()
        except BaseException:
            self.end()
            raise

    def path(self, *parts):
        return os.path.join(self.place, *parts)

    # What runs.

    def spawn(self, host, log, *command):
        with open(self.path(f"{host.name}-{log}.log"), "ab") as file:
            process = subprocess.Popen(host.command(*command), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self.environment)
        self.processes.append(process)
        return process

    def listens(self, host, port, process, name, limit=60):
        """Waits until a server of the host accepts connections."""
        def is_there():
            if process.poll() is not None:
                raise RuntimeError(f"{host.name}: {name} ended with {process.returncode}: {self.log(host, name)}")
            try:
                with host.inside():
                    socket.create_connection((host.address, port), 1).close()
                return True
            except OSError:
                return False

        wait_until(limit, f"{host.name}: port {port}", is_there)

    def log(self, host, name):
        """The last lines that a server of the host has written."""
        path = self.path(f"{host.name}-{name}.log")
        if not os.path.exists(path):
            return "it was not started"
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()[-1500:].strip()

    def start(self):
        self.start_store()
        self.certify()
        private(self.path("key"), os.urandom(32))
        self.servers = [self.start_redis(node) for node in self.nodes]
        for node, process in zip(self.nodes, self.servers):
            self.listens(node, PORT, process, "redis")
        self.join()
        self.fill()
        self.listens(self.hosts[STORE], STORE_PORT, self.store, "store")
        self.configure()
        for node in self.nodes:
            self.start_agent(node)

    def start_store(self):
        if self.is_for_figures:
            # Its objects are in memory, on a mount that only it sees and that is gone with it.
            directory = self.path("objects")
            os.makedirs(directory, exist_ok=True)
            script = f"mount -t tmpfs objects {directory} && mkdir {directory}/{BUCKET} && exec \"$@\""
            command = ["unshare", "--mount", "--", "sh", "-c", script, "store", self.tools.s3s, "--host", "0.0.0.0", "--port", str(STORE_PORT),
                       "--access-key", self.environment["AWS_ACCESS_KEY_ID"], "--secret-key", self.environment["AWS_SECRET_ACCESS_KEY"], directory]
        else:
            command = [self.tools.moto, "-H", "0.0.0.0", "-p", str(STORE_PORT)]
        self.store = self.spawn(self.hosts[STORE], "store", *command)

    def empty_store(self):
        """A store without any object."""
        if self.is_for_figures:
            self.store.kill()
            self.store.wait()
            self.processes.remove(self.store)
            self.start_store()
            self.listens(self.hosts[STORE], STORE_PORT, self.store, "store")
            return
        for method, path in (("POST", "/moto-api/reset"), ("PUT", f"/{BUCKET}")):
            with self.hosts[CONTROL].inside():
                connection = http.client.HTTPConnection(self.hosts[STORE].address, STORE_PORT, timeout=30)
                connection.connect()
            connection.request(method, path, headers={"Content-Length": "0"})
            status = connection.getresponse().status
            connection.close()
            if status != 200:
                raise RuntimeError(f"the object store answers {method} {path} with {status}")

    def redis_words(self, node):
        compression = ["--rdbcompression", "no"] if self.is_for_figures else []
        return [self.tools.redis, *compression, "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no",
                "--dir", self.path(node.name), "--pidfile", self.path(f"{node.name}.pid"),
                "--cluster-enabled", "yes", "--cluster-node-timeout", str(CLUSTER_TIMEOUT_MS), "--save", "",
                "--enable-debug-command", "local"]

    def start_redis(self, node):
        os.makedirs(self.path(node.name))
        return self.spawn(node, "redis", *self.redis_words(node))

    def end_restored(self, node):
        """A server that an agent has started is nobody's child: it is found by what it wrote down, and by its directory."""
        try:
            with open(self.path(f"{node.name}.pid"), encoding="ascii") as file:
                process = int(file.read())
            if os.readlink(f"/proc/{process}/cwd") == self.path(node.name):
                os.kill(process, signal.SIGKILL)
        except (OSError, ValueError):
            pass  # it is gone already

    def join(self):
        """Makes one Redis Cluster of the six."""
        for shard, node in enumerate(self.nodes):
            first, last = shard_range(shard, len(self.nodes))
            with self.client(node) as client:
                client.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.ask("CLUSTER", "SET-CONFIG-EPOCH", shard + 1)
        with self.client(self.nodes[0]) as client:
            for node in self.nodes[1:]:
                client.ask("CLUSTER", "MEET", node.address, PORT)
        self.wait_for_ring()

    def wait_for_ring(self):
        """Until every master knows all others as alive."""
        def is_whole(node):
            with self.client(node) as client:
                fields = client.ask("CLUSTER", "INFO").decode()
                nodes = client.ask("CLUSTER", "NODES").decode()
            return "cluster_state:ok" in fields and f"cluster_size:{len(self.nodes)}" in fields and "fail" not in nodes and "handshake" not in nodes

        for node in self.nodes:
            wait_until(60, f"{node.name}: a whole ring", lambda node=node: is_whole(node))

    def fill(self):
        """Data that costs its time to store: it does not compress."""
        for shard, node in enumerate(self.nodes):
            keys = (key_on(shard, len(self.nodes), f"fill:{number}") for number in range(self.fill_bytes // VALUE_BYTES))
            with self.client(node) as client:
                while some := list(itertools.islice(keys, 16)):
                    client.ask_all([("SET", key, os.urandom(VALUE_BYTES)) for key in some])

    def certify(self):
        """An authority, and a certificate for each host that it signs."""
        os.makedirs(self.path("tls"))
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

        def run(*arguments):
            done = subprocess.run([*made, *arguments], cwd=self.path("tls"), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"openssl: {done.stderr.strip()}")

        run("-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-addext", "basicConstraints=critical,CA:TRUE")
        for name, host in self.hosts.items():
            run("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-addext", f"subjectAltName=IP:{host.address}", "-addext", "basicConstraints=critical,CA:FALSE")

    def configure(self):
        """Writes every host's configuration. Agents read it anew for each snapshot."""
        endpoint = f"http://{self.hosts[STORE].address}:{STORE_PORT}"
        for name, host in self.hosts.items():
            tls = {part: self.path("tls", file) for part, file in (("cert", f"{name}.pem"), ("key", f"{name}.key"), ("ca", "ca.pem"))}
            tls = ", ".join(f'{part} = "{path}"' for part, path in tls.items())
            listen = f'listen = "{host.address}:{AGENT_PORT}"\n' if name in NODES else ""
            known = host.address if name in NODES else self.nodes[0].address
            private(self.config(host), f"""
state_directory = "{self.path("state", name)}"
[repository]
url = "s3://{BUCKET}/{self.repository}?max_attempts={self.tries}"
endpoint = "{endpoint}"
path_style = true
key_file = "{self.path("key")}"
[agent]
{listen}tls = {{ {tls} }}
[clusters.{CLUSTER}]
discover = "redis://{known}:{PORT}"
agent = "https://{{host}}:{AGENT_PORT}"
max_pause = "{PAUSE_SECONDS:g}s"
{self.limits}
{"".join(self.table(node) for node in self.nodes)}
""")

    def table(self, node):
        """How a node is restored by its agent: by its own protocol it is stopped, and started as it was."""
        start = json.dumps([*self.redis_words(node), "--daemonize", "yes", "--logfile", self.path(f"{node.name}-restored.log")])
        return f"""
[clusters.{CLUSTER}.nodes."{self.node_name(node)}"]
address = "redis://{node.address}:{PORT}"
data_directory = "{self.path(node.name)}"
start = {start}
"""

    def config(self, host):
        return self.path("configurations", host.name, "tintype.toml")

    def start_agent(self, node):
        self.agents[node.name] = process = self.spawn(node, "agent", self.tools.tintyped, "--config", self.config(node))
        self.listens(node, AGENT_PORT, process, "agent")

    def kill_agent(self, node):
        process = self.agents.pop(node.name)
        process.kill()
        process.wait()
        self.processes.remove(process)

    # What is asked of it.

    def fresh(self, name, limits="", tries=4):
        """A new repository, in a store without any other; `limits` are lines for the cluster's configuration."""
        self.empty_store()
        self.repository, self.limits, self.tries = name, limits, tries
        self.configure()
        self.run("init")

    def client(self, node, limit=10.0):
        return Client(node, limit=limit)

    def words(self, host, *arguments):
        return self.hosts[host].command(self.tools.tintype, "--config", self.config(self.hosts[host]), "--json", *arguments)

    def run(self, *arguments, host=STORE, codes=(0,)):
        """A command of tintype's: its answer. What only looks is run beside the object store, where no distance and no fault is."""
        done = subprocess.run(self.words(host, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.environment,
                              timeout=300, check=False)
        if done.returncode not in codes:
            raise RuntimeError(f"tintype {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def begin(self, *arguments, host=CONTROL):
        """A snapshot that runs."""
        snapshot = Snapshot(self.words(host, "snapshot", CLUSTER, *arguments), self.environment)
        self.running.append(snapshot)
        return snapshot

    def command(self, *arguments, host=CONTROL):
        """Another command that runs, and says what it does."""
        command = Snapshot(self.words(host, *arguments), self.environment)
        self.running.append(command)
        return command

    def is_up(self, node):
        """It has loaded, and answers."""
        try:
            with self.client(node) as client:
                return client.ask("PING") == "PONG"
        except (OSError, RuntimeError):
            return False

    def snapshot(self, *arguments, host=CONTROL):
        """A snapshot that has to succeed: its report."""
        snapshot = self.begin(*arguments, host=host)
        if snapshot.wait() != 0:
            raise RuntimeError(f"the snapshot failed: {snapshot.result}{snapshot.text()}")
        return json.loads(snapshot.result)

    def listed(self, host=STORE):
        """The snapshots that are listed, by their UUIDs: whether each is complete."""
        if not any(one["cluster"] == CLUSTER for one in self.run("list", host=host)["entries"]):
            return {}
        return {one["uuid"]: one["complete"] for one in self.run("list", CLUSTER, host=host)["entries"]}

    def node_name(self, node):
        return f"{node.address}_{PORT}"

    def placed(self, name="latest"):
        """The data of every node of a snapshot, as files in a directory each."""
        directory = tempfile.mkdtemp(prefix="placed-", dir=self.place)
        target = os.path.join(directory, "all")
        self.run("restore", f"{CLUSTER}/{name}", "--directory", target, "--quiet")
        return directory, [os.path.join(target, self.node_name(node)) for node in self.nodes]

    def counters(self, name="latest"):
        """All counters of a snapshot."""
        directory, places = self.placed(name)
        found = {}
        for place in places:
            with open(os.path.join(place, "dump.rdb"), "rb") as file:
                found.update(counters(file.read()))
        shutil.rmtree(directory)
        return found

    def settings(self):
        """What a capture may change for an instant, of every master."""
        found = {}
        for node in self.nodes:
            with self.client(node) as client:
                found[node.name] = [client.ask("CONFIG", "GET", name)[1].decode() for name in SETTINGS]
        return found

    def end(self):
        for snapshot in self.running:
            if snapshot.process.poll() is None:
                snapshot.kill()
                snapshot.wait()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for node in self.nodes:
            self.end_restored(node)
        self.network.end()

