"""Random lives of real trees in which children of all kinds live together, against a model of what OTP would do.

Laws:
1. The walk gives one order, computes what must come of it, and waits for exactly that: reports in order, ends in order,
   what the calls say, what the system says. A step is over when all of it has come; nothing here sleeps.
2. The model below knows the rules of strategies and restarts in its own words, and imports none of otpy's.
3. Time stands still, but for the one step that needs it (a stall), so no budget and no window depends on the machine.
4. At last some orders are given without waiting, and the tree is stopped in the middle of what they cause. From then on
   only what holds in every order is checked: one end for each life, and nothing is left.

``python -m tests.mixed COUNT [FIRST]`` lives many; OTPY_SEED=n replays one (tests/test_mixed.py).

"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import otpy
from otpy import (
    ChildState,
    NotAlive,
    Refusal,
    adopt,
    coroutine,
    dynamic_supervisor,
    periodic,
    process,
    supervisor,
    thread,
)
from otpy.children.callable.process import tracker_descriptor
from otpy.reports import (
    ChildTerminated,
    LimitReached,
    Progress,
    Report,
    ShutdownError,
    Stalled,
    StrayMessage,
)
from otpy.runtime import threads as account
from tests import callees
from tests.helpers import HANG, wait_until
from tests.mixed_children import (
    HEARTBEAT,
    Broken,
    Clock,
    Ledger,
    Life,
    Served,
    Stage,
    Stranger,
    in_loop,
    in_thread,
    now_and_then,
)
from tests.mixed_model import (
    PATIENT,
    Group,
    Model,
    Node,
    Process,
    descriptors,
    members,
    processes,
    told,
)
from tests.programs import mark, sh

# The walk

FEW = {"callable": 2, "coroutine": 6}
"""How many of a kind a tree may have; others: 3."""

PROCESSES = ("sleep", "shell", "callable")
DEADLY = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)


class Walk:
    """One life of one tree."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.dice = random.Random(seed)
        self.stage, self.ledger, self.clock = Stage(folder), Ledger(), Clock()
        self.story: list[str] = []
        self.got: list[Report] = []
        self.news = threading.Condition()
        self.cast: Counter[str] = Counter()
        self.count = 0
        self.pids: set[int] = set()
        self.running: dict[Node, int] = {}
        self.newcomers: list[Node] = []
        self.callers: list[threading.Thread] = []
        self.fifos: dict[str, int] = {}
        root = self.group("app", depth=0)
        self.model = Model(root)

    # The tree

    def group(self, id: str, depth: int) -> Group:
        dice, dynamic = self.dice, depth > 0 and self.dice.random() < 0.15
        strategy = (
            "one_for_one"
            if dynamic
            else dice.choice(["one_for_one", "one_for_all", "rest_for_one"])
        )
        intensity = dice.choice([PATIENT, 1, 2]) if depth else PATIENT
        nested = (
            [] if dynamic else [self.group(self.name("s"), depth + 1) for _ in range(2 - depth)]
        )
        plan: list[Node] = (
            [] if dynamic else [*nested, *(self.worker() for _ in range(dice.randint(2, 4)))]
        )
        dice.shuffle(plan)
        options: dict[str, Any] = {"intensity": intensity, "period": 1e9}
        if dynamic:
            spec = dynamic_supervisor(id, **options)
        else:
            spec = supervisor(
                id, strategy=strategy, children=[node.spec for node in plan], **options
            )
        return Group(
            id,
            "supervisor",
            "permanent",
            spec,
            strategy=strategy,
            intensity=intensity,
            dynamic=dynamic,
            plan=tuple(plan),
        )

    def name(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def worker(self) -> Node:
        kind = self.dice.choice([kind for kind in KINDS if self.cast[kind] < FEW.get(kind, 3)])
        self.cast[kind] += 1
        restart = self.dice.choice(["permanent", "permanent", "transient", "temporary"])
        node = Node(self.name(kind[:2]), kind, restart, None, mark=mark())  # type: ignore[arg-type]
        options: dict[str, Any] = {"id": node.id, "restart": restart}
        if kind in IN_THIS_PROCESS:
            node.beats = kind != "periodic" and self.dice.random() < 0.5
            options |= {"ready": True, "heartbeat": HEARTBEAT if node.beats else None}
        if kind in ("sleep", "shell", "coroutine", "callable"):
            options["shutdown"] = self.dice.choice([5.0, "brutal_kill"])
        node.spec = self.ledger.watch(KINDS[kind](self, node, options))
        return node

    def fifo(self, node: Node) -> Path:
        path = self.stage.folder / f"{node.id}.fifo"
        os.mkfifo(path)
        self.fifos[node.id] = os.open(path, os.O_RDWR)
        return path

    # Orders to children

    def send(self, node: Node, word: str) -> None:
        """Have *node* end: "crash", "leave", or "kill" its process."""
        self.say(f"{word} {node.path} {node.incarnation}")
        if node.kind in IN_THIS_PROCESS:
            self.life(node).put(word)
        elif node.kind == "shell" and word != "kill":
            os.write(self.fifos[node.id], b"3\n" if word == "crash" else b"0\n")
        else:
            number = {"kill": signal.SIGKILL, "leave": signal.SIGUSR2, "crash": signal.SIGUSR1}[
                word
            ]
            number = self.dice.choice(DEADLY) if node.kind == "sleep" else number
            os.kill(self.running[node], number)

    def life(self, node: Node) -> Life:
        return self.stage.lives[node.path, node.incarnation]

    def leader(self, node: Node) -> int:
        """The number of the process; a moment after its start a program does not have its own arguments yet."""
        if node.kind == "callable":
            return int(callees.read(self.stage.folder / node.id)[0])
        found = wait_until(
            lambda: [one for one in members(node) if one.parent == os.getpid()], f"{node.path} runs"
        )
        self.check(len(found) == 1, f"{node.path} should be one process: {found}")
        return int(found[0].pid)

    # Steps

    def run(self) -> None:
        tracker_descriptor()  # this process keeps that one, whoever starts it first
        before = descriptors(), {one.pid for one in processes() if one.parent == os.getpid()}
        self.model.start(self.model.root, "init")
        app = otpy.start(self.model.root.spec, reports=self.hear, log=False, clock=self.clock)  # type: ignore[arg-type]
        self.app = app
        try:
            self.settle("start")
            for _ in range(self.dice.randint(3, 16)):
                self.dice.choice(STEPS)(self)
            self.some_orders_at_once()
        except BaseException:
            self.clock.runs_since = time.monotonic()
            with contextlib.suppress(Broken):  # the first one tells more
                self.stop()
            raise
        self.stop()
        self.check_the_end(*before)

    def hear(self, report: Report) -> None:
        with self.news:
            self.got.append(report)
            self.news.notify_all()

    def say(self, line: str) -> None:
        self.story.append(line)

    def groups(self) -> list[Group]:
        return [
            self.model.root,
            *(one for one in self.model.root.everybody() if isinstance(one, Group) and one.is_up),
        ]

    def nodes(self) -> list[Node]:
        return list(self.model.root.everybody())

    def workers(self) -> list[Node]:
        return [node for node in self.nodes() if node.is_up and not isinstance(node, Group)]

    def handle(self, group: Group) -> otpy.Supervisor:
        return self.app.find(group.path)

    def word_for(self, node: Node) -> str:
        return self.dice.choice(
            {"sleep": ["kill"], "shell": PROCESS_WORDS, "callable": PROCESS_WORDS}.get(
                node.kind, WORDS
            )
        )

    def one_ends(self) -> None:
        if not self.workers():
            return
        node = self.dice.choice(self.workers())
        word = self.word_for(node)
        self.send(node, word)
        self.model.end(node, normal=word == "leave")
        self.settle(word)

    def several_end(self) -> None:
        """Those that have nothing to do with each other, at one moment."""
        victims, touched = [], set()
        for node in self.dice.sample(self.workers(), len(self.workers())):
            paths = self.model.touched_by(node)
            if not paths & touched:
                victims.append((node, self.word_for(node)))
                touched |= paths
        for node, word in victims:
            self.send(node, word)
        for node, word in victims:
            self.model.end(node, normal=word == "leave")
        self.model.is_ordered = False
        self.settle("several")

    def one_stalls(self) -> None:
        beating = [node for node in self.workers() if node.beats]
        if not beating:
            return
        victim = self.dice.choice(beating)
        self.say(f"stall {victim.path}")
        while not self.has_stalled(
            victim
        ):  # a clock that jumps is a pause, after which all begin anew, once
            for node in beating:
                if node is not victim:
                    self.life(node).put("beat")
                    self.life(node).heard.get(timeout=HANG)
            self.clock.advance(1.5 * HEARTBEAT)
        self.model.reports.append(("Stalled", victim.path, victim.incarnation))
        self.model.end(victim, normal=False)
        self.settle("stall")

    def has_stalled(self, victim: Node) -> bool:
        """Whether its supervisor has found that out. It looks at the clock when it gets a message.

        It has read its deadlines when it answers the third one: the first wakes it, and
        the second may be read together with them.
        """
        assert victim.parent
        try:
            for _ in range(3):
                found = {one.id: one for one in self.handle(victim.parent).which_children(HANG)}
        except NotAlive:  # it has given up
            return True
        now = found.get(victim.id)
        return (
            now is None
            or now.state is not ChildState.RUNNING
            or now.incarnation != victim.incarnation
        )

    def a_call(self) -> None:
        """Any call about any child, whether it is allowed or not."""
        node = self.dice.choice(self.nodes())
        assert node.parent
        if not node.parent.is_up:
            return
        name = self.dice.choice(["terminate_child", "restart_child", "delete_child"])
        self.say(f"{name} {node.path}, {'up' if node.is_up else 'down'}")
        call, refused = (
            getattr(self.handle(node.parent), name),
            node.is_up == (name != "terminate_child"),
        )
        try:
            call(node.id, HANG)
            self.check(
                not refused or name == "terminate_child", f"{name} of {node.path} was not refused"
            )
        except Refusal as error:
            self.check(refused and name != "terminate_child", f"{name} of {node.path}: {error!r}")
            return
        getattr(self, f"after_{name}")(node)
        self.settle(name)

    def after_terminate_child(self, node: Node) -> None:
        if node.is_up:
            self.model.stop(node)
        self.model.forget(node)

    def after_restart_child(self, node: Node) -> None:
        self.model.start(node, "call")

    def after_delete_child(self, node: Node) -> None:
        node.parent.members.remove(node)  # type: ignore[union-attr]

    def one_comes(self) -> None:
        if all(self.cast[kind] >= FEW.get(kind, 3) for kind in KINDS):
            return
        group = self.dice.choice(self.groups())
        node = self.worker()
        node.parent = group
        self.say(f"start_child {node.path} {node.restart}")
        self.handle(group).start_child(node.spec, HANG)
        group.members.append(node)
        self.model.start(node, "call")
        self.settle("start_child")

    def a_nested_one_stops(self) -> None:
        nested = self.groups()[1:]
        if not nested:
            return
        group = self.dice.choice(nested)
        self.say(f"stop {group.path}")
        self.within(self.handle(group).stop)
        self.model.stop(group)
        self.model.end(group, normal=True)
        self.settle("stop")

    def some_orders_at_once(self) -> None:
        """Give orders to whoever is there, and add some more; do not wait for what they cause."""
        free = sum(FEW.get(kind, 3) - self.cast[kind] for kind in KINDS)
        for _ in range(min(free, self.dice.randint(0, 3))):
            self.begin_a_start(self.handle(self.dice.choice(self.groups())), self.worker())
        workers = self.workers()
        for node in self.dice.sample(workers, self.dice.randint(0, len(workers))):
            with contextlib.suppress(
                ProcessLookupError, RuntimeError
            ):  # it may be gone, or its loop closed
                self.send(node, self.word_for(node))

    def begin_a_start(self, handle: otpy.Supervisor, node: Node) -> None:
        def call() -> None:
            with contextlib.suppress(Refusal, otpy.StartError):  # the stop may overtake it
                handle.start_child(node.spec)

        self.say(f"begin start_child {handle.path}/{node.id}")
        self.newcomers.append(node)
        self.callers.append(threading.Thread(target=call))
        self.callers[-1].start()

    # The rendezvous

    def settle(self, what: str) -> None:
        """Wait for what must come of the last order, and check that nothing else has come."""
        model, wanted, ends = self.model, self.model.reports, self.model.ends
        self.wait(self.ledger.news, lambda: self.ledger.heard >= len(ends))
        self.wait(self.news, lambda: len(self.got) >= len(wanted))
        self.check_calls()
        self.flush()
        got, self.got = [told(one) for one in self.got if not isinstance(one, StrayMessage)], []
        gone, self.ledger.ends, self.ledger.heard = self.ledger.ends, [], 0
        order: Callable[[Any], Any] = list if model.is_ordered else sorted
        self.check(order(got) == order(wanted), f"after {what}:\n  told   {got}\n  wanted {wanted}")
        self.check(order(gone) == order(ends), f"after {what}:\n  ended  {gone}\n  wanted {ends}")
        self.check_lives()
        self.check_processes()
        model.reports, model.ends, model.is_ordered = [], [], True

    def wait(self, news: threading.Condition, condition: Callable[[], bool]) -> None:
        """Whether it came in time, is found out by comparing."""
        with news:
            news.wait_for(condition, HANG)

    def flush(self) -> None:
        """Wait until all reports so far have been told: a stray message is reported as well."""
        item = object()
        self.app._tree.directory["app"].mailbox.put(item)
        with self.news:
            told = self.news.wait_for(
                lambda: any(getattr(one, "item", None) is item for one in self.got), HANG
            )
        self.check(told, "the reports do not come")

    def within(self, stop: Callable[[], otpy.StopReport]) -> otpy.StopReport:
        """Call *stop*. One that hangs is an invariant that does not hold; only then time goes on, so that it ends."""
        stopped: list[otpy.StopReport] = []
        stopper = threading.Thread(target=lambda: stopped.append(stop()), daemon=True)
        stopper.start()
        stopper.join(HANG)
        if stopped:
            return stopped[0]
        self.clock.runs_since = time.monotonic()
        raise Broken("the stop hangs")

    def check(self, holds: object, what: str) -> None:
        if not holds:
            raise Broken(what)

    def check_calls(self) -> None:
        """The calls agree with each other and with the model."""
        pictures = {}

        def look(snapshot: Any) -> None:
            pictures[snapshot.path] = snapshot
            for child in snapshot.children:
                if child.snapshot is not None:
                    look(child.snapshot)

        look(self.app.snapshot(HANG))
        groups = self.groups()
        self.check(
            set(pictures) == {one.path for one in groups}, f"{sorted(pictures)} in the snapshot"
        )
        for group in groups:
            handle, picture = self.handle(group), pictures[group.path]
            wanted = [
                (one.id, "running" if one.is_up else "undefined", one.incarnation)
                for one in group.members
            ]
            for infos in (handle.which_children(HANG), picture.children):
                seen = [(one.id, one.state.value, one.incarnation) for one in infos]
                self.check(seen == wanted, f"{group.path}:\n  seen   {seen}\n  wanted {wanted}")
            counts, nested = (
                handle.count_children(HANG),
                [one for one in group.members if isinstance(one, Group)],
            )
            active = sum(one.is_up for one in group.members)
            numbers = (counts.specs, counts.active, counts.supervisors, counts.workers)
            size = len(group.members)
            self.check(
                numbers == (size, active, len(nested), size - len(nested)),
                f"{group.path}: {numbers}",
            )
            left = group.intensity - group.spent
            self.check(
                picture.budget_left == left,
                f"{group.path}: {picture.budget_left} restarts left, not {left}",
            )

    def check_lives(self) -> None:
        """Each birth has told once that it is up, and once its end if it does not run; its code is where it says."""
        entries = self.ledger.entries
        running = Counter((one.path, one.incarnation) for one in entries if not one.ends)
        wanted = Counter((one.path, one.incarnation) for one in self.workers())
        self.check(running == wanted, f"running {running - wanted}, missing {wanted - running}")
        self.check_ends()
        for key in wanted:
            life = self.stage.lives.get(key)
            self.check(life is None or not life.over, f"{key} is over")

        asides = sum(not task.done() for task in self.stage.asides)
        owners = sum(node.kind in ("coroutine", "own loop") for node in self.workers())
        self.check(asides == owners, f"{asides} tasks of {owners} coroutines")

    def check_ends(self) -> None:
        for one in self.ledger.entries:
            self.check(one.ends <= 1, f"{one.path} {one.incarnation} ended {one.ends} times")
            self.check(one.ups <= 1, f"{one.path} {one.incarnation} was up {one.ups} times")

    def check_processes(self) -> None:
        """Each program that runs is one process and what that has started; nothing runs of those that do not."""
        running = self.running = {
            node: self.leader(node) for node in self.workers() if node.kind in PROCESSES
        }
        there = processes()
        for node in [one for one in self.nodes() if one.mark]:
            leader = running.get(node)
            strays = [one for one in members(node, there) if leader not in (one.pid, one.parent)]
            self.check(not strays, f"{node.path} has left {strays}")
        left = (self.pids - set(running.values())) & {one.pid for one in there}
        self.check(not left, f"{left} should not run")
        dead = set(running.values()) - {one.pid for one in there}
        self.check(not dead, f"{dead} should run")
        self.pids |= set(running.values())

    # The end

    def stop(self) -> None:
        """Stop the tree. A stop that hangs is an invariant that does not hold."""
        self.say("stop all")
        report = self.within(self.app.stop)
        for fifo in self.fifos.values():
            os.close(fifo)
        for caller in self.callers:
            caller.join(HANG)
            self.check(not caller.is_alive(), "a call is not answered")
        left = (report.unstopped, report.handlers, report.detached)
        self.check(left == ((), (), ()), f"left behind: {left}")

    def check_the_end(self, fds: set[str], children: set[int]) -> None:
        """Nothing is left, and each life has had one end."""
        open_ends = [one for one in self.ledger.entries if one.ends != 1]
        self.check(not open_ends, f"not one end: {open_ends}")
        self.check_ends()
        unfinished = [key for key, life in self.stage.lives.items() if life.over is False]
        self.check(not unfinished, f"{unfinished} were ended in the middle")
        self.check(all(task.done() for task in self.stage.asides), "tasks of coroutines are left")
        deaths = Counter(
            one.path for one in self.got if isinstance(one, ChildTerminated | ShutdownError)
        )
        births = Counter(one.path for one in self.ledger.entries)
        workers = {path for path in deaths if path in births}
        self.check(
            all(deaths[path] <= births[path] for path in workers),
            f"{deaths} deaths, {births} births",
        )
        odd = [one for one in self.got if not isinstance(one, EXPECTED)]
        self.check(not odd, f"odd reports: {odd}")
        wait_until(lambda: not account.entries(), "the end of our threads")
        wait_until(lambda: descriptors() <= fds, "the end of our descriptors")
        mine = wait_until(lambda: not self.left_of(children), "the end of our processes")
        assert mine

    def left_of(self, children: set[int]) -> list[Process]:
        marks = [node.mark.encode() for node in (*self.nodes(), *self.newcomers) if node.mark]
        return [
            one
            for one in processes()
            if (one.parent == os.getpid() and one.pid not in children)
            or one.pid in self.pids
            or any(mark in one.words for mark in marks)
        ]


EXPECTED = (Progress, ChildTerminated, ShutdownError, LimitReached, Stalled, StrayMessage)

WORDS = ["crash", "leave"]
PROCESS_WORDS = ["crash", "leave", "kill"]

SHELL = 'sleep $1 & read code <$2; exit "$code"'

KINDS: dict[str, Callable[[Walk, Node, dict[str, Any]], otpy.ChildSpec]] = {
    "thread": lambda walk, node, options: thread(in_thread, walk.stage, **options),
    "service": lambda walk, node, options: thread(Served, walk.stage, **options),
    "adopted": lambda walk, node, options: thread(
        adopt(functools.partial(Stranger, walk.stage)), **options
    ),
    "periodic": lambda walk, node, options: periodic(
        now_and_then, walk.stage, interval=0.005, **options
    ),
    "coroutine": lambda walk, node, options: coroutine(in_loop, walk.stage, **options),
    "own loop": lambda walk, node, options: coroutine(in_loop, walk.stage, loop="own", **options),
    "sleep": lambda walk, node, options: process("sleep", node.mark, **options),
    "shell": lambda walk, node, options: sh(SHELL, node.mark, walk.fifo(node), **options),
    "callable": lambda walk, node, options: process(
        callees.under_orders, str(walk.stage.folder / node.id), ready=True, **options
    ),
}
IN_THIS_PROCESS = ("thread", "service", "adopted", "periodic", "coroutine", "own loop")

STEPS: list[Callable[[Walk], None]] = [
    Walk.one_ends,
    Walk.one_ends,
    Walk.one_ends,
    Walk.several_end,
    Walk.one_stalls,
    Walk.a_call,
    Walk.a_call,
    Walk.a_call,
    Walk.one_comes,
    Walk.a_nested_one_stops,
]


def live(seed: int) -> Walk:
    """Live the life of *seed*; raise Broken, with the seed and the story, if an invariant does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(seed, Path(folder))
        try:
            walk.run()
        except Exception as error:
            what = str(error) if isinstance(error, Broken) else repr(error)
            raise Broken(f"OTPY_SEED={seed}: {what}\n" + "\n".join(walk.story[-30:])) from error
    return walk


def main(count: int, first: int) -> None:
    began, steps = time.monotonic(), Counter[str]()
    for seed in range(first, first + count):
        steps.update(line.split()[0] for line in live(seed).story)
    print(f"{count} mixed lives held in {time.monotonic() - began:.0f} s; {dict(steps)}")


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else int(os.environ.get("OTPY_SEED", "0")),
    )
