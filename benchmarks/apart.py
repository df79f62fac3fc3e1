"""One side of one round in a process of its own: ``python -m benchmarks.apart NAME SIDE SIZE``."""

from __future__ import annotations

import gc
import json
import os
import sys

from benchmarks.table import BENCHMARKS


def main(name: str, side: str, size: str) -> None:
    run = next(one.run for one in BENCHMARKS[name].sides if one.name == side)
    gc.collect()
    print(json.dumps(list(run(int(size)))), flush=True)
    os._exit(
        0
    )  # nothing is left to be done, and ten thousand dead threads take their time to say so


if __name__ == "__main__":
    main(*sys.argv[1:])
