"""``python -m benchmarks [NAME…] [--json FILE] [--rounds N] [--quick] [--list]``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

import attrs

from benchmarks.measure import FLOOR, OTPY, Benchmark, Result, Summary, measure
from benchmarks.table import BENCHMARKS


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    wrong = [name for name in options.names if not _named([name])]
    if wrong:
        print(
            f"no such benchmark: {', '.join(wrong)}; there are: {', '.join(BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    chosen = _named(options.names or ["*"])
    if options.list:
        print(listing(chosen))
        return 0
    print(" · ".join(machine().values()), flush=True)
    print(HEAD, flush=True)
    results = []
    for benchmark in chosen:
        results.append(measure(benchmark, quick=options.quick, rounds=options.rounds))
        print(row(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(record(results), indent=1))
    return int(any(OTPY not in result.sides for result in results))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what otpy costs."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="which ones, such as restart or 'start-*'; default: all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each side takes its turn"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to see that it works; the figures mean nothing",
    )
    parser.add_argument(
        "--list", action="store_true", help="say what there is, and measure nothing"
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _named(patterns: list[str]) -> list[Benchmark]:
    return [
        one
        for name, one in BENCHMARKS.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def listing(chosen: list[Benchmark]) -> str:
    lines = []
    for one in chosen:
        lines += [
            f"{one.name}: {one.what}",
            f"    floor: {one.floor or 'none'}",
            f"    must reach: {_targets(one)}",
        ]
    return "\n".join(lines)


def _targets(benchmark: Benchmark) -> str:
    return ", ".join(map(str, benchmark.targets))


# The table

LINE = "{:<17}{:>10}{:>10} {:>10}{:>10} {:>7}{:>7} {:>11}  {}"
HEAD = LINE.format(
    "", "otpy p50", "p99", "floor p50", "p99", "× p50", "× p99", "rounds", "must reach"
)


def row(result: Result) -> str:
    """Return the line of a benchmark, and below it those of its peers, and the notes."""
    lines = [_line(result, OTPY, result.benchmark.name, _verdicts(result), _spread(result))]
    lines += [
        _line(result, name, f"  {name}") for name in result.sides if name not in (OTPY, FLOOR)
    ]
    lines += [f"  ({note})" for note in result.notes]
    return "\n".join(lines)


def _line(result: Result, side: str, name: str, verdicts: str = "", spread: str = "") -> str:
    unit = UNITS[result.benchmark.unit]
    ratios = (_ratio(result.ratio(statistic, side)) for statistic in ("p50", "p99"))
    figures = (*_figures(result.sides.get(side), unit), *_figures(result.sides.get(FLOOR), unit))
    return LINE.format(name, *figures, *ratios, spread, verdicts).rstrip()


def _figures(summary: Summary | None, unit: Callable[[float], str]) -> tuple[str, str]:
    return (unit(summary.p50), unit(summary.p99)) if summary else ("–", "–")


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return (
        f"{ratio:.2f}" if ratio < 1000 else f"{ratio:,.0f}"
    )  # a peer that polls must not run into the next column


def _spread(result: Result) -> str:
    return "–" if result.spread is None else "{:.2f}–{:.2f}".format(*result.spread)


def _verdicts(result: Result) -> str:
    return ", ".join(f"{target}: {verdict}" for target, verdict in result.verdicts)


def scaled(units: tuple[tuple[float, str], ...]) -> Callable[[float], str]:
    """Return a function that writes a figure in the greatest of *units* that fits."""

    def write(value: float) -> str:
        size, name = next((one for one in units if value >= one[0]), units[-1])
        return f"{value / size:.3g} {name}"

    return write


UNITS: dict[str, Callable[[float], str]] = {
    "s": scaled(((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))),
    "B": scaled(((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))),
    "count": lambda value: f"{value:.3g}",
}


# The record


def machine() -> dict[str, str]:
    """Return where and when this runs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "otpy": f"otpy {metadata.version('otpy')}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "load": f"load {os.getloadavg()[0]:.1f}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} × {names[0] if names else platform.processor()}"


def record(results: list[Result]) -> dict[str, object]:
    """Return all that was measured, as JSON wants it."""
    return {"machine": machine(), "benchmarks": [_record(result) for result in results]}


def _record(result: Result) -> dict[str, object]:
    benchmark = result.benchmark
    return {
        "name": benchmark.name,
        "what": benchmark.what,
        "floor": benchmark.floor,
        "unit": benchmark.unit,
        "size": result.size,
        "sides": {name: attrs.asdict(summary) for name, summary in result.sides.items()},
        "ratios": {statistic: result.ratio(statistic) for statistic in ("p50", "p99")},
        "spread": result.spread,
        "targets": [
            {"target": str(target), "verdict": verdict} for target, verdict in result.verdicts
        ],
        "notes": result.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
