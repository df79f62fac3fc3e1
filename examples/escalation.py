"""A failure that no restart can mend goes up the tree, level by level, until the root gives up.

The bank never answers. Its supervisor restarts it twice, then gives up. The shop restarts the whole subsystem once,
then gives up as well. There is nobody above the shop, so ``run`` raises ``TreeFailed`` and the program ends with a
non-zero exit status.
"""

from otpy import run, supervisor, thread


def bank(ctx):
    """Fail, a moment after the start."""
    print(f"  {ctx.path}: connecting")
    ctx.sleep(0.1)
    raise ConnectionError("the bank does not answer")


def counter(ctx):
    """Serve customers until asked to stop."""
    ctx.wait_stop()
    print(f"  {ctx.path}: closed in order")


def page_the_operator(escalation):
    """Tell a person: called on a thread of its own, once for each supervisor that gives up."""
    print(f"ESCALATION {escalation}")
    for below in escalation.chain:
        print(f"  because {below}")
    print(f"  goes to {escalation.parent or 'nobody: this is the root'}")


payments = supervisor("payments", intensity=2, period=5, children=[thread(bank)])
shop = supervisor("shop", intensity=1, period=5, children=[thread(counter), payments])

if __name__ == "__main__":
    run(shop, on_escalation=page_the_operator, log=False)
