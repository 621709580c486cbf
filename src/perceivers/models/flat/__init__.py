"""What the two flat systems, Perceiver and Perceiver IO, are both made of."""
