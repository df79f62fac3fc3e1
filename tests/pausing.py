"""Children of all kinds for tests of pauses: the healthy ones check in every tenth of a
second.
"""

import time


def work(ctx):
    while ctx.running:
        ctx.check_in()
        ctx.sleep(0.1)


async def awork(ctx):
    while ctx.running:
        ctx.check_in()
        await ctx.sleep(0.1)


PROGRAM = """
import os, socket, time
box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = os.environ["NOTIFY_SOCKET"]
box.connect(chr(0) + name[1:] if name[0] == "@" else name)
while True:
    try:
        box.send(b"WATCHDOG=1", socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass
    time.sleep(0.1)
"""


def hang(ctx, seconds):
    """Check in for so many seconds, and then no more."""
    end = time.monotonic() + seconds
    while ctx.running and time.monotonic() < end:
        ctx.check_in()
        ctx.sleep(0.1)
    ctx.wait_stop()
