"""How a program is asked whether it is ready, and whether it is well.

Laws:
1. An attempt has one deadline for all of its steps: to find the address, to connect, to
   agree on TLS, to send, and to receive each byte of the answer.
2. An attempt ends at most GLANCE seconds after its program, whatever its timeout is.

``Port`` and ``Http`` ask the program, from a thread of their own; ``Line`` and ``Notify``
only say which news of it count. All are frozen values and know no program.

Not proud of: the system's search for the address of a name cannot be ended. It has a thread
of its own, one for each name at a time, which is left behind when it takes too long.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from otpy.children.program.patterns import Unsuited, compiled
from otpy.core.pauses import PAUSE
from otpy.exceptions import SpecError
from otpy.runtime import posix, threads
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Once
from otpy.specs import is_number
from otpy.values import Value, value

AGAIN = 0.05
"""Seconds from one look whether a program is ready to the next."""

GLANCE = 0.2
"""Seconds between looks of a thread that waits for an answer for its program."""


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
    if not isinstance(value, str):
        raise SpecError(_where(probe), field.name, value, "a regular expression, as a str")
    try:
        compiled(value)
    except Unsuited as error:
        expected = f"a regular expression that can be looked for in linear time; {error}"
        raise SpecError(_where(probe), field.name, value, expected) from None
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        raise SpecError(
            _where(probe), field.name, value, f"a regular expression ({error})"
        ) from None


def _url(probe: Any, field: Any, value: Any) -> None:
    import urllib.parse

    try:
        parts = urllib.parse.urlsplit(value if isinstance(value, str) else "")
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or not value.isascii() or not value.isprintable() or " " in value:
        raise SpecError(
            _where(probe), field.name, value, "a URL such as 'http://127.0.0.1:8080/health'"
        )
    if "@" in parts.netloc:  # they would not be sent, but printed wherever the spec is
        shown = parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()
        raise SpecError(_where(probe), field.name, shown, "a URL without a user and a password")


@value
class Line(Value):
    """The program has written a line, to stdout or stderr, in which *pattern* is found.

    Attributes:
        pattern: A regular expression, as for ``re.search``. It is looked for in linear
            time. So these are refused: to look ahead or behind, references to groups,
            atomic groups, possessive repeats, and patterns of more than 1,000 steps, where
            repeats such as ``x{500}`` are written out.
    """

    pattern: str = attrs.field(validator=_regex)


@value
class Port(Value):
    """A TCP port accepts connections.

    Attributes:
        port: From 1 to 65535.
        host: A name or an address.
        timeout: Seconds that one attempt may take.
    """

    port: int = attrs.field(validator=_port)
    host: str = attrs.field(default="127.0.0.1", validator=_text)
    timeout: float = attrs.field(default=1.0, validator=_positive)

    def check(self, over: Once | None = None) -> bool:
        """Try once; give up when *over* happens."""
        try:
            with Attempt(self.host, self.port, self.timeout, over):
                return True
        # the latter for a text that cannot be the name of a host
        except (OSError, UnicodeError):
            return False


@value
class Http(Value):
    """An HTTP GET is answered with a status from 200 to 299.

    No redirection is followed, and no proxy is used.

    Attributes:
        url: With ``http`` or ``https``.
        timeout: Seconds that one attempt may take, until the last line of the answer's head
            has come.
    """

    url: str = attrs.field(validator=_url)
    timeout: float = attrs.field(default=1.0, validator=_positive)

    def check(self, over: Once | None = None) -> bool:
        """Try once; give up when *over* happens."""
        # here: few trees ask this way, and to import it takes as long as all of otpy
        import http.client
        import urllib.parse

        parts = urllib.parse.urlsplit(self.url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        is_safe = parts.scheme == "https"
        usual = http.client.HTTPS_PORT if is_safe else http.client.HTTP_PORT
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or usual)
        # the header Host leaves this port out
        connection.default_port = usual
        try:
            with Attempt(connection.host, connection.port, self.timeout, over) as attempt:
                if is_safe:
                    attempt.agree_on_tls()
                connection.sock = attempt
                connection.request("GET", target, headers={"Connection": "close"})
                return 200 <= connection.getresponse().status < 300
        except (OSError, http.client.HTTPException, UnicodeError):
            return False


class Attempt:
    """A connection whose every wait ends at one deadline; as a socket for ``http.client``.

    Its methods raise an OSError if they fail, or not in time.
    """

    def __init__(self, host: str, port: int, timeout: float, over: Once | None) -> None:
        """Connect.

        Args:
            host, port: Of the server.
            timeout: Seconds until the deadline.
            over: Ends the attempt when it happens.

        Raises:
            OSError: It cannot connect, or not in time.
        """
        self._host, self._deadline, self._over = host, time.monotonic() + timeout, over
        error: OSError = ConnectionError(f"no address for {host}")
        for family, kind, protocol, _, address in addresses(host, port, self._slices()):
            self._socket = socket.socket(family, kind, protocol)
            try:
                self._connect(address)
            except BaseException as failure:
                self._socket.close()
                if not isinstance(failure, OSError):
                    raise
                error = failure
            else:
                return
        raise error

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def agree_on_tls(self) -> None:
        """Speak TLS from now on."""
        import ssl

        context = ssl.create_default_context()
        safe = context.wrap_socket(
            self._socket, server_hostname=self._host, do_handshake_on_connect=False
        )
        self._socket = safe
        self._retry(safe.do_handshake)

    def sendall(self, data: bytes) -> None:
        """Send all of *data*."""
        while data:
            data = data[self._retry(self._socket.send, data) :]

    def receive(self, buffer: Any) -> int:
        """Wait for some bytes; return how many, 0 at the end."""
        count: int = self._retry(self._socket.recv_into, buffer)
        return count

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file with what is received."""
        return io.BufferedReader(_Answer(self))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _connect(self, address: Any) -> None:
        one = self._socket
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(address)
        with posix.selector() as selector:
            selector.register(one, selectors.EVENT_WRITE)
            for seconds in self._slices():
                if selector.select(seconds):
                    break
        if number := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, "cannot connect")

    def _retry(self, step: Callable[..., Any], *args: object) -> Any:
        for seconds in self._slices():
            self._socket.settimeout(seconds)
            with contextlib.suppress(TimeoutError):
                return step(*args)
        raise AssertionError("the slices do not just end")

    def _slices(self) -> Iterator[float]:
        """Yield for how many seconds to wait, again and again.

        Raises:
            TimeoutError: The deadline has passed, or the program has ended.
        """
        while (left := self._deadline - time.monotonic()) > 0:
            if self._over is not None and self._over.has_happened:
                break
            yield min(left, GLANCE)
        raise TimeoutError("no answer in time")


class _Answer(io.RawIOBase):
    """The answer, as a file."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._attempt.receive(buffer)


# Addresses


class _Search:
    """A search for the addresses of a name, on a thread of its own.

    All attempts that need the same name wait for the same search.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.done = Once()
        self.found: list[Any] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except Exception as error:
            self.error = error
        finally:
            # after the result: a thread that wakes up reads it
            self.end()

    def end(self) -> None:
        """Wake all that wait for it; a later attempt begins another search."""
        # first: an attempt that comes now gets a search of its own, and no old result
        _searches.pop((self.host, self.port), None)
        self.done.happen()


_searches: dict[tuple[str, int], _Search] = {}


def addresses(host: str, port: int, slices: Iterator[float]) -> list[Any]:
    """Return the addresses of *host*, as ``getaddrinfo`` does; wait as long as *slices* say.

    Raises:
        OSError: None was found, or *slices* raise it.
        UnicodeError: This cannot be the name of a host.
    """
    with contextlib.suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    own = _Search(host, port)
    # one step: of several threads that come here at the same time, one begins its
    # search
    search = _searches.setdefault((host, port), own)
    if search is own:
        try:
            threads.spawn(
                search.run,
                name=f"{host} (address)",
                role=Role.HELPER,
                purpose="looks for an address",
                owner=None,
            )
        except BaseException as error:
            search.end()
            raise OSError("there is no thread to look for an address") from error
    for seconds in slices:
        if search.done.wait(seconds):
            break
    if search.error is not None:
        raise search.error
    return search.found


if hasattr(os, "register_at_fork"):  # not on Windows, where no process forks
    # none of their threads exists in a fork
    os.register_at_fork(after_in_child=_searches.clear)


@value
class Notify(Value):
    """The program reports it itself, as to systemd. Linux only.

    It sends ``READY=1`` to the socket that ``NOTIFY_SOCKET`` names.
    """


Probe = Line | Port | Http | Notify
Asking = Port | Http


def _asking(health: Any, field: Any, value: Any) -> None:
    if not isinstance(value, Asking):
        expected = "a Port or an Http; a program that sends WATCHDOG=1 needs a heartbeat instead"
        raise SpecError(_where(health), field.name, value, expected)


@value
class Health(Value):
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
    """Run *target*, one of the following, on a thread of its own; return the thread.

    Raises:
        RuntimeError: The system has no more threads to give.
    """
    return threads.spawn(
        target, name=f"{path} (probe)", role=Role.HELPER, purpose="asks a program", owner=owner
    )


def until_ready(probe: Asking, over: Once, ready: Callable[[], object]) -> None:
    """Ask until the answer is good, then call *ready*; give up when *over* happens."""
    while not over.has_happened:
        if probe.check(over):
            ready()
            return
        over.wait(AGAIN)


def while_alive(health: Health, over: Once, answer: Callable[[bool], object]) -> None:
    """Ask at intervals, and call *answer* with each answer, until *over* happens."""
    while not over.wait(health.interval):
        began = time.monotonic()
        is_well = health.probe.check(over)
        # an attempt that took longer than it may was hit by a pause of this process,
        # and that it has failed says nothing about the program
        if is_well or time.monotonic() - began < health.probe.timeout + PAUSE:
            answer(is_well)
