"""Findings about trees that are not started: each rule has trees that have it, and near misses that have not."""

from __future__ import annotations

import functools
import math
import re
import time
import xmlrpc.client

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otpy
from otpy import (
    Backoff,
    Service,
    Shutdown,
    Strategy,
    adopt,
    coroutine,
    dynamic_supervisor,
    periodic,
    supervisor,
    thread,
)
from otpy.check import COSTS, RULES, Finding, Level, check, most_restarts, slowest, stop_time, walk
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import Arm, Begin, ChildExited, ChildStarted, Due, End, Start
from otpy.core.restarts import Window
from otpy.core.strategy import restart_group
from otpy.taskgraph import TaskGraph
from tests import pages
from tests.machine_talk import CRASH

PAGE = pages.read("check.md")
MINUTE = 60


def work(ctx):
    ctx.wait_stop()


def job():
    pass


def leaving_job():
    raise Shutdown


def exiting_job():
    raise SystemExit


def sleeps_a_minute(ctx):
    while ctx.running:
        ctx.check_in()
        ctx.sleep(60)


def sleeps_by_a_global(ctx):
    ctx.wait_stop(MINUTE)


def sleeps_by_keyword(ctx):
    ctx.wait_stop(timeout=60.5)


def sleeps_in_a_loop(ctx):
    while not ctx.wait_stop(60):
        job()


def sleeps_outside_the_context(ctx):
    time.sleep(60)


def sleeps_at_length(ctx):
    ctx.sleep(1)
    ctx.sleep(60)


def asks_for_time(ctx):
    ctx.check_in(allow=90)
    ctx.sleep(60)


def sleeps_elsewhere(ctx):
    def later():
        time.sleep(60)

    ctx.on_stop(later)


def sleeps_as_told(ctx, seconds):
    ctx.sleep(seconds)


def sleeps_by_a_name_that_is_no_number(ctx):
    ctx.sleep(job)


async def awaits_a_minute(ctx):
    await ctx.sleep(60)


class Sleepy(Service):
    def run(self):
        self.ctx.sleep(60)


LAMBDA = thread(lambda ctx: job(), id="lambda", heartbeat=60) if job else time.sleep(60)


class Clock:
    def run(self):
        time.sleep(60)


class Methods:
    def sleeps(self, ctx):
        ctx.sleep(60)


@functools.wraps(sleeps_a_minute)
def wrapped(ctx):
    sleeps_a_minute(ctx)


def wraps_itself(ctx):
    """As a proxy does that has every attribute."""
    ctx.sleep(60)


wraps_itself.__wrapped__ = wraps_itself


def tree(*children, **options):
    return supervisor("app", children=children, **options)


def crew(count, **options):
    return [thread(work, id=f"w{number}", **options) for number in range(count)]


def sub(*children, id="sub", **options):
    return supervisor(id, children=children, **options)


PATIENT = Backoff(1, 30)
SIGNIFICANT = {"restart": "transient", "significant": True}
BREATHING = {"heartbeat": 60}

FOUND = [
    # code, path, tree
    ("TREE101", "app", tree(*crew(1, backoff=PATIENT))),
    ("TREE101", "app", tree(*crew(1, backoff=Backoff(2, 2, jitter=0)), intensity=3)),
    ("TREE101", "app", tree(*crew(2, backoff=Backoff(30, 30)))),
    ("TREE101", "app", tree(*crew(1, backoff=PATIENT), thread(work, restart="temporary"))),
    ("TREE101", "app", tree(*crew(1, backoff=Backoff(4, 30, reset_after=0, jitter=0)))),
    ("TREE101", "app/sub", tree(sub(*crew(1, backoff=PATIENT)), intensity=0)),
    ("TREE102", "app", tree(*crew(3), strategy="one_for_all")),
    ("TREE102", "app", tree(*crew(2), strategy="one_for_all", intensity=1, period=4.9)),
    (
        "TREE102",
        "app",
        tree(
            thread(work, id="a"), thread(work, id="b", restart="temporary"), strategy="rest_for_one"
        ),
    ),
    (
        "TREE102",
        "app",
        tree(sub(*crew(3), id="a"), sub(*crew(3), id="b"), strategy="one_for_all", period=40),
    ),
    ("TREE103", "app/sub", tree(sub(*crew(1)))),
    ("TREE103", "app/sub", tree(dynamic_supervisor("sub"))),
    ("TREE104", "app", tree(*crew(10))),
    ("TREE104", "app", tree(*crew(10), strategy="rest_for_one")),
    ("TREE104", "app", dynamic_supervisor("app")),
    ("TREE104", "app", dynamic_supervisor("app", max_children=10)),
    ("TREE105", "app/sub", tree(sub(*crew(1), restart="transient"))),
    ("TREE105", "app/sub", tree(sub(*crew(1), restart="temporary"))),
    ("TREE105", "app/sub", tree(dynamic_supervisor("sub", restart="transient"))),
    ("TREE106", "app", tree(sub(*crew(1)))),
    ("TREE106", "app", tree(dynamic_supervisor("sub"), period=19.9)),
    ("TREE106", "app", tree(sub(*crew(1, backoff=Backoff(0.1, 30))))),
    ("TREE106", "app/a", tree(sub(sub(*crew(1)), id="a"), intensity=0)),
    ("TREE201", "app/work", tree(thread(work, shutdown="infinity"))),
    ("TREE202", "app/sleeps_a_minute", tree(thread(sleeps_a_minute, **BREATHING))),
    ("TREE202", "app/sleeps_by_a_global", tree(thread(sleeps_by_a_global, **BREATHING))),
    ("TREE202", "app/sleeps_by_keyword", tree(thread(sleeps_by_keyword, **BREATHING))),
    ("TREE202", "app/sleeps_in_a_loop", tree(thread(sleeps_in_a_loop, **BREATHING))),
    (
        "TREE202",
        "app/sleeps_outside_the_context",
        tree(thread(sleeps_outside_the_context, **BREATHING)),
    ),
    ("TREE202", "app/sleeps_at_length", tree(thread(sleeps_at_length, **BREATHING))),
    ("TREE202", "app/work", tree(thread(work, heartbeat=1e9))),
    ("TREE202", "app/awaits_a_minute", tree(coroutine(awaits_a_minute, **BREATHING))),
    ("TREE202", "app/Sleepy", tree(thread(Sleepy, **BREATHING))),
    ("TREE202", "app/sleeps", tree(thread(Methods().sleeps, **BREATHING))),
    ("TREE202", "app/p", tree(thread(functools.partial(sleeps_a_minute), id="p", **BREATHING))),
    ("TREE202", "app/sleeps_a_minute", tree(thread(wrapped, **BREATHING))),
    ("TREE202", "app/q", tree(periodic(sleeps_a_minute, None, id="q", **BREATHING))),
    ("TREE301", "app", tree(sub(thread(work), id="a"), sub(thread(work), id="b"))),
    ("TREE301", "app", tree(sub(thread(work, id="app")))),
    ("TREE302", "app/job", tree(periodic(job, **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE302", "app/job", tree(periodic(job, **SIGNIFICANT), auto_shutdown="all_significant")),
    ("TREE303", "app", tree(*crew(1), auto_shutdown="all_significant")),
]

NEAR = [
    # code that is not found, tree
    ("TREE101", tree(*crew(1, backoff=Backoff(0.1, 30)))),
    ("TREE101", tree(*crew(1, backoff=PATIENT), intensity=0)),
    ("TREE101", tree(*crew(1, backoff=PATIENT), intensity=10, period=300)),
    ("TREE101", tree(*crew(1, backoff=PATIENT), thread(work))),
    ("TREE101", tree(*crew(2, backoff=Backoff(2, 2)))),
    ("TREE101", tree(*crew(1, backoff=Backoff(2, 2, jitter=0)), intensity=3, period=6)),
    ("TREE101", tree(*crew(1, backoff=Backoff(2, 2, jitter=0.2)), intensity=3)),
    ("TREE101", tree(*crew(1, backoff=Backoff(1, 30, reset_after=0)))),
    ("TREE101", tree(*crew(1, backoff=PATIENT, restart="temporary"))),
    ("TREE101", tree()),
    ("TREE101", dynamic_supervisor("app")),
    ("TREE101", tree(*crew(1, backoff=PATIENT), intensity="infinity")),
    ("TREE102", tree(*crew(3, backoff=PATIENT), strategy="one_for_all", intensity="infinity")),
    ("TREE103", tree(sub(*crew(1, backoff=Backoff(0.1, 1)), intensity="infinity"))),
    ("TREE103", tree(sub(*crew(1), backoff=PATIENT), intensity="infinity")),
    ("TREE104", tree(*crew(10, backoff=PATIENT), intensity="infinity")),
    ("TREE105", tree(sub(*crew(1, backoff=PATIENT), restart="transient", intensity="infinity"))),
    ("TREE106", tree(sub(*crew(1, backoff=PATIENT), intensity="infinity"))),
    ("TREE106", tree(sub(*crew(1), backoff=PATIENT), intensity="infinity")),
    ("TREE102", tree(*crew(3))),
    ("TREE102", tree(*crew(3), strategy="rest_for_one")),
    ("TREE102", tree(*crew(1), strategy="one_for_all")),
    ("TREE102", tree(*crew(2), strategy="one_for_all", intensity=1)),
    ("TREE102", tree(*crew(3, shutdown="brutal_kill"), strategy="one_for_all")),
    ("TREE102", tree(*crew(3), strategy="one_for_all", period=30)),
    ("TREE102", tree(*crew(3), strategy="one_for_all", intensity=0)),
    ("TREE102", tree(*crew(3, restart="temporary"), strategy="one_for_all")),
    (
        "TREE102",
        tree(sub(*crew(3), id="a"), sub(*crew(3), id="b"), strategy="one_for_all", period=45),
    ),
    ("TREE103", tree(*crew(1))),
    ("TREE103", tree(sub(*crew(1)), intensity=0)),
    ("TREE103", tree(sub(*crew(1), intensity=0))),
    ("TREE103", tree(sub(*crew(1), restart="transient"))),
    ("TREE103", tree(sub(*crew(1, restart="temporary")))),
    ("TREE104", tree(*crew(9))),
    ("TREE104", tree(*crew(10), intensity=4)),
    ("TREE104", tree(*crew(10), period=6)),
    ("TREE104", tree(*crew(10), strategy="one_for_all")),
    ("TREE104", tree(*crew(10, restart="temporary"))),
    ("TREE104", tree(sub(*crew(10)))),
    ("TREE104", dynamic_supervisor("app", max_children=9)),
    ("TREE105", tree(sub(*crew(1)))),
    ("TREE105", tree(sub(*crew(1), restart="transient", on_escalation=print))),
    ("TREE105", tree(sub(*crew(1), **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE105", tree(sub(*crew(1, restart="temporary"), restart="transient"))),
    ("TREE105", supervisor("app", children=crew(1), restart="transient")),
    ("TREE103", tree(sub(*crew(1, backoff=PATIENT)))),
    ("TREE106", tree(*crew(1))),
    ("TREE106", tree(sub(*crew(1)), period=20)),
    ("TREE106", tree(sub(*crew(1)), intensity=0)),
    ("TREE106", tree(sub(*crew(1), intensity=0))),
    ("TREE106", tree(sub(*crew(1), restart="transient"))),
    ("TREE106", tree(sub(*crew(1, backoff=PATIENT)))),
    ("TREE106", tree(sub(*crew(1, restart="temporary")))),
    ("TREE201", tree(thread(work, shutdown=86_400))),
    ("TREE201", tree(sub(*crew(1), shutdown="infinity"))),
    ("TREE202", tree(thread(sleeps_a_minute))),
    ("TREE202", tree(thread(sleeps_a_minute, heartbeat=60.1))),
    ("TREE202", tree(thread(asks_for_time, **BREATHING))),
    ("TREE202", tree(thread(sleeps_elsewhere, **BREATHING))),
    ("TREE202", tree(thread(sleeps_as_told, 60, **BREATHING))),
    ("TREE202", tree(thread(sleeps_by_a_name_that_is_no_number, **BREATHING))),
    ("TREE202", tree(thread(lambda ctx: ctx.sleep(60), id="lambda", **BREATHING))),
    ("TREE202", tree(LAMBDA)),
    ("TREE202", tree(thread(wraps_itself, **BREATHING))),
    (
        "TREE202",
        tree(
            thread(xmlrpc.client.ServerProxy("http://localhost:1/").method, id="proxy", **BREATHING)
        ),
    ),
    ("TREE202", tree(thread(adopt(Clock), **BREATHING))),
    ("TREE202", tree(periodic(time.time, id="builtin", **BREATHING))),
    ("TREE301", tree(sub(thread(work, id="a"), id="b"), sub(thread(work, id="c"), id="d"))),
    (
        "TREE302",
        tree(periodic(job, restart="temporary", significant=True), auto_shutdown="any_significant"),
    ),
    ("TREE302", tree(periodic(job, restart="transient"))),
    ("TREE302", tree(periodic(leaving_job, **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE302", tree(periodic(exiting_job, **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE302", tree(periodic(time.time, **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE302", tree(thread(work, **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE303", tree(thread(work, **SIGNIFICANT), auto_shutdown="any_significant")),
    ("TREE303", tree(*crew(1))),
]


def found(spec):
    return {(finding.code, finding.path) for finding in check(spec)}


@pytest.mark.parametrize(
    ("code", "path", "spec"), FOUND, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_rule_finds_what_it_is_for(code, path, spec):
    assert (code, path) in found(spec)


@pytest.mark.parametrize(
    ("code", "spec"), NEAR, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_rule_does_not_find_a_near_miss(code, spec):
    assert code not in {finding.code for finding in check(spec)}


@pytest.mark.parametrize("code", RULES)
def test_each_rule_has_both_and_a_section_in_the_page(code):
    assert code in {row[0] for row in FOUND}
    assert code in {row[0] for row in NEAR}
    assert f"\n### {code}\n" in PAGE
    assert f"| [`{code}`](#{code.lower()}) | {RULES[code][0].value} |" in PAGE


def test_the_page_has_no_other_codes():
    assert set(re.findall(r"TREE\d+", PAGE)) == set(RULES)


def test_a_tree_without_fault_has_no_finding():
    assert check(tree(*crew(3), intensity=5, period=10)) == ()


def test_a_finding_says_where_how_bad_and_what():
    [finding] = check(tree(thread(work, shutdown="infinity")))

    assert finding == Finding(
        code="TREE201",
        level=Level.WARNING,
        path="app/work",
        message="shutdown='infinity' in a worker: if it does not listen, the tree never stops",
    )
    assert str(finding).startswith("app/work: warning TREE201 shutdown='infinity'")


def test_findings_come_from_the_root_downwards():
    spec = tree(
        sub(thread(work, shutdown="infinity"), restart="transient", id="a"),
        *crew(1, shutdown="infinity"),
    )

    assert [(one.path, one.code) for one in check(spec)] == [
        ("app/a", "TREE105"),
        ("app/a/work", "TREE201"),
        ("app/w0", "TREE201"),
    ]


def test_the_product_of_the_limits_ends_where_nobody_restarts():
    """Permanent supervisors are restarted when they give up, transient ones are not."""
    chain = sub(
        sub(sub(*crew(1), id="c", intensity=1), id="b", intensity=2, restart="transient"), id="a"
    )
    messages = {one.path: one.message for one in check(tree(chain)) if one.code == "TREE103"}

    assert set(messages) == {"app/a", "app/a/b/c"}
    assert messages["app/a/b/c"] == (
        "a child here is started 6 times before app/a/b gives up, if each start follows the one before within "
        "1.25 s: 3 in app/a/b × 2 in app/a/b/c"  # noqa: RUF001
    )


@pytest.mark.parametrize(
    ("backoff", "period", "restarts"),
    [
        (None, 5, math.inf),
        (Backoff(1, 30, jitter=0), 5, 2),  # after 1, 3 (7): from the first to the third it is 6
        (Backoff(1, 30, jitter=0), 6, 3),
        (Backoff(1, 30, jitter=0), 14, 4),
        (Backoff(1, 4, jitter=0), 14, 5),  # 2 + 4 + 4 + 4
        (Backoff(2, 2, jitter=0), 5, 3),
        (Backoff(2, 2, jitter=0.5), 5, 6),
        (Backoff(1, 30, jitter=0, reset_after=2), 5, 3),  # 2, and then not 4 but 2 + 1
        (Backoff(1, 30, jitter=0, reset_after=0), 5, 6),
        (
            Backoff(1, 64, jitter=0, reset_after=9),
            26,
            6,
        ),  # 2 + 4 + (9 + 1) + 2 + 4 is 22, and 4 + 8 would be 24
        (Backoff(1, 1, jitter=1), 5, math.inf),
    ],
)
def test_how_many_restarts_fit_into_a_period(backoff, period, restarts):
    """The fastest way through the waits: at once, or with calm times between them."""
    assert most_restarts(backoff, period) == restarts


def test_the_rule_about_back_off_is_what_a_machine_does():
    """The limit of a tree is out of reach exactly if the machine never gives up, whatever the child does."""
    for initial in (0.5, 1.0, 1.3, 1.7, 2.0, 3.0):
        for intensity in (0, 1, 2, 3):
            backoff = Backoff(initial, 8, jitter=0)
            spec = tree(*crew(1, backoff=backoff), intensity=intensity)
            assert ("TREE101", "app") not in found(spec) or not gives_up(spec)
            assert ("TREE101", "app") in found(spec) or gives_up(spec)


def gives_up(spec):
    """Let the machine live through the failures of a child that fails as soon as it is up."""
    machine, now, letters = SupervisorMachine(spec, "app"), 0.0, [Begin()]
    for _ in range(400):
        letter = letters.pop(0)
        for action in machine.receive(letter, now):
            if isinstance(action, End):
                return True
            if isinstance(action, Start):
                letters += [ChildStarted(action.ref), ChildExited(action.ref, CRASH)]
            if isinstance(action, Arm):
                now = action.at
                letters.append(Due(action.ref))
    return False


def test_how_long_a_stop_may_take():
    assert stop_time(thread(work, shutdown=3)) == 3
    assert stop_time(thread(work, shutdown="brutal_kill")) == 0
    assert stop_time(thread(work, shutdown="infinity")) == math.inf
    assert stop_time(sub(*crew(3), sub(*crew(2)))) == 25
    assert stop_time(sub(*crew(3), shutdown=7)) == 7


def test_a_message_without_end_says_so():
    [finding] = [one for one in check(tree(thread(work, heartbeat=5))) if one.code == "TREE202"]

    assert (
        finding.message
        == "it sleeps for ever in one piece, but must check in every 5 s: it will stall"
    )


@pytest.mark.parametrize(
    ("limit", "words"), [(None, "for any number of children"), (12, "for 12 children")]
)
def test_a_root_says_how_many_children_it_may_have(limit, words):
    [finding] = check(dynamic_supervisor("app", max_children=limit))

    assert words in finding.message


def test_a_kind_from_elsewhere_is_no_obstacle():
    """Nothing is known of its ``start`` but that it can be called."""

    class Robot:
        def __call__(self, birth):
            raise NotImplementedError

    spec = otpy.ChildSpec(id="robot", start=Robot(), heartbeat=1)
    assert check(tree(spec, otpy.ChildSpec(id="plain", start=print, heartbeat=1))) == ()


def test_a_graph_of_tasks_is_one_place():
    """What it is made of is not the user's: nobody could mend what is found there."""
    graphs = [TaskGraph().as_child("some"), TaskGraph().as_child("others")]
    tree = supervisor("app", children=graphs)

    assert check(tree) == ()
    assert [(place.path, place.spec.kind) for place in walk(tree)][1:] == [
        ("app/some", "task_graph"),
        ("app/others", "task_graph"),
    ]


def test_nothing_of_a_target_is_called():
    """Neither the target nor the predicate of anything: the specs are only read."""
    called = []
    check(tree(thread(called.append, heartbeat=1), sub(*crew(1), on_escalation=called.append)))

    assert called == []


def test_the_places_of_a_tree():
    spec = tree(sub(*crew(2)), thread(work))

    assert [place.path for place in walk(spec)] == [
        "app",
        "app/sub",
        "app/sub/w0",
        "app/sub/w1",
        "app/work",
    ]


def starts_until_the_top_gives_up(chain, lives, most=1000):
    """How often a child is started that lives so long each time; None: more often than *most*. First is the lowest."""
    windows, now = [Window(spec.intensity, spec.period) for spec in chain], 0.0
    for started in range(1, most):
        now += lives
        for level, spec in enumerate(chain):
            if windows[level].spend(now):
                break
            windows[level] = Window(
                spec.intensity, spec.period
            )  # it gave up: if it is restarted, it counts anew
        else:
            return started
    return None


@pytest.mark.parametrize(
    "upper",
    [{}, {"intensity": 1}, {"period": 30}, {"intensity": 0}, {"intensity": 7, "period": 60}],
)
@pytest.mark.parametrize(
    "lower", [{}, {"intensity": 1, "period": 1}, {"intensity": 5, "period": 60}]
)
def test_the_rule_about_levels_is_what_windows_do(upper, lower):
    """A child that lives a bit shorter than said ends the program after the product; one a bit longer never does."""
    chain = [sub(*crew(1), id=id, **flags) for id, flags in (("c", lower), ("b", {}), ("a", upper))]
    longest = min(slowest(chain))
    product = math.prod(spec.intensity + 1 for spec in chain)

    assert starts_until_the_top_gives_up(chain, longest * 0.999) == product
    assert starts_until_the_top_gives_up(chain, longest * 1.001) is None


def test_every_strategy_has_its_cost():
    """Law 4: a new strategy without a row in COSTS fails here, before a user meets a KeyError."""
    assert set(COSTS) == set(Strategy)


@pytest.mark.parametrize("strategy", Strategy)
@given(data=st.data())
def test_a_cost_is_what_the_rule_of_its_strategy_stops(strategy, data):
    """The cheapest failure stops the other members of its group, each in its time."""
    times = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
    crashes = sorted(data.draw(st.sets(st.integers(0, len(times) - 1), min_size=1)))
    ids = [str(place) for place in range(len(times))]
    groups = [restart_group(strategy, ids, str(place))[0] for place in crashes]

    assert COSTS[strategy].stops(times, crashes) == min(
        sum(times[int(id)] for id in group) for group in groups
    )


@pytest.mark.parametrize("strategy", Strategy)
def test_failures_are_shared_where_one_group_has_all_children(strategy):
    """Then one restart mends them all, and a root with the default limit is not too small."""
    groups = {restart_group(strategy, "abc", crashed)[1] for crashed in "abc"}

    assert COSTS[strategy].is_shared == (groups == {("a", "b", "c")})


def test_ten_thousand_children_are_checked_without_looking_at_each_pair():
    """A quadratic rule would take a hundred million steps here and run into the time limit."""
    spec = tree(*crew(10_000, backoff=PATIENT), strategy="one_for_all", intensity=100)

    assert {code for code, _ in found(spec)} == {"TREE102"}


def test_slow_waits_are_counted_once():
    """A thousand steps from one wait to the next cost a second; a thousand such children do not cost more."""
    slow = Backoff(1e-6, 1e9, factor=1.0001, jitter=0.0, reset_after=0.001)

    assert ("TREE101", "app") not in found(tree(*crew(1000, backoff=slow), intensity=5, period=1e6))


def test_a_deep_tree_is_checked():
    """The walk does not recurse, so no depth that a spec allows is too deep."""
    spec = tree(thread(work))
    for number in range(90):
        spec = sub(spec, id=f"level-{number}", intensity=0)

    assert check(spec) == ()
