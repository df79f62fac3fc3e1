"""``otpy show``: draw a tree without starting it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from otpy.cli.target import look_at, takes_target
from otpy.cli.terminal import in_one_line, say, say_json, say_line

if TYPE_CHECKING:
    from otpy import SupervisorSpec
    from otpy.check import Place


@click.command(
    epilog="""\b
Examples:
  otpy show app:tree
  otpy show app.py --format mermaid
"""
)
@takes_target
@click.option(
    "--format",
    "form",
    type=click.Choice(["rich", "text", "json", "mermaid", "dot"]),
    default="rich",
    show_default=True,
    help="rich: for people, with colours on a terminal; text: one line for each child.",
)
def show(target: str, form: str, *, verbose: bool) -> None:
    """Draw the tree TARGET without starting it.

    Of each supervisor it shows the strategy and the limit on restarts, of each child
    what runs it and which of its exits lead to a restart, and whatever else is not as
    usual.

    Exit status: 0; 2, the target, its tree or an option is wrong.
    """
    FORMATS[form](look_at(target, verbose=verbose))


def facts(place: Place) -> Iterator[str]:
    """Yield what there is to say about a child, fact by fact."""
    from otpy import AutoShutdown, SupervisorSpec

    spec = place.spec
    yield spec.kind
    if isinstance(spec, SupervisorSpec):
        yield spec.strategy.value
        if spec.intensity == "infinity":
            yield "any number of restarts"
        else:
            yield f"{spec.intensity} restart{'s' * (spec.intensity != 1)} in {spec.period:g} s"
        if spec.auto_shutdown is not AutoShutdown.NEVER:
            yield f"auto_shutdown {spec.auto_shutdown.value}"
        if spec.max_children is not None:
            yield f"at most {spec.max_children} children"
    if place.above is not None:
        yield spec.restart.value
    if spec.significant:
        yield "significant"
    if spec.heartbeat is not None:
        yield f"heartbeat {spec.heartbeat:g} s"
    if spec.backoff is not None:
        yield f"backoff {spec.backoff.initial:g} to {spec.backoff.maximum:g} s"


def places(tree: SupervisorSpec) -> list[Place]:
    """Return every place of the tree, parents first."""
    from otpy.check import walk

    return list(walk(tree))


def draw(tree: SupervisorSpec) -> None:
    """Draw it with rich."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    nodes: dict[str, Tree] = {}
    for place in places(tree):
        label = Text.assemble(
            (in_one_line(place.spec.id), "bold"), "  ", (", ".join(facts(place)), "dim")
        )
        label.append(f"  {in_one_line(place.spec.purpose)}" if place.spec.purpose else "")
        above = place.above
        nodes[place.path] = nodes[above.path].add(label) if above else Tree(label)
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file has no width. With the default of 80, rich would break long lines.
        console.width = 1000
    console.print(nodes[tree.id])


def write_text(tree: SupervisorSpec) -> None:
    """Write one line for each child."""
    for place in places(tree):
        say_line(f"{'  ' * place.path.count('/')}{place.spec.id}: {', '.join(facts(place))}")


def write_json(tree: SupervisorSpec) -> None:
    """Write all fields that are data."""
    say_json(record(places(tree)[0]))


def record(place: Place) -> dict[str, object]:
    """Return a child and all below it."""
    import attrs

    spec = place.spec
    values = {
        field.name: getattr(spec, field.name)
        for field in attrs.fields(type(spec))
        if field.name != "children"
    }
    data = {name: plain(value) for name, value in values.items() if not callable(value)}
    below = (
        {"children": [record(child) for child in place.children]}
        if spec.type.value == "supervisor"
        else {}
    )
    return {"path": place.path, "kind": spec.kind, **data, **below}


def plain(value: Any) -> object:
    """Return *value* as JSON wants it."""
    import attrs

    if isinstance(value, enum.Enum):
        return value.value
    return attrs.asdict(value) if attrs.has(type(value)) else value


def write_mermaid(tree: SupervisorSpec) -> None:
    """Write a flowchart for Mermaid."""
    names = {place.path: f"n{number}" for number, place in enumerate(places(tree))}
    say("flowchart TD")
    for place in places(tree):
        id, *words = (escape(text, MERMAID) for text in (place.spec.id, *facts(place)))
        say(f'    {names[place.path]}["{id}<br>{", ".join(words)}"]')
        if place.above:
            say(f"    {names[place.above.path]} --> {names[place.path]}")


def write_dot(tree: SupervisorSpec) -> None:
    """Write a digraph for Graphviz."""
    say(f'digraph "{escape(tree.id, DOT)}" {{\n    node [shape=box]')
    for place in places(tree):
        id, *words = (escape(text, DOT) for text in (place.spec.id, *facts(place)))
        say(f'    "{escape(place.path, DOT)}" [label="{id}\\n{", ".join(words)}"]')
        if place.above:
            say(f'    "{escape(place.above.path, DOT)}" -> "{escape(place.path, DOT)}"')
    say("}")


MERMAID = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "\n": " ", "`": "#96;"}
)
DOT = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": " "})


def escape(text: str, table: dict[int, str]) -> str:
    """Return *text* as it must be written between quotes."""
    return text.translate(table)


FORMATS: dict[str, Callable[[SupervisorSpec], None]] = {
    "rich": draw,
    "text": write_text,
    "json": write_json,
    "mermaid": write_mermaid,
    "dot": write_dot,
}
