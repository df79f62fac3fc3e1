"""Children that are coroutines, their event loops, and threads for blocking calls."""
