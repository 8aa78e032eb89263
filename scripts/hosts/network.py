"""Hosts that share nothing but a network: each a network namespace with an address and a name of its own.

A namespace has no name in the file system: a process that sleeps holds it, and it is gone with its devices when that
process is, however this program ends. Nothing of the host's own network changes.

Two networks: `Bridged`, where each host hangs on a bridge by a pair of veth devices, and `Distant`, where a switch in user
space (switch.rs) lets every frame arrive later.
"""

import contextlib
import ctypes
import os
import subprocess
import threading
import time

SUBNET = "10.99.0"
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG, SIGKILL = 1, 9
LIBC = ctypes.CDLL(None, use_errno=True)


def set_namespace(descriptor):
    if LIBC.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Host:
    """A namespace and its place in the network."""

    def __init__(self, name, number):
        self.name, self.number = name, number
        self.address = f"{SUBNET}.{number + 1}"
        # The name is the host's own, so that writers are told apart by it; the process ends with this one.
        command = ["unshare", "--net", "--uts", "--", "setpriv", "--pdeathsig", "KILL", "--", "sh", "-c",
                   f"hostname {name} && ip link set lo up && echo up && exec sleep infinity"]
        self.holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "up\n":
            raise RuntimeError(f"host {name}: no namespace can be made: {self.holder.stderr.read().strip()}")
        self.namespace = os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def command(self, *words):
        """The same command, on this host; it keeps its process id."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--uts", "--", *words]

    def run(self, *words):
        done = subprocess.run(self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def inside(self):
        """Sockets that this thread makes meanwhile are this host's."""
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            set_namespace(self.namespace)
            yield
        finally:
            set_namespace(before)
            os.close(before)

    def end(self):
        os.close(self.namespace)
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()
        self.holder.stderr.close()


class Network:
    """Hosts by name, in the order of their addresses."""

    def __init__(self, names):
        self.hosts = {}
        try:
            for number, name in enumerate(names):
                self.hosts[name] = Host(name, number)
            self.connect()
        except BaseException:
            self.end()
            raise

    def take_up(self):
        for host in self.hosts.values():
            host.run("sh", "-c", f"ip address add {host.address}/24 dev eth0 && ip link set eth0 up")

    def connect(self):
        raise NotImplementedError

    def end(self):
        for host in self.hosts.values():
            host.end()
        self.hosts = {}


class Bridged(Network):
    """A bridge in a namespace of its own, and a pair of devices from there to each host."""

    def connect(self):
        # No address of the hosts' is its own.
        self.middle = Host("bridge", 253)
        lines = ["link add bridge type bridge", "link set bridge up"]
        for name, host in self.hosts.items():
            port = f"port{host.number}"
            lines += [f"link add {port} type veth peer name eth0 netns {host.holder.pid}", f"link set {port} master bridge up"]
        for line in lines:
            self.middle.run("ip", *line.split())
        self.take_up()

    def cut(self, name):
        """Takes the link of a host down; whoever is on it keeps his address, as when a cable is pulled."""
        self.middle.run("ip", "link", "set", f"port{self.hosts[name].number}", "down")

    def mend(self, name):
        self.middle.run("ip", "link", "set", f"port{self.hosts[name].number}", "up")

    def end(self):
        super().end()
        if hasattr(self, "middle"):
            self.middle.end()
            del self.middle


class Distant(Network):
    """A switch in user space; every host is as far away as is wanted."""

    def __init__(self, names, program):
        self.program, self.switch, self.lock = program, None, threading.Lock()
        super().__init__(names)

    def connect(self):
        processes = [str(host.holder.pid) for host in self.hosts.values()]
        self.switch = subprocess.Popen([self.program, *processes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answered("ready")
        self.take_up()

    def answered(self, word):
        line = self.switch.stdout.readline().strip()
        if line != word:
            raise RuntimeError(f"{self.program}: {line or 'it ended'}")

    def tell(self, *words):
        with self.lock:
            self.switch.stdin.write(" ".join(map(str, words)) + "\n")
            self.switch.stdin.flush()
            self.answered("ok")

    def place(self, name, seconds):
        """A frame takes the distances of both its ends, one way."""
        self.tell("distance", self.hosts[name].number, round(seconds * 1e6))

    def limit(self, name, bytes_per_second):
        self.tell("rate", self.hosts[name].number, bytes_per_second)

    def round_trip(self, seconds):
        """Between any two hosts."""
        for name in self.hosts:
            self.place(name, seconds / 4)

    def cut(self, name):
        self.tell("link", self.hosts[name].number, 0)

    def mend(self, name):
        self.tell("link", self.hosts[name].number, 1)

    def end(self):
        if self.switch:
            self.switch.stdin.close()
            self.switch.wait()
            self.switch.stdout.close()
            self.switch = None
        super().end()


def wait_until(seconds, what, is_so, interval=0.02):
    """Asks until it is so; returns what was answered."""
    until = time.monotonic() + seconds
    while True:
        answer = is_so()
        if answer:
            return answer
        if time.monotonic() > until:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(interval)
