#!/usr/bin/env python3
"""A stand-in for Dynomite: one node of a ring in front of a real redis-server. It is not Dynomite and shares no code with it.

It behaves as Dynomite was seen to, in what matters to a snapshot: ordinary commands go to the node of this rack that has the
key's token, writes also to the other racks, which nobody waits for; what Dynomite does not pass on makes it hang up; a backend
that does not answer within `timeout_ms` is an error. The admin port answers one connection after the other, an unknown path
with 200 and "OK". Its statistics are handed over at the end of a turn of the main loop and taken by the next request, so that one
answer may be old.

It differs on purpose: keys are placed by CRC-32, peers speak RESP to one another, and `/stand_in/delay/MS` holds writes back on
their way to other racks.

    dynomite.py CONFIGURATION    a JSON file, see `Node`; events are appended to its `log`
"""

import asyncio
import json
import signal
import sys
import zlib

HANGS_UP = {
    "BGSAVE", "SAVE", "LASTSAVE", "CLIENT", "FLUSHALL", "FLUSHDB", "DBSIZE", "WAIT", "SELECT", "COMMAND", "SHUTDOWN",
    "BGREWRITEAOF", "MULTI", "PSYNC", "REPLCONF",
}
LOCAL = {"PING", "INFO", "CONFIG", "KEYS", "SCAN"}
WRITES = {"SET", "DEL", "INCR", "HSET", "HMSET", "LPUSH", "RPUSH", "SADD", "ZADD", "EXPIRE"}
POOL = [
    "client_eof", "client_connections", "client_read_requests", "client_write_requests", "client_dropped_requests",
    "dnode_client_eof", "dnode_client_connections", "dnode_client_in_queue", "dnode_client_out_queue", "peer_dropped_requests",
    "peer_timedout_requests", "remote_peer_dropped_requests", "remote_peer_timedout_requests", "peer_requests",
    "peer_responses", "peer_in_queue", "remote_peer_in_queue", "peer_out_queue", "remote_peer_out_queue",
]
SERVER = [
    "server_eof", "server_dropped_requests", "server_timedout_requests", "read_requests", "write_requests", "in_queue",
    "out_queue",
]
REFUSED = b"-ERR Storage: Datastore refused connection\r\n"
NOT_ALLOWED = b"-ERR Dynomite: Dynomite's current state does not allow this request\r\n"


class Statistics:
    """What is counted, what was handed over, and what is shown."""

    def __init__(self):
        self.current, self.handed, self.shown = {}, {}, dict.fromkeys(POOL + SERVER, 0)
        self.is_handed, self.is_updated = False, False

    def count(self, name, by=1):
        self.current[name] = self.current.get(name, 0) + by
        self.is_updated = True

    def end_of_turn(self):
        if not self.is_handed and self.is_updated:
            self.handed, self.current = self.current, {}
            self.is_handed, self.is_updated = True, False

    def take(self):
        if self.is_handed:
            for name, by in self.handed.items():
                self.shown[name] += by
            self.is_handed = False


async def read_reply(reader):
    """One RESP value as it is on the wire."""
    line = await reader.readuntil(b"\r\n")
    kind, rest = line[:1], line[1:-2]
    if kind == b"$" and rest != b"-1":
        return line + await reader.readexactly(int(rest) + 2)
    if kind == b"*" and rest != b"-1":
        return line + b"".join([await read_reply(reader) for _ in range(int(rest))])
    return line


def words(command):
    parts = command.split(b"\r\n")
    return [part.decode("utf-8", "replace") for part in parts[2::2]]


class Backend:
    """One connection to a server that answers in order; made again when it broke."""

    def __init__(self, host, port, node, gauges):
        self.place, self.node, self.gauges = (host, port), node, gauges
        self.lock, self.waiting, self.writer, self.task = asyncio.Lock(), [], None, None

    async def ask(self, command, delay=0.0):
        count, (in_queue, out_queue, timed_out) = self.node.statistics.count, self.gauges
        count(in_queue)
        self.node.statistics.end_of_turn()
        future = asyncio.get_running_loop().create_future()
        try:
            if delay:
                await asyncio.sleep(delay)
            async with self.lock:
                try:
                    if self.writer is None:
                        reader, self.writer = await asyncio.open_connection(*self.place)
                        self.task = asyncio.create_task(self.listen(reader))
                    self.waiting.append(future)
                    self.writer.write(command)
                except OSError:
                    self.drop()
                    return REFUSED
        finally:
            count(in_queue, -1)
            self.node.statistics.end_of_turn()
        count(out_queue)
        self.node.statistics.end_of_turn()
        try:
            return await asyncio.wait_for(future, self.node.timeout)
        except (asyncio.TimeoutError, ConnectionError):
            count(timed_out)
            self.drop()
            return REFUSED
        finally:
            count(out_queue, -1)
            self.node.statistics.end_of_turn()

    async def listen(self, reader):
        try:
            while True:
                reply = await read_reply(reader)
                future = self.waiting.pop(0)
                if not future.done():
                    future.set_result(reply)
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
            self.drop()

    def drop(self):
        if self.writer is not None:
            self.writer.close()
        self.writer, waiting, self.waiting = None, self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionResetError())


class Node:
    """`address`, ports `client`, `peer` and `admin`, `backend` [host, port], its own `place` and those of all `servers`
    (`datacenter`, `rack`, `token`, `host`, `peer`), `timeout_ms`, `stats_interval_ms`, `log`."""

    def __init__(self, configuration):
        self.configuration = configuration
        self.timeout = configuration["timeout_ms"] / 1000
        self.statistics, self.state, self.delay = Statistics(), "NORMAL", 0.0
        self.backend = Backend(*configuration["backend"], self, ("in_queue", "out_queue", "server_timedout_requests"))
        self.peers, self.admin_lock, self.tasks = {}, asyncio.Lock(), set()
        own = configuration["place"]
        for server in configuration["servers"]:
            if not self.is_own(server):
                near = server["datacenter"] == own["datacenter"]
                names = ("peer_in_queue", "peer_out_queue", "peer_timedout_requests")
                names = names if near else tuple("remote_" + name for name in names)
                self.peers[self.key(server)] = Backend(server["host"], server["peer"], self, names)

    def key(self, server):
        return (server["datacenter"], server["rack"], server["token"])

    def is_own(self, server):
        return self.key(server) == self.key(self.configuration["place"])

    def log(self, text):
        own = self.configuration["place"]
        with open(self.configuration["log"], "a") as log:
            log.write(f"proxy {text} {own['rack']} {own['token']}\n")

    def owners(self, key):
        """The node of each rack that has the key."""
        number = zlib.crc32(key.encode())
        servers = self.configuration["servers"]
        for rack in sorted({(server["datacenter"], server["rack"]) for server in servers}):
            mine = [server for server in servers if (server["datacenter"], server["rack"]) == rack]
            mine.sort(key=lambda server: server["token"])
            yield ([server for server in mine if server["token"] <= number] or mine[-1:])[-1]

    async def forward(self, server, command, delay=0.0):
        if self.is_own(server):
            return await self.backend.ask(command)
        return await self.peers[self.key(server)].ask(command, delay)

    def leave(self, coroutine):
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, command):
        name, *arguments = words(command)
        name = name.upper()
        if name in HANGS_UP or (name == "HSET" and len(arguments) > 3):
            return None
        if self.state == "STANDBY":
            return NOT_ALLOWED
        is_write = name in WRITES
        self.statistics.count("client_write_requests" if is_write else "client_read_requests")
        if name in LOCAL or not arguments:
            return await self.backend.ask(command)
        own = self.configuration["place"]
        answer = None
        for server in self.owners(arguments[0]):
            if (server["datacenter"], server["rack"]) == (own["datacenter"], own["rack"]):
                answer = asyncio.create_task(self.forward(server, command))
            elif is_write:
                self.leave(self.forward(server, command, self.delay))
        return await answer

    async def serve_client(self, reader, writer):
        await self.serve(reader, writer, "client", self.answer)

    async def serve_peer(self, reader, writer):
        await self.serve(reader, writer, "dnode_client", self.backend.ask)

    async def serve(self, reader, writer, kind, answer):
        self.statistics.count(f"{kind}_connections")
        self.statistics.end_of_turn()
        replies = asyncio.Queue()

        async def reply():
            # In the order of the requests, whatever they wait for.
            while (task := await replies.get()) is not None:
                text = await task
                if text is None:
                    writer.close()
                    return
                writer.write(text)

        replying = asyncio.create_task(reply())
        try:
            while True:
                command = await read_reply(reader)
                await replies.put(asyncio.create_task(answer(command)))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            await replies.put(None)
            await replying
            writer.close()
            self.statistics.count(f"{kind}_connections", -1)
            self.statistics.count(f"{kind}_eof")
            self.statistics.end_of_turn()

    def described(self):
        racks = {}
        for server in self.configuration["servers"]:
            # It knows itself as what it listens on.
            host = "0.0.0.0" if self.is_own(server) else server["host"]
            shown = {"name": host, "host": host, "port": server["peer"], "token": server["token"]}
            racks.setdefault(server["datacenter"], {}).setdefault(server["rack"], []).append(shown)
        return {
            "dcs": [
                {"name": name, "racks": [{"name": rack, "servers": servers} for rack, servers in sorted(found.items())]}
                for name, found in sorted(racks.items())
            ]
        }

    def info(self):
        shown = self.statistics.shown
        host, port = self.configuration["backend"]
        pool = {name: shown[name] for name in POOL}
        pool[f"{host}:{port}"] = {name: shown[name] for name in SERVER}
        own = self.configuration["place"]
        head = {"service": "dynomite", "source": "stand-in", "uptime": 1, "rack": own["rack"], "dc": own["datacenter"]}
        return {**head, "latency_max": 0, "dyn_o_mite": pool}

    def admin(self, path):
        if path == "/info":
            return json.dumps(self.info()) + "\n"
        if path == "/cluster_describe":
            return json.dumps(self.described()) + "\n"
        if path == "/state/get_state":
            return f"State: {self.state}\n"
        if path in ("/state/standby", "/state/writes_only", "/state/normal"):
            self.state = path.rsplit("/", 1)[1].upper()
        if path.startswith("/stand_in/delay/"):
            self.delay = int(path.rsplit("/", 1)[1]) / 1000
        return "OK\r\n"

    async def serve_admin(self, reader, writer):
        async with self.admin_lock:
            try:
                request = await reader.read(65535)
                self.statistics.take()
                text = self.admin((request.split(b" ") + [b""])[1].decode())
                head = f"HTTP/1.1 200 OK \nContent-Type: application/json; charset=utf-8 \nContent-Length: {len(text)} \r\n\r\n"
                writer.write((head + text).encode())
                await writer.drain()
            except OSError:
                pass
            finally:
                writer.close()

    async def keep_statistics(self):
        while True:
            await asyncio.sleep(self.configuration["stats_interval_ms"] / 1000)
            self.statistics.take()
            self.statistics.end_of_turn()

    async def run(self):
        address = self.configuration["address"]
        for port, serve in (("client", self.serve_client), ("peer", self.serve_peer), ("admin", self.serve_admin)):
            await asyncio.start_server(serve, address, self.configuration[port])
        keys = await self.backend.ask(b"*1\r\n$6\r\nDBSIZE\r\n")
        self.log(f"up keys={keys.decode().strip()}")
        ended = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, ended.set)
        self.leave(self.keep_statistics())
        await ended.wait()
        self.log("down")


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        asyncio.run(Node(json.load(file)).run())
