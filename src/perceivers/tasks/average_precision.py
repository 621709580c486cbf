"""Average precision: how far up a ranking by score the true samples stand.

Legend: n samples, K outputs.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.errors import DataError


def average_precision(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """Return the mean, over the true samples, of the precision at their place in the ranking.

    The precision at a place is the share of true samples among all with at least that score, so
    the order of samples with equal scores does not matter, and equal scores for all give the share
    of true samples. No interpolation.

    Args:
        scores: Higher means more likely true; on any scale.
        truth: Which samples are true; at least one.

    Raises:
        DataError: The shapes differ or are no vectors, a score is NaN, or no sample is true.
    """
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise DataError(
            f"scores have shape {list(scores.shape)} and truth {list(truth.shape)}; average "
            f"precision needs one score and one truth per sample, both [n]"
        )
    if bool(scores.isnan().any()):
        raise DataError(
            f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN, which have no place in "
            f"a ranking; look for a diverged model"
        )
    if not bool(truth.any()):
        raise DataError(
            f"none of {len(truth)} samples is true, so precision is not defined; leave out classes "
            f"that do not occur"
        )
    ranked, order = scores.double().sort(descending=True)
    hits = truth[order].double().cumsum(0)
    # Places of the last sample of every score: samples with equal scores are counted together.
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    places = last.nonzero().squeeze(1)
    hits_there = hits[places]
    found = hits_there.diff(prepend=hits_there.new_zeros(1))
    return float((found * hits_there / (places + 1)).sum() / hits_there[-1])


def mean_average_precision(
    scores: Float[Tensor, "n K"], truth: Bool[Tensor, "n K"], known: Bool[Tensor, "n K"]
) -> float:
    """Return the mean of ``average_precision`` over the outputs that are true for some sample.

    Every output is ranked over its own known samples. Samples are rows: scores that are handed
    over transposed rank the outputs of a sample instead, another figure altogether.

    Args:
        scores: Per sample and output.
        truth: What is true.
        known: Where the truth is known.

    Returns:
        A share in 0..1; 0 where no output is ever true.

    Raises:
        DataError: The shapes differ or a score is NaN.
    """
    if scores.ndim != 2 or not scores.shape == truth.shape == known.shape:
        raise DataError(
            f"scores have shape {list(scores.shape)}, truth {list(truth.shape)} and known "
            f"{list(known.shape)}; all must be [n, K], samples by outputs (not transposed)"
        )
    precisions = [
        average_precision(scores[there, output], truth[there, output])
        for output, there in enumerate(known.T)
        if bool((truth[:, output] & there).any())
    ]
    return sum(precisions) / max(len(precisions), 1)
