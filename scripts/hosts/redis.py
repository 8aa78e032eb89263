"""Just enough of Redis: asking a server from a host's own network, the slots of keys, and reading a dump of strings."""

import binascii
import socket
import struct

PORT = 6379
SLOTS = 16384


class RedisError(RuntimeError):
    """An error that the server answered."""


def packed(*command):
    parts = [str(part).encode() if not isinstance(part, bytes) else part for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class Client:
    """One connection, made from a host; an answer that does not come within the limit is an error."""

    def __init__(self, host, address="127.0.0.1", port=PORT, limit=10.0):
        self.what = f"{host.name} to {address}:{port}"
        with host.inside():
            self.socket = socket.create_connection((address, port), limit)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def answer(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError(f"{self.what}: hung up")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(f"{self.what}: {rest.decode()}")
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return rest.decode()

    def ask(self, *command):
        self.socket.sendall(packed(*command))
        return self.answer()

    def ask_all(self, commands):
        """Many at once; all answers are wanted."""
        self.socket.sendall(b"".join(packed(*command) for command in commands))
        return [self.answer() for _ in commands]

    def info(self, section):
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


def shard_range(shard, shards):
    """The first and the last slot of a shard."""
    return shard * SLOTS // shards, (shard + 1) * SLOTS // shards - 1


def key_on(shard, shards, prefix):
    """The first key with this prefix that the shard has."""
    first, last = shard_range(shard, shards)
    number = 0
    while True:
        key = f"{prefix}:{number}"
        # CRC16 of the XMODEM kind is what Redis Cluster hashes keys with.
        if first <= binascii.crc_hqx(key.encode(), 0) % SLOTS <= last:
            return key
        number += 1


def counters(dump):
    """The integers among the values of an RDB of strings."""
    if not dump.startswith(b"REDIS"):
        raise ValueError("a dump begins with its magic")
    reader = DumpReader(dump)
    found = {}
    while True:
        kind = reader.byte()
        if kind == 0xFF:
            return found
        if kind == 0xFA:  # an auxiliary field
            reader.string(), reader.string()
        elif kind == 0xF5:  # a library of functions
            reader.string()
        elif kind == 0xFE:  # a database
            reader.length()
        elif kind == 0xFB:  # sizes
            reader.length(), reader.length()
        elif kind == 0:
            key, value = reader.string(), reader.string()
            if len(value) < 20 and value.isdigit():
                found[key.decode()] = int(value)
        else:
            raise ValueError(f"type or opcode {kind:#x} was not written by these cases")


class DumpReader:
    """A place in a dump."""

    def __init__(self, dump):
        self.dump, self.at = dump, 9

    def take(self, count):
        taken = self.dump[self.at:self.at + count]
        if len(taken) != count:
            raise ValueError("the dump ends too soon")
        self.at += count
        return taken

    def byte(self):
        return self.take(1)[0]

    def length(self):
        """A length, or minus one and the number of a special encoding less."""
        first = self.byte()
        if first >> 6 == 0:
            return first & 0x3F
        if first >> 6 == 1:
            return (first & 0x3F) << 8 | self.byte()
        if first >> 6 == 3:
            return -1 - (first & 0x3F)
        return struct.unpack(">I", self.take(4))[0] if first == 0x80 else struct.unpack(">Q", self.take(8))[0]

    def string(self):
        length = self.length()
        if length >= 0:
            return self.take(length)
        if length >= -3:
            width = {-1: "<b", -2: "<h", -3: "<i"}[length]
            return str(struct.unpack(width, self.take(struct.calcsize(width)))[0]).encode()
        if length != -4:
            raise ValueError(f"string encoding {-1 - length}")
        # No counter is long enough to be compressed.
        compressed, _ = self.length(), self.length()
        self.take(compressed)
        return b""
