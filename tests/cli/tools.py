"""The application that the command line is called with, and how a test calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANG = 50


APP = """
from otpy import Backoff, dynamic_supervisor, periodic, supervisor, thread

print("loaded")


def polite(ctx):
    print("up", flush=True)
    ctx.wait_stop()
    print("down", flush=True)


def once(ctx):
    ctx.log.info("hello", answer=42)


def broken(ctx):
    raise ConnectionError("no network")


def tidy():
    pass


tree = supervisor("app", children=[thread(polite)])
ending = supervisor(
    "app", children=[thread(once, restart="transient", significant=True)], auto_shutdown="any_significant"
)
failing = supervisor("app", intensity=1, children=[thread(broken)])
unready = supervisor("app", children=[thread(broken, ready=True)])
wide = supervisor(
    'the "app"',
    strategy="rest_for_one",
    children=[
        thread(polite, heartbeat=30, backoff=Backoff(1, 30), purpose="says <hello>"),
        periodic(tidy, restart="transient"),
        dynamic_supervisor("pool", max_children=7),
    ],
)
worst = supervisor("app", children=[thread(polite, backoff=Backoff(1, 30))])
number = 42


class space:
    tree = tree


def make():
    return supervisor("made", children=[thread(polite)])


def make_nothing():
    return None


def make_of(what):
    return what


async def make_later():
    return tree


def crash():
    raise RuntimeError("two\\nlines")


def note():
    error = RuntimeError("what is wrong")
    error.add_note("and a note")
    raise error


def leave():
    raise SystemExit(3)


def child():
    return thread(polite)
"""


def command(*args):
    return [sys.executable, "-P", "-W", "error", "-m", "otpy", *args]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def otpy_process(*args, cwd, **options):
    return subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(**options),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def start_process(*args, cwd, **options):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*args), cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True, **options
    )
