"""What a graph accepts, and what its tasks share."""

from __future__ import annotations

import itertools
import sys

import pytest

from otpy import SpecError
from otpy.taskgraph import TaskGraph, marked, task
from tests.taskgraph.kit import fail, nothing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "tasks: name = '': expected a non-empty str"),
        ({"name": 3}, "tasks: name = 3: expected a non-empty str"),
        ({"name": "a", "after": "b"}, "tasks/a: after = 'b': expected an iterable of names"),
        ({"name": "a", "after": [nothing]}, "tasks/a: after = .*expected an iterable of names"),
        ({"name": "a", "with_state": 1}, "tasks/a: with_state = 1: expected True or False"),
        ({"name": "a", "with_state": True}, r"tasks/a: function = .*takes \(state\)"),
        ({"name": "a", "retries": -1}, "tasks/a: retries = -1: expected an int >= 0"),
        ({"name": "a", "retries": True}, "tasks/a: retries = True: expected an int >= 0"),
        (
            {"name": "a", "timeout": 0},
            "tasks/a: timeout = 0: expected a finite number of seconds > 0",
        ),
        ({"name": "a", "timeout": float("nan")}, "tasks/a: timeout = nan: expected a finite"),
        ({"name": "a", "backoff": 1}, "tasks/a: backoff = 1: expected a Backoff"),
        ({"name": "a", "tags": "x"}, "tasks/a: tags = 'x': expected an iterable of str"),
    ],
)
def test_bad_options_of_a_task_are_refused(fields, message):
    """``add`` and ``task`` name path, field, value and what would be right."""
    with pytest.raises(SpecError, match=message):
        TaskGraph().add(nothing, **fields)
    with pytest.raises(SpecError, match=message):
        task(**fields)(nothing)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "tasks: name = '': expected"),
        (lambda: None, "tasks: name = '': expected a non-empty str; a lambda needs"),
    ],
)
def test_a_function_without_a_name_needs_one(function, message):
    """A lambda and an object have no name of their own."""
    with pytest.raises(SpecError, match=message):
        TaskGraph().add(function)
    with pytest.raises(SpecError, match="tasks/a: function = 3: expected a callable"):
        TaskGraph().add(3, "a")


def test_a_generator_and_a_function_with_arguments_are_refused():
    """A call of them would run nothing, or crash. Unknown options are refused, too."""

    def generator():
        yield

    def takes(one):
        return one

    with pytest.raises(SpecError, match="calling a generator function would run nothing"):
        TaskGraph().add(generator)
    with pytest.raises(SpecError, match="without arguments, or with_state=True"):
        TaskGraph().add(takes)
    assert TaskGraph().add(takes, with_state=True) == "takes"
    with pytest.raises(TypeError, match="no option 'retry'; there are"):
        TaskGraph().add(nothing, retry=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "tasks: workers = 0: expected an int >= 1"),
        ({"workers": 1.5}, "tasks: workers = 1.5"),
        ({"state": []}, r"tasks: state = \[\]: expected a dict"),
        ({"state": {"results": None}}, r"tasks: state\['results'\] = None: expected a dict"),
        (
            {"state": {"_state_lock": 3}},
            r"tasks: state\['_state_lock'\] = 3: expected a threading.RLock",
        ),
        ({"store_results": "no"}, "tasks: store_results = 'no': expected True or False"),
        ({"clear_results": 0}, "tasks: clear_results = 0: expected True or False"),
        ({"on_failure": "stop"}, "tasks: on_failure = 'stop': expected 'run' or 'skip'"),
    ],
)
def test_bad_options_of_a_graph_are_refused(options, message):
    """The refusal names the option, its value and what would be right."""
    with pytest.raises(SpecError, match=message):
        TaskGraph(**options)


def test_a_name_is_taken_once():
    """A second task of one name is refused."""
    graph = TaskGraph()
    graph.add(nothing, "a")
    with pytest.raises(
        SpecError, match="tasks/a: name = 'a': expected a name that no other task has"
    ):
        graph.add(fail, "a")


def test_unknown_dependencies_and_cycles_are_refused_before_anything_runs():
    """The message about a cycle names its tasks one by one."""
    ran = []
    unknown = TaskGraph()
    unknown.add(lambda: ran.append(1), "a")
    unknown.add(nothing, "b", ["a", "c"])
    cycle = TaskGraph()
    cycle.add(lambda: ran.append(1), "start")
    for name, after in (("a", "c"), ("b", "a"), ("c", "b")):
        cycle.add(nothing, name, [after, "start"])

    for graph, message in (
        (unknown, "tasks/b: after = 'c': expected one of the tasks: a, b"),
        (cycle, "no cycle"),
    ):
        for call in (graph.run, graph.describe, lambda graph=graph: graph.as_child("g")):
            with pytest.raises(SpecError, match=message):
                call()
    with pytest.raises(SpecError) as error:
        cycle.run()
    names = error.value.value.split(" -> ")
    assert names[0] == names[-1]
    assert sorted(names[1:]) == ["a", "b", "c"]
    assert all(
        (before, after) in {("c", "a"), ("a", "b"), ("b", "c")}
        for before, after in itertools.pairwise(names)
    )
    assert not ran


def test_decorators():
    """``graph.task`` adds a function, and leaves it as it is."""
    graph = TaskGraph()

    @graph.task(after=["two"])
    def one():
        return 1

    @graph.task(name="two", with_state=True)
    def another(state):
        return state["x"]

    graph.state["x"] = 2
    assert one() == 1
    assert graph.run().ok
    assert graph.state["results"] == {"two": 2, "one": 1}


def test_marked_functions_are_found_in_their_order():
    """``marked`` returns each task once, in the order of definition."""
    module = type(sys)("module")

    @task(after=["a"], tags=["x"])
    def z():
        return "z"

    @task(name="a")
    def y():
        return "y"

    module.z, module.y, module.again, module.other = z, y, z, nothing
    found = marked(module)
    graph = TaskGraph()
    for one in found:
        graph.add_task(one)

    assert [one.name for one in found] == ["z", "a"]
    assert found[0].tags == ("x",)
    assert z() == "z"
    assert graph.run().ok
    assert [one.name for one in graph.tasks] == ["z", "a"]
    with pytest.raises(SpecError, match="expected a Task"):
        graph.add_task(z)


def test_a_module_with_a_stand_in_has_its_tasks():
    """A proxy of a web framework raises at any attribute while there is no request."""

    class StandIn:
        def __getattr__(self, name):
            raise RuntimeError("there is no request")

    module = type(sys)("module")
    module.request, module.a = StandIn(), task(name="a")(lambda: None)

    assert [one.name for one in marked(module)] == ["a"]


# State and results


def test_state_is_shared_and_has_a_reentrant_lock():
    """All tasks with ``with_state`` get the same dict."""
    state = {"sum": 0}

    def add(state):
        with state["_state_lock"], state["_state_lock"]:
            state["sum"] += 1
            return state["sum"]

    graph = TaskGraph(state=state)
    for number in range(50):
        graph.add(add, f"t{number}", with_state=True)
    graph.run()

    assert graph.state is state
    assert state["sum"] == 50
    assert sorted(state["results"].values()) == list(range(1, 51))


def test_the_state_may_be_cleared():
    """A task or the user may clear it, also between two runs; lock and results come
    back with the next run.
    """
    graph = TaskGraph()
    graph.add(graph.state.clear, "clear")
    graph.add(lambda: 1, "a", ["clear"])

    assert graph.run().ok
    assert graph.run().ok
    graph.state.clear()
    assert graph.run().ok


def test_a_task_sees_the_results_of_those_before_it():
    """The result of a task is in the state before the next task begins."""
    graph = TaskGraph(workers=4)
    graph.add(lambda: 1, "a")
    graph.add(lambda state: state["results"]["a"] + 1, "b", ["a"], with_state=True)
    graph.add(lambda state: state["results"]["b"] + 1, "c", ["b"], with_state=True)

    assert graph.run().ok
    assert graph.state["results"] == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(("clears", "left"), [(True, {"a": 1}), (False, {"old": 0, "a": 1})])
def test_results_are_cleared_at_the_start_of_a_run(clears, left):
    """With ``clear_results=False`` the old results stay."""
    graph = TaskGraph(state={"results": {"old": 0}}, clear_results=clears)
    graph.add(lambda: 1, "a")
    graph.run()

    assert graph.state["results"] == left


def test_results_are_stored_only_if_the_graph_says_so():
    """With ``store_results=False`` the state has no results."""
    graph = TaskGraph(store_results=False)
    graph.add(lambda: 1, "a")

    assert graph.run().ok
    assert graph.state["results"] == {}
