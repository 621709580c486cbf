"""Building blocks: plain keywords in, tensors out; no config reaches this layer."""
