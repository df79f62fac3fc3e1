"""Children that are coroutines: the child, its event loop, and the threads to which the loop gives work."""
