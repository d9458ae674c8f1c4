"""The demonstration: a small model learns to talk like the documentation of Python's standard library."""
