"""Children that come and go while the tree runs: a dynamic supervisor with room for three phone calls."""

import threading

from otpy import MaxChildren, dynamic_supervisor, start, supervisor, thread
from otpy.reports import Progress

is_back = threading.Event()  # set when a call that broke off is on the line again


def call(ctx, breaks_off):
    """Hold the line until asked to stop."""
    if breaks_off and ctx.incarnation == 1:
        raise ConnectionResetError("the line went dead")
    ctx.wait_stop()
    print(f"  {ctx.id} hung up")


def dial(calls, caller, *, breaks_off=False):
    """Put one more caller through."""
    calls.start_child(thread(call, breaks_off, id=caller))


def watch(report):
    """Notice the replacement of a call that crashed."""
    if isinstance(report, Progress) and report.incarnation > 1:
        is_back.set()


def show(calls):
    """Print who is on the line."""
    print("on the line:", ", ".join(child.id for child in calls.which_children()))


def main():
    """Fill the exchange, make room, watch a call recover, close down."""
    tree = supervisor("exchange", children=[dynamic_supervisor("calls", max_children=3)])
    with start(tree, reports=watch, log=False) as exchange:
        calls = exchange.find("exchange/calls")
        for caller in ("ada", "brian", "carol"):
            dial(calls, caller)
        try:
            dial(calls, "dora")
        except MaxChildren as refusal:
            print("dora is refused:", refusal)
        show(calls)

        calls.terminate_child("brian")
        dial(calls, "dora", breaks_off=True)
        is_back.wait(10)
        show(calls)
        print(calls.count_children())
    print("closed:", exchange.stop().reason)


if __name__ == "__main__":
    main()
