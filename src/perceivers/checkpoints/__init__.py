"""Saving, loading and converting models. Code found in a file is never executed."""
