"""Probes of servers that never come to an end, and patterns that ``re`` never finds."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otpy
from otpy import Health, Http, Line, Port, SpecError, supervisor
from otpy.children.program import output, patterns, probes
from otpy.children.program.output import Scan
from otpy.children.program.patterns import Finder
from otpy.reports import ChildTerminated, Progress
from otpy.runtime import threads
from otpy.runtime.waiting import Once
from tests.helpers import HANG, wait_until
from tests.programs import python, sh
from tests.seams import kit

# One deadline


class Server:
    """Answers each connection on a thread of its own, until the test is over.

    Attributes:
        met: Happens when a request has come.
    """

    def __init__(self, answer):
        self.answer, self.met, self.is_over = answer, threading.Event(), threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.threads = [threading.Thread(target=self.serve)]
        self.threads[0].start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                self.threads.append(
                    threading.Thread(target=self.meet, args=self.socket.accept()[:1])
                )
                self.threads[-1].start()

    def meet(self, client):
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            self.met.set()
            self.answer(self, client)

    def drip(self, client, data):
        """Send *data* again and again, for ever."""
        while not self.is_over.wait(0.01):
            client.sendall(data)

    def close(self):
        self.is_over.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for one in self.threads:
            one.join(HANG)


@pytest.fixture
def serving():
    """Make a server: ``serving(answer)``.

    It calls ``answer(server, client)`` when a request has come.
    """
    servers = []

    def make(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield make
    for one in servers:
        one.close()


def says(text, then):
    def answer(server, client):
        client.sendall(text)
        server.drip(client, then)

    return answer


def silent(server, client):
    server.is_over.wait(HANG)


ENDLESS = {
    # what the server does: its answer
    "says nothing": silent,
    "a status line": says(b"HTTP/1.1 2", b"0"),
    "a header": says(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "headers": says(b"HTTP/1.1 200 OK\r\n", b"X-Slow: x\r\n"),
    "informs": says(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "no HTTP": says(b"", b"x"),
}


def asked(probe, over=None):
    """Ask in another thread; return its answer, if that comes."""
    answers = []
    asking = threading.Thread(target=lambda: answers.append(probe.check(over)), daemon=True)
    asking.start()
    asking.join(HANG)
    assert answers, "it still waits"
    return answers[0]


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_drips_for_ever_is_a_miss_when_the_time_is_over(serving, what, scheme):
    """An attempt has one deadline, however many pieces of an answer come; in TLS as
    well.
    """
    server = serving(ENDLESS[what])

    assert asked(Http(f"{scheme}://127.0.0.1:{server.port}/", timeout=0.2)) is False


def test_a_head_that_has_come_is_an_answer_whatever_the_body_does(serving):
    """The head of the answer decides; the body is not waited for."""
    server = serving(says(b"HTTP/1.1 204 Fine\r\nX: y\r\n\r\n", b"x"))

    assert asked(Http(f"http://127.0.0.1:{server.port}/", timeout=HANG)) is True


@pytest.mark.parametrize("what", ENDLESS)
def test_an_attempt_ends_with_its_program_whatever_its_timeout_is(serving, what):
    """No threads pile up while a program is restarted again and again."""
    server, over = serving(ENDLESS[what]), Once()
    threading.Thread(target=lambda: server.met.wait(HANG) and over.happen()).start()

    assert asked(Http(f"http://127.0.0.1:{server.port}/", timeout=1000.0), over) is False


@pytest.fixture
def deaf():
    """The number of a port to which a connection is neither made nor refused: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        for _ in range(8):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_a_connection_that_is_never_made_ends_with_the_time_or_the_program(deaf):
    """The deadline and the end of the program also end a connect."""
    over = Once()
    over.happen()

    assert asked(Port(deaf, timeout=0.2)) is False
    assert asked(Port(deaf, timeout=1000.0), over) is False


def test_all_addresses_of_a_name_share_one_deadline(deaf, monkeypatch):
    """A name with many addresses takes no longer than one address."""
    monkeypatch.setattr(probes, "addresses", lambda host, port, slices: [ADDRESS(deaf)] * 10_000)

    assert asked(Port(deaf, host="many", timeout=0.2)) is False


def ADDRESS(port):
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)


def searches():
    return [one for one in threads.entries() if one.purpose == "looks for an address"]


def test_a_name_that_is_not_found_in_time_costs_one_thread_however_often_it_is_asked_for(
    monkeypatch,
):
    """The system's search cannot be ended, so later attempts wait for the same one."""
    go, find = threading.Event(), socket.getaddrinfo

    def hang(host, *args, **options):
        if options.get("flags") or not go.wait(HANG):
            raise socket.gaierror
        return find("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for _ in range(5):
            assert not Port(port, host="nowhere", timeout=0.02).check()
        assert len(searches()) == 1
        go.set()
        wait_until(lambda: not searches())
        assert Port(port, host="nowhere", timeout=HANG).check()


def test_a_name_that_does_not_exist_is_a_miss():
    """The error of the search is a miss, not an exception."""
    assert asked(Port(80, host="there.is.no.such.host.invalid", timeout=5.0)) is False


def test_without_a_thread_for_the_search_it_is_a_miss(monkeypatch):
    """If the system refuses the thread, the attempt is a miss, and no search is left."""

    def refuse(*args, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "spawn", refuse)

    assert not Port(80, host="localhost").check()
    assert not probes._searches


CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgdvTFm10mYZeC20r3
8OfMiLKSa3Gq8siWOZMs/tlpO/mhRANCAASAnhaayNDelk14+oz+yj3iZfupLHQO
8hGh6juG7KYgnDHCRH7tLh+13lt0HWa5CCrDDcJ1qyuMuoxguIVQNhM2
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBeDCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABICeFprI0N6WTXj6
jP7KPeJl+6ksdA7yEaHqO4bspiCcMcJEfu0uH7XeW3QdZrkIKsMNwnWrK4y6jGC4
hVA2EzajXjBcMA8GA1UdEwEB/wQFMAMBAf8wGgYDVR0RBBMwEYIJbG9jYWxob3N0
hwR/AAABMB0GA1UdDgQWBBRtFM0Rxfg/A8KRBKAEkXDrXpEGUTAOBgNVHQ8BAf8E
BAMCAoQwCgYIKoZIzj0EAwIDSQAwRgIhAOXsnHrCa4dfbSdNFnm4Jy/FYQFCqPeN
Rk+3qvnc+1lDAiEA12QKmMLIdM1pe8r4h49xvHEjl/uOscIoqIumSpMnqZw=
-----END CERTIFICATE-----
"""
"""Of localhost, from 2020 to 2120, signed by itself; of no use anywhere else."""


@pytest.mark.parametrize("is_trusted", [True, False])
def test_https_is_well_with_a_certificate_that_is_trusted(tmp_path, monkeypatch, is_trusted):
    """With an untrusted certificate the answer is a miss."""
    (tmp_path / "both.pem").write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "both.pem"))
    server = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)

    def answer():
        with contextlib.suppress(OSError), server.accept()[0] as client:
            client.recv(4096)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    answering = threading.Thread(target=answer)
    answering.start()
    with server:
        assert (
            asked(Http(f"https://localhost:{server.getsockname()[1]}/", timeout=HANG)) is is_trusted
        )
        answering.join(HANG)


def probing():
    return [one for one in threads.entries() if one.purpose == "asks a program"]


def test_restarts_leave_no_threads_that_still_ask(launch, recorder, serving):
    """This holds with a server that drips, a timeout of minutes, and a program that
    crashes.
    """
    server = serving(ENDLESS["a header"])
    health = Health(Http(f"http://127.0.0.1:{server.port}/", timeout=300.0), interval=0.01)
    app = launch(
        supervisor("app", children=[sh("sleep 0.05; exit 1", health=health)], intensity=10)
    )
    app.wait(HANG)

    assert len(recorder.of(ChildTerminated, "app/x")) == 11
    wait_until(lambda: not probing())


# Patterns


WORST = [
    r"^(\w+)+$",
    r"^(a|a)*$",
    r"^(a*)*$",
    r"(a|aa)+$",
    r"(.*a){12}$",
    r"^(a?){30}a{30}$",
    r".*.*.*.*!x",
    r"(x+x+)+y",
]


@pytest.mark.parametrize("pattern", WORST)
@pytest.mark.parametrize("line", ["a" * 5000 + "!", "x" * 5000, "a" * 29])
def test_a_character_costs_one_step_whatever_the_pattern_is(pattern, line, monkeypatch):
    """``re`` would work for years on most of these lines. The second time no step has
    to be worked out.
    """
    steps, place_after = [], Finder.place_after

    def count(finder, place, char):
        steps.append(char)
        return place_after(finder, place, char)

    monkeypatch.setattr(Finder, "place_after", count)
    finder = Finder(pattern)
    found = finder.finds_it_in(line)
    first = len(steps)

    assert first <= len(line)
    assert finder.finds_it_in(line) is found
    assert len(steps) == first


def test_what_is_remembered_is_bounded(monkeypatch):
    """Some patterns have 2**20 different places. These are forgotten, worked out again,
    and the pattern is found all the same.
    """
    monkeypatch.setattr(patterns, "REMEMBERED", 500)
    finder = Finder("a.{20}$")
    line = "".join(f"{number:b}" for number in range(3000)).translate({48: "a", 49: "b"})
    sizes = []
    for start in range(0, len(line), 100):
        piece = line[start : start + 100]
        assert finder.finds_it_in(piece) == bool(re.search("a.{20}$", piece))
        sizes.append(sum(len(place.steps) + len(place) for place in finder._places.values()))

    assert max(sizes) < 600


LEAVES = st.sampled_from(
    [
        "a",
        "b",
        "c",
        ".",
        r"\w",
        r"\W",
        r"\d",
        r"\s",
        "[ab]",
        "[^a]",
        "[a-c]",
        "^",
        "$",
        r"\b",
        r"\B",
        r"\A",
        r"\Z",
        "é",
        "ß",
        "-",
    ]
)


def wider(inner):
    repeats = st.sampled_from(
        ["*", "+", "?", "*?", "+?", "??", "{0}", "{2}", "{1,2}", "{0,2}?", "{2,}"]
    )
    groups = st.sampled_from(
        ["(", "(?:", "(?i:", "(?s-i:", "(?P<name>"]
    )  # (?a:\W) is not what re makes of it: it errs
    return st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
        st.builds("{}{})".format, groups, inner).filter(lambda text: text.count("?P<name>") < 2),
        st.builds("(?:{}){}".format, inner, repeats),
    )


@given(
    pattern=st.recursive(LEAVES, wider, max_leaves=6),
    flags=st.sampled_from(["", "(?i)", "(?a)", "(?ia)", "(?m)", "(?x)"]),
    lines=st.lists(st.text("abcABC é_-É1ß\u017f\u212aİ\t", max_size=7), min_size=1, max_size=5),
)
def test_it_is_found_where_re_finds_it(pattern, flags, lines):
    """A Finder agrees with ``re`` about any line, for any pattern that neither refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "REMEMBERED", 40)
        try:
            expected = [re.search(flags + pattern, line) is not None for line in lines]
        except re.error:
            return
        finder = Finder(flags + pattern)
        for line, is_there in zip(lines, expected, strict=True):
            if r"\B" in pattern and not line:
                continue  # Python 3.14 has changed its mind about an empty line
            assert finder.finds_it_in(line) is is_there, (flags + pattern, line)


COMMON = [
    # a pattern, a line that has it, one that has it not
    (r"listening on .*:\d+", "INFO listening on http://[::]:80", "listening on a socket"),
    (r".*ready.*", "server is ready.", "server is red"),
    (r"Started in \d+(\.\d+)? s", "Started in 3.25 s", "Started in . s"),
    (r"(\w+\.)*ready", "a.b.ready", "a.b.red"),
    (
        r"^\[\d{4}-\d\d-\d\d .{8,15}\] (INFO|DEBUG) +up$",
        "[2024-01-01 12:00:00] INFO  up",
        "[2024-01-01] INFO up",
    ),
    (r"(?i)\bready\b", "READY!", "already"),
    (r"(?P<host>\d{1,3}(?:\.\d{1,3}){3}):(?P<port>\d+)", "127.0.0.1:80", "127.0.0:80"),
    ("", "", None),
    ("^$", "", " "),
]


@pytest.mark.parametrize(("pattern", "good", "bad"), COMMON)
def test_what_people_look_for_is_taken_as_it_is(pattern, good, bad):
    """Common patterns are accepted, and find what they should."""
    finder = Finder(Line(pattern).pattern)

    assert finder.finds_it_in(good)
    assert bad is None or not finder.finds_it_in(bad)


REFUSED = {
    # pattern: why
    "(?=a)": "it looks ahead or behind",
    "(?<!not )ready": "it looks ahead or behind",
    "(?!)": "it looks ahead or behind",
    r"(a)\1": "it refers back to a group",
    r"(a)?(?(1)b|c)": "it refers back to a group",
    "(?>a+)b": "it has an atomic group",
    "a++b": "it has a possessive repeat",
    "a{1001}": "it is too long: more than 1000 steps",
    "((a{100}){100}){100}": "it is too long: more than 1000 steps",
    "a{99999999999999999999}": "the repetition number is too large",
    "(" * 10_000 + ")" * 10_000: "a regular expression (",
    "(": "missing )",
}


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: pattern[:30])
def test_what_cannot_be_found_in_linear_time_is_refused_when_the_spec_is_made(pattern):
    """The SpecError says which part of the pattern is refused."""
    with pytest.raises(SpecError) as caught:
        Line(pattern)

    assert REFUSED[pattern] in str(caught.value)
    assert caught.value.field == "pattern"


def test_repeats_of_nothing_cost_nothing():
    """A billion repeats of an empty pattern are a few steps."""
    assert len(patterns.compiled("(?:){1000000000}a").steps) < 5
    assert Finder("(?:(?:)*)*a").finds_it_in("ba")


# Lines on their way to a pattern


def test_a_line_without_end_is_cut_and_costs_no_more_memory():
    """Of a line that comes in pieces of all sizes no more than LONG characters are
    kept.
    """
    found = []
    scan = Scan("never", lambda: found.append(1))
    for size in (1, 1000, output.CHUNK) * 100:
        scan.add(b"x" * size)
        assert sum(map(len, scan._rest)) <= output.LONG

    assert not found


def test_a_search_that_takes_its_time_holds_up_its_own_program_only(launch, recorder, monkeypatch):
    """A search has a thread of its own: the ends of other programs are reported, and
    the tree stops.
    """
    go, is_asked = threading.Event(), threading.Event()
    monkeypatch.setattr(
        Finder, "finds_it_in", lambda finder, line: is_asked.set() or not go.wait(HANG)
    )
    app = launch(supervisor("app", children=[sh("exit 1", id="other")], intensity=10**6), flush=0.1)
    slow = sh("echo hello; exec sleep 1000", id="slow", ready="hello", restart="temporary")
    starter = threading.Thread(
        target=lambda: contextlib.suppress(otpy.StartError).__enter__() or start_child(app, slow)
    )
    starter.start()
    assert is_asked.wait(HANG)
    so_far = len(recorder.of(ChildTerminated, "app/other"))
    recorder.wait_for(ChildTerminated, "app/other", count=so_far + 3)
    report = app.stop(5.0)
    go.set()
    starter.join(HANG)

    assert report.unstopped == ()


def start_child(app, spec):
    with contextlib.suppress(otpy.StartError, otpy.Refusal):
        app.start_child(spec)


def test_no_line_is_looked_at_any_more_when_it_is_ready(launch, recorder, monkeypatch, tmp_path):
    """The search ends for stdout and stderr, its thread ends, and all output is still
    taken.
    """
    looked, finds = [], Finder.finds_it_in
    monkeypatch.setattr(
        Finder, "finds_it_in", lambda finder, line: looked.append(line) or finds(finder, line)
    )
    code = """if True:
        import os, sys, time
        os.write(2, b"up\\n")
        while not os.path.exists(sys.argv[1]): time.sleep(0.005)
        for n in range(300): os.write(1 + n % 2, b"x" * 1023 + b"\\n")
        os._exit(3)"""
    launch(
        supervisor(
            "app", children=[python(code, tmp_path / "go", ready="^up$", restart="temporary")]
        )
    )
    recorder.wait_for(Progress, "app/x")
    wait_until(lambda: not [one for one in threads.entries() if one.purpose == "hands output on"])
    (tmp_path / "go").touch()
    reason = recorder.wait_for(ChildTerminated, "app/x").reason

    assert len(reason.detail.stderr) == output.TAIL
    assert looked == ["up"]


def test_a_pattern_does_not_stop_the_rest_of_the_process():
    """For one line of 28 characters ``re`` needs 11 s, and holds the interpreter's
    lock.
    """
    source = r"""
    import threading, time
    from otpy import Line, process, start, supervisor

    last, longest = time.monotonic(), 0.0
    def tick():
        global last, longest
        while True:
            now = time.monotonic()
            last, longest = now, max(longest, now - last)
            time.sleep(0.01)

    threading.Thread(target=tick, daemon=True).start()
    script = "echo aaaaaaaaaaaaaaaaaaaaaaaaaaa!; echo ready; sleep 1000"
    app = start(supervisor("app", children=[process("sh", "-c", script, ready=Line(r"^(\w+)+$"))]), log=False)
    print(longest)
    app.stop(5)
    """
    assert float(kit.python(source).out) < 4.0
