"""What the HiP paper reports for training on its own hardware, to stand beside our numbers.

Steps per second relative to Perceiver IO, on TPUv3 at batch 8 per core, decoders off; computed from
the throughput table of Hierarchical Perceiver (arXiv 2202.10890).
"""

from perceivers.bench.settings import PERCEIVER_IO

REFERENCES = (PERCEIVER_IO, f"transformers:{PERCEIVER_IO}")
SPEEDS: dict[str, dict[int, float]] = {
    "hip_16": {224: 3.72, 384: 3.71, 512: 3.50},
    "hip_256": {224: 3.07, 384: 3.38, 512: 3.85},
    "transformers:resnet_50": {224: 15.86, 384: 8.62, 512: 6.25},
    "transformers:resnet_101": {224: 10.62, 384: 5.92, 512: 4.35},
}
# The largest size in the paper at which each still ran; Perceiver IO is no longer there to compare
# with from 1024 on.
LARGEST = {
    PERCEIVER_IO: 512,
    "hip_16": 1024,
    "hip_256": 2048,
    "transformers:resnet_50": 1024,
    "transformers:resnet_101": 1024,
}
SIZES = (224, 384, 512, 1024, 2048)


def paper_speed(model: str, reference: str, size: int) -> float | str | None:
    """Return the paper's speed of a training step relative to Perceiver IO.

    Returns:
        The ratio; in words who ran out of memory; None where the paper has no such entry.
    """
    if reference not in REFERENCES or model not in SPEEDS or size not in SIZES:
        return None
    if size > LARGEST[model]:
        return "out of memory"
    return SPEEDS[model].get(size, "Perceiver IO out of memory")
