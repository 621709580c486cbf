"""Neural-network building blocks, built from plain arguments and independent of configs."""
