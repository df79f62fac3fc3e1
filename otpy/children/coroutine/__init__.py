"""Children that are coroutines: the child, its context, its loop, and the threads for blocking calls."""
