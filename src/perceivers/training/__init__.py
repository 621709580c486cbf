"""Training loop, optimizers, schedules and exact resume; reports are written elsewhere."""
