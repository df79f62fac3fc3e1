"""A build: compile every module of the json package, pack, check and sign it; each step after those that it needs.

Real work on real files: the sources of the standard library, and what comes of them in a temporary directory.
"""

import argparse
import hashlib
import json
import py_compile
import sys
import tempfile
import zipfile
import zipimport
from pathlib import Path

from otpy import Backoff
from otpy.taskgraph import TaskGraph

SOURCES = sorted(Path(json.__file__).parent.glob("*.py"))


def build(out, longest):
    """Return the graph that builds into the directory *out*; no line may have more than *longest* characters."""
    graph = TaskGraph(state={"uploads": 0}, on_failure="skip")
    compiled = [
        graph.add(lambda one=one: compile_one(one, out), f"compile {one.name}") for one in SOURCES
    ]

    @graph.task(after=compiled)
    def pack():
        archive = out / "json.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for one in sorted(out.glob("*.pyc")):
                file.write(one, f"packed/{one.name}")
        return archive

    @graph.task(after=["pack"], with_state=True, timeout=30)
    def check(state):
        importer = zipimport.zipimporter(str(state["results"]["pack"]))
        found = [
            one.stem
            for one in SOURCES
            if importer.is_package("packed") and _is_there(importer, one)
        ]
        return len(found)

    @graph.task(after=["pack"], with_state=True)
    def sign(state):
        return hashlib.sha256(state["results"]["pack"].read_bytes()).hexdigest()

    @graph.task(after=["check", "sign"], with_state=True, retries=2, backoff=Backoff(0.1, 1.0))
    def upload(state):
        with state["_state_lock"]:
            state["uploads"] += 1
        if state["uploads"] == 1:
            raise ConnectionError("the line broke")  # the first time only: it is tried again
        results = state["results"]
        (out / "release.txt").write_text(f"{results['check']} modules {results['sign']}\n")

    @graph.task(after=["check"])
    def lint():
        too_long = [
            one.name
            for one in SOURCES
            if any(len(line) > longest for line in one.read_text().splitlines())
        ]
        if too_long:
            raise ValueError(f"lines are too long in {', '.join(too_long)}")

    graph.add(lambda: print("        tell the world"), "announce", after=["upload", "lint"])
    return graph


def compile_one(source, out):
    """Compile one module and return how many bytes came of it."""
    made = py_compile.compile(str(source), str(out / f"{source.stem}.pyc"), doraise=True)
    return Path(made).stat().st_size


def _is_there(importer, source):
    return (
        importer.find_spec(f"packed{'' if source.stem == '__init__' else '/' + source.stem}")
        is not None
    )


def main():
    """Build, and say what came of each step; exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mermaid", action="store_true", help="print the graph and build nothing")
    parser.add_argument(
        "--longest", type=int, default=120, metavar="N", help="how long a line may be (%(default)s)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        graph = build(Path(directory), options.longest)
        if options.mermaid:
            print(graph.to_mermaid(), end="")
            return 0
        graph.on_task_done(lambda name, outcome: print(f"{outcome.value:>7} {name}"))
        summary = graph.run()
        print(
            (Path(directory) / "release.txt").read_text().split(" modules ")[0],
            "modules are released",
        )
    print(summary, "and", graph.state["uploads"], "uploads")
    for failure in summary.failures.values():
        print(f"{failure.name}: {failure.exception}")
    return int(summary.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
