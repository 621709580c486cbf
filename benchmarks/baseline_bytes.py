"""What a byte n-gram model makes of the bytes that masked language modelling hides.

    python benchmarks/baseline_bytes.py DATA --length 64 --split test

The same texts, windows and masks as ``perceivers evaluate`` uses for a run with these settings. A
hidden byte is predicted from the visible bytes before it, up to the next hidden one, by counts of
the training text interpolated from order 0 up (Witten and Bell's weights). As in the evaluation of
the models, bytes that were replaced by others count as visible.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import log2

import torch

from perceivers.data import make_eval_loader, open_data
from perceivers.data.dataset import Dataset
from perceivers.draws import sample_generators
from perceivers.tasks.mlm import EVALUATION_SEED, MaskedLanguageConfig, hide_words
from perceivers.types import FIRST_BYTE, MASK, Bytes


class Ngrams:
    """Byte counts after every context of up to ``order - 1`` bytes."""

    def __init__(self, text: bytes, order: int) -> None:
        self.order = order
        self.after: dict[bytes, Counter[int]] = defaultdict(Counter)
        for length in range(order):
            for start in range(len(text) - length):
                self.after[text[start : start + length]][text[start + length]] += 1

    def distribution(self, context: bytes) -> list[float]:
        """Return a probability per byte."""
        probabilities = [1 / 256] * 256
        for length in range(min(len(context), self.order - 1) + 1):
            seen = self.after.get(context[len(context) - length :])
            if not seen:
                break
            total, kinds = seen.total(), len(seen)
            weight = total / (total + kinds)
            probabilities = [(1 - weight) * p for p in probabilities]
            for byte, count in seen.items():
                probabilities[byte] += weight * count / total
        return probabilities


def score_ngrams(
    dataset: Dataset, split: str, length: int, orders: Sequence[int], batch_size: int = 64
) -> tuple[int, dict[int, tuple[float, float]]]:
    """Return how many bytes are hidden, and of every order the bits per byte and the share right.

    Args:
        dataset: Texts; the counts are of its train split.
        split: Where bytes are hidden.
        length: Bytes of a text.
        orders: Of the models, 1 for frequencies.
        batch_size: As in the evaluation of models.
    """
    specs = {"bytes": Bytes(length)}
    train = make_eval_loader(dataset.splits["train"], specs, batch_size=256)
    ids = torch.cat([batch.inputs["bytes"].flatten() for batch in train])
    text = bytes((ids[ids >= FIRST_BYTE] - FIRST_BYTE).tolist())
    models = {order: Ngrams(text, order) for order in orders}
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    bits, right, count = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0
    for batch in make_eval_loader(dataset.splits[split], specs, batch_size=batch_size):
        truth = batch.inputs["bytes"].long()
        draws = sample_generators(generator, batch.position)
        hidden = hide_words(truth, MaskedLanguageConfig(), draws)
        for row, column in hidden.masked.nonzero().tolist():
            left = hidden.ids[row, :column].tolist()
            while MASK in left:
                left = left[left.index(MASK) + 1 :]
            context = bytes(i - FIRST_BYTE for i in left if i >= FIRST_BYTE)
            byte = int(truth[row, column]) - FIRST_BYTE
            count += 1
            for order, model in models.items():
                probabilities = model.distribution(context)
                bits[order] -= log2(probabilities[byte])
                right[order] += max(range(256), key=probabilities.__getitem__) == byte
    return count, {order: (bits[order] / count, right[order] / count) for order in models}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--split", default="test")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 3, 5])
    args = parser.parse_args(argv)
    count, found = score_ngrams(open_data(args.data), args.split, args.length, args.orders)
    print(f"{count} hidden bytes of {args.data} ({args.split}), texts of {args.length} bytes")
    for order, (bits, right) in found.items():
        print(f"order {order}: {bits:.4f} bits per byte, top1 {right:.4f}")


if __name__ == "__main__":
    main()
