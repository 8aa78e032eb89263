"""Writers whose counters show whether several dumps are of one instant, and how long a write waits anywhere.

Each writer has one key on every shard and goes round them in an order of its own: it sets round `n` on a shard only after
round `n` was acknowledged on the one before. At any instant its counters therefore descend along the chain, by one at most
from first to last. Beside them each host has a prober, which writes into the server of its own host all the time, so that
a pause is felt also while the host is cut off.

They run in a process of their own (`python3 -m hosts.writers SPECIFICATION`), since whoever starts and kills things must
not hold them up: one thread that waits for all connections. A line on its standard input is answered by one of JSON:

    waits SINCE    the longest wait since then (a time of the monotonic clock) at each server, in seconds, locally and from afar
    stop           no more writes are begun; answered when those under way are acknowledged, and it ends
"""

import contextlib
import heapq
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time

from .network import set_namespace
from .redis import PORT, key_on, packed

WRITERS = 8
PACE_SECONDS = 0.003
PROBE_SECONDS = 0.005
# A shorter one is no news.
WAIT_SECONDS = 0.02
AGAIN_SECONDS = 0.1
# From linux/tcp.h, since 6.15: the longest time after which TCP sends again what was lost. It gives up after fifteen times.
TCP_RTO_MAX_MS, RTO_MAX_MS = 44, 4000


class Line:
    """A connection with one write under way at most."""

    def __init__(self, loop, address, is_local, shard):
        self.socket = socket.create_connection((address, PORT), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS)
        self.socket.setblocking(False)
        self.loop, self.is_local, self.shard = loop, is_local, shard
        self.began = self.owner = None
        self.command = b""
        loop.selector.register(self.socket, selectors.EVENT_READ, self)

    def write(self, owner, key, value):
        self.owner, self.command = owner, packed("SET", key, value)
        self.send()

    def send(self):
        if not self.loop.is_stopping:
            self.began = time.monotonic()
            self.socket.send(self.command)

    def readable(self):
        answer = self.socket.recv(4096)
        if not answer:
            raise ConnectionError(f"the server of shard {self.shard} hung up")
        if answer == b"+OK\r\n":
            now = time.monotonic()
            if now - self.began > WAIT_SECONDS:
                self.loop.waits.append((self.is_local, self.shard, self.began, now))
            self.began = None
            self.owner.acknowledged()
        elif answer.startswith(b"-CLUSTERDOWN"):
            # Refused, by a master that has not heard of the others for long, and not held back.
            self.began = None
            self.loop.later(AGAIN_SECONDS, self.send)
        else:
            raise RuntimeError(f"shard {self.shard}: {answer!r}")


class Writer:
    """Goes round its chain."""

    def __init__(self, loop, chain, addresses):
        self.loop, self.chain, self.round, self.link = loop, chain, 1, 0
        self.lines = [Line(loop, addresses[shard], False, shard) for shard, _ in chain]

    def write(self):
        self.lines[self.link].write(self, self.chain[self.link][1], self.round)

    def acknowledged(self):
        self.link += 1
        if self.link == len(self.chain):
            self.link, self.round = 0, self.round + 1
        self.loop.later(PACE_SECONDS, self.write)


class Prober:
    """Writes into the server of its own host."""

    def __init__(self, loop, shard, key):
        self.loop, self.key, self.count = loop, key, 0
        self.line = Line(loop, "127.0.0.1", True, shard)

    def write(self):
        self.count += 1
        self.line.write(self, self.key, self.count)

    def acknowledged(self):
        self.loop.later(PROBE_SECONDS, self.write)


class Loop:
    """All of them in one thread."""

    def __init__(self, specification):
        self.selector = selectors.DefaultSelector()
        self.timers, self.number, self.waits, self.is_stopping = [], 0, [], False
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.everybody = []
        for shard, (namespace, key) in enumerate(specification["probes"]):
            self.enter(namespace)
            self.everybody.append(Prober(self, shard, key))
        set_namespace(own)
        self.writers = [Writer(self, chain, specification["addresses"]) for chain in specification["chains"]]
        self.everybody += self.writers
        self.selector.register(sys.stdin.buffer, selectors.EVENT_READ, None)

    @staticmethod
    def enter(process):
        descriptor = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
        set_namespace(descriptor)
        os.close(descriptor)

    def later(self, seconds, what):
        self.number += 1
        heapq.heappush(self.timers, (time.monotonic() + seconds, self.number, what))

    def lines(self):
        return [key.data for key in self.selector.get_map().values() if key.data]

    def longest(self, since):
        now = time.monotonic()
        under_way = [(line.is_local, line.shard, line.began, now) for line in self.lines() if line.began]
        found = {"local": {}, "far": {}, "rounds": [writer.round - 1 for writer in self.writers]}
        for is_local, shard, began, ended in self.waits + under_way:
            if ended >= since:
                of = found["local" if is_local else "far"]
                of[shard] = max(of.get(shard, 0.0), ended - began)
        return found

    def run(self):
        for one in self.everybody:
            one.write()
        while True:
            rest = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else 1.0
            for key, _ in self.selector.select(rest):
                if key.data:
                    key.data.readable()
                elif not self.command(sys.stdin.readline().split()):
                    return
            while self.timers and self.timers[0][0] <= time.monotonic():
                heapq.heappop(self.timers)[2]()
            if self.is_stopping and not any(line.began for line in self.lines()):
                print(json.dumps(self.longest(0.0)), flush=True)
                return

    def command(self, words):
        if not words:
            return False
        if words[0] == "waits":
            print(json.dumps(self.longest(float(words[1]))), flush=True)
        else:
            self.is_stopping = True
        return True


class Writers:
    """The process, as seen by who starts it."""

    def __init__(self, clients, nodes, seed, place):
        """Writers on the host `clients`, and a prober on each of `nodes`."""
        chance, shards = random.Random(seed), len(nodes)
        self.chains, chains = [], []
        for writer in range(WRITERS):
            order = chance.sample(range(shards), shards)
            chain = [(shard, key_on(shard, shards, f"writer:{writer}:{shard}")) for shard in order]
            self.chains.append([key for _, key in chain])
            chains.append(chain)
        probes = [(node.holder.pid, key_on(shard, shards, f"probe:{shard}")) for shard, node in enumerate(nodes)]
        specification = json.dumps({"addresses": [node.address for node in nodes], "probes": probes, "chains": chains})
        self.log = open(place, "wb")
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.realpath(__file__)))}
        self.process = subprocess.Popen(clients.command(sys.executable, "-B", "-m", "hosts.writers", specification), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        while min(self.waits(time.monotonic())["rounds"]) == 0:
            time.sleep(0.01)

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            with open(self.log.name, encoding="utf-8") as log:
                raise RuntimeError(f"the writers ended: {log.read().strip()[-500:]}")
        return json.loads(answer)

    def waits(self, since):
        return self.ask(f"waits {since}")

    def stop(self):
        self.ask("stop")
        self.end()

    def end(self):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def violations(self, found):
        """Writers whose counters no instant explains, with their counters."""
        torn = []
        for writer, chain in enumerate(self.chains):
            values = [found.get(key, 0) for key in chain]
            if values != sorted(values, reverse=True) or values[0] > values[-1] + 1:
                torn.append(f"writer {writer}: {values}")
        return torn


if __name__ == "__main__":
    Loop(json.loads(sys.argv[1])).run()
