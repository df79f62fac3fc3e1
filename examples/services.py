"""A shell script, a web server and an async client in one tree, while chaos kills the programs: some seconds.

The script writes a page, the server shows it, the client reads it. They depend on each other in this order, so the
strategy is rest_for_one: when the server has been killed, the client is restarted after it; and that is not before the
server has answered a first request.

``python examples/services.py --chaos 10`` kills ten times. Linux and macOS only.
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

from otpy import Health, Http, coroutine, process, run, supervisor, thread
from otpy.reports import ChildTerminated

WITH_PID = 'echo $$ >"$0"; exec "$@"'
"""A shell that writes its process number to the file *$0*, and turns into the program of the other arguments."""

WRITE_NEWS = """
number=0
while sleep 0.05; do
    number=$((number + 1))
    echo "news $number of process $$" >news.part && mv news.part news.txt
done
"""


def noted(pid_file, *command):
    """Return a command that leaves its process number in a file."""
    return ("/bin/sh", "-c", WITH_PID, str(pid_file), *command)


def free_port():
    """Return a port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def fetch(port):
    """Return the news, None if the server cannot be reached."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /news.txt HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
    except OSError:
        return None
    head, _, body = answer.decode().partition("\r\n\r\n")
    return body.strip() if " 200 " in head.splitlines()[0] else None


async def follow(ctx, port, kills):
    """Read the news until there was no more chaos for a while."""
    quiet = 0
    while ctx.running and quiet < 10:
        news = await fetch(port)
        print(f"client, life {ctx.incarnation}: {news or 'no answer'}")
        quiet = quiet + 1 if news and kills.done == kills.planned else 0
        await ctx.sleep(0.05)


class Kills:
    """How often something is to be killed, and has been; made outside the tree, so it outlives every crash."""

    def __init__(self, planned):
        self.planned, self.done = planned, 0


def chaos(ctx, pid_files, kills):
    """Kill one of the programs now and then, until that has been done often enough."""
    while kills.done < kills.planned and not ctx.wait_stop(random.uniform(0.1, 0.4)):
        pid_file = random.choice(pid_files)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        kills.done += 1
        print(f"chaos has killed {pid_file.stem}, number {kills.done}")


def services(place, kills):
    """Describe the tree; its files are in *place*."""
    port = free_port()
    script, server = place / "writer.pid", place / "server.pid"
    (place / "news.txt").write_text("no news yet\n")
    url = f"http://127.0.0.1:{port}/news.txt"
    serve = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
    return supervisor(
        "services",
        strategy="rest_for_one",
        auto_shutdown="any_significant",
        intensity=kills.planned + 1,
        period=60,
        children=[
            process(*noted(script, "/bin/sh", "-c", WRITE_NEWS), id="writer", cwd=place),
            process(
                *noted(server, *serve),
                id="server",
                cwd=place,
                ready=Http(url),
                health=Health(Http(url)),
            ),
            coroutine(follow, port, kills, id="client", restart="transient", significant=True),
            thread(chaos, [script, server], kills, restart="transient"),
        ],
    )


def main():
    """Run the services, and tell what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--chaos", type=int, default=4, metavar="N", help="kill so many times (default: 4)"
    )
    kills, ends = Kills(parser.parse_args().chaos), Counter()

    def count(report):
        if isinstance(report, ChildTerminated):
            ends[report.path, str(report.reason)] += 1

    with tempfile.TemporaryDirectory() as directory:
        run(services(Path(directory), kills), reports=count, log=False)
    for (path, reason), number in sorted(ends.items()):
        print(f"{number} times {path}: {reason}")
    print(f"killed {kills.done} times, and back each time")


if __name__ == "__main__":
    main()
