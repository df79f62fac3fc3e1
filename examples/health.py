"""A worker that hangs is found out, given up and replaced; the replacement goes on where it was: about a second."""

import threading

from otpy import run, supervisor, thread
from otpy.reports import Stalled

answer = threading.Lock()
answer.acquire()  # and never released: the third meter owes us an answer


def ask(meter, life):
    """Return what a meter says; the third one does not answer when it is asked for the first time."""
    if meter == 3 and life == 1:
        # This stands for a call into C without a time limit.
        answer.acquire()
    return 20 + meter


def read(ctx):
    """Read five meters, starting with the one at which the incarnation before was."""
    for meter in range(ctx.state or 1, 6):
        ctx.check_in(meter)  # "I am alive, and now at this one"
        print(f"life {ctx.incarnation}: meter {meter} says {ask(meter, ctx.incarnation)}")


def tell(report):
    """Print where a stalled thread is."""
    if isinstance(report, Stalled):
        print(f"{report.path} has stalled at: {report.stack.splitlines()[-1].strip()}")


reader = thread(read, heartbeat=0.3, shutdown=0.05, restart="transient", significant=True)
tree = supervisor("app", auto_shutdown="any_significant", children=[reader])

if __name__ == "__main__":
    end = run(tree, reports=tell, log=False)
    print("the end:", end.reason)
    print("left behind:", *(left.path for left in end.unstopped))
