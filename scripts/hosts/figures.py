"""Figures, each printed beside what it is held against; nothing is asserted, since machines differ.

Whatever is compared is measured in turns, so that a busy machine slows all of it. Ratios are of what was measured right after
each other; medians of them count.
"""

import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import threading
import time

from .cases import ROUND_TRIP_SECONDS, tell
from .network import wait_until
from .redis import Client, packed
from .world import BUCKET, CLUSTER, STORE, STORE_PORT, World, private

MIB = 1 << 20
# As long as the program's packs.
OBJECT_BYTES = 16 * MIB
# A link of a gigabit a second, without what Ethernet and IP take of it.
LINK_BYTES_PER_SECOND = 117_000_000


def row(name, *columns):
    print(f"{name:<58}" + "".join(f"{column:>15}" for column in columns), flush=True)


def milliseconds(micros):
    return f"{micros / 1000:.1f} ms"


def pause_rows(title, cuts, forks, felt, allowed_us):
    """Medians of pauses: as stored, as felt by writers beside the servers, and what may be on top of the forks."""
    over = [cut["pause_us"] - cut["capture_us"] for cut in cuts]
    row(title, "median", "least", "most")
    for name, values in (("write pause, as stored in the snapshot", [cut["pause_us"] for cut in cuts]),
                         ("forks, first command to last reply", [cut["capture_us"] for cut in cuts]),
                         ("longest fork, as its server says", forks), ("longest wait of a writer on its own host", felt),
                         ("pause beyond the forks", over)):
        row(f"  {name}", *(milliseconds(figure(values)) for figure in (statistics.median, min, max)))
    most = statistics.median(over)
    row(f"  wanted: at most {milliseconds(allowed_us)} beyond the forks", "met" if most <= allowed_us else "MISSED", f"{most / allowed_us:.2f} of it")


def longest_fork(shown):
    return max(node["proof"].get("fork_us") or 0 for node in shown["nodes"])


def distance(bed):
    """The write pause over six hosts, with a round trip of 20 ms on every connection."""
    scene = bed.distant()
    scene.fresh("figures")
    cuts, forks, felt = [], [], []
    for number in range(bed.effort(11, 51)):
        since = time.monotonic()
        cuts.append(scene.world.snapshot()["cut"])
        felt.append(1e6 * max(scene.writers.waits(since)["local"].values(), default=0.0))
        forks.append(longest_fork(scene.world.run("show", f"{CLUSTER}/latest")))
        tell(f"  {number + 1}: {cuts[-1]}, felt {felt[-1] / 1000:.1f} ms")
    pause_rows(f"six hosts, {ROUND_TRIP_SECONDS * 1000:g} ms of round trip, {len(cuts)} snapshots", cuts, forks, felt,
               2e6 * ROUND_TRIP_SECONDS + 10_000)


class Masters:
    """Sixteen servers on this host's loopback interface, and a repository in a directory beside them."""

    def __init__(self, bed, count, bytes_each):
        self.place = os.path.join(bed.place, "masters")
        self.tools, self.processes, self.ports = bed.tools, [], []
        for number in range(count):
            directory = os.path.join(self.place, f"master-{number}")
            os.makedirs(directory)
            self.start(directory)
        # Values that do not compress: those of DEBUG POPULATE do 25-fold, and keep the children busy for nothing.
        noise = os.urandom(4 * MIB)
        for port in self.ports:
            with Loopback(port) as client:
                for first in range(0, bytes_each // 1000, 1000):
                    keys = range(first, first + 1000)
                    client.ask_all([("SET", f"key:{key}", noise[key * 1009 % (3 * MIB):][:1000]) for key in keys])
        nodes = "".join(f'[clusters.masters.nodes.m{port}]\naddress = "redis://127.0.0.1:{port}"\n' for port in self.ports)
        private(os.path.join(self.place, "key"), os.urandom(32))
        private(os.path.join(self.place, "tintype.toml"), f"""
state_directory = "{self.place}/state"
[repository]
url = "{self.place}/repository"
key_file = "{self.place}/key"
[clusters.masters]
{nodes}""")

    def start(self, directory):
        # Somebody else may take a port between its choice and its use.
        for _ in range(5):
            port = free_port()
            process = subprocess.Popen([self.tools.redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            self.processes.append(process)
            if wait_until(20, f"a server on port {port}", lambda: process.poll() is not None or is_open(port)) and process.poll() is None:
                self.ports.append(port)
                return
        raise RuntimeError("no server keeps a port")

    def run(self, *arguments):
        command = [self.tools.tintype, "--config", os.path.join(self.place, "tintype.toml"), "--json", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"tintype {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


class Here:
    """This host, as it is."""

    name = "this host"

    @staticmethod
    def inside():
        return contextlib.nullcontext()


class Loopback(Client):
    def __init__(self, port):
        super().__init__(Here, port=port)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_open(port):
    try:
        Loopback(port).close()
        return True
    except OSError:
        return False


class Pingers:
    """Writes into every server every two milliseconds; one thread, since the servers need the cores."""

    def __init__(self, ports):
        self.clients = [Loopback(port) for port in ports]
        self.longest, self.is_stopped = 0.0, False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        selector = selectors.DefaultSelector()
        for client in self.clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        began = {}
        due = {client: 0.0 for client in self.clients}
        while not self.is_stopped or began:
            now = time.monotonic()
            for client in self.clients:
                if not self.is_stopped and client not in began and due[client] <= now:
                    client.socket.sendall(packed("SET", "ping", "x"))
                    began[client] = now
            for key, _ in selector.select(0.001):
                key.fileobj.recv(64)
                now = time.monotonic()
                self.longest = max(self.longest, now - began.pop(key.data))
                due[key.data] = now + 0.002
        selector.close()

    def stop(self):
        """The longest wait, in microseconds."""
        self.is_stopped = True
        self.thread.join()
        for client in self.clients:
            client.close()
        return self.longest * 1e6


def masters(bed):
    """The write pause of 16 masters on one host."""
    megabytes, cuts, forks, felt = bed.effort(50, 300), [], [], []
    group = Masters(bed, 16, megabytes * 1_000_000)
    try:
        group.run("init")
        for number in range(bed.effort(11, 31)):
            pingers = Pingers(group.ports)
            try:
                cuts.append(group.run("snapshot", "masters")["cut"])
            finally:
                felt.append(pingers.stop())
            forks.append(longest_fork(group.run("show", "masters/latest")))
            tell(f"  {number + 1}: {cuts[-1]}, felt {felt[-1] / 1000:.1f} ms")
    finally:
        group.end()
    pause_rows(f"16 masters of {megabytes} MB on one host, {len(cuts)} snapshots", cuts, forks, felt, 15_000)


def bare_puts(world, round_number, bytes_each):
    """As many bare clients as there are agents, each on its host: bytes in a second, all together."""
    count = -(-bytes_each // OBJECT_BYTES)
    clients = []
    for node in world.nodes:
        words = [world.tools.bare_client, f"http://{world.hosts[STORE].address}:{STORE_PORT}", BUCKET, f"bare-{round_number}/{node.name}/", "put",
                 str(OBJECT_BYTES), str(count)]
        clients.append(subprocess.Popen(node.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=world.environment))
    try:
        for client in clients:
            if client.stdout.readline() != "ready\n":
                raise RuntimeError("a bare client does not come up")
        began = time.monotonic()
        for client in clients:
            client.stdin.write("\n")
            client.stdin.flush()
        answers = [json.loads(client.stdout.readline()) for client in clients]
        seconds = time.monotonic() - began
    finally:
        for client in clients:
            client.kill()
            client.wait()
            client.stdin.close()
            client.stdout.close()
    return sum(answer["bytes"] for answer in answers) / seconds


def agents_put(world):
    """The upload of a snapshot by six agents: stored bytes in a second, from the thaw to the last node's manifest."""
    snapshot = world.begin()
    began, ended = snapshot.said("storing"), snapshot.said("publishing")
    if snapshot.wait(600) != 0:
        raise RuntimeError(f"the snapshot failed: {snapshot.text()}")
    return json.loads(snapshot.result)["stored_bytes"] / (ended - began)


def cpu_seconds(processes):
    """What processes have used so far."""
    ticks = 0
    for process in processes:
        with open(f"/proc/{process.pid}/stat", encoding="utf-8") as file:
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def upload_rows(bed, title, world, bytes_each):
    ratios, agents_speed, bare_speed, busy = [], [], [], {"store": 0.0, "agents": 0.0, "redis": 0.0}
    total = 0.0
    for number in range(bed.effort(5, 11)):
        world.fresh(f"uploads-{number}")
        # Whoever is first alternates: a machine that becomes busier is nobody's fault.
        for is_bare in ((True, False) if number % 2 else (False, True)):
            if is_bare:
                bare_speed.append(bare_puts(world, number, bytes_each))
                continue
            of = {"store": [world.store], "agents": list(world.agents.values()), "redis": world.servers}
            before, began = {name: cpu_seconds(processes) for name, processes in of.items()}, time.monotonic()
            agents_speed.append(agents_put(world))
            total += time.monotonic() - began
            for name, processes in of.items():
                busy[name] += cpu_seconds(processes) - before[name]
        ratios.append(agents_speed[-1] / bare_speed[-1])
        tell(f"  {number + 1}: agents {agents_speed[-1] / 1e6:.0f} MB/s, bare clients {bare_speed[-1] / 1e6:.0f} MB/s")
    row(title, "median", "least", "most")
    for name, values in (("six agents", agents_speed), ("six bare clients", bare_speed)):
        row(f"  {name}", *(f"{figure(values) / 1e6:.0f} MB/s" for figure in (statistics.median, min, max)))
    row("  agents, of the bare clients", *(f"{figure(ratios):.2f}" for figure in (statistics.median, min, max)))
    row("  wanted: at least 0.90", "met" if statistics.median(ratios) >= 0.9 else "MISSED")
    row(f"  cores busy in a snapshot, of {os.cpu_count()}", *(f"{name} {seconds / total:.2f}" for name, seconds in busy.items()))


def uploads(bed):
    """The upload of six nodes by six agents, beside as many clients that put objects of the size of packs."""
    bytes_each = bed.effort(192, 320) * MIB
    for is_distant, title in ((True, "through a link of a gigabit a second to the object store"), (False, "without a limit but this machine")):
        place = os.path.join(bed.place, f"uploads-{is_distant}")
        os.makedirs(place)
        world = World(bed.tools, place, is_distant, bytes_each, True)
        try:
            if is_distant:
                world.network.limit(STORE, LINK_BYTES_PER_SECOND)
            upload_rows(bed, f"six nodes of {bytes_each // MIB} MiB, {title}", world, bytes_each)
        finally:
            world.end()


CASES = {case.__name__: case for case in (distance, masters, uploads)}


def measured(bed, names):
    """Prints the figures of that name; how many could not be taken."""
    failures = 0
    for name in names:
        try:
            CASES[name](bed)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            failures += 1
            print(f"{name}: not measured: {error}", flush=True)
            bed.forget()
    return failures

