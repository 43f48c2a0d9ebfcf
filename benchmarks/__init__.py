"""Timings of moedd against plain code: `python -m benchmarks.engine`."""
