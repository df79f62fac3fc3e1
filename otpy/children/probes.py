"""How a program is asked whether it is ready, and whether it is well.

``Port`` and ``Http`` ask it, from a thread of their own, with a timeout of their own. ``Line`` and ``Notify`` listen to
what it says by itself, on the thread that waits for the programs. All are frozen values and know no program.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import attrs

from otpy import threads
from otpy.exceptions import SpecError
from otpy.mailbox import Once
from otpy.specs import is_number
from otpy.threads import Role

AGAIN = 0.05
"""Seconds from one look whether a program is ready to the next."""


def _where(probe: Any) -> str:
    return f"<{type(probe).__name__}>"


def _positive(probe: Any, field: Any, value: Any) -> None:
    if not is_number(value) or value <= 0:
        raise SpecError(_where(probe), field.name, value, "a finite number of seconds > 0")


def _count(probe: Any, field: Any, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(_where(probe), field.name, value, "an int >= 1")


def _text(probe: Any, field: Any, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise SpecError(_where(probe), field.name, value, "a non-empty str")


def _port(probe: Any, field: Any, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise SpecError(_where(probe), field.name, value, "an int from 1 to 65535")


def _regex(probe: Any, field: Any, value: Any) -> None:
    try:
        re.compile(value if isinstance(value, str) else None)  # type: ignore[type-var]
    except (re.error, TypeError) as error:
        raise SpecError(_where(probe), field.name, value, f"a regular expression, as a str ({error})") from None


def _url(probe: Any, field: Any, value: Any) -> None:
    import urllib.parse

    try:
        parts = urllib.parse.urlsplit(value if isinstance(value, str) else "")
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or not value.isascii() or not value.isprintable() or " " in value:
        raise SpecError(_where(probe), field.name, value, "a URL such as 'http://127.0.0.1:8080/health'")


@attrs.frozen
class Line:
    """The program has written a line, to stdout or stderr, in which *pattern* is found.

    Attributes:
        pattern: A regular expression, as for ``re.search``.
    """

    pattern: str = attrs.field(validator=_regex)


@attrs.frozen
class Port:
    """A TCP port accepts connections.

    Attributes:
        port: From 1 to 65535.
        host: A name or an address.
        timeout: Seconds that one attempt may take.
    """

    port: int = attrs.field(validator=_port)
    host: str = attrs.field(default="127.0.0.1", validator=_text)
    timeout: float = attrs.field(default=1.0, validator=_positive)

    def check(self) -> bool:
        """Try once."""
        try:
            socket.create_connection((self.host, self.port), self.timeout).close()
        except (OSError, UnicodeError):  # a host name that cannot be one is a UnicodeError
            return False
        return True


@attrs.frozen
class Http:
    """An HTTP GET is answered with a status from 200 to 299; nothing is redirected, no proxy is used.

    Attributes:
        url: With ``http`` or ``https``.
        timeout: Seconds that each step of one attempt may take: to connect, and to answer.
    """

    url: str = attrs.field(validator=_url)
    timeout: float = attrs.field(default=1.0, validator=_positive)

    def check(self) -> bool:
        """Try once."""
        import http.client  # here: few trees ask this way, and it takes as long to import as all of otpy
        import urllib.parse

        parts = urllib.parse.urlsplit(self.url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        try:
            connection.request("GET", target, headers={"Connection": "close"})
            return 200 <= connection.getresponse().status < 300
        except (OSError, http.client.HTTPException, UnicodeError):
            return False
        finally:
            connection.close()


@attrs.frozen
class Notify:
    """The program says so itself, as to systemd: ``READY=1`` to the socket that ``NOTIFY_SOCKET`` names. Linux only."""


Probe = Line | Port | Http | Notify
Asking = Port | Http


def _asking(health: Any, field: Any, value: Any) -> None:
    if not isinstance(value, Asking):
        expected = "a Port or an Http; a program that sends WATCHDOG=1 needs a heartbeat instead"
        raise SpecError(_where(health), field.name, value, expected)


@attrs.frozen
class Health:
    """Ask a program again and again whether it is well.

    Attributes:
        probe: A ``Port`` or an ``Http``.
        interval: Seconds from one answer to the next question.
        misses: After so many misses in a row the program has stalled.
    """

    probe: Asking = attrs.field(validator=_asking)
    interval: float = attrs.field(default=10.0, validator=_positive)
    misses: int = attrs.field(default=3, validator=_count)


def ask(target: Callable[[], None], *, path: str, owner: object) -> threading.Thread:
    """Run one of the following on a thread of its own, and return that.

    Raises:
        RuntimeError: The system has no more threads to give.
    """
    return threads.spawn(target, name=f"{path} (probe)", role=Role.HELPER, purpose="asks a program", owner=owner)


def until_ready(probe: Asking, over: Once, ready: Callable[[], object]) -> None:
    """Ask until the answer is good, then say so; give up when the program is *over*."""
    while not over.has_happened:
        if probe.check():
            ready()
            return
        over.wait(AGAIN)


def while_alive(health: Health, over: Once, answer: Callable[[bool], object]) -> None:
    """Ask at intervals and tell each answer, until the program is *over*."""
    while not over.wait(health.interval):
        answer(health.probe.check())
