"""The project's chores: ``nox`` runs tests on every Python found, lint, types and docs."""

import nox

PYTHONS = [
    line.rpartition(" ")[2]
    for line in nox.project.load_toml("pyproject.toml")["project"]["classifiers"]
    if line.startswith("Programming Language :: Python :: 3.")
]

SIDE_BY_SIDE = ["-n", "2", "--dist", "loadfile"]
"""As the README's test command has it: two processes, and all tests of a file in one of them."""

nox.options.sessions = ["tests", "lint", "types", "docs"]
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the whole suite, documents and examples included."""
    session.install("-e", ".[tests]")
    session.run("python", "-m", "pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session(python="3.13")
def coverage(session: nox.Session) -> None:
    """Measure branch coverage; floors 0 to 2 must have all of it.

    Not on 3.11: there a traced thread spins while an interrupt waits for another thread that is blocked.
    """
    session.install("-e", ".[tests]")
    without = [f"--deselect={test}" for test in MEETS_THE_TRACER]
    session.run("coverage", "run", "-m", "pytest", *without, *session.posargs)
    session.run("coverage", "report")
    session.run("coverage", "report", "--fail-under=100", f"--include={','.join(PURE)}")


MEETS_THE_TRACER = [
    # interrupts threads by the hundred, and sooner or later one that holds the lock of coverage itself
    "tests/test_bad_luck.py::test_an_interrupted_caller_does_not_lock_its_supervisor",
    # counts objects, and coverage keeps a tracer for each thread that ever was
    "tests/test_health.py::test_thousands_of_restarts_leave_nothing",
]

PURE = [
    *(f"otpy/{name}.py" for name in ("exceptions", "specs", "reports", "abc")),
    "otpy/core/*.py",
    *(f"otpy/runtime/{name}.py" for name in ("mailbox", "telemetry", "threads")),
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format, and keep our own rules about threads."""
    session.install("-e", ".", "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("python", "-m", "otpy.lint", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    session.install("-e", ".[cli]", "mypy")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Run every code block of the README and of docs/, and every example; then build the site."""
    session.install("-e", ".[tests,docs]")
    session.run(
        "python",
        "-m",
        "pytest",
        "README.md",
        "docs",
        "tests/test_docs.py",
        "tests/test_examples.py",
    )
    session.run("sphinx-build", "-W", "--keep-going", "-E", "-q", "docs", "docs/_build")
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session
def walks(session: nox.Session) -> None:
    """Live 200,000 random lives, or as many as asked for: ``nox -s walks -- COUNT [FIRST]``."""
    session.install("-e", ".[tests]")
    session.run("python", "-m", "tests.walks", *(session.posargs or ["200000"]))


@nox.session
def look(session: nox.Session) -> None:
    """Look at all that can happen to every small supervisor, for hours: ``nox -s look -- DEPTH``, five by default."""
    session.install("-e", ".[tests]")
    session.run("python", "-m", "tests.exhaustive", *session.posargs)


@nox.session
def seams(session: nox.Session) -> None:
    """Run the tests of the seams, and the slow ones of all others."""
    session.install("-e", ".[tests]")
    session.run("python", "-m", "pytest", "-m", "slow or not slow", "tests/seams", *session.posargs)
    session.run(
        "python", "-m", "pytest", "-m", "slow", "tests", "--ignore=tests/seams", *session.posargs
    )


@nox.session
def mixed(session: nox.Session) -> None:
    """Live 500 random lives of real trees with children of all kinds: ``nox -s mixed -- COUNT [FIRST]``."""
    session.install("-e", ".[tests]")
    session.run("python", "-m", "tests.mixed", *(session.posargs or ["500"]))


@nox.session
def soak(session: nox.Session) -> None:
    """Run the suite twenty times in a row, to find what is flaky: ``nox -s soak -- TIMES``."""
    session.install("-e", ".[tests]")
    for _ in range(int(session.posargs[0]) if session.posargs else 20):
        session.run("python", "-m", "pytest", *SIDE_BY_SIDE, "-q", "-x")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure otpy against bare threads: `nox -s bench -- --quick`, or the names of some benchmarks."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
