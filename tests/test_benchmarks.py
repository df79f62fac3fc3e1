"""The benchmarks measure what they say: each runs with a tiny size. How fast anything is, is not asserted here."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as cli
from benchmarks import measure
from benchmarks.measure import FLOOR, OTPY, Benchmark, Result, Side, Summary, Target
from benchmarks.table import ALL, BENCHMARKS

PAIRS = [(one, side) for one in ALL for side in one.sides if side.name in (OTPY, FLOOR)]


@pytest.mark.parametrize(("benchmark", "side"), PAIRS, ids=lambda one: one.name)
def test_each_side_yields_figures_and_leaves_no_thread(benchmark, side):
    samples = list(side.run(benchmark.quick))

    assert samples
    assert all(sample >= 0 for sample in samples)
    assert benchmark.unit != "s" or all(samples)


def test_each_benchmark_has_a_floor_or_an_absolute_target():
    for one in ALL:
        names = {side.name for side in one.sides}
        assert OTPY in names
        assert (FLOOR in names) == bool(one.floor)
        assert one.targets
        assert {target.of for target in one.targets} <= {None, *names}


def test_names_are_unique():
    assert len(BENCHMARKS) == len(ALL)


def benchmark(*sides, **options):
    fields = {
        "name": "it",
        "what": "what",
        "sides": sides,
        "targets": (Target("p50", 2.0),),
        "size": 8,
        "quick": 2,
    }
    return Benchmark(**{**fields, **options})


def test_the_sides_take_turns_and_the_first_one_changes():
    turns = []

    def side(name):
        return Side(name, lambda size: turns.append((name, size)) or [1.0])

    measure.measure(benchmark(side("otpy"), side("floor"), rounds=3))
    assert turns == [(name, 8) for name in ("otpy", "floor", "floor", "otpy", "otpy", "floor")]


def test_a_peer_that_is_slow_or_missing():
    sides = (
        Side("otpy", lambda size: [float(size)]),
        Side("slow", lambda size: [float(size)], at_most=3, slow=True),
        Side("peer", lambda size: [1.0], module="there_is_no_such_module"),
        Side("other", lambda size: [1.0], program="there-is-no-such-program"),
    )
    result = measure.measure(benchmark(*sides, rounds=4))

    assert {name: (one.samples, one.p50) for name, one in result.sides.items()} == {
        "otpy": (4, 8.0),
        "slow": (1, 3.0),
    }
    assert result.notes == (
        "peer is left out: the Python module there_is_no_such_module is not installed",
        "other is left out: the program there-is-no-such-program is not installed",
    )


def test_figures():
    """Otpy is worse than the floor by half in each round, and its worst by more."""
    mine = Summary.of([[3.0, 3.0, 9.0], [6.0, 6.0, 6.0]])
    bare = Summary.of([[2.0, 2.0, 2.0], [4.0, 4.0, 6.0]])
    result = Result(benchmark=benchmark(), size=3, sides={"otpy": mine, "floor": bare})

    assert (mine.samples, mine.p50, mine.p99, mine.rounds) == (6, 6.0, 9.0, (3.0, 6.0))
    assert result.ratio("p50") == 2.0
    assert result.ratio("p99") == 1.5
    assert result.spread == (1.5, 1.5)
    assert Summary.of([[float(number) for number in range(1, 1001)]]).p99 == 990.0


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("p50", 2.0), "ok"),
        (Target("p50", 1.9), "MISSED"),
        (Target("p99", 4.0, of=None), "ok"),
        (Target("p99", 3.9, of=None), "MISSED"),
        (Target("p50", 1.0, of="erlang"), "not run"),
    ],
)
def test_verdicts(target, verdict):
    sides = {"otpy": Summary.of([[4.0]]), "floor": Summary.of([[2.0]])}
    assert target.verdict(sides) == verdict


def test_a_side_that_fails_is_told(monkeypatch, capsys):
    """In a process of its own, which does not know this benchmark."""
    one = benchmark(Side("otpy", list), apart=True)
    monkeypatch.setitem(cli.BENCHMARKS, "it", one)

    assert cli.main(["it", "--rounds", "1"]) == 1
    assert "(otpy failed: KeyError: 'it')" in capsys.readouterr().out


def test_the_command_line_prints_a_table_and_writes_json(tmp_path, capsys):
    """One benchmark within this process, one in processes of its own."""
    file = tmp_path / "figures.json"

    assert cli.main(["start-1000", "running", "--quick", "--rounds", "1", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    written = json.loads(file.read_text())
    assert [line.split()[0] for line in lines[2:]] == ["start-1000", "running"]
    assert [one["name"] for one in written["benchmarks"]] == ["start-1000", "running"]
    assert {"date", "python", "processor"} <= set(written["machine"])
    assert set(written["benchmarks"][0]["sides"]) == {"otpy", "floor"}
    assert written["benchmarks"][0]["sides"]["otpy"]["samples"] == 1


def test_an_unknown_name_is_refused_with_the_list(capsys):
    assert cli.main(["running", "walking"]) == 2
    assert (
        capsys.readouterr().err
        == f"no such benchmark: walking; there are: {', '.join(BENCHMARKS)}\n"
    )


def test_a_pattern_and_the_list(capsys):
    assert cli.main(["--list", "check-*"]) == 0
    listing = capsys.readouterr().out
    assert "check-in: ctx.check_in(), one thread\n    floor: obj.t = " in listing
    assert "check-in-8:" in listing
    assert "running" not in listing


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_wrong_rounds_are_refused(rounds):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--rounds", rounds])


def test_units():
    assert [cli.UNITS["s"](value) for value in (2.0, 0.0125, 5e-6, 7e-8, 0.0)] == [
        "2 s",
        "12.5 ms",
        "5 µs",
        "70 ns",
        "0 ns",
    ]
    assert [cli.UNITS["B"](value) for value in (2**21, 1536, 3, 0)] == [
        "2 MiB",
        "1.5 KiB",
        "3 B",
        "0 B",
    ]


def test_columns_stay_apart_also_if_a_peer_is_very_slow():
    assert [cli._ratio(one) for one in (1.234, 999.0, 6943.6)] == ["1.23", "999.00", "6,944"]
