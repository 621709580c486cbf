"""High-level operations; the Python API and the command line call the same functions."""
