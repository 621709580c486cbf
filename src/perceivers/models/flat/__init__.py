"""Building blocks shared by the two flat model families, Perceiver and Perceiver IO."""
