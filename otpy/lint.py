"""Finds threads that no supervisor watches: ``python -m otpy.lint PATH...``.

What users must know is in docs/how-to/lint.md.

Theory of operation: one walk lists every node with its scope and its statement, and
notes which dotted paths each scope binds to each name: by imports, aliases and base
classes. Then each check asks of an expression where it comes from. A pool is followed
from variable to variable until something shuts it down. Comments are found by
tokenizing.

Laws:
1. What is checked is never imported or run, and nothing in it crashes the check: what
   cannot be read is a finding. Only regular files are read, and no more than LARGEST
   bytes of one.
2. One cause, one finding: a subclass is found where it is defined, not at every call.
3. Nothing recurses into the source, however deep it is.

The author is not proud of this: names are followed within one module only and in the
order of its lines; any binding of a name in its scope may be meant; and an attribute is
known by its own name, whatever it is an attribute of.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import functools
import io
import os
import re
import stat
import sys
import tokenize
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

from otpy.exceptions import in_one_line
from otpy.values import Value, value

RULES = {
    # code: message             docs/how-to/lint.md has the reasons, and what to write instead
    "OTP001": "raw thread, no supervisor sees it die: make it a child, otpy.thread(target)",
    "OTP002": "subclass of Thread, no supervisor sees it die: derive from otpy.Service",
    "OTP003": "low-level thread, no supervisor sees it die: make it a child, otpy.thread(target)",
    "OTP004": "timer, no supervisor sees it die: make it a child that waits in ctx.wait_stop",
    "OTP005": "pool is never shut down: use it in a with statement, or call its shutdown()",
    "OTP101": "daemon=True, the thread is cut off when the program ends: "
    "make it a child, otpy.thread(target)",
    "OTP102": "daemon set to true, the thread is cut off when the program ends: "
    "make it a child, otpy.thread(target)",
    "OTP901": "cannot be checked: {}",
    "OTP902": "allow comment without a reason, it allows nothing: say why",
    "OTP903": "allow comment with nothing to allow: remove it",
}
TIMER, POOL = "OTP004", "OTP005"
ALWAYS = "OTP9"
"""Always selected: a user must know that a file could not be checked."""

STARTS = {
    # where a called thing comes from: code
    "threading.Thread": "OTP001",
    "threading.Timer": "OTP004",
    "_thread.start_new": "OTP003",
    "_thread.start_new_thread": "OTP003",
    "_thread.start_joinable_thread": "OTP003",
    "concurrent.futures.ThreadPoolExecutor": "OTP005",
    "concurrent.futures.ProcessPoolExecutor": "OTP005",
    "concurrent.futures.InterpreterPoolExecutor": "OTP005",
    "concurrent.futures.thread.ThreadPoolExecutor": "OTP005",
    "concurrent.futures.process.ProcessPoolExecutor": "OTP005",
}
DERIVED = "subclass of "
STARTS |= {
    DERIVED + path: code for path, code in STARTS.items() if code == POOL
}  # a pool of one's own is a pool
BASES = {"threading.Thread": "OTP002", "threading.Timer": "OTP004"}
BASES |= {DERIVED + path: code for path, code in BASES.items()}
CALLERS = {
    "functools.partial",
    "functools.partialmethod",
    "builtins.map",
}  # they call their first argument
SUPER = "builtins.super().__init__"
PROCESS = "multiprocessing"  # for all that comes from there: it may be a daemon
KNOWN = {*STARTS, *BASES, *(f"{path}.__init__" for path in BASES), *CALLERS, SUPER, PROCESS}
LEADING = {path[:end] for path in KNOWN for end in range(len(path) + 1)}
"""All paths that lead somewhere. No others are kept.

After a thousand times ``x = x.next()``, x would have very many others.
"""

UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, RecursionError, MemoryError)
"""What reading and parsing raise: no such encoding, NUL bytes, too many brackets."""

LARGEST = 10_000_000
"""How many bytes a file may have. The parser needs about a hundred times as much memory."""

SUSPECT = re.compile("thread|daemon|Daemon|futures|otpy:")
"""Without one of these words a file has no finding: nine in ten need no survey."""

ALLOW = re.compile(r"(?:^|\s)#\s*otpy:\s*allow\b[^\w#]*((?:[^#]|#\d)*)")
"""The reason ends where the next comment begins; in "#12" none does."""


class UsageError(Exception):
    """Raised when the call or the configuration is wrong."""


class Finding(NamedTuple):
    """A finding and its place; ``str`` is the printed line, without orders to a terminal.

    Lines and columns count from 1.
    """

    path: str
    line: int
    col: int
    code: str
    message: str

    def __str__(self) -> str:
        return in_one_line(f"{self.path}:{self.line}:{self.col}: {self.code} {self.message}")


# Configuration


KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # key in [tool.otpy.lint]: (is it right, what would be right)
    "exempt": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "a list of globs",
    ),
    "allow-timer": (lambda value: isinstance(value, bool), "true or false"),
}


@value
class Config(Value):
    """What a pyproject.toml says. Globs are relative to its directory, *root*."""

    root: Path
    exempt: tuple[str, ...] = ()
    allow_timer: bool = True

    def exempts(self, path: str) -> bool:
        """Whether *path* or a directory above it is exempt. A link counts where it stands."""
        place = Path(path).parent.resolve() / Path(path).name
        inside = place.is_relative_to(self.root)
        return inside and any(
            matches(place.relative_to(self.root).as_posix(), glob) for glob in self.exempt
        )


def matches(path: str, glob: str) -> bool:
    """Whether *path* or a parent of it matches *glob*; ``*`` stays within a directory."""
    # Where in *path* the part of the glob that has been read may end. A regular expression
    # would try each way on its own, which are too many.
    ends = {0}
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob.rstrip("/")):
        ends = WILDCARDS[part](path, ends) if part in WILDCARDS else _after(path, ends, part)
    return any(path[end : end + 1] in ("", "/") for end in ends)


def _after(path: str, ends: set[int], text: str) -> set[int]:
    return {end + len(text) for end in ends if path.startswith(text, end)}


def _after_a_name(path: str, ends: set[int]) -> set[int]:
    found: set[int] = set()
    for end in ends:
        stop = path.find("/", end)
        found.update(range(end, (stop if stop >= 0 else len(path)) + 1))
    return found


WILDCARDS: dict[str, Callable[[str, set[int]], set[int]]] = {
    "**/": lambda path, ends: (
        ends | {at + 1 for at in range(min(ends, default=len(path)), len(path)) if path[at] == "/"}
    ),
    "**": lambda path, ends: set(range(min(ends), len(path) + 1)) if ends else ends,
    "*": _after_a_name,
    "?": lambda path, ends: {end + 1 for end in ends if path[end : end + 1] not in ("", "/")},
}


def load(file: Path | None = None) -> Config:
    """Read the configuration in *file*, or in the nearest pyproject.toml.

    Raises:
        UsageError: It cannot be read, or says what it cannot say.
    """
    if file is None:
        here = _here()
        file = next(
            (
                one / "pyproject.toml"
                for one in (here, *here.parents)
                if (one / "pyproject.toml").is_file()
            ),
            None,
        )
    if file is None:
        return Config(here)
    table = _table(file)
    for key, given in table.items():
        if key not in KEYS:
            raise UsageError(f"{file}: [tool.otpy.lint] has no key {key!r}, only {', '.join(KEYS)}")
        if not KEYS[key][0](given):
            raise UsageError(f"{file}: [tool.otpy.lint] {key} = {given!r}: expected {KEYS[key][1]}")
    return Config(
        file.parent.resolve(), tuple(table.get("exempt", ())), table.get("allow-timer", True)
    )


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError(f"the current directory cannot be found: {error.strerror}") from error


def _table(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(read(file).decode("utf-8"))
    except UNREADABLE as error:
        raise UsageError(f"{file}: {error}") from error
    for key in ("tool", "otpy", "lint"):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"{file}: {key} = {table!r}: expected a table")
    return table


# Scopes, and where things come from


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
OUTSIDE = {
    "decorator_list",
    "returns",
    "bases",
    "keywords",
    "type_params",
}  # not yet in the scope of their node
HELD = {
    "body",
    "orelse",
    "values",
    "value",
    "elts",
    "elt",
}  # the fields with what an expression may be, or has in it
NOT_HELD = (ast.Attribute, ast.Lambda, ast.JoinedStr)  # their fields are something else


class Scope:
    """The names that a module, class or function binds, with the paths they may come from."""

    def __init__(self, node: ast.AST, parent: Scope | None = None) -> None:
        self.node, self.parent = node, parent
        self.names: dict[str, set[str]] = {}
        self.elsewhere: dict[str, Scope] = {}  # by global and nonlocal

    def bind(self, name: str, paths: Iterable[str] = ()) -> None:
        self.elsewhere.get(name, self).names.setdefault(name, set()).update(paths)

    def up(self, *kinds: type[ast.AST]) -> Iterator[Scope]:
        """Yield the scopes around this one, those of *kinds* only, innermost first."""
        scope = self.parent
        while scope is not None:
            if isinstance(scope.node, kinds):
                yield scope
            scope = scope.parent

    def home(self, name: str) -> Scope | None:
        """Return the scope whose *name* is meant here; None: a builtin, or nothing."""
        here = self.elsewhere.get(name, self)
        return next(
            (one for one in (here, *here.up(*FUNCTIONS, ast.Module)) if name in one.names), None
        )


class Seen(NamedTuple):
    """A node, the scope of its names, and the statement that it is part of."""

    node: Any
    scope: Scope
    statement: Any


def survey(tree: ast.AST) -> list[Seen]:
    """List all nodes, outer ones first, in the order of the source, and bind all names."""
    todo, seen = [Seen(tree, Scope(tree), tree)], []
    while todo:
        node, scope, statement = last = todo.pop()
        seen.append(last)
        bind(node, scope)
        inner = Scope(node, scope) if isinstance(node, (*FUNCTIONS, ast.ClassDef)) else scope
        below = [(child, scope if field in OUTSIDE else inner) for field, child in children(node)]
        todo += [
            Seen(one, at, one if isinstance(one, ast.stmt) else statement)
            for one, at in reversed(below)
        ]
    return seen


def children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the nodes directly below *node*, each with its field."""
    for field, content in ast.iter_fields(node):
        for child in content if isinstance(content, list) else [content]:
            if isinstance(child, ast.AST):
                yield field, child


def bind(node: ast.AST, scope: Scope) -> None:
    """Note the names that *node* itself binds."""
    match node:
        case ast.Import() | ast.ImportFrom():
            for name, path in imported(node):
                scope.bind(name, {path})
        case ast.Global(names=names):
            scope.elsewhere.update(dict.fromkeys(names, [scope, *scope.up(ast.Module)][-1]))
        case ast.Nonlocal(names=names):
            scope.elsewhere.update(dict.fromkeys(names, next(scope.up(*FUNCTIONS), scope)))
        case ast.ClassDef(name=name, bases=bases):
            scope.bind(
                name,
                {
                    DERIVED + path.removeprefix(DERIVED)
                    for base in bases
                    for path in origins(base, scope)
                },
            )
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
            scope.bind(name)
        case ast.Name(id=name, ctx=ast.Store()):
            scope.bind(name)
    for target, source in assigned(node):
        if isinstance(target, ast.Name):
            scope.bind(target.id, origins(source, scope))


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """Yield the names that an import binds, and the paths that they stand for."""
    module = (
        "." * node.level + (node.module or "") + "." if isinstance(node, ast.ImportFrom) else ""
    )
    for alias in node.names:
        if alias.name == "*":
            yield from (
                (path.removeprefix(module), path) for path in STARTS if path.startswith(module)
            )
        elif alias.asname or module:
            yield alias.asname or alias.name, module + alias.name
        else:
            yield (alias.name.partition(".")[0],) * 2


def assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what *node* assigns to what; of a loop, what it takes its values from."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(
            targets
        ) == len(values):
            yield from zip(targets, values, strict=True)
        case ast.Assign(targets=targets, value=value):
            yield from ((target, value) for target in targets)
        case (
            ast.AnnAssign(target=target, value=ast.expr() as value)
            | ast.NamedExpr(target=target, value=value)
        ):
            yield target, value
        case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
            yield target, value


def leaves(expr: ast.AST) -> Iterator[ast.AST]:
    """Yield what *expr* may be, or may have in it."""
    todo = [expr]
    while todo:
        last = todo.pop()
        held = [
            child
            for field, child in children(last)
            if field in HELD and not isinstance(last, NOT_HELD)
        ]
        todo += held
        if not held:
            yield last


def origins(expr: ast.AST, scope: Scope) -> set[str]:
    """Return the paths that *expr* may come from, as far as this module tells."""
    found = set()
    for leaf in leaves(expr):
        rest: list[str] = []
        while isinstance(leaf, ast.Attribute | ast.Call):
            rest.append(f".{leaf.attr}" if isinstance(leaf, ast.Attribute) else "()")
            leaf = leaf.value if isinstance(leaf, ast.Attribute) else leaf.func  # noqa: PLW2901
        if isinstance(leaf, ast.Name):
            home = scope.home(leaf.id)
            paths = home.names[leaf.id] if home else {f"builtins.{leaf.id}"}
            found |= {_known("".join((path, *reversed(rest)))) for path in paths}
    return found & LEADING


def _known(path: str) -> str:
    return PROCESS if re.split("[.(]", path.removeprefix(DERIVED))[0] == PROCESS else path


# The checks


Found: TypeAlias = Iterator[tuple[Any, str]]


def started(call: ast.Call, scope: Scope) -> Found:
    """Find a call, or an argument, that starts a thread or a pool."""
    func = callee(call, scope)
    found = {STARTS[path] for path in origins(func, scope) if path in STARTS}
    yield from ((call, code) for code in found if code != POOL or func is call.func)


def callee(call: ast.Call, scope: Scope) -> ast.expr:
    """Return what is called in the end: of ``partial(Thread)`` the Thread."""
    passes = call.args and not CALLERS.isdisjoint(origins(call.func, scope))
    return call.args[0] if passes else call.func


def derived(node: ast.ClassDef, scope: Scope) -> Found:
    """A base of a class is a thread."""
    for base in node.bases:
        yield from ((base, BASES[path]) for path in origins(base, scope) if path in BASES)


def daemon_asked(call: ast.Call, scope: Scope) -> Found:
    """Find ``daemon=True`` in the making of a thread, and ``setDaemon``."""
    paths = origins(callee(call, scope), scope)
    if SUPER in paths:
        paths = bases(next(scope.up(ast.ClassDef), None))
    if any(path.removesuffix(".__init__") in BASES for path in paths):
        yield from (
            (one, "OTP101") for one in call.keywords if one.arg == "daemon" and is_true(one.value)
        )
    if (
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "setDaemon"
        and any(map(is_true, call.args))
    ):
        yield call, "OTP102"


def daemon_set(node: ast.AST, scope: Scope) -> Found:
    """Find a ``daemon`` that is set to true, of an object or a class; not of a process."""
    for target, source in assigned(node):
        match target:
            case ast.Attribute(value=owner, attr="daemon") if is_true(source):
                is_self = isinstance(owner, ast.Name) and owner.id == "self"
                paths = (
                    bases(next(scope.up(ast.ClassDef), None)) if is_self else origins(owner, scope)
                )
                if paths != {PROCESS}:
                    yield target, "OTP102"
            case ast.Name(id="daemon") if is_true(source) and not bases(scope).isdisjoint(BASES):
                yield target, "OTP102"


def is_true(expr: ast.AST) -> bool:
    """Whether *expr* is a constant that is true."""
    return isinstance(expr, ast.Constant) and bool(expr.value)


def bases(scope: Scope | None) -> set[str]:
    """Return where the bases of a class come from."""
    if scope is None or not isinstance(scope.node, ast.ClassDef):
        return set()
    return {path for base in scope.node.bases for path in origins(base, scope.parent or scope)}


CHECKS: dict[type[ast.AST], tuple[Callable[[Any, Scope], Found], ...]] = {
    ast.Call: (started, daemon_asked),
    ast.ClassDef: (derived,),
    ast.Assign: (daemon_set,),
    ast.AnnAssign: (daemon_set,),
}


def ends(seen: list[Seen]) -> set[object]:
    """Return the variables and calls whose value is shut down or handed to the caller."""
    sources: dict[object, set[object]] = collections.defaultdict(set)
    todo: list[object] = []
    for node, scope, _ in seen:
        todo += (variable(leaf, scope) for leaf in ended(node))
        for target, source in assigned(node):
            for one in leaves(target):
                sources[variable(one, scope)].update(
                    variable(leaf, scope) for leaf in leaves(source)
                )
    found: set[object] = set()
    while todo:
        if (last := todo.pop()) not in found:
            found.add(last)
            todo += sources[last]
    return found


def ended(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what *node* shuts down or hands to the caller, but for returned attributes."""
    match node:
        case ast.withitem(context_expr=expr) | ast.Attribute(value=expr, attr="shutdown"):
            yield from leaves(expr)
        case ast.Call(func=ast.Attribute(attr="enter_context"), args=[expr, *_]):
            yield from leaves(expr)
        case ast.Return(value=ast.expr() as expr) | ast.Lambda(body=expr):
            yield from (leaf for leaf in leaves(expr) if not isinstance(leaf, ast.Attribute))


def variable(leaf: ast.AST, scope: Scope) -> object:
    """Return the key of a variable, for all its mentions; of an attribute, its own name."""
    if isinstance(leaf, ast.Name):
        home = scope.home(leaf.id)
        return leaf.id if home and isinstance(home.node, ast.ClassDef) else (home, leaf.id)
    return leaf.attr if isinstance(leaf, ast.Attribute) else leaf


# Files, comments, and the command


def allows(lines: Sequence[str]) -> dict[int, tuple[int, str]]:
    """Return the allow comments: line -> (column, reason)."""
    found = {}
    with contextlib.suppress(
        tokenize.TokenError, SyntaxError
    ):  # at the end of what only ast.parse takes
        for token in tokenize.generate_tokens(iter(lines).__next__):
            if token.type == tokenize.COMMENT and (match := ALLOW.search(token.string)):
                found[token.start[0]] = token.start[1] + 1, match[1]
    return found


def lines_of(*nodes: Any) -> set[int]:
    """Return the lines where a comment counts for *nodes*.

    These are the first and the last line of each, and only the first if it has a body.
    """
    ends = {
        one.end_lineno
        for one in nodes
        if not hasattr(one, "body") and not isinstance(one, ast.Match)
    }
    return {one.lineno for one in nodes} | ends


def examine(path: str, tree: ast.AST, lines: Sequence[str], config: Config) -> list[Finding]:
    """Return all findings in one module, in order."""
    if not SUSPECT.search(text := "".join(lines)):
        return []
    comments = allows(lines) if "otpy:" in text else {}
    reasoned = {line for line, (_, reason) in comments.items() if reason}
    unused, places = set(comments), collections.defaultdict[int, set[tuple[int, str]]](set)
    for at, node, statement, code in hits(tree, config):
        here = reasoned & lines_of(at, node, statement)
        unused -= here
        if not here:
            places[at.lineno].add((at.col_offset, code))
    found = {
        (line, comments[line][0], "OTP903" if line in reasoned else "OTP902") for line in unused
    }
    for line, ones in places.items():
        found |= {(line, col, code) for col, code in columns(lines[line - 1], ones)}
    return [Finding(path, line, col, code, RULES[code]) for line, col, code in sorted(found)]


def columns(line: str, places: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield each finding with its column, from 1, for the count of bytes that ast gives.

    Each byte is read once.
    """
    content, before, col = line.encode(), 0, 1
    for offset, code in sorted(places):
        col += len(content[before:offset].decode())
        before = offset
        yield col, code


def hits(tree: ast.AST, config: Config) -> Iterator[tuple[Any, Any, Any, str]]:
    """Yield the findings before comments count: place, node, statement, code."""
    seen = survey(tree)
    fine = ends(seen)
    for node, scope, statement in seen:
        found = (one for check in CHECKS.get(type(node), ()) for one in check(node, scope))
        for at, code in found:
            if not (code == POOL and at in fine) and not (code == TIMER and config.allow_timer):
                yield at, node, statement, code


def check(path: str, config: Config) -> list[Finding]:
    """Return all findings in one file, in order."""
    if config.exempts(path):
        return []
    try:
        with source_of(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the parser warns of is not our subject
            tree = ast.parse("".join(lines := file.readlines()))
    except UNREADABLE as error:
        line, col = (getattr(error, name, None) or 1 for name in ("lineno", "offset"))
        why = getattr(error, "msg", None) or str(error) or type(error).__name__
        return [Finding(path, line, col, "OTP901", RULES["OTP901"].format(why))]
    return examine(path, tree, lines, config)


def source_of(path: str) -> io.TextIOWrapper:
    """Return the source in *path*, decoded as its first lines say."""
    content = io.BytesIO(read(path))
    encoding, _ = tokenize.detect_encoding(content.readline)
    content.seek(0)
    return io.TextIOWrapper(content, encoding)


def read(path: str | Path) -> bytes:
    """Return the content of a regular file that is not too large. Never block.

    Raises:
        OSError: It is not, or cannot be read.
    """
    # Look before opening: to open a device may have an effect.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise OSError("this is not a regular file")
    with open(path, "rb", opener=_open_at_once) as file:  # the other one takes no opener
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it has been replaced meanwhile
            raise OSError("this is not a regular file")
        content = file.read(LARGEST + 1)
    if content is None:  # as from /proc/kmsg
        raise OSError("this is a regular file in name only")
    if len(content) > LARGEST:
        raise OSError(f"it is larger than {LARGEST} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files among *paths*, and each ``*.py`` below a directory.

    Hidden directories and virtual environments are passed by.

    FIFOs, sockets and devices below a directory are passed by.

    Raises:
        UsageError: There is no such path, or a directory cannot be listed.
    """
    for path in paths:
        if path.is_dir():
            yield from _walk(path)
        elif path.exists():
            yield path
        else:
            raise UsageError(f"{path}: no such file or directory")


def _walk(top: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UsageError(str(error))

    for root, below, names in os.walk(top, onerror=fail):
        # ``Path.exists`` raises where it may not look
        exists = os.path.exists
        below[:] = sorted(
            one for one in below if one[0] != "." and not exists(f"{root}/{one}/pyvenv.cfg")
        )
        yield from (
            Path(root, name)
            for name in sorted(names)
            if name.endswith(".py") and _is_file(f"{root}/{name}")
        )


def _is_file(path: str) -> bool:
    """Whether *path* is a file, or leads nowhere: that is a finding."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return True


class Flake8:
    """The same checks as a plugin of flake8, whose ``noqa`` works as well."""

    name = "otpy"
    version = "1"  # of the rules; flake8 shows the version of the package
    config = staticmethod(functools.cache(load))

    def __init__(self, tree: ast.AST, lines: Sequence[str], filename: str = "stdin") -> None:
        self._tree, self._lines, self._path = tree, lines, filename

    def run(self) -> Iterator[tuple[int, int, str, type[Flake8]]]:
        """Yield line, column counted from 0, and text of every finding."""
        config = self.config()
        for one in (
            []
            if config.exempts(self._path)
            else examine(self._path, self._tree, self._lines, config)
        ):
            yield one.line, one.col - 1, f"{one.code} {one.message}", type(self)


def selection(text: str) -> tuple[str, ...]:
    """Parse ``CODE,...``; the beginning of a code stands for all that begin so.

    Raises:
        UsageError: There is no such code.
    """
    codes = tuple(code.strip() for code in text.split(","))
    for code in codes:
        if not code or not any(rule.startswith(code) for rule in RULES):
            raise UsageError(
                f"--select {text}: no code begins with {code!r}; there are {', '.join(RULES)}"
            )
    return (*codes, ALWAYS)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(in_one_line(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the paths in *arguments*, and print the findings.

    Returns:
        The exit status: 0: no finding; 1: findings; 2: a wrong call.
    """
    parser = _Parser("python -m otpy.lint", description="Find threads that no supervisor watches.")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a file, or a directory with *.py in it"
    )
    parser.add_argument(
        "--select",
        metavar="CODE,...",
        default="OTP",
        help="look for these only; OTP1: all of OTP1xx",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="default: the nearest pyproject.toml"
    )
    given = parser.parse_args(arguments)
    try:
        config, codes = load(given.config), selection(given.select)
        found = [
            one for path in dict.fromkeys(files(given.paths)) for one in check(str(path), config)
        ]
    except UsageError as error:
        sys.stderr.write(f"otpy.lint: {in_one_line(str(error))}\n")
        return 2
    shown = [one for one in found if one.code.startswith(codes)]
    sys.stdout.writelines(f"{one}\n" for one in shown)
    return 1 if shown else 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # A path may be bytes that are no text.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
