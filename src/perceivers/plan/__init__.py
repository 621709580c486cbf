"""Estimate memory, time and cost of a training run before it starts."""
