"""Command line: parses the arguments of each verb and leaves the work to ``workflows``."""
