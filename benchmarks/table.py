"""All benchmarks, in one table. What must be reached is the project's own promise."""

from __future__ import annotations

import threading

from benchmarks import calls, coroutines, erlang, graphs, inside, peers, processes, restarts, trees
from benchmarks.measure import FLOOR, OTPY, Benchmark, Side, Target

CHECK_IN, RUNNING = "it.check_in()", "it.running"

A_THREAD = "a bare thread raises → SimpleQueue → threading.Thread(...).start()"

ALL = (
    Benchmark(
        name="restart",
        what="from the raise of a child that has lived for 3 ms to the first line of its replacement",
        floor=A_THREAD,
        sides=(
            Side(OTPY, restarts.latency_of_otpy),
            Side(FLOOR, restarts.latency_of_floor),
            Side(
                "masterpiece",
                peers.latency_of_masterpiece,
                module="masterpiece",
                at_most=50,
                slow=True,
            ),
            Side("mode", peers.latency_of_mode, module="mode", at_most=50, slow=True),
            Side(
                "thread-warden",
                peers.latency_of_thread_warden,
                module="Thread_Warden",
                at_most=3,
                slow=True,
            ),
        ),
        targets=(Target("p50", 0.8), Target("p99", 1.2)),
        size=150,
        quick=5,
        rounds=10,
    ),
    Benchmark(
        name="crash-loop",
        what="one crash and restart of a child that crashes on its first line, again and again",
        floor=A_THREAD,
        sides=(Side(OTPY, restarts.loop_of_otpy), Side(FLOOR, restarts.loop_of_floor)),
        targets=(Target("p50", 1.5),),
        size=20,
        quick=1,
        rounds=10,
    ),
    *(
        Benchmark(
            name=f"start-{name}",
            what=f"start of one of {size:,} thread children, {shape}",
            floor="a loop of Thread(...).start()",
            sides=(Side(OTPY, trees.start_of_otpy(make)), Side(FLOOR, trees.start_of_floor)),
            targets=(Target("p50", 1.15),),
            size=size,
            quick=20,
            rounds=rounds,
            apart=True,
        )
        for name, size, shape, make, rounds in (
            ("1000", 1_000, "flat", trees.flat, 11),
            ("10000", 10_000, "flat", trees.flat, 5),
            ("nested", 10_000, "100 × 100", trees.nested, 5),
        )
    ),
    *(
        Benchmark(
            name=f"stop-{name}",
            what=f"stop of one of {size:,} thread children, {shape}, in order",
            floor="set one event, join, next",
            sides=(Side(OTPY, trees.stop_of_otpy(make)), Side(FLOOR, trees.stop_of_floor)),
            targets=(Target("p50", 1.25),),
            size=size,
            quick=20,
            rounds=rounds,
            apart=True,
        )
        for name, size, shape, make, rounds in (
            ("1000", 1_000, "flat", trees.flat, 11),
            ("10000", 10_000, "flat", trees.flat, 5),
            ("nested", 10_000, "100 × 100", trees.nested, 5),
        )
    ),
    Benchmark(
        name="mass-crash-1000",
        what="one of 1,000 children that crash at once, until all are replaced",
        floor="the same with bare threads and one queue",
        sides=(
            Side(OTPY, restarts.crowd_of_otpy),
            Side(FLOOR, restarts.crowd_of_floor),
            Side("erlang", erlang.crowd_of_erlang, program="escript"),
        ),
        targets=(Target("p50", 1.25),),
        size=1_000,
        quick=20,
        rounds=11,
        apart=True,
    ),
    Benchmark(
        name="mass-crash-10000",
        what="one of 10,000 children that crash at once, until all are replaced",
        floor="the same with bare threads and one queue",
        sides=(
            Side(OTPY, restarts.crowd_of_otpy),
            Side(FLOOR, restarts.crowd_of_floor),
            Side("erlang", erlang.crowd_of_erlang, program="escript"),
        ),
        targets=(Target("p50", 1.25), Target("p50", 1.0, of="erlang")),
        size=10_000,
        quick=20,
        rounds=5,
        apart=True,
    ),
    Benchmark(
        name="mass-crash-flat",
        what="the cost per child of a mass crash does not depend on N: 10,000 children",
        floor="otpy itself with 1,000 children",
        sides=(Side(OTPY, restarts.crowd_of_otpy), Side(FLOOR, restarts.crowd_of_a_tenth)),
        targets=(Target("p50", 1.25),),
        size=10_000,
        quick=40,
        rounds=5,
        apart=True,
    ),
    *(
        Benchmark(
            name=f"coroutines-{size}",
            what=f"start of one of {size:,} coroutine children that crashes at once, and its restart",
            floor="asyncio.create_task, and a done callback that creates the next task",
            sides=(
                Side(OTPY, coroutines.crashes_of_otpy),
                Side(FLOOR, coroutines.crashes_of_floor),
            ),
            targets=(Target("p50", 3.0),),
            size=size,
            quick=20,
            rounds=11,
            apart=True,
        )
        for size in (1_000, 10_000)
    ),
    Benchmark(
        name="program-restart",
        what="from the kill of a program to the first act of its replacement",
        floor="Popen.wait, then Popen",
        sides=(Side(OTPY, processes.restart_of_otpy), Side(FLOOR, processes.restart_of_floor)),
        targets=(Target("p50", 1.15),),
        size=60,
        quick=2,
        rounds=10,
    ),
    Benchmark(
        name="process-ready",
        what="from the call that starts a callable in a process of its own until it is ready",
        floor='multiprocessing\'s Process with the method "spawn"',
        sides=(Side(OTPY, processes.ready_of_otpy), Side(FLOOR, processes.ready_of_floor)),
        targets=(Target("p50", 1.2),),
        size=8,
        quick=1,
        rounds=10,
    ),
    Benchmark(
        name="idle-programs",
        what="voluntary context switches of an idle tree of 200 programs within 10 s",
        unit="count",
        sides=(Side(OTPY, trees.idle(10.0, processes.sleepers, 200)),),
        targets=(Target("p99", 0, of=None, says="none at all"),),
        size=200,
        quick=4,
        rounds=1,
        apart=True,
    ),
    Benchmark(
        name="memory",
        what="memory (RSS) of one of 10,000 thread children, its spec included",
        floor="a bare thread and its event",
        unit="B",
        sides=(Side(OTPY, trees.memory_of_otpy), Side(FLOOR, trees.memory_of_floor)),
        targets=(Target("p50", 1.3),),
        size=10_000,
        quick=100,
        rounds=3,
        apart=True,
    ),
    Benchmark(
        name="idle",
        what="voluntary context switches of an idle tree of 1,000 children within 10 s",
        unit="count",
        sides=(Side(OTPY, trees.idle(10.0, trees.flat, 1_000)),),
        targets=(Target("p99", 0, of=None, says="none at all"),),
        size=1_000,
        quick=20,
        rounds=1,
        apart=True,
    ),
    Benchmark(
        name="idle-heartbeats",
        what="wake-ups a second of 1,000 children with heartbeats of 30 s, over 30 s",
        unit="count",
        sides=(Side(OTPY, trees.idle_with_heartbeats),),
        targets=(Target("p99", 40, of=None, says="≤ 40 a second"),),
        size=1_000,
        quick=40,
        rounds=1,
        apart=True,
    ),
    Benchmark(
        name="check-in",
        what="ctx.check_in(), one thread",
        floor="obj.t = time.monotonic() inside a method",
        sides=(
            Side(OTPY, calls.in_a_child(CHECK_IN)),
            Side(FLOOR, calls.in_a_thread(CHECK_IN, calls.Beat)),
            Side(
                "thread-warden", peers.check_in_of_thread_warden, module="Thread_Warden", slow=True
            ),
        ),
        targets=(Target("p50", 1.5),),
        size=20,
        quick=2,
        rounds=15,
    ),
    Benchmark(
        name="check-in-8",
        what="ctx.check_in(), eight threads at once, all together",
        floor="obj.t = time.monotonic() inside a method",
        sides=(
            Side(OTPY, calls.in_children(CHECK_IN)),
            Side(FLOOR, calls.in_threads(CHECK_IN, calls.Beat)),
        ),
        targets=(Target("p50", 1.5),),
        size=10,
        quick=2,
        rounds=15,
    ),
    Benchmark(
        name="running",
        what="ctx.running",
        floor="Event.is_set()",
        sides=(
            Side(OTPY, calls.in_a_child(RUNNING)),
            Side(FLOOR, calls.in_a_thread("it.is_set()", threading.Event)),
        ),
        targets=(Target("p50", 1.0),),
        size=20,
        quick=2,
        rounds=15,
    ),
    Benchmark(
        name="tasks-chain",
        what="one of 200 tasks that do nothing, each after the one before, the run itself included",
        floor="ThreadPoolExecutor: submit, wait for the result, next",
        sides=(
            Side(OTPY, graphs.graph_of_otpy(graphs.before_in_chain)),
            Side(FLOOR, graphs.chain_of_floor),
            Side(
                "threaded-order",
                graphs.graph_of_threaded_order,
                module="threaded_order",
                at_most=20,
                slow=True,
            ),
        ),
        targets=(Target("p50", 2.0), Target("p50", 1 / 50, of="threaded-order")),
        size=200,
        quick=5,
        rounds=21,
    ),
    *(
        Benchmark(
            name=f"tasks-{name}",
            what=f"one of 10,000 tasks that do nothing, {shape}, the run itself included",
            floor=floor,
            sides=(Side(OTPY, graphs.graph_of_otpy(before)), Side(FLOOR, run)),
            targets=(Target("p50", 2.0),),
            size=10_000,
            quick=20,
            rounds=7,
        )
        for name, shape, before, floor, run in (
            (
                "crowd",
                "independent",
                graphs.before_in_crowd,
                "ThreadPoolExecutor: submit all, wait for all",
                graphs.crowd_of_floor,
            ),
            (
                "layers",
                "100 layers of 100, each after two of the layer above",
                graphs.before_in_layers,
                "ThreadPoolExecutor: submit a layer, wait for it, next",
                graphs.layers_of_floor,
            ),
        )
    ),
    Benchmark(
        name="machine",
        what="one message that the machine alone decides, no threads",
        sides=(Side(OTPY, inside.machine),),
        targets=(Target("p50", 1 / 150_000, of=None, says="≥ 150,000 a second"),),
        size=200,
        quick=2,
    ),
    Benchmark(
        name="reports",
        what="one of 100,000 reports of crashes, from the supervisor to the return of the handler",
        floor="SimpleQueue put and get",
        sides=(Side(OTPY, inside.reports_of_otpy), Side(FLOOR, inside.reports_of_floor)),
        targets=(Target("p50", 6.0),),
        size=100_000,
        quick=100,
    ),
    Benchmark(
        name="reports-memory",
        what="what 90,000 crashes add to the memory (RSS) of a tree with a handler",
        unit="B",
        sides=(Side(OTPY, inside.memory_of_reports),),
        targets=(Target("p50", 2**20, of=None, says="≤ 1 MiB"),),
        size=100_000,
        quick=100,
        rounds=1,
        apart=True,
    ),
    Benchmark(
        name="import",
        what="import of otpy, without coroutines and processes",
        floor="import attrs, structlog, threading, queue",
        sides=(
            Side(OTPY, inside.import_of("otpy.api")),
            Side(FLOOR, inside.import_of("attrs, structlog, threading, queue")),
        ),
        targets=(Target("p50", 1.5),),
        size=1,
        quick=1,
        rounds=25,
    ),
    Benchmark(
        name="help",
        what="otpy --help, from the first import to the end of the output",
        floor="import click, rich",
        sides=(
            Side(OTPY, inside.fresh(inside.HELP), module="click"),
            Side(FLOOR, inside.import_of("click, rich"), module="click"),
        ),
        targets=(Target("p50", 1.5),),
        size=1,
        quick=1,
        rounds=25,
    ),
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in ALL}
