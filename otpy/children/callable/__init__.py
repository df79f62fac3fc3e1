"""Children that are Python callables in processes of their own."""
