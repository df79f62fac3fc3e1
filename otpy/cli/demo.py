"""``otpy demo``: a small tree that crashes, recovers and gives up in the end.

The main thread waits for the reports of the tree, and prints and draws each of them. No
other thread touches the picture.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from otpy.cli.terminal import in_one_line, say, say_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from otpy import Context, SupervisorSpec
    from otpy.reports import Report

LIVES = (1.2, 1.5, 0.5, 0.5, 0.5, 0.5)
"""How long the bank answers, in seconds, life after life; then it does not any more."""

PAUSE = 0.4
"""How long it waits after each crash, in seconds, so that there is something to see."""


@click.command(
    epilog="""\b
Examples:
  otpy demo
  otpy show otpy.cli.demo:tree
"""
)
def demo() -> None:
    """Show a small tree that crashes, recovers, and gives up in the end.

    It is drawn live on a terminal; elsewhere, each event is a line. It takes about
    seven seconds.
    """
    from rich.console import Console

    console, spec = Console(highlight=False), tree()
    if console.is_terminal and not console.is_dumb_terminal:
        watch(console, spec)
    else:
        for line in events(spec, Picture(spec)):
            say_line(line)
    say(MORAL)


MORAL = """\
The bank crashed and was restarted, with nothing else touched. When that had
happened too often, its supervisor gave up, and the whole subsystem was started
afresh. When that did not help, the root gave up, and everything else was
stopped in order. A program ends there, with an exit status that says so.
Next: otpy show otpy.cli.demo:tree, and docs/tutorial/tutorial.md"""


# The tree


def tree() -> SupervisorSpec:
    """Describe the shop. Its bank crashes again and again."""
    import otpy

    lives = iter(LIVES)
    bank = otpy.thread(
        answer,
        lives,
        id="bank",
        backoff=otpy.Backoff(PAUSE, PAUSE, jitter=0),
        purpose="asks the bank",
    )
    return otpy.supervisor(
        "shop",
        intensity=1,
        period=60,
        children=[
            otpy.thread(serve, id="till", purpose="serves customers"),
            otpy.supervisor(
                "payments",
                intensity=2,
                period=60,
                children=[otpy.thread(serve, id="ledger", purpose="keeps books"), bank],
            ),
        ],
    )


def serve(ctx: Context) -> None:
    """Do what can be done until asked to stop."""
    ctx.wait_stop()


def answer(ctx: Context, lives: Iterator[float]) -> None:
    """Answer for a while, then fail."""
    if not ctx.wait_stop(next(lives, 0.0)):
        raise ConnectionError("the bank does not answer")


# The story


def events(spec: SupervisorSpec, picture: Picture) -> Iterator[str]:
    """Run the tree to its end; yield a line for each report, after *picture* has it."""
    import queue

    import otpy

    reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    began = time.monotonic()
    with otpy.start(spec, reports=reports, log=False):
        while not picture.is_over:
            report = reports.get()
            picture.see(report)
            yield f"{time.monotonic() - began:4.1f} s  {line_of(report)}"


def line_of(report: Report) -> str:
    """Return what a report says, for people."""
    from otpy import reports

    if isinstance(report, reports.Progress):
        return f"{report.path} is up, life {report.incarnation}"
    if isinstance(report, reports.LimitReached):
        return f"{report.path} gives up: that was one restart too many"
    reason = report.reason
    return f"{report.path} has ended: {reason.kind.value if reason else type(report).__name__}"


STYLES = {
    "running": "green",
    "restarting": "yellow",
    "gave up": "bold red",
    "stopped": "dim",
    "starting": "dim",
}


class Picture:
    """What the reports say that everybody is doing; the main thread's own."""

    def __init__(self, spec: SupervisorSpec) -> None:
        from otpy.check import walk

        self.root = spec.id
        self.purposes = {place.path: place.spec.purpose for place in walk(spec)}
        self.states = dict.fromkeys(self.purposes, "starting")
        self.lives = dict.fromkeys(self.purposes, 1)
        self.states[self.root] = "running"

    @property
    def is_over(self) -> bool:
        """Whether the root has given up."""
        return self.states[self.root] == "gave up"

    def see(self, report: Report) -> None:
        """Take in one report."""
        from otpy import reports

        if isinstance(report, reports.Progress):
            self.states[report.path], self.lives[report.path] = "running", report.incarnation
        elif isinstance(report, reports.LimitReached):
            below = [path for path in self.states if path.startswith(f"{report.path}/")]
            self.states |= {**dict.fromkeys(below, "stopped"), report.path: "gave up"}
        else:
            self.states[report.path] = "restarting"

    def draw(self) -> Tree:
        """Return the tree as it is now."""
        from rich.text import Text
        from rich.tree import Tree

        nodes: dict[str, Tree] = {}
        for path, state in self.states.items():
            above, _, id = path.rpartition("/")
            label = Text.assemble(
                (f"{in_one_line(id):<10}", "bold"),
                (f"{state:<12}", STYLES[state]),
                f"life {self.lives[path]}  ",
            )
            label.append(in_one_line(self.purposes[path]), "dim")
            nodes[path] = nodes[above].add(label) if above else Tree(label)
        return nodes[self.root]


def watch(console: Console, spec: SupervisorSpec) -> None:
    """Draw the tree live, with the latest events below it."""
    from rich.console import Group
    from rich.live import Live

    picture, lines = Picture(spec), deque[str](maxlen=8)
    with Live(picture.draw(), console=console, auto_refresh=False) as live:
        for line in events(spec, picture):
            lines.append(in_one_line(line))
            live.update(Group(picture.draw(), "", *lines), refresh=True)
