#!/usr/bin/env python3
"""Reads a Tintype repository, format version 1, without Tintype. Written from src/repo/FORMAT.md alone.

    read_repository.py list    REPOSITORY [CLUSTER]
    read_repository.py show    REPOSITORY CLUSTER/DATE
    read_repository.py extract REPOSITORY CLUSTER/DATE[/NODE[/PATH]] DESTINATION
    read_repository.py verify  REPOSITORY CLUSTER/DATE

REPOSITORY is a directory or s3://BUCKET/PREFIX. DATE is a date as `list` shows it, an unambiguous beginning of one, or
`latest`. Python 3.11; packages zstandard and blake3, for encrypted repositories also cryptography, for passphrases argon2-cffi.

Whatever is used is verified: bytes by their seal, blocks, pages and node manifests also by their names. What does not fit,
or is unknown, or names a place outside of its own, ends the program with one line and exit status 1.
"""

import argparse
import base64
import binascii
import datetime
import hashlib
import hmac
import http.client
import io
import json
import os
import re
import stat
import struct
import sys
import urllib.parse
import uuid
import xml.etree.ElementTree

MIB = 1 << 20
PLAIN_MAX = 8 * MIB  # of blocks and pages
MANIFEST_MAX = 64 * MIB
PACK_MAX = 32 * MIB
SEAL_MAX = 64  # what compression tag and seal add at most, rounded up
BLOCK, TREE_PAGE, TABLE_PAGE, NODE_MANIFEST, CLUSTER_MANIFEST, CONTENT = 2, 3, 4, 6, 7, 11
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d)-(\d\d)-(\d\d)Z")


class Refused(Exception):
    """What stops the program: one line for a person."""


def package(module, name):
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise Refused(f"the Python package {name} is needed: pip install {name}") from None


# ---------------------------------------------------------------- object stores


class Directory:
    """A repository in a directory: every object is a file, its key the path below the root."""

    def __init__(self, root):
        self.root = root
        if not os.path.isdir(root):
            raise Refused(f"{root}: no such directory")

    def get(self, key, limit):
        with self._open(key) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Refused(f"{key}: larger than {limit} bytes")
        return data

    def get_range(self, key, offset, length):
        with self._open(key) as file:
            file.seek(offset)
            return file.read(length)

    def _open(self, key):
        try:
            return open(os.path.join(self.root, key), "rb")
        except OSError as error:
            raise Refused(f"{key}: {error.strerror}") from None

    def folders(self, prefix):
        return self._names(prefix, os.DirEntry.is_dir)

    def files(self, prefix):
        return self._names(prefix, os.DirEntry.is_file)

    def _names(self, prefix, wanted):
        try:
            with os.scandir(os.path.join(self.root, prefix)) as entries:
                return sorted(entry.name for entry in entries if wanted(entry))
        except FileNotFoundError:
            return []


class S3:
    """A repository in a bucket: GET and ListObjectsV2 with Signature Version 4, path style."""

    def __init__(self, location, endpoint, region):
        self.bucket, _, prefix = location.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.region = region
        self.endpoint = urllib.parse.urlsplit(endpoint or f"https://s3.{region}.amazonaws.com")
        self.access = os.environ.get("AWS_ACCESS_KEY_ID")
        self.secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
        self.connection = None
        if not self.access or not self.secret:
            raise Refused("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")

    def get(self, key, limit):
        data = self._request(key, {}, {}, limit + 1)
        if len(data) > limit:
            raise Refused(f"{key}: larger than {limit} bytes")
        return data

    def get_range(self, key, offset, length):
        return self._request(key, {}, {"range": f"bytes={offset}-{offset + length - 1}"}, length + 1)

    def folders(self, prefix):
        return sorted(key[:-1] for key in self._list(prefix) if key.endswith("/"))

    def files(self, prefix):
        return sorted(key for key in self._list(prefix) if key and not key.endswith("/"))

    def _list(self, prefix):
        prefix = self.prefix + prefix
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
        while True:
            try:
                page = xml.etree.ElementTree.fromstring(self._request(None, query, {}, 16 * MIB))
            except xml.etree.ElementTree.ParseError:
                raise Refused(f"{prefix}: the listing cannot be read") from None
            space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
            for found in page.iter(f"{space}Key"):
                yield (found.text or "").removeprefix(prefix)
            for found in page.iter(f"{space}CommonPrefixes"):
                yield (found.findtext(f"{space}Prefix") or "").removeprefix(prefix)
            following = page.findtext(f"{space}NextContinuationToken")
            if page.findtext(f"{space}IsTruncated") != "true" or not following:
                return
            query["continuation-token"] = following

    def _request(self, key, query, headers, limit):
        base = self.endpoint.path.rstrip("/")
        path = urllib.parse.quote(f"{base}/{self.bucket}" + ("" if key is None else f"/{self.prefix}{key}"), safe="/-_.~")
        text = "&".join(f"{urllib.parse.quote(k, safe='-_.~')}={urllib.parse.quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        headers = self._signed(path, text, dict(headers))
        target = path + ("?" + text if text else "")
        for is_last in (False, True):
            try:
                if self.connection is None:
                    kind = http.client.HTTPSConnection if self.endpoint.scheme == "https" else http.client.HTTPConnection
                    self.connection = kind(self.endpoint.netloc, timeout=60)
                self.connection.request("GET", target, headers=headers)
                answer = self.connection.getresponse()
                data = answer.read(limit)
                if answer.status not in (200, 206) or answer.length:
                    self.connection.close()
                break
            except (OSError, http.client.HTTPException) as error:
                self.connection = None
                if is_last:
                    raise Refused(f"{self.endpoint.geturl()}: {error}") from None
        if answer.status not in (200, 206):
            code = re.search(rb"<Code>([A-Za-z0-9]+)</Code>", data)
            raise Refused(f"{key or self.bucket}: the object store says {answer.status} {code[1].decode() if code else answer.reason}")
        if answer.status == 200 and "range" in headers:
            raise Refused(f"{key}: the object store does not serve ranges")
        return data

    def _signed(self, path, query, headers):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers |= {"host": self.endpoint.netloc, "x-amz-date": now, "x-amz-content-sha256": hashlib.sha256(b"").hexdigest()}
        if os.environ.get("AWS_SESSION_TOKEN"):
            headers["x-amz-security-token"] = os.environ["AWS_SESSION_TOKEN"]
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = f"GET\n{path}\n{query}\n{lines}\n{names}\n{headers['x-amz-content-sha256']}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        key = b"AWS4" + self.secret.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={names}, Signature={signature}"
        return headers


# ---------------------------------------------------------------- fields of JSON, bounded


def parse(data, what):
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(f"{what}: is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(f"{what}: is not a JSON object")
    return value


def field(record, name, kind, what):
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused(f"{what}: {name} is missing or of a wrong kind")
    return value


def number(record, name, most, what):
    value = field(record, name, int, what)
    if not 0 <= value <= most:
        raise Refused(f"{what}: {name} is out of range")
    return value


def hexed(record, name, length, what):
    value = field(record, name, str, what)
    if not re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", value):
        raise Refused(f"{what}: {name} is not {length} bytes of hex")
    return bytes.fromhex(value)


def named(record, name, what):
    value = field(record, name, str, what)
    if not NAME.fullmatch(value):
        raise Refused(f"{what}: {name} is not an allowed name")
    return value


def bytes_of(value, what):
    """A string, or {"base64": …} where the bytes are not UTF-8."""
    try:
        if isinstance(value, str):
            return value.encode()
        return base64.b64decode(field(value, "base64", str, what), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Refused(f"{what}: a name cannot be decoded") from None


def path_of(value, what):
    path = bytes_of(value, what)
    if path and (len(path) > 4095 or any(c in (b"", b".", b"..") or len(c) > 255 or b"\0" in c for c in path.split(b"/"))):
        raise Refused(f"{what}: unsafe path {shown(path)}")
    return path


def shown(path):
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path.decode("utf-8", "backslashreplace"))


def uuid_of(record, name, what):
    try:
        return uuid.UUID(field(record, name, str, what))
    except ValueError:
        raise Refused(f"{what}: {name} is not a UUID") from None


# ---------------------------------------------------------------- keys and seals


def derive(context, data):
    return package("blake3", "blake3").blake3(data, derive_key_context=context).digest()


def hash_with(key, data):
    return package("blake3", "blake3").blake3(data, key=key).digest()


def open_aes(key, nonce, sealed, additional):
    aead = package("cryptography.hazmat.primitives.ciphers.aead", "cryptography").AESGCM(key)
    try:
        return aead.decrypt(nonce, sealed, additional)
    except Exception:  # InvalidTag, or a ciphertext shorter than its tag
        return None


class Repository:
    def __init__(self, store, passphrase=None, key_file=None):
        self.store = store
        self.passphrase, self.key_file = passphrase, key_file
        descriptor = parse(store.get("tintype.json", MIB), "tintype.json")
        if descriptor.get("format") != "tintype repository":
            raise Refused("tintype.json: is not the descriptor of a repository")
        if number(descriptor, "version", 1 << 32, "tintype.json") != 1:
            raise Refused(f"tintype.json: format version {descriptor['version']} is not 1, the only one that this program reads")
        self.id = uuid_of(descriptor, "repository", "tintype.json").bytes
        encryption = field(descriptor, "encryption", str, "tintype.json")
        if encryption not in ("none", "aes-256-gcm"):
            raise Refused(f"tintype.json: unknown encryption {encryption}")
        self.is_encrypted = encryption != "none"
        if not self.is_encrypted and (passphrase is not None or key_file is not None):
            raise Refused("tintype.json: says that the repository is not encrypted, and a passphrase or key file was given")
        self._master = None if self.is_encrypted else bytes(32)
        self._derived = {}

    def master(self):
        """The master key, from the first key box that the passphrase or the key file opens."""
        if self._master is None:
            if self.passphrase is None and self.key_file is None:
                raise Refused("the repository is encrypted: give --password-file or --key-file")
            for name in self.store.files("keys/"):
                self._master = self._master or self._open_box(f"keys/{name}")
            if self._master is None:
                raise Refused("the passphrase or key file fits none of the key boxes")
        return self._master

    def _open_box(self, key):
        box = parse(self.store.get(key, MIB), key)
        check_format(box, key)
        kind = field(box, "kind", str, key)
        if kind == "passphrase" and self.passphrase is not None:
            settings = field(box, "argon2id", dict, key)
            memory, passes, lanes = (number(settings, *bound, key) for bound in (("memory_kib", MIB), ("passes", 32), ("lanes", 16)))
            argon2, argon2_errors = package("argon2.low_level", "argon2-cffi"), package("argon2.exceptions", "argon2-cffi")
            try:
                salt = bytes.fromhex(field(settings, "salt", str, key))
                box_key = argon2.hash_secret_raw(self.passphrase, salt, passes, memory, lanes, 32, argon2.Type.ID, 0x13)
            except (ValueError, argon2_errors.HashingError):
                raise Refused(f"{key}: its Argon2id settings are not possible") from None
        elif kind == "key_file" and self.key_file is not None:
            box_key = derive("tintype 1 key file", self.key_file)
        else:
            return None  # a kind of box that opens otherwise
        sealed = hexed(box, "sealed", 12 + 32 + 16, key)
        return open_aes(box_key, sealed[:12], sealed[12:], self._additional(1, key.encode()))

    def _additional(self, kind, place):
        return b"tintype/1" + self.id + bytes([kind]) + place

    def _derive(self, context, *parts):
        if (context, parts) not in self._derived:
            self._derived[context, parts] = derive(context, b"".join(parts))
        return self._derived[context, parts]

    def _scope_key(self, cluster):
        return self._derive("tintype 1 scope key", self.master(), cluster.encode())

    def name(self, cluster, kind, data):
        """hash(type, bytes) of FORMAT.md section 4."""
        return hash_with(self._derive("tintype 1 naming key", self._scope_key(cluster), bytes([kind])), data)

    def unseal(self, cluster, kind, place, sealed, limit, what):
        """The plain bytes of something sealed, at most `limit` of them."""
        additional = self._additional(kind, place)
        if not self.is_encrypted and sealed[:1] == b"\0":
            body, checksum = sealed[1:-32], sealed[-32:]
            right = package("blake3", "blake3").blake3(struct.pack("<I", len(additional)) + additional + body).digest()
            body = body if right == checksum else None
        elif self.is_encrypted and sealed[:1] == b"\1":
            data_key = self._derive("tintype 1 data key", self._scope_key(cluster), sealed[1:17])
            body = open_aes(data_key, sealed[17:29], sealed[29:], additional)
        else:
            raise Refused(f"{what}: is sealed in an unknown or forbidden way")
        if not body:
            raise Refused(f"{what}: the seal is broken")
        if body[0] == 0:
            plain = body[1:]
        elif body[0] == 1:
            zstandard = package("zstandard", "zstandard")
            try:
                plain = zstandard.ZstdDecompressor(max_window_size=MANIFEST_MAX).stream_reader(io.BytesIO(body[1:])).read(limit + 1)
            except zstandard.ZstdError:
                raise Refused(f"{what}: cannot be decompressed") from None
        else:
            raise Refused(f"{what}: is stored in an unknown way")
        if len(plain) > limit:
            raise Refused(f"{what}: is larger than it may be")
        return plain

    # ------------------------------------------------------------ snapshots

    def clusters(self):
        return [name for name in self.store.folders("clusters/") if NAME.fullmatch(name)]

    def snapshots(self, cluster):
        """Published snapshots, newest first, by their keys alone: (name to show, date, uuid, is complete, key)."""
        found = []
        for month in self.store.folders(f"clusters/{cluster}/_snapshots/"):
            for name in self.store.files(f"clusters/{cluster}/_snapshots/{month}/"):
                found.append(listed(f"clusters/{cluster}/_snapshots/", month, name))
        found.sort(key=lambda snapshot: snapshot[3])
        dates = [snapshot[0] for snapshot in found]
        return [(date if dates.count(date) == 1 else f"{date}~{str(id)[:8]}", date, id, full, key) for date, id, full, key in found]

    def find(self, cluster, wanted):
        snapshots = self.snapshots(cluster)
        if not snapshots:
            raise Refused(f"{cluster}: no such cluster")
        if wanted == "latest":
            fits = [snapshot for snapshot in snapshots if snapshot[3]][:1]
        else:
            fits = [s for s in snapshots if wanted == s[0]] or [s for s in snapshots if wanted and s[0].startswith(wanted)]
        if len(fits) != 1:
            raise Refused(f"{cluster}/{wanted}: {'no such snapshot' if not fits else 'ambiguous: ' + ', '.join(s[0] for s in fits[:9])}")
        return fits[0]

    def manifest(self, cluster, snapshot):
        """The cluster manifest, which must say what its key says."""
        _, date, id, is_complete, key = snapshot
        sealed = self.store.get(key, MANIFEST_MAX + SEAL_MAX)
        manifest = parse(self.unseal(cluster, CLUSTER_MANIFEST, key.encode(), sealed, MANIFEST_MAX, key), key)
        check_format(manifest, key)
        status = "completed" if is_complete else "partial"
        if uuid_of(manifest, "uuid", key) != id or [manifest.get(n) for n in ("cluster", "date", "status")] != [cluster, date, status]:
            raise Refused(f"{key}: does not say what its key says")
        nodes = field(manifest, "nodes", list, key)
        if len({named(node, "name", key) for node in nodes}) != len(nodes):
            raise Refused(f"{key}: a node stands there twice")
        return manifest

    def node(self, cluster, snapshot, record):
        """The manifest of one node of a snapshot."""
        name, id = record["name"], snapshot[2]
        key = f"clusters/{cluster}/{name}/manifests/{id}"
        plain = self.unseal(cluster, NODE_MANIFEST, key.encode(), self.store.get(key, MANIFEST_MAX + SEAL_MAX), MANIFEST_MAX, key)
        if self.name(cluster, NODE_MANIFEST, struct.pack("<I", len(key)) + key.encode() + plain) != hexed(record, "manifest", 32, key):
            raise Refused(f"{key}: is not the manifest that the snapshot names")
        manifest = parse(plain, key)
        check_format(manifest, key)
        if uuid_of(manifest, "snapshot", key) != id or [manifest.get("cluster"), manifest.get("node")] != [cluster, name]:
            raise Refused(f"{key}: does not say what its key says")
        return manifest

    # ------------------------------------------------------------ pages and blocks

    def stored(self, cluster, folder, kind, extent, place):
        """The plain bytes that an extent (node, pack, offset, stored, plain, id) leads to, verified by seal and name."""
        node, pack, offset, stored_bytes, plain_bytes, id = extent
        if plain_bytes > PLAIN_MAX or stored_bytes > plain_bytes + SEAL_MAX or offset + stored_bytes > PACK_MAX:
            raise Refused(f"an extent of block {id.hex()} is out of range")
        key = f"clusters/{cluster}/{node}/{folder}/{pack}"
        what = f"{key}, offset {offset}"
        sealed = self.store.get_range(key, offset, stored_bytes)
        if len(sealed) != stored_bytes:
            raise Refused(f"{key}: shorter than bytes {offset}..{offset + stored_bytes}")
        plain = self.unseal(cluster, kind, id + place, sealed, plain_bytes, what)
        named_bytes = plain if kind == BLOCK else struct.pack("<I", len(place)) + place + plain
        if len(plain) != plain_bytes or self.name(cluster, kind, named_bytes) != id:
            raise Refused(f"{what}: is not the block that was looked for")
        return plain

    def entries(self, cluster, manifest, node):
        """Every entry of a node in order, with the records of its content: (path, entry, segments or None)."""
        what, before, directories = f"node {node}", None, set()
        for listed_page in field(manifest, "tree", list, what):
            first = path_of(listed_page.get("first") if isinstance(listed_page, dict) else None, what)
            page = parse(self.stored(cluster, "pages", TREE_PAGE, extent_of(listed_page.get("page"), what), first), what)
            shared = page.get("table")
            table = self.table(cluster, extent_of(shared, what), first, (1 << 64) - 1) if shared is not None else None
            for position, entry in enumerate(field(page, "entries", list, what)):
                path = path_of(entry.get("path") if isinstance(entry, dict) else None, what)
                parent, _, name = path.rpartition(b"/")
                if position == 0 and path != first or before is not None and (parent, name) <= before:
                    raise Refused(f"{what}: {shown(path)} is not in order")
                if path and parent not in directories and parent or before is None and path:
                    raise Refused(f"{what}: {shown(path)} stands in no directory")
                before = parent, name
                kind = field(entry, "kind", str, what)
                if kind not in ("file", "directory", "link") or not path and kind != "directory":
                    raise Refused(f"{what}: {shown(path)} is of an unknown kind")
                number(entry, "mode", 0o7777, what)
                field(entry, "modified_ns", int, what)
                if kind == "directory":
                    directories.add(path)
                yield path, entry, self.segments(cluster, path, entry, table, f"{node}/{shown(path)}") if kind == "file" else None

    def segments(self, cluster, path, entry, shared, what):
        """The segments of a file, in order: an extent, or the bytes themselves. Read to the end, it is verified whole."""
        content = field(entry, "content", dict, what)
        size, at = number(content, "size_bytes", (1 << 63) - 1, what), 0
        digest = package("blake3", "blake3").blake3(
            struct.pack("<Q", size), key=self._derive("tintype 1 naming key", self._scope_key(cluster), bytes([CONTENT])))
        for part in field(content, "tables", list, what):
            start, first, count = (number(part, name, (1 << 63) - 1, what) for name in ("start", "first", "count"))
            own = part.get("page")
            records = shared if own is None else self.table(cluster, extent_of(own, what), path, start)
            if start != at or records is None or first + count > len(records):
                raise Refused(f"{what}: its table does not fit")
            for record in records[first:first + count]:
                if isinstance(record, bytes):
                    digest.update(b"\2" + struct.pack("<H", len(record)) + record)
                    at += len(record)
                else:
                    digest.update(b"\1" + record[-1])
                    at += record[-2]
                if at > size:
                    raise Refused(f"{what}: is longer than it says")
                yield record
        if at != size or digest.digest() != hexed(content, "id", 32, what):
            raise Refused(f"{what}: its segments are not those that were stored")

    def table(self, cluster, extent, path, offset):
        """The records of a table page."""
        data = self.stored(cluster, "pages", TABLE_PAGE, extent, path + b"\0" + struct.pack("<Q", offset))
        reader, packs, records = io.BytesIO(data), [], []

        def take(form):
            piece = reader.read(struct.calcsize(form))
            if len(piece) != struct.calcsize(form):
                raise Refused(f"table page {extent[-1].hex()}: ends in the middle")
            return struct.unpack(form, piece)

        for _ in range(take("<I")[0]):
            name = take(f"{take('<B')[0]}s")[0].decode("ascii", "replace")
            if not NAME.fullmatch(name):
                raise Refused(f"table page {extent[-1].hex()}: a node's name is not allowed")
            packs.append((name, take("16s")[0].hex()))
        for _ in range(take("<I")[0]):
            (tag,) = take("<B")
            if tag == 1:
                id, pack, offset, stored_bytes, plain_bytes = take("<32sIIII")
                if pack >= len(packs):
                    raise Refused(f"table page {extent[-1].hex()}: a pack is not in its list")
                records.append((*packs[pack], offset, stored_bytes, plain_bytes, id))
            elif tag == 2:
                (length,) = take("<H")
                if length > 512:
                    raise Refused(f"table page {extent[-1].hex()}: a literal is too long")
                records.append(take(f"{length}s")[0])
            else:
                raise Refused(f"table page {extent[-1].hex()}: unknown segment tag {tag}")
        if reader.read(1):
            raise Refused(f"table page {extent[-1].hex()}: goes on behind its end")
        return records

    def content(self, cluster, segments):
        """The bytes of a file, piece by piece."""
        for segment in segments:
            yield segment if isinstance(segment, bytes) else self.stored(cluster, "packs", BLOCK, segment, b"")


def listed(folder, month, name):
    """(date, uuid, is complete, key) of a cluster manifest, whose name must fit the date within it."""
    key = f"{folder}{month}/{name}"
    fits = re.fullmatch(rf"(\d{{8}})\.({DATE.pattern})\.([0-9a-f-]{{36}})\.(full|part)", name)
    if fits:
        year, mon, day, hour, minute, second = map(int, DATE.fullmatch(fits[2]).groups())
        right = f"{999999 - (year * 100 + mon):06}.{year:04}-{mon:02}"
        if month == right and int(fits[1]) == 99999999 - (day * 1000000 + hour * 10000 + minute * 100 + second):
            try:
                return fits[2], uuid.UUID(fits[9]), fits[10] == "full", key
            except ValueError:
                pass
    raise Refused(f"{key}: is not the name of a snapshot")


def check_format(manifest, what):
    if number(manifest, "format", 1 << 32, what) != 1:
        raise Refused(f"{what}: format version {manifest['format']} is not 1")


def extent_of(extent, what):
    numbers = (number(extent, name, (1 << 32) - 1, what) for name in ("offset", "stored_bytes", "plain_bytes"))
    return named(extent, "node", what), hexed(extent, "pack", 16, what).hex(), *numbers, hexed(extent, "id", 32, what)


# ---------------------------------------------------------------- commands


def opened(repository, place):
    """CLUSTER/DATE… → (cluster, snapshot, manifest, completed nodes, what follows)."""
    cluster, _, rest = place.partition("/")
    date, _, rest = rest.partition("/")
    if not NAME.fullmatch(cluster) or not date:
        raise Refused(f"{place}: give CLUSTER/DATE")
    snapshot = repository.find(cluster, date)
    manifest = repository.manifest(cluster, snapshot)
    nodes = [node for node in manifest["nodes"] if node.get("manifest") is not None]
    return cluster, snapshot, manifest, nodes, rest


def list_snapshots(repository, arguments):
    if arguments.cluster and not NAME.fullmatch(arguments.cluster):
        raise Refused(f"{arguments.cluster}: is not an allowed name")
    for cluster in [arguments.cluster] if arguments.cluster else repository.clusters():
        for snapshot in repository.snapshots(cluster):
            print(f"{cluster}/{snapshot[0]}  {'completed' if snapshot[3] else 'partial'}  {snapshot[2]}")


def show(repository, arguments):
    cluster, snapshot, manifest, nodes, _ = opened(repository, arguments.snapshot)
    print(json.dumps(manifest, indent=2))
    for record in nodes:
        for path, entry, segments in repository.entries(cluster, repository.node(cluster, snapshot, record), record["name"]):
            size = entry["content"]["size_bytes"] if segments is not None and isinstance(entry.get("content"), dict) else 0
            arrow = f" -> {shown(bytes_of(entry.get('target'), 'target'))}" if entry["kind"] == "link" else ""
            print(f"{entry['kind']:9} {entry['mode']:04o} {size:>14} {record['name']}/{shown(path)}{arrow}")


def verify(repository, arguments):
    cluster, snapshot, _, nodes, _ = opened(repository, arguments.snapshot)
    files = total = 0
    for record in nodes:
        for _, _, segments in repository.entries(cluster, repository.node(cluster, snapshot, record), record["name"]):
            if segments is not None:
                files += 1
                total += sum(len(piece) for piece in repository.content(cluster, segments))
    print(f"{cluster}/{snapshot[0]}: {len(nodes)} nodes, {files} files, {total} bytes: all verified")


def extract(repository, arguments):
    cluster, snapshot, _, nodes, rest = opened(repository, arguments.snapshot)
    wanted_node, _, wanted = rest.partition("/")
    wanted = os.fsencode(wanted.rstrip("/"))
    nodes = [node for node in nodes if wanted_node in ("", node["name"])]
    if not nodes:
        raise Refused(f"{arguments.snapshot}: no such node, or it has no files")
    root = os.fsencode(arguments.destination)
    try:
        os.mkdir(root)
    except FileExistsError:
        if not os.path.isdir(root) or os.listdir(root):
            raise Refused(f"{arguments.destination}: is there and is not an empty directory") from None
    for record in nodes:
        base = root if wanted_node else os.path.join(root, record["name"].encode())
        extract_node(repository, cluster, repository.node(cluster, snapshot, record), record["name"], wanted, base)


def extract_node(repository, cluster, manifest, node, wanted, base):
    """Below `base`, or, for a path within the node, that file or directory with its last name."""
    directories, found = [], False
    for path, entry, segments in repository.entries(cluster, manifest, node):
        if wanted and path != wanted and not path.startswith(wanted + b"/"):
            continue
        found = True
        inner = path[wanted.rfind(b"/") + 1:] if wanted else path
        target = os.path.join(base, inner) if inner else base
        if entry["kind"] == "directory":
            if not os.path.isdir(target):
                os.mkdir(target, 0o700)
            directories.append((target, entry))
        elif entry["kind"] == "link":
            os.symlink(bytes_of(entry.get("target"), "target of a link"), target)
            os.utime(target, ns=(entry["modified_ns"],) * 2, follow_symlinks=False)
        else:
            write_file(repository, cluster, segments, target)
            apply(target, entry)
    if not found:
        raise Refused(f"{node}/{shown(wanted)}: no such file or directory")
    for target, entry in reversed(directories):  # children are written before their directory may become read-only
        apply(target, entry)


def write_file(repository, cluster, segments, target):
    """A file is there whole and verified, or not at all."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            for piece in repository.content(cluster, segments):
                file.write(piece)
    except BaseException:
        os.unlink(target)
        raise


def apply(target, entry):
    """Permissions without set-user-id, and the time. Owners stay those of whoever runs this."""
    os.chmod(target, stat.S_IMODE(entry["mode"]) & 0o777)
    os.utime(target, ns=(entry["modified_ns"],) * 2)


def content_of(file, most, what):
    try:
        with open(file, "rb") as opened_file:
            data = opened_file.read(most + 1)
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}") from None
    if len(data) > most:
        raise Refused(f"{file}: too long for a {what}")
    return data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, run in (("list", list_snapshots), ("show", show), ("extract", extract), ("verify", verify)):
        command = verbs.add_parser(verb)
        command.set_defaults(run=run)
        command.add_argument("repository")
        if verb == "list":
            command.add_argument("cluster", nargs="?")
        else:
            command.add_argument("snapshot")
        if verb == "extract":
            command.add_argument("destination")
        command.add_argument("--password-file", default=os.environ.get("TINTYPE_PASSWORD_FILE"))
        command.add_argument("--key-file")
        command.add_argument("--endpoint", help="of an S3 store other than Amazon's")
        command.add_argument("--region", default=os.environ.get("AWS_REGION", "us-east-1"))
    arguments = parser.parse_args()
    try:
        location = arguments.repository
        store = S3(location, arguments.endpoint, arguments.region) if location.startswith("s3://") else Directory(location)
        passphrase = key_file = None
        if arguments.password_file:
            passphrase = content_of(arguments.password_file, MIB, "passphrase").removesuffix(b"\n").removesuffix(b"\r")
        if arguments.key_file:
            key_file = content_of(arguments.key_file, MIB, "key file")
            if len(key_file) < 32:
                raise Refused(f"{arguments.key_file}: a key file holds at least 32 bytes")
        arguments.run(Repository(store, passphrase, key_file), arguments)
        sys.stdout.flush()
    except Refused as refusal:
        sys.exit(f"read_repository: {refusal}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        sys.exit(f"read_repository: {error}")
    except KeyboardInterrupt:
        sys.exit("read_repository: interrupted")


if __name__ == "__main__":
    main()
