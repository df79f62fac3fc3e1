"""The spare thread: made after a restart, taken by the next replacement."""

import threading
import time

import pytest

from otpy import ChildState, registry, supervisor, thread
from otpy.children.interrupt import raise_in
from otpy.runtime import threads
from otpy.runtime.spares import Spawner
from otpy.runtime.supervisor import CALM
from otpy.runtime.threads import Role
from tests.helpers import HANG, Puppet, wait_until


def spares(tree):
    return [entry for entry in threads.entries(tree) if entry.role is Role.SPARE]


def spare_of(app):
    """Wait until the tree has one spare thread, and it runs; return it."""
    (entry,) = wait_until(lambda: spares(app._tree))
    wait_until(lambda: entry.has_begun)
    return entry.thread


@pytest.fixture
def puppet():
    return Puppet()


@pytest.fixture
def app(launch, puppet):
    """A tree whose one child has been restarted once, so that it has a spare thread."""
    app = launch(supervisor("app", children=[puppet.spec("a", shutdown=0.05)], intensity=1000))
    puppet.next().crash()
    spare_of(app)
    return app


def test_there_is_none_before_the_first_restart(launch, puppet):
    """A tree that never fails has the threads of its children and supervisors only."""
    app = launch(supervisor("app", children=[puppet.spec("a")]), reports=None)
    puppet.next()
    app.which_children()

    roles = sorted(entry.role.value for entry in threads.entries(app._tree))
    assert roles == ["child", "handler", "supervisor"]


def test_the_next_replacement_runs_in_it(app, puppet):
    """The thread gets the name of the child, which is a child like any other.

    Then another spare is made.
    """
    spare, before = spare_of(app), time.time()
    assert spare.name == "app (spare)"
    puppet.next().crash()
    life = puppet.next()
    (child,) = [entry for entry in threads.entries(app._tree) if entry.role is Role.CHILD]

    assert (child.thread, child.name, spare.name, child.purpose) == (
        spare,
        "app/a",
        "app/a",
        "runs a",
    )
    assert child.spawned_at >= before
    assert spare_of(app) is not spare
    assert life.incarnation == 3


def test_no_thread_serves_twice(launch):
    """What a child leaves in its thread never meets the next child.

    That holds whether the next one gets the spare or is too early for it.
    """
    local, found, used, done = threading.local(), [], [], threading.Event()

    def child(ctx):
        found.append(vars(local).copy())
        local.mark = ctx.incarnation
        used.append(threading.current_thread())
        if ctx.incarnation == 20:
            done.set()
            ctx.wait_stop()
        elif ctx.incarnation % 3:
            raise RuntimeError
        else:
            wait_until(lambda: spares(ctx.supervisor._tree))
            raise RuntimeError

    launch(supervisor("app", children=[thread(child)], intensity=1000))
    assert done.wait(HANG)

    assert len(set(used)) == 20
    assert found == [{}] * 20


def test_it_goes_with_its_supervisor(app):
    """The spare ends with its supervisor, and is no handler that has not finished."""
    spare = spare_of(app)
    report = app.stop()
    spare.join(HANG)

    assert (report.handlers, spare.is_alive(), threads.entries(app._tree)) == ((), False, [])


def test_it_goes_with_a_nested_supervisor(launch, puppet):
    """The spare ends when the nested supervisor is stopped, and when it gives up."""
    nested = supervisor("s", children=[puppet.spec("a")], intensity=1)
    app = launch(supervisor("app", children=[nested]))
    puppet.next().crash()
    first = spare_of(app)
    puppet.next().crash()  # it gives up, and is restarted
    puppet.next().crash()
    wait_until(lambda: not first.is_alive() and spares(app._tree))
    second = spare_of(app)
    app.terminate_child("s")

    wait_until(lambda: not second.is_alive())
    assert spares(app._tree) == []


def test_a_child_in_it_can_be_interrupted(app, puppet):
    """The number of the thread is known as that of any other child."""
    entered = threading.Event()

    def loop():
        entered.set()
        while True:
            pass

    spare = spare_of(app)
    puppet.next().crash()
    puppet.next().do(loop)
    assert entered.wait(HANG)
    report = app.stop()
    spare.join(HANG)

    assert (report.interrupted, report.unstopped, spare.is_alive()) == (("app/a",), (), False)


def test_the_registry_shows_it(app):
    """The registry has it as a thread of the tree, but of no child."""
    (spare,) = [one for one in registry.active() if one.thread is spare_of(app)]

    assert (spare.name, spare.path, spare.purpose) == (
        "app (spare)",
        None,
        "waits to be a replacement",
    )


def test_a_system_that_has_no_more_threads(launch, puppet, monkeypatch, recorder):
    """Then no spare is made, and the supervisor does not try for ever.

    The next replacement gets a thread of its own.
    """
    start, refused = threading.Thread.start, []

    def refuse(self):
        if self.name.endswith("(spare)"):
            refused.append(self)
            raise PermissionError("an audit hook may say so")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    app = launch(supervisor("app", children=[puppet.spec("a")], intensity=1000))
    for _ in range(3):
        puppet.next().crash()
        wait_until(lambda: refused)
        refused.clear()
    puppet.next()
    threading.Event().wait(50 * CALM)  # so often it would have tried again

    assert (spares(app._tree), refused) == ([], [])
    assert [child.state for child in app.which_children()] == [ChildState.RUNNING]


def test_a_spawner_that_is_closed_twice_or_early():
    """A supervisor may end before it has needed a spare, with one, or after a child
    took it.
    """
    owner, ran = object(), threading.Event()
    spawner = Spawner(owner, "app")
    spawner.close()
    spawner.refill()
    assert len(spares(owner)) == 1
    spawner.close()
    assert threads.settle(owner, {Role.SPARE}, HANG) == ()
    spawner.refill()
    child = spawner.spawn(ran.set, name="app/a", purpose="")
    spawner.close()
    child.join(HANG)

    assert ran.is_set()
    assert threads.settle(owner, {Role.CHILD, Role.SPARE}, HANG) == ()


def test_it_is_wanted_from_the_first_restart_on():
    """A new spare is wanted as well when a new child has taken the last one."""
    spawner = Spawner(object(), "app")
    spawner.spawn(int, name="app/a", purpose="")
    assert not spawner.is_short
    spawner.keep_one()
    assert not spawner.is_short
    spawner.spawn(int, name="app/a", purpose="")
    assert spawner.is_short
    spawner.refill()
    assert not spawner.is_short
    spawner.spawn(int, name="app/b", purpose="")

    assert spawner.is_short


def test_a_new_child_may_take_it(app, puppet):
    """A child of start_child runs in the spare, and another spare is made."""
    spare = spare_of(app)
    app.start_child(puppet.spec("b"))
    puppet.next()
    puppet.next()
    (child,) = [entry for entry in threads.entries(app._tree) if entry.name == "app/b"]

    assert child.thread is spare
    assert spare_of(app) is not spare


def test_one_that_has_died_is_of_no_use(app, puppet, monkeypatch):
    """A tool that raises in every thread hits the spare, too.

    The replacement gets a thread of its own.
    """
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    first = puppet.next()
    spare = spare_of(app)
    raise_in(spare.ident, KeyboardInterrupt)  # it arrives when the spare wakes up
    first.crash()
    life = puppet.next()

    assert (life.incarnation, app.which_children()[0].incarnation) == (3, 3)
    assert not spare.is_alive()
    assert [entry.name for entry in threads.entries(app._tree) if entry.thread is spare] == []


def test_none_is_made_while_the_supervisor_ends(launch, puppet, monkeypatch):
    """No child would need it.

    The supervisor is short of a spare, and has calm moments while its last child ends.
    """
    refills = []
    monkeypatch.setattr(Spawner, "refill", lambda spawner: refills.append(spawner))
    app = launch(supervisor("app", children=[thread(end_slowly, id="a")]))
    core = app._tree.directory["app"]
    core.spawner.is_short = True
    app.stop()

    assert not refills


def end_slowly(ctx):
    ctx.wait_stop()
    time.sleep(20 * CALM)


def test_the_registry_lists_threads_in_the_order_of_their_starts(app, puppet):
    """A spare counts as started when it became a child."""
    first = puppet.next()
    spare = spare_of(app)
    app.start_child(thread(lambda ctx: ctx.wait_stop(), id="young"))
    wait_until(lambda: spares(app._tree))
    first.crash()
    puppet.next()
    names = [one.path for one in registry.active() if one.path in ("app/a", "app/young")]

    assert spare.name == "app/young"
    assert names == ["app/young", "app/a"]
