"""Packaged recipes (YAML), listed by ``perceivers recipes``."""
