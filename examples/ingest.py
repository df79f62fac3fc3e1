"""Index a directory of real text into SQLite while its workers crash hundreds of times, and lose nothing.

    python examples/ingest.py                            # the sources of this Python's standard library
    python examples/ingest.py --chaos 500 --seed 1       # the same, with about 500 crashes on the way
    python examples/ingest.py ~/notes --database notes.sqlite

Readers read files, parsers count words, one writer writes. Between them are channels, made outside the tree, so that
they outlive every restart. When the writer has written the last file it ends, and being significant takes the tree
with it. Then the database is compared with a plain sequential run: it must be equal.

    ingest (one_for_one)
      status              an HTTP page on loopback
      writing             writer ............ counts  ──▶ SQLite
      parsing             parser-1, -2 ...... texts   ──▶ counts
      reading             reader-1, -2 ...... names   ──▶ texts
"""

import argparse
import collections
import contextlib
import functools
import queue
import random
import re
import sqlite3
import sys
import sysconfig
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from otpy import Service, run, supervisor, thread

SCHEMA = """
PRAGMA journal_mode = WAL;
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS words;
CREATE TABLE files (name TEXT PRIMARY KEY, lines INTEGER);
CREATE TABLE words (name TEXT, word TEXT, count INTEGER, PRIMARY KEY (name, word)) WITHOUT ROWID;
"""

# Channels and chaos: made outside the tree


class Channel:
    """A queue that outlives those who use it.

    What a worker takes stays its own until its loop comes round for the next item. If it crashes before that, its
    replacement gets the same item again. So an item may come twice, and is never lost. When *room* items wait, those
    who put wait as well, unless they are asked to stop.
    """

    def __init__(self, items=(), room=50):
        self._items, self._taken, self._room = collections.deque(items), {}, room
        self._news = threading.Condition()

    def put(self, item, ctx):
        """Add *item* when there is room."""
        with self._news:
            self._news.wait_for(lambda: len(self._items) < self._room or not ctx.running)
            self._items.append(item)
            self._news.notify_all()

    def each(self, ctx):
        """Yield items until *ctx* is asked to stop."""
        while self._take(ctx.path, ctx):
            yield self._taken[ctx.path]
            del self._taken[ctx.path]  # the loop has come round: the item is acknowledged

    def _take(self, owner, ctx):
        with self._news:
            self._news.wait_for(lambda: not ctx.running or owner in self._taken or self._items)
            if ctx.running and owner not in self._taken:
                self._taken[owner] = self._items.popleft()
                self._news.notify_all()
        return ctx.running

    def wake(self):
        """Have those who wait look again: somebody is asked to stop."""
        with self._news:
            self._news.notify_all()


class Mishap(Exception):
    """What chaos raises."""


class Chaos:
    """Raises ``Mishap`` about *times* times in *chances* calls, and never more often."""

    def __init__(self, times, chances, seed):
        self._left, self._odds, self._dice = times, min(0.5, times / chances), random.Random(seed)
        self._lock = threading.Lock()

    def strike(self):
        """Raise, or do not."""
        with self._lock:
            if not self._left or self._dice.random() >= self._odds:
                return
            self._left -= 1
        raise Mishap("chaos struck")


# The work itself, which knows nothing of threads


def find(directory, limit):
    """Return the names of the Python files below *directory*, those of installed packages left out."""
    names = (
        path.relative_to(directory).as_posix() for path in directory.rglob("*.py") if path.is_file()
    )
    return sorted(name for name in names if "site-packages" not in name)[:limit]


def read(directory, name):
    """Return a file's name and text."""
    return name, (directory / name).read_text("utf-8", errors="replace")


def parse(named_text):
    """Return a file's name, its number of lines, and how often each word is in it."""
    name, text = named_text
    return name, text.count("\n"), collections.Counter(re.findall(r"\w+", text))


def save(db, name, lines, words):
    """Write what is known of one file; to do it twice is to do it once."""
    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (name, lines))
    db.executemany(
        "INSERT OR REPLACE INTO words VALUES (?, ?, ?)", [(name, *item) for item in words.items()]
    )


def count_files(db):
    """Return how many files are written."""
    return db.execute("SELECT count(*) FROM files").fetchone()[0]


def connect(database):
    """Return a connection that is closed when its block is left."""
    return contextlib.closing(sqlite3.connect(database))


# The children


def stage(ctx, work, inbox, outbox, chaos):
    """Do *work* on every item of *inbox*, and hand what comes of it on to *outbox*."""
    ctx.on_stop(inbox.wake)
    ctx.on_stop(outbox.wake)
    for item in inbox.each(ctx):
        chaos.strike()  # nothing is done yet: the replacement does it
        outbox.put(work(item), ctx)
        chaos.strike()  # handed on and not acknowledged: the replacement does it again


def write(ctx, inbox, database, total, chaos):
    """Write every item of *inbox* in a transaction of its own; end when *total* files are written."""
    ctx.on_stop(inbox.wake)
    with connect(database) as db:
        for item in inbox.each(ctx):
            with db:
                save(db, *item)
                chaos.strike()  # written and not committed: rolled back, and the replacement writes it
            chaos.strike()  # committed and not acknowledged: the replacement writes it again
            if count_files(db) == total:
                return


class Status(Service):
    """A page that shows how far the work is, and the running tree."""

    def init(self, database, total):
        """Open the port: the child counts as started only when it can be asked."""
        self.database, self.total = database, total
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.server.text = self.text
        print(f"status: http://127.0.0.1:{self.server.server_port}/", flush=True)

    def run(self):
        """Serve until ``stop``."""
        self.server.serve_forever()

    def stop(self):
        """Make ``run`` return."""
        self.server.shutdown()

    def terminate(self, reason):
        """Close the port, however ``run`` has ended."""
        self.server.server_close()

    def text(self):
        """Return the page."""
        with connect(self.database) as db:
            progress = f"{count_files(db)} of {self.total} files are written"
        return "\n".join([progress, "", *outline(self.ctx.supervisor.snapshot()), ""])


class Page(BaseHTTPRequestHandler):
    """Answers every GET with the status."""

    def do_GET(self):
        """Send the text."""
        body = self.server.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Keep the console for the summary."""


def outline(snapshot, indent=""):
    """Yield a line for each supervisor and each child."""
    yield f"{indent}{snapshot.path}: {snapshot.strategy.value}, {snapshot.budget_left} restarts left"
    for child in snapshot.children:
        if child.snapshot:
            yield from outline(child.snapshot, indent + "  ")
        else:
            yield f"{indent}  {child.id}: {child.state.value}, life {child.incarnation}, last exit: {child.last_exit}"


# The tree


def build(directory, names, database, crashes=0, seed=None):
    """Return the program as a tree."""
    waiting, texts, counts = Channel(names), Channel(), Channel()
    chaos = Chaos(
        crashes, chances=6 * len(names), seed=seed
    )  # six places where it may strike a file
    # Chaos strikes so many times in all and not once more: so it never breaches this limit, however fast it is, and
    # whatever else goes wrong still has three restarts in five seconds before it escalates.
    limit = {"intensity": 3 + crashes, "period": 5.0}
    last = {"restart": "transient", "significant": True}  # its end is the end of its supervisor

    read_here = functools.partial(read, directory)
    readers = [
        thread(stage, read_here, waiting, texts, chaos, id=f"reader-{number}") for number in (1, 2)
    ]
    parsers = [
        thread(stage, parse, texts, counts, chaos, id=f"parser-{number}") for number in (1, 2)
    ]
    writer = thread(write, counts, database, len(names), chaos, id="writer", **last)
    children = [  # from the sink to the source, because they stop in reverse
        thread(Status, database, len(names), id="status"),
        supervisor("writing", children=[writer], auto_shutdown="any_significant", **limit, **last),
        supervisor("parsing", children=parsers, **limit),
        supervisor("reading", children=readers, **limit),
    ]
    return supervisor("ingest", children=children, auto_shutdown="any_significant")


# The proof


def sequential(directory, names):
    """Return what must be in the database: name -> (lines, words)."""
    parsed = (parse(read(directory, name)) for name in names)
    return {name: (lines, words) for name, lines, words in parsed}


def stored(database):
    """Return what is in the database: name -> (lines, words)."""
    with connect(database) as db:
        index = {
            name: (lines, collections.Counter())
            for name, lines in db.execute("SELECT * FROM files")
        }
        for name, word, count in db.execute("SELECT * FROM words"):
            index[name][1][word] = count
    return index


def ingest(directory, names, database, crashes, seed):
    """Run the tree, print what came of it, and return whether it is right."""
    with connect(database) as db:
        db.executescript(SCHEMA)
    reports = queue.SimpleQueue()
    began = time.monotonic()
    run(build(directory, names, database, crashes, seed), reports=reports, log=False)
    took = time.monotonic() - began

    with connect(database) as db:
        files = "{} files, {} lines".format(
            *db.execute("SELECT count(*), sum(lines) FROM files").fetchone()
        )
        words = "{} words, {} distinct".format(
            *db.execute("SELECT sum(count), count(DISTINCT word) FROM words").fetchone()
        )
    is_right = stored(database) == sequential(directory, names)
    verdict = "equal to" if is_right else "NOT EQUAL to"
    print(
        f"{files}, {words}; {count_mishaps(reports)} crashes; {took:.1f} s; {verdict} the sequential run"
    )
    return is_right


def count_mishaps(reports):
    """Return how many of *reports* tell of a mishap: each death is reported once."""
    reasons = [reports.get().reason for _ in range(reports.qsize())]
    return sum(reason is not None and isinstance(reason.exception, Mishap) for reason in reasons)


def natural(text):
    """Return a number that an argument may be."""
    if (number := int(text)) < 0:
        raise ValueError(text)
    return number


def main():
    """Index what the command line says; exit with 0 if the index is right."""
    parser = argparse.ArgumentParser(
        description="Index Python files into SQLite, crashing on the way."
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path(sysconfig.get_path("stdlib"))
    )
    parser.add_argument(
        "--chaos", type=natural, default=0, metavar="N", help="crash about N times in all"
    )
    parser.add_argument("--seed", type=int, help="of the chaos")
    parser.add_argument(
        "--limit", type=natural, metavar="FILES", help="index so many files at most"
    )
    parser.add_argument(
        "--database", type=Path, metavar="PATH", help="write the index here, over what is there"
    )
    args = parser.parse_args()
    names = find(args.directory, args.limit)
    if not names:
        parser.error(f"{args.directory}: there are no Python files")
    with tempfile.TemporaryDirectory() as scratch:
        database = args.database or Path(scratch, "index.sqlite")
        sys.exit(0 if ingest(args.directory, names, database, args.chaos, args.seed) else 1)


if __name__ == "__main__":
    main()
