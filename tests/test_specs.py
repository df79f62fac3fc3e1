"""Specs: what is refused, and in which words."""

import math
from functools import partial

import attrs
import pytest

from otpy import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Ignore,
    OnUnstopped,
    Restart,
    Service,
    SpecError,
    Strategy,
    SupervisorSpec,
    coroutine,
    dynamic_supervisor,
    periodic,
    process,
    start,
    supervisor,
    thread,
)
from otpy.specs import MAX_DEPTH
from tests import callees


def work(ctx):
    """A target."""


class BadRepr:
    def __repr__(self):
        raise ValueError("no repr today")


def error_of(make, *args, **options):
    with pytest.raises(SpecError) as caught:
        make(*args, **options)
    return caught.value


CHILD_FIELDS = [
    ("id", ["", "a/b", 7, b"a", "a\0b", "a\ud800b"]),
    ("restart", ["sometimes", None, True, 1]),
    ("shutdown", [-1, -0.1, math.nan, math.inf, 10**400, "never", None, True]),
    ("significant", [1, "yes", None]),
    ("ready", [1, None]),
    ("interrupt", [0, "no"]),
    ("start_timeout", [0, -1, math.nan, math.inf, "1", True]),
    ("heartbeat", [0, -1, math.nan, math.inf, 10**400, "1", True]),
    ("backoff", [1.0, "exponential", (1, 2)]),
    ("snapshot", ["deep", 3]),
    ("unstopped", ["ignore", None]),
    ("purpose", [None, 3]),
]

SUPERVISOR_FIELDS = [
    *[row for row in CHILD_FIELDS if row[0] != "id"],
    ("strategy", ["all_for_one", None, "simple_one_for_one"]),
    ("intensity", [-1, 1.5, "3", True, math.inf, "Infinity", 10**9 + 1, 10**400]),
    ("period", [0, -1, math.nan, math.inf, 10**400, "5", True]),
    ("auto_shutdown", ["always", None]),
    ("on_escalation", ["page me", 3]),
    ("children", [None, 3, "abc"]),
]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in CHILD_FIELDS for value in values]
)
def test_a_bad_field_of_a_child(field, value):
    """The error names path, field, value, and what would be right."""
    error = error_of(thread, work, **{"id": "a", field: value})

    assert (error.field, error.value) == (field, value)
    assert error.path == ("a" if field != "id" else error.path)
    assert f"{field} = " in str(error) and "expected " in str(error)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in SUPERVISOR_FIELDS for value in values]
)
def test_a_bad_field_of_a_supervisor(field, value):
    """The same for supervisors, and for their own fields."""
    error = error_of(supervisor, "app", **{field: value})

    assert (error.path, error.field, error.value) == ("app", field, value)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"initial": 0}, "initial"),
        ({"initial": "1"}, "initial"),
        ({"maximum": 0.5}, "maximum"),
        ({"maximum": math.inf}, "maximum"),
        ({"factor": 0.5}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": 1.1}, "jitter"),
        ({"reset_after": -1}, "reset_after"),
        ({"reset_after": True}, "reset_after"),
    ],
)
def test_a_bad_backoff(options, field):
    """It has no path yet, and says so."""
    error = error_of(Backoff, **({"initial": 1.0, "maximum": 30.0} | options))

    assert (error.path, error.field, error.value) == ("<Backoff>", field, options[field])


def test_a_supervisor_has_no_heartbeat_and_saves_nothing():
    """Its children do."""
    assert error_of(supervisor, "app", heartbeat=1.0).field == "heartbeat"
    assert error_of(supervisor, "app", snapshot=None).field == "snapshot"
    assert supervisor("app", backoff=Backoff(1, 2)).backoff == Backoff(1, 2)


@pytest.mark.parametrize("value", [-1, 2.5, "2", True])
def test_a_bad_max_children(value):
    """A count or None."""
    assert error_of(dynamic_supervisor, "app", max_children=value).field == "max_children"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dynamic": True, "strategy": "one_for_all"}, "strategy"),
        ({"dynamic": True, "auto_shutdown": "any_significant"}, "auto_shutdown"),
        ({"dynamic": True, "children": [thread(work)]}, "children"),
        ({"max_children": 3}, "max_children"),
    ],
)
def test_what_only_a_dynamic_supervisor_is_and_is_not(options, field):
    """Its children come later, are independent and may be bounded."""
    assert error_of(SupervisorSpec, id="app", start=work, **options).field == field


def test_a_start_that_cannot_be_called():
    """The kinds of children provide it; who writes a kind hears of a mistake."""
    assert error_of(ChildSpec, id="a", start=3).field == "start"


def test_the_message():
    """It reads like a sentence."""
    assert str(error_of(thread, work, id="a", restart="sometimes")) == (
        "a: restart = 'sometimes': expected one of 'permanent', 'transient', 'temporary'"
    )


def test_a_value_whose_repr_raises():
    """The error can be printed all the same."""
    assert "restart = <BadRepr instance at 0x" in str(
        error_of(thread, work, id="a", restart=BadRepr())
    )


def test_a_value_with_a_lone_surrogate():
    """The error can be printed to any stream."""
    str(error_of(thread, work, id="a", restart="\ud800")).encode("utf-8")
    str(error_of(thread, work, id="\ud800")).encode("utf-8")


def test_an_unknown_option_is_a_type_error():
    """As for every Python function."""
    for build in (
        partial(thread, work, id="a"),
        partial(supervisor, "app"),
        partial(dynamic_supervisor, "app"),
    ):
        with pytest.raises(
            TypeError, match=f"{build.func.__name__}.* unexpected keyword argument 'restrat'"
        ):
            build(restrat="permanent")
    with pytest.raises(TypeError, match="strategy"):
        dynamic_supervisor("app", strategy="one_for_all")


def test_strings_and_enums_are_the_same():
    """Both are accepted everywhere; what is stored is the enum."""
    spelled = supervisor(
        "app", strategy="rest_for_one", auto_shutdown="any_significant", restart="transient"
    )
    chosen = supervisor(
        "app",
        strategy=Strategy.REST_FOR_ONE,
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
        restart=Restart.TRANSIENT,
    )

    assert spelled == chosen
    assert thread(work, shutdown="brutal_kill").shutdown is Budget.BRUTAL_KILL
    assert thread(work, unstopped="hold").unstopped is OnUnstopped.HOLD


def test_defaults():
    """OTP's, but for the limit: 3 in 5 s, as Elixir's."""
    child, parent = thread(work), supervisor("app")

    assert (child.id, child.restart, child.shutdown, child.significant) == (
        "work",
        Restart.PERMANENT,
        5.0,
        False,
    )
    assert (parent.shutdown, parent.strategy) == (Budget.INFINITY, Strategy.ONE_FOR_ONE)
    assert (parent.intensity, parent.period, parent.auto_shutdown) == (3, 5.0, AutoShutdown.NEVER)


def test_specs_are_values():
    """Comparable, printable, reusable; a changed copy is checked again."""
    spec = thread(work, id="a")

    assert spec == thread(work, id="a")
    assert "id='a'" in repr(spec)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        spec.id = "b"
    with pytest.raises(SpecError):
        attrs.evolve(spec, restart="sometimes")


def test_a_permanent_child_cannot_be_significant():
    """It never ends by itself."""
    assert error_of(thread, work, id="a", significant=True).field == "significant"


def test_significant_needs_auto_shutdown():
    """The error has the path of the child."""
    child = thread(work, id="a", restart="transient", significant=True)
    error = error_of(supervisor, "app", children=[child])

    assert (error.path, error.field) == ("app/a", "significant")


def test_duplicate_ids():
    """Found at construction."""
    error = error_of(supervisor, "app", children=[thread(work, id="a"), thread(work, id="a")])

    assert (error.path, error.field, error.value) == ("app/a", "id", "a")


def test_a_child_that_is_no_spec():
    """The position is named."""
    error = error_of(supervisor, "app", children=[thread(work, id="a"), work])

    assert (error.path, error.field, error.value) == ("app", "children[1]", work)


def test_targets():
    """What cannot be called with (ctx, *args) is refused, and so is what would not run."""

    async def coroutine(ctx): ...

    def generator(ctx):
        yield

    async def async_generator(ctx):
        yield

    for target, args in [
        (None, ()),
        (3, ()),
        (lambda: None, ()),
        (work, (1,)),
        (lambda ctx, a, b: None, (1,)),
    ]:
        assert error_of(thread, target, *args, id="a").field == "target"
    for target in (coroutine, generator, async_generator):
        assert "would run nothing" in str(error_of(thread, target, id="a"))


def test_targets_that_do_not_tell_their_signature():
    """They get the benefit of the doubt."""
    assert [thread(builtin, id="a").id for builtin in (max, vars)] == ["a", "a"]


def test_a_target_without_a_name_needs_an_id():
    """Such as a partial."""
    assert error_of(thread, partial(work)).field == "id"
    assert thread(partial(work), id="a").id == "a"


def test_services():
    """A Service has a run method, is made without arguments, and its init takes them."""

    class Idle(Service):
        pass

    class Takes(Service):
        def init(self, path):
            raise Ignore

        def run(self): ...

    class Demands(Takes):
        def __init__(self, what): ...

    assert "run method" in str(error_of(thread, Idle, id="a"))
    assert "init takes" in str(error_of(thread, Takes, id="a"))
    assert "made without arguments" in str(error_of(thread, Demands, "x", id="a"))
    assert thread(Takes, "x").ready is True


@pytest.mark.parametrize(
    "child", [thread(work, id="w"), thread(work, id="w", restart="transient"), supervisor("w")]
)
def test_a_child_that_is_tried_for_ever_must_wait(child):
    """intensity="infinity": each child that may be restarted needs a back-off, else it would spin."""
    with pytest.raises(SpecError) as caught:
        supervisor("app", intensity="infinity", children=[child])

    expected = "a Backoff, or restart='temporary': the supervisor has intensity='infinity'"
    assert str(caught.value) == f"app/w: backoff = None: expected {expected}"


def test_what_a_supervisor_without_limit_accepts():
    """A child with a back-off, and a temporary one: neither can spin."""
    patient = thread(work, id="a", backoff=Backoff(1, 30))
    spec = supervisor(
        "app", intensity="infinity", children=[patient, thread(work, id="b", restart="temporary")]
    )

    assert spec.intensity == "infinity"


def test_nesting_has_the_same_bound_for_a_child_that_comes_later():
    """start_child counts the levels above as well: a root, a supervisor below it, and 99 more are one too many."""
    deep = supervisor("s0")
    for level in range(1, MAX_DEPTH - 1):
        deep = supervisor(f"s{level}", children=[deep])
    with start(supervisor("app", children=[dynamic_supervisor("sub")]), log=False) as app:
        with pytest.raises(SpecError) as caught:
            app.find("app/sub").start_child(deep)

        assert str(caught.value) == "app/sub: children = '101 nested levels': expected at most 100"
        assert app.find("app/sub").which_children() == ()


def test_nesting_has_a_bound():
    """3,000 nested levels are refused where the tree is described, without a RecursionError."""
    tree = supervisor("s0")
    with pytest.raises(SpecError, match="nested levels") as caught:
        for level in range(1, 3000):
            tree = supervisor(f"s{level}", children=[tree])

    assert tree.depth == MAX_DEPTH
    assert caught.value.field == "children"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reports", 3),
        ("on_escalation", 3),
        ("log", 1),
        ("timeout", 0),
        ("timeout", math.nan),
        ("timeout", True),
        ("max_unstopped", -1),
        ("max_unstopped", 1.5),
        ("max_unstopped", True),
        ("clock", 3),
        ("seed", 1.5),
        ("seed", True),
        ("clok", None),
    ],
)
def test_a_bad_option_of_start(field, value):
    """Nothing is started."""
    error = error_of(start, supervisor("app"), **{field: value})

    assert (error.path, error.field) == ("app", field)


def test_a_tree_is_a_supervisor():
    """A worker alone is none."""
    assert error_of(start, thread(work)).field == "tree"


def test_a_spec_tells_its_kind():
    """What its builder is called; a kind that otpy does not know is called as its ``start``."""

    class RobotStart:
        def __call__(self, birth):
            raise NotImplementedError

    async def chat(ctx):
        pass

    def start_something(birth):
        pass

    assert [thread(work).kind, periodic(print).kind, coroutine(chat).kind] == [
        "thread",
        "periodic",
        "coroutine",
    ]
    assert [process("sleep", "1").kind, process(callees.obedient).kind] == ["program", "process"]
    assert [supervisor("a").kind, dynamic_supervisor("a").kind] == [
        "supervisor",
        "dynamic_supervisor",
    ]
    assert ChildSpec(id="a", start=RobotStart()).kind == "robot"
    assert ChildSpec(id="a", start=start_something).kind == "start_something"
