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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--split", default="test")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--batch_size", type=int, default=64, help="as in evaluation")
    args = parser.parse_args(argv)
    dataset, specs = open_data(args.data), {"bytes": Bytes(args.length)}
    train = make_eval_loader(dataset.splits["train"], specs, batch_size=256)
    ids = torch.cat([batch.inputs["bytes"].flatten() for batch in train])
    text = bytes((ids[ids >= FIRST_BYTE] - FIRST_BYTE).tolist())
    models = {order: Ngrams(text, order) for order in args.orders}
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    bits, right, count = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0
    loader = make_eval_loader(dataset.splits[args.split], specs, batch_size=args.batch_size)
    for batch in loader:
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
    print(f"{count} hidden bytes of {args.data} ({args.split}), texts of {args.length} bytes")
    for order in models:
        print(
            f"order {order}: {bits[order] / count:.4f} bits per byte, "
            f"top1 {right[order] / count:.4f}"
        )


if __name__ == "__main__":
    main()
