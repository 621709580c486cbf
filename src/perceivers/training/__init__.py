"""The training engine: a short loop, optimizers, schedules, exact resume. It knows no report."""
