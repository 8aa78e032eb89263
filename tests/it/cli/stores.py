"""Three stores with the same keys: LevelDB, RocksDB, and SQLite with a write-ahead log.

    stores.py make DIRECTORY COUNT           makes all three with keys 0 to COUNT
    stores.py check DIRECTORY COUNT          opens each and reads all of them
    stores.py write DIRECTORY STORE FROM TO  writes more to one, says `synced N` after each durable step, compacts at the end
"""

import hashlib
import os
import sqlite3
import sys

import plyvel
import rocksdict

STEP = 500


def pair(number):
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return f"key{number:09d}".encode(), (digest * (1 + number % 4)).encode()


class LevelDB:
    def __init__(self, path):
        self.db = plyvel.DB(path, create_if_missing=True, write_buffer_size=1 << 20)

    def put(self, first, last):
        with self.db.write_batch(sync=True) as batch:
            for number in range(first, last):
                batch.put(*pair(number))

    def get(self, key):
        return self.db.get(key)

    def count(self):
        return sum(1 for _ in self.db.iterator(include_value=False))

    def compact(self):
        self.db.compact_range()

    def close(self):
        self.db.close()


class RocksDB:
    def __init__(self, path):
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(1 << 20)
        options.set_allow_mmap_reads(True)
        self.db = rocksdict.Rdict(path, options)
        self.sync = rocksdict.WriteOptions()
        self.sync.sync = True

    def put(self, first, last):
        batch = rocksdict.WriteBatch(raw_mode=True)
        for number in range(first, last):
            batch.put(*pair(number))
        self.db.write(batch, self.sync)

    def get(self, key):
        return self.db.get(key)

    def count(self):
        return sum(1 for _ in self.db.keys())

    def compact(self):
        self.db.flush()
        self.db.compact_range(None, None)

    def close(self):
        self.db.close()


class SQLite:
    def __init__(self, path):
        os.makedirs(path, exist_ok=True)
        self.db = sqlite3.connect(os.path.join(path, "db"), isolation_level=None)
        assert self.db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA mmap_size=268435456")
        self.db.execute("CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB)")

    def put(self, first, last):
        self.db.execute("BEGIN")
        self.db.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?)", (pair(number) for number in range(first, last)))
        self.db.execute("COMMIT")

    def get(self, key):
        row = self.db.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def count(self):
        return self.db.execute("SELECT count(*) FROM pairs").fetchone()[0]

    def compact(self):
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.execute("VACUUM")

    def close(self):
        self.db.close()


STORES = {"leveldb": LevelDB, "rocksdb": RocksDB, "sqlite": SQLite}


def main(verb, directory, *arguments):
    if verb == "write":
        name, first, last = arguments[0], int(arguments[1]), int(arguments[2])
        store = STORES[name](os.path.join(directory, name))
        for begin in range(first, last, STEP):
            store.put(begin, min(last, begin + STEP))
            print("synced", min(last, begin + STEP), flush=True)
        store.compact()
        store.close()
        return
    count = int(arguments[0])
    only = arguments[1:] or STORES
    for name in only:
        store = STORES[name](os.path.join(directory, name))
        if verb == "make":
            for begin in range(0, count, 10 * STEP):
                store.put(begin, min(count, begin + 10 * STEP))
            store.compact()
        for number in range(count):
            key, value = pair(number)
            found = store.get(key)
            assert found == value, f"{name}: key {number} is {found!r}"
        assert store.count() >= count, name
        store.close()


main(*sys.argv[1:])
