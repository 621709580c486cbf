"""What a training run will take, counted before it starts."""
