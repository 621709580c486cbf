"""Saving, loading and converting models. Nothing here executes code found in a file."""
