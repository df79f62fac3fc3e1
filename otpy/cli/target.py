"""Finds the tree that a TARGET names. An error of the target's code becomes one line."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from otpy.cli.terminal import say
from otpy.exceptions import traceback_of

if TYPE_CHECKING:
    from otpy import SupervisorSpec

SHAPE = "expected module:attribute or path.py:attribute"

PACKAGE = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
NOT_THEIRS = (os.path.join(PACKAGE, ""), "<")  # noqa: PTH118

F = TypeVar("F", bound=Callable[..., Any])


class Problem(click.ClickException):
    """Raised when a target or its tree is wrong."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.ctx = click.get_current_context(silent=True)


def takes_target(command: F) -> F:
    """Give *command* the argument TARGET, and ``--verbose``."""
    verbose = click.option("--verbose", is_flag=True, help="Show the traceback of an error.")
    return verbose(click.argument("target")(command))


def load(target: str, *, verbose: bool) -> SupervisorSpec:
    """Return the tree that *target* names; nothing is written to disk, no bytecode either.

    Raises:
        Problem: It names none, or its code raises.
    """
    where, attribute = split(target)
    with told_in_one_line(target, verbose=verbose):
        return tree_of(target, find(module_at(where), where, attribute))


def look_at(target: str, *, verbose: bool) -> SupervisorSpec:
    """Return the tree that *target* names. Output of its code does not go to stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        return load(target, verbose=verbose)


@contextlib.contextmanager
def told_in_one_line(what: str, *, verbose: bool) -> Iterator[None]:
    """Make a problem of each exception of the user's code; *what* was being done."""
    try:
        yield
    except Problem:
        raise
    except (Exception, SystemExit) as error:
        raise told(what, error, verbose=verbose) from error


def told(what: str, error: BaseException, *, verbose: bool) -> Problem:
    """Return *error* as a problem of one line; if asked for, write its traceback."""
    import traceback

    show_traceback(error, verbose=verbose)
    form = traceback.TracebackException.from_exception(error)
    form.__notes__ = None  # or else the last line is a note
    *_, line = form.format_exception_only()
    return Problem(
        f"{what}: {line.strip()}{place_of(error)}"
        f"{'' if verbose else '; --verbose shows the traceback'}"
    )


def show_traceback(error: BaseException, *, verbose: bool) -> None:
    """Write the traceback of *error*, if it was asked for."""
    if verbose:
        say(traceback_of(error), err=True, nl=False)


def place_of(error: BaseException) -> str:
    """Return the line of the user's code that *error* comes from, in brackets."""
    import traceback

    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(NOT_THEIRS)
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def split(target: str) -> tuple[str, str]:
    """Return the module or path, and the attribute."""
    where, _, attribute = target.rpartition(":")
    if not where or is_path(attribute):  # there is no colon, or it is that of a drive: C:\\app.py
        where, attribute = target, "tree"
    if not is_path(where) and not is_dotted(where):
        raise Problem(f"{target!r}: {SHAPE}")
    if not is_dotted(attribute):
        raise Problem(f"{target!r}: {attribute!r} is no attribute; {SHAPE}")
    return where, attribute


def is_path(text: str) -> bool:
    """Whether *text* is meant as the path of a file."""
    return text.endswith(".py") or "/" in text or os.sep in text


def is_dotted(text: str) -> bool:
    """Whether *text* is names with dots between them."""
    return all(name.isidentifier() for name in text.split("."))


def module_at(where: str) -> ModuleType:
    """Import a module by name or path, as ``python -m`` and ``python path.py`` do."""
    if is_path(where):
        return load_file(where)
    look_in(os.getcwd())  # noqa: PTH109
    names = where.split(".")
    try:
        for count in range(
            1, len(names)
        ):  # a package before what is in it: of thousands, Python 3.15 never gets there
            importlib.import_module(".".join(names[:count]))
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise Problem(
            f"there is no module {error.name!r} here, nor installed; "
            "go to the directory that has it, or give its path"
        ) from error


def look_in(directory: str) -> None:
    """Look for modules in *directory*, before all others, and write no bytecode there."""
    sys.dont_write_bytecode = True
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)


def load_file(path: str) -> ModuleType:
    """Run a Python file as a module of its name, unless that name is taken."""
    from pathlib import Path

    stem = Path(path).stem
    name = stem if stem not in sys.modules else f"{stem} (target)"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise Problem(f"there is no Python file {path!r}; {SHAPE}")
    look_in(str(Path(path).parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what is defined there can be pickled, and knows its module
    spec.loader.exec_module(module)
    return module


def find(module: ModuleType, where: str, attribute: str) -> Any:
    """Return the attribute of a module."""
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        import otpy

        trees = [
            name for name, value in vars(module).items() if isinstance(value, otpy.SupervisorSpec)
        ]
        instead = (
            f"its trees are: {', '.join(trees)}"
            if trees
            else "there is no tree in it; otpy.supervisor makes one"
        )
        raise Problem(f"{where} has no attribute {attribute!r}; {instead}") from error


def tree_of(target: str, value: Any) -> SupervisorSpec:
    """Return *value*, or what it returns, if that is a tree."""
    import otpy

    made = value() if callable(value) and can_be_called(target, value) else value
    if isinstance(made, otpy.SupervisorSpec):
        return made
    if isinstance(made, otpy.ChildSpec):
        raise Problem(
            f"{target}: this is a child without a supervisor; "
            "put it among the children of otpy.supervisor"
        )
    what = "is" if made is value else "returns something"
    raise Problem(
        f"{target}: this {what} of type {type(made).__name__}; "
        "expected a tree, as otpy.supervisor makes"
    )


def can_be_called(target: str, function: Callable[..., object]) -> bool:
    """Refuse a *function* that does not return a tree when it is called without arguments."""
    if inspect.iscoroutinefunction(function):
        raise Problem(
            f"{target}: this is an async function; expected a plain one that returns a tree"
        )
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise Problem(f"{target}: cannot be called without arguments: {error}") from error
    except ValueError:
        pass  # a builtin that does not tell its signature
    return True
