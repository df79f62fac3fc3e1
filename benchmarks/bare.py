"""The floors: what a good programmer writes with ``threading`` and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


def live(body: Callable[[], object], crashes: SimpleQueue[BaseException]) -> None:
    """Run *body* in a thread; whatever it raises goes to the one who restarts."""
    try:
        body()
    except BaseException as error:
        crashes.put(error)


def keep_alive(body: Callable[[], object], crashes: SimpleQueue[BaseException], lives: int) -> None:
    """Start a thread for each crash, until there have been so many."""
    for _ in range(lives):
        crashes.get()
        threading.Thread(target=live, args=(body, crashes), daemon=True).start()


def start_all(stops: list[threading.Event]) -> list[threading.Thread]:
    """Start one thread for each event, to wait for it."""
    children = []
    for stop in stops:
        child = threading.Thread(target=stop.wait, daemon=True)
        child.start()
        children.append(child)
    return children


def stop_all(children: list[threading.Thread], stops: list[threading.Event]) -> None:
    """Stop them in reverse order: set one event, join, next."""
    for child, stop in zip(reversed(children), reversed(stops), strict=True):
        stop.set()
        child.join()
