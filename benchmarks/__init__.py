"""What otpy costs over the threads that it runs: ``python -m benchmarks``.

docs/explanation/benchmarks.md says how to read it.
"""
