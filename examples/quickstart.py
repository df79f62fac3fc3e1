"""A worker that crashes twice and recovers, a neighbour that does not notice, and an end: about two seconds."""

from otpy import run, supervisor, thread

inbox = iter(
    ["1", "2", "three", "4", "five", "6"]
)  # made outside the tree, so it outlives every crash


def square(ctx):
    """Print the squares of the numbers in the inbox."""
    for text in inbox:
        ctx.sleep(0.3)
        print(f"square, life {ctx.incarnation}: {int(text) ** 2}")


def tick(ctx):
    """Print that all is well, until asked to stop."""
    while not ctx.wait_stop(0.7):
        print("tick: all is well")


children = [thread(tick), thread(square, restart="transient", significant=True)]
tree = supervisor("app", children=children, auto_shutdown="any_significant")

if __name__ == "__main__":
    print("the end:", run(tree).reason)
