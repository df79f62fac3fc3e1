"""Erlang/OTP itself, where it is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("crowd.escript")


def crowd_of_erlang(size: int) -> list[float]:
    """Crash *size* children at once; return the seconds per child until all are replaced."""
    done = subprocess.run(
        ["escript", str(SCRIPT), str(size)], capture_output=True, text=True, check=True
    )
    return [int(done.stdout) / 1e6 / size]
