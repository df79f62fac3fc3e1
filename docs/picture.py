"""Draws the picture of the README: ``python docs/picture.py`` writes docs/_static/quickstart.svg.

It shows what the commands of COMMANDS print, without dates, and without the frames of
tracebacks. A test compares it with a run of the example.
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "_static" / "quickstart.svg"
WIDTH = 96

COMMANDS = {
    # as they are shown: as they are run
    "otpy show examples/quickstart.py": ("-m", "otpy", "show", "examples/quickstart.py"),
    "python examples/quickstart.py": ("examples/quickstart.py",),
}

DATE = re.compile(r"^\x1b\[2m[\d-]+ [\d:]+\x1b\[0m ", re.MULTILINE)
FRAMES = re.compile(r"^(Traceback .*\n)(?:  .*\n)+", re.MULTILINE)
PADDING = re.compile(r" +(\x1b\[0m)")


def printed(arguments: tuple[str, ...]) -> str:
    """Return what Python prints, in colours."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return ran.stdout


def shortened(text: str) -> str:
    """Return *text* without what differs from run to run, and without long parts."""
    return PADDING.sub(r"\1", FRAMES.sub(r"\1  …\n", DATE.sub("", text)))


def drawn() -> str:
    """Run the commands, and return the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for shown, arguments in COMMANDS.items():
        console.print(f"[bold]$ {shown}", highlight=False)
        for line in shortened(printed(arguments)).splitlines():
            console.print(Text.from_ansi(line), no_wrap=True, overflow="ellipsis")
        console.print()
    return console.export_svg(title="A worker crashes twice and recovers", unique_id="quickstart")


if __name__ == "__main__":
    PICTURE.write_text(drawn(), "utf-8")
