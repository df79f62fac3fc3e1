"""Children that call a function at intervals. The rhythm is tested without time; threads are met at a queue."""

import itertools
import queue
import threading

import attrs
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import otpy
from otpy import ChildState, ExitKind, Shutdown, SpecError, periodic, supervisor
from otpy.children.periodic import Rhythm
from otpy.reports import ChildTerminated, Progress, Stalled
from tests.helpers import HANG, ManualClock, Puppet, wait_until

LONG = 3600.0
SHORT = 0.001


ON_TIME = itertools.repeat(0)


def calls(durations, *, late=ON_TIME, **rhythm):
    """Play calls that take so long, "!" for failed ones, each so late; return when each was due, first at 0."""
    beat, dues = (
        Rhythm(**{"interval": 60, "retry_interval": 5, "retries": 3, "due": 0, **rhythm}),
        [],
    )
    for duration, delay in zip(durations, late, strict=False):
        dues.append(beat.due)
        started = beat.due + delay
        ended = started + int(str(duration).rstrip("!"))
        assert (
            ended + beat.next_wait(started, ended, failed=str(duration).endswith("!")) == beat.due
        )
        assert beat.due >= ended
    return [*dues, beat.due]


@pytest.mark.parametrize(
    ("durations", "options", "dues"),
    [
        ([0, 0, 0], {}, [0, 60, 120, 180]),
        ([1, 59, 60], {}, [0, 60, 120, 180]),  # from start to start
        (
            [70, 0, 0],
            {},
            [0, 70, 130, 190],
        ),  # one that takes too long is followed at once, and then as ever
        ([200, 0, 0], {}, [0, 200, 260, 320]),  # nothing is made up for
        ([0, 0, 0], {"late": [2, 3, 59]}, [0, 60, 120, 180]),  # no drift
        ([0, 0, 0], {"late": [0, 60, 0]}, [0, 60, 180, 240]),  # a whole interval late: a new rhythm
        ([0, 0, 0], {"late": [0, 200, 0]}, [0, 60, 320, 380]),
        (["2!", 0, 0], {}, [0, 7, 67, 127]),  # sooner, from the end of the call
        (["2!", "3!", 0], {}, [0, 7, 15, 75]),
        (
            ["0!", "0!", "0!", "1!", "0!"],
            {},
            [0, 5, 10, 15, 75, 80],
        ),  # three retries, and all over again
        (
            ["0!", "0!", 0, "0!", "0!", "0!", "0!"],
            {},
            [0, 5, 10, 70, 75, 80, 85, 145],
        ),  # in a row, that is
        (["1!", "1!", "1!"], {"retries": 0}, [0, 60, 120, 180]),
        (["1!", "1!", "1!"], {"retries": 1}, [0, 6, 66, 72]),
        (
            ["1!", "1!", "1!"],
            {"retry_interval": 90},
            [0, 61, 122, 183],
        ),  # never later than without a failure
        (["70!", "0!"], {"retries": 1}, [0, 75, 135]),
        (["0!", "70!"], {"retries": 1}, [0, 5, 75]),
    ],
)
def test_when_the_next_call_is_due(durations, options, dues):
    """Durations, "!" for failures, lateness; and when the calls were due."""
    assert calls(durations, **options) == dues


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 25)), max_size=40),
    st.integers(0, 4),
)
def test_the_rhythm(story, retries):
    """Whatever happens: a call comes as soon as it may and no sooner; only after a failure may it be a retry."""
    durations = [f"{duration}{'!' * failed}" for duration, failed, _ in story]
    late = [delay for *_, delay in story]
    dues = calls(durations, late=late, interval=10, retry_interval=3, retries=retries)
    for (due, following), (duration, failed, delay) in zip(
        itertools.pairwise(dues), story, strict=True
    ):
        ended = due + delay + duration
        assert due + 10 <= following <= max(due + delay + 10, ended) or (
            failed and following == ended + 3
        )


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 4))
def test_there_are_so_many_retries_in_a_row(failures, retries):
    """As many as there may be after each failure, if all calls fail."""
    dues = calls(["0!" if failed else 0 for failed in failures], retries=retries)
    soon = "".join(".!"[after - before < 60] for before, after in itertools.pairwise(dues))

    assert all(failed for mark, failed in zip(soon, failures, strict=True) if mark == "!")
    assert "!" * (retries + 1) not in soon
    if all(failures):
        assert soon == (("!" * retries + ".") * 40)[: len(soon)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40))
def test_the_rhythm_does_not_drift(story):
    """Calls that are neither slow nor very late are due at multiples of the interval."""
    dues = calls(
        [duration for duration, _ in story], late=[delay for _, delay in story], interval=10
    )

    assert dues == [10 * number for number in range(len(story) + 1)]


@pytest.fixture
def called():
    """Gets the arguments of each call."""
    return queue.Queue()


def hear(called):
    return called.get(timeout=HANG)


def test_it_calls_at_once_and_again_and_again(launch, called):
    """With its arguments, in the child's thread, where there is a context."""

    def note(*args):
        called.put((*args, otpy.current().path, threading.current_thread().name))

    app = launch(supervisor("app", children=[periodic(note, 1, "a", interval=SHORT)]))

    assert [hear(called) for _ in range(3)] == [(1, "a", "app/note", "app/note")] * 3
    assert app.stop().stopped == ("app/note",)


def test_it_wakes_at_once_when_it_is_asked_to_stop(launch, called):
    """It is in no hurry otherwise."""
    app = launch(
        supervisor("app", children=[periodic(called.put, 1, id="p", interval=LONG, shutdown=HANG)])
    )
    hear(called)

    assert app.stop().stopped == ("app/p",)
    assert called.empty()


def test_a_call_that_is_under_way_is_the_last_one(launch, called):
    """When asked to stop in the middle of a call."""

    def slow():
        called.put(1)
        otpy.current().wait_stop()

    app = launch(supervisor("app", children=[periodic(slow, interval=SHORT, shutdown=HANG)]))
    hear(called)

    assert app.stop().stopped == ("app/slow",)
    assert called.empty()


def test_asked_before_the_first_call_there_is_none(launch, called):
    """A stop may overtake the start."""
    spec = periodic(called.put, 1, id="p")
    puppet = Puppet(when_asked=lambda life: spec.start.run(None, life.ctx))
    app = launch(supervisor("app", children=[puppet.spec("a", shutdown=HANG)]))
    puppet.next()

    assert app.stop().stopped == ("app/a",)
    assert called.empty()


def test_false_is_a_soft_failure(launch, called):
    """It is tried again soon, and logged, until there have been enough retries."""

    def fail():
        called.put(1)
        return False

    with structlog.testing.capture_logs() as logs:
        launch(
            supervisor(
                "app", children=[periodic(fail, interval=LONG, retry_interval=SHORT, retries=2)]
            )
        )
        wait_until(lambda: len(logs) == 3, "three failures")

    assert called.qsize() == 3
    assert [(one["event"], one["log_level"], one["path"], one["failures"]) for one in logs] == [
        ("call_failed", "warning", "app/fail", count) for count in (1, 2, 3)
    ]
    assert [one["next_call"] for one in logs[:2]] == [SHORT, SHORT]
    assert LONG - HANG < logs[2]["next_call"] <= LONG


def test_nothing_else_is_a_soft_failure(launch, called):
    """Not even what is false as well."""
    values = iter([None, 0, 0.0, "", [], True, 1])

    def give():
        called.put(1)
        try:
            return next(values)
        except StopIteration:
            raise Shutdown("all done") from None

    with structlog.testing.capture_logs() as logs:
        app = launch(
            supervisor("app", children=[periodic(give, interval=SHORT, restart="temporary")])
        )
        wait_until(lambda: not app.which_children(), "the end")

    assert (called.qsize(), logs) == (8, [])


def test_an_exception_is_a_crash(launch, recorder, called):
    """The replacement calls at once, and counts its failures anew."""
    outcomes = iter([False, ValueError("rubbish"), False, True])

    def play():
        outcome = next(outcomes)
        called.put(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with structlog.testing.capture_logs() as logs:
        launch(
            supervisor(
                "app", children=[periodic(play, interval=LONG, retry_interval=SHORT, retries=1)]
            )
        )
        heard = [hear(called) for _ in range(4)]
    crash = recorder.wait_for(ChildTerminated, "app/play").reason

    assert (crash.kind, crash.exception) == (ExitKind.CRASHED, heard[1])
    assert [one["failures"] for one in logs] == [1, 1]


@pytest.fixture
def clock():
    return ManualClock()


def poke(app):
    """Have the supervisor look at the clock, and wait until it has acted on what it saw."""
    app.which_children()
    return app.which_children()[0].state


def test_the_heartbeat_does_not_limit_the_wait(launch, recorder, called, clock):
    """It may take as long as the interval, and a heartbeat on top."""

    def note():
        clock.advance(1.0)  # so that the check-in after the call can be told from the one before
        called.put(1)

    app = launch(
        supervisor("app", children=[periodic(note, interval=LONG, heartbeat=100.0)]), clock=clock
    )
    hear(called)
    wait_until(
        lambda: app.snapshot().children[0].heartbeat_age == 0.0, "the check-in after the call"
    )
    clock.advance(LONG + 50.0)
    assert poke(app) is ChildState.RUNNING
    assert recorder.of(Stalled) == []
    clock.advance(60.0)
    assert (
        poke(app) is ChildState.RUNNING
    )  # a clock that jumps is a pause, and the heartbeat begins anew
    clock.advance(100.0)
    poke(app)

    assert recorder.wait_for(Stalled, "app/note").incarnation == 1


def test_the_heartbeat_limits_each_call(launch, recorder, called, clock):
    """One that hangs is a stall; the others before were not."""

    def hang():
        called.put(1)
        if called.qsize() > 1:
            otpy.current().wait_stop()

    app = launch(
        supervisor("app", children=[periodic(hang, interval=0.01, heartbeat=10.0)]), clock=clock
    )
    wait_until(lambda: called.qsize() == 2, "the call that hangs")
    clock.advance(9.0)
    assert poke(app) is ChildState.RUNNING
    clock.advance(2.0)
    assert (
        poke(app) is ChildState.RUNNING
    )  # a clock that jumps is a pause, and the heartbeat begins anew
    clock.advance(10.0)
    poke(app)

    assert recorder.wait_for(Stalled, "app/hang").incarnation == 1
    assert recorder.wait_for(Progress, "app/hang", count=2).incarnation == 2


class Transcript:
    """A context that writes down what is done with it, and is asked to stop in the third wait."""

    def __init__(self):
        self.lines = []

    def note(self, what, seconds=None):
        self.lines.append(what if seconds is None else f"{what} {10 * round(seconds / 10)}")

    def wait_stop(self, timeout):
        self.note("wait", timeout)
        return len([line for line in self.lines if line.startswith("wait")]) == 3

    def check_in(self, *, allow=None):
        self.note("check in", allow)

    def ready(self):
        self.note("ready")


def test_when_it_checks_in():
    """Before each call, so that it is limited for itself; and before each wait, with the wait allowed for."""
    with_heartbeat, without = Transcript(), Transcript()
    for ctx, heartbeat in ((with_heartbeat, 30.0), (without, None)):
        periodic(lambda ctx: ctx.note("call"), ctx, id="p", interval=1000.0).start.run(
            heartbeat, ctx
        )

    turn = ["check in", "call", "ready", "check in 1030", "wait 1000"]
    assert with_heartbeat.lines == ["wait 0", *turn, *turn[:3], "check in 2030", "wait 2000"]
    assert [line for line in without.lines if line.startswith("check in ")] == []


def test_it_is_ready_when_a_call_has_not_failed(launch, called):
    """With ready=True; soft failures before that are tried again."""
    outcomes = iter([False, False, None])

    def connect():
        called.put(1)
        return next(outcomes)

    launch(
        supervisor(
            "app", children=[periodic(connect, interval=LONG, retry_interval=SHORT, ready=True)]
        )
    )

    assert called.qsize() == 3


def test_a_crash_before_that_is_a_failed_start():
    """As in any child with ready=True."""

    def connect():
        raise ConnectionError("nobody answers")

    with pytest.raises(otpy.StartError, match="app/connect") as caught:
        otpy.start(supervisor("app", children=[periodic(connect, ready=True)]), log=False)
    assert isinstance(caught.value.__cause__, ConnectionError)


def work(a, b=0):
    """A function."""


async def coroutine():
    """What cannot be called in a thread."""


BAD = {
    "interval": [0, -1, float("nan"), float("inf"), "60", None, True],
    "retry_interval": [0, -0.5, float("nan"), float("inf"), "5", None, True],
    "retries": [-1, 1.5, "3", None, True],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_bad_numbers(field, value):
    """Refused with path, field and value."""
    with pytest.raises(SpecError) as caught:
        periodic(work, 1, **{field: value})
    assert (caught.value.path, caught.value.field, caught.value.value) == ("work", field, value)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None,), {}, "<periodic>: function = None: expected a callable"),
        ((coroutine,), {}, "coroutine: function = .*: expected a plain function"),
        (
            (work,),
            {},
            r"work: function = .*: expected a callable that takes \(\*args\), without ctx \(missing .* 'a'\)",
        ),
        ((work, 1, 2, 3), {"id": "p"}, "p: function = .*too many positional arguments"),
        ((lambda: None,), {}, "id = ''"),
        ((work, 1), {"id": "a/b"}, "id = 'a/b'"),
        ((work, 1), {"heartbeat": 0}, "work: heartbeat = 0"),
    ],
)
def test_what_else_is_refused(arguments, options, message):
    """Before anything starts."""
    with pytest.raises(SpecError, match=message):
        periodic(*arguments, **options)


def test_an_unknown_option_is_a_type_error():
    """As for every builder."""
    with pytest.raises(
        TypeError, match=r"periodic\(\) got an unexpected keyword argument 'intervall'"
    ):
        periodic(work, 1, intervall=3)


def test_it_is_a_spec():
    """Equal when made of equal parts, printable, frozen, with the common options."""
    spec = periodic(work, 1, interval=2, restart="transient")

    assert (
        spec
        == periodic(work, 1, interval=2, restart="transient")
        != periodic(work, 1, interval=3, restart="transient")
    )
    assert (spec.id, spec.restart) == ("work", otpy.Restart.TRANSIENT)
    assert "interval=2, retry_interval=5.0, retries=3" in repr(spec)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        spec.start.interval = 1
