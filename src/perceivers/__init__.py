"""General perception in PyTorch: models that read raw elements of any signal."""
