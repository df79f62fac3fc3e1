"""How to measure: a benchmark is a value, its sides take turns, and what comes out is samples and ratios.

Laws:
1. Otpy and its floor do the same work in the same run, and take turns within it: what disturbs one disturbs both.
2. The side that goes first changes from round to round.
3. What the machine cannot do (a peer that is not installed, too many threads) is said, never left out in silence.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

OTPY, FLOOR = "otpy", "floor"

PATIENCE = 600.0
"""After so many seconds a round in a process of its own is given up."""

Samples = list[float]


@attrs.frozen
class Side:
    """One of those who are compared.

    Attributes:
        name: "otpy", "floor", or a peer's.
        run: Does the work of one round, *size* big, cleans up, and returns the samples.
        module: What must be installed in Python.
        program: What must be installed in the system.
        at_most: Where it is too slow for the full size, the size of its round.
        slow: Whether one round of it is enough.
    """

    name: str
    run: Callable[[int], Iterable[float]]
    module: str | None = None
    program: str | None = None
    at_most: int | None = None
    slow: bool = False

    @property
    def missing(self) -> str | None:
        """What must be installed first; None: nothing."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the Python module {self.module}"
        if self.program and shutil.which(self.program) is None:
            return f"the program {self.program}"
        return None


@attrs.frozen
class Target:
    """What must be reached: a statistic of otpy, at most so many times that of another side, or at most so much."""

    statistic: str
    most: float
    of: str | None = FLOOR
    says: str = ""

    def verdict(self, results: Mapping[str, Summary]) -> str:
        mine = getattr(results[OTPY], self.statistic)
        if self.of is None:
            return "ok" if mine <= self.most else "MISSED"
        if self.of not in results:
            return "not run"
        return "ok" if mine <= self.most * getattr(results[self.of], self.statistic) else "MISSED"

    def __str__(self) -> str:
        return self.says or f"{self.statistic} ≤ {self.most:g} × {self.of}"


@attrs.frozen(kw_only=True)
class Benchmark:
    """What is measured, and how.

    Attributes:
        name: How the command line calls it.
        what: What one sample is, in one line.
        floor: What the floor does, in one line; "": there is none.
        unit: "s" or "B" or "count".
        sides: Otpy first, then the floor, if there is one, then the peers.
        targets: What must be reached.
        size, quick: How much work a round is, and how much for ``--quick``; what it counts is up to the sides.
        rounds: How many.
        apart: Whether each side of each round has a fresh process: where thousands of threads, the memory that they
            leave behind, or an import would spoil the next round.
    """

    name: str
    what: str
    floor: str = ""
    unit: str = "s"
    sides: tuple[Side, ...]
    targets: tuple[Target, ...]
    size: int
    quick: int
    rounds: int = 7
    apart: bool = False


@attrs.frozen
class Summary:
    """The samples of one side, all rounds together, and the median of each round."""

    samples: int
    p50: float
    p99: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: list[Samples]) -> Summary:
        pool = sorted(sample for one in rounds for sample in one)
        return cls(
            len(pool),
            statistics.median(pool),
            quantile(pool, 0.99),
            tuple(map(statistics.median, rounds)),
        )


def quantile(ordered: Samples, share: float) -> float:
    """Return the sample below which *share* of all are: of less than a hundred the greatest, for the 99th."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


@attrs.frozen(kw_only=True)
class Result:
    """What came of a benchmark."""

    benchmark: Benchmark
    size: int
    sides: dict[str, Summary]
    notes: tuple[str, ...] = ()

    def ratio(self, statistic: str, side: str = OTPY) -> float | None:
        """Return *statistic* of *side* over that of the floor; None: there is no floor."""
        floor = self.sides.get(FLOOR)
        if floor is None or side not in self.sides or not getattr(floor, statistic):
            return None
        return getattr(self.sides[side], statistic) / getattr(floor, statistic)

    @property
    def spread(self) -> tuple[float, float] | None:
        """Return the least and the greatest of the rounds' own ratios: how far the machine can be trusted."""
        if FLOOR not in self.sides or OTPY not in self.sides:
            return None
        pairs = zip(self.sides[OTPY].rounds, self.sides[FLOOR].rounds, strict=True)
        ratios = [mine / bare for mine, bare in pairs if bare]
        return (min(ratios), max(ratios)) if ratios else None

    @property
    def verdicts(self) -> list[tuple[Target, str]]:
        if OTPY not in self.sides:
            return [(target, "not run") for target in self.benchmark.targets]
        return [(target, target.verdict(self.sides)) for target in self.benchmark.targets]


class Failed(Exception):
    """A side could not do its work; the text says why."""


def measure(benchmark: Benchmark, *, quick: bool = False, rounds: int | None = None) -> Result:
    """Run all rounds and return what came of them. A side that fails is left out, with a note."""
    size = benchmark.quick if quick else benchmark.size
    rounds = rounds or (2 if quick else benchmark.rounds)
    notes = [
        f"{side.name} is left out: {side.missing} is not installed"
        for side in benchmark.sides
        if side.missing
    ]
    sides = [side for side in benchmark.sides if not side.missing]
    taken: dict[str, list[Samples]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in _turns(sides, number):
            if side.slow and number:
                continue
            try:
                taken[side.name].append(one_round(benchmark, side, size))
            except Failed as error:
                notes.append(f"{side.name} failed: {error}")
                sides = [one for one in sides if one is not side]
                del taken[side.name]
    summaries = {name: Summary.of(samples) for name, samples in taken.items()}
    return Result(benchmark=benchmark, size=size, sides=summaries, notes=tuple(notes))


def _turns(sides: list[Side], number: int) -> Iterator[Side]:
    yield from sides if number % 2 == 0 else sides[::-1]


def one_round(benchmark: Benchmark, side: Side, size: int) -> Samples:
    """Run one side once, and return its samples."""
    size = min(size, side.at_most or size)
    if benchmark.apart:
        return _in_a_process(benchmark, side, size)
    gc.collect()
    try:
        return list(side.run(size))
    except Exception as error:
        raise Failed(repr(error)) from error


def _in_a_process(benchmark: Benchmark, side: Side, size: int) -> Samples:
    command = [sys.executable, "-m", "benchmarks.apart", benchmark.name, side.name, str(size)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"nothing after {PATIENCE:g} s") from None
    if done.returncode:
        last = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise Failed(last)
    return json.loads(done.stdout)
