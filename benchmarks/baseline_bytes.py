"""What counting makes of the bytes that masked language modelling hides.

    python benchmarks/baseline_bytes.py DATA --length 256 --mask_share 1 --random_share 0

The same texts, windows and masks as ``perceivers evaluate`` uses for a run with these settings.

- *n-gram*: a hidden byte is predicted from the visible bytes before it, up to the next hidden one.
- *words*: it is predicted from the length of its word and its place in it, both of which the masks
  tell, and from the last letter before the word and the first one after it.

Both interpolate counts of the training text from the shortest context up (Witten and Bell's
weights). As in the evaluation of the models, bytes that were replaced by others count as visible.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from math import log2

import torch

from perceivers.data import make_eval_loader, open_data
from perceivers.data.dataset import Dataset
from perceivers.draws import sample_generators
from perceivers.tasks.mlm import EVALUATION_SEED, MaskedLanguageConfig, hide_words
from perceivers.types import FIRST_BYTE, Bytes

SPACES = frozenset(b" \t\n\r\x0b\x0c")


class Counts:
    """Bytes counted in contexts, from which longer and longer ones are interpolated."""

    def __init__(self) -> None:
        self.seen: dict[Hashable, Counter[int]] = defaultdict(Counter)

    def distribution(self, contexts: Iterable[Hashable]) -> list[float]:
        """Return a probability per byte; a context that was never seen ends the list."""
        probabilities = [1 / 256] * 256
        for context in contexts:
            seen = self.seen.get(context)
            if not seen:
                break
            total, kinds = seen.total(), len(seen)
            weight = total / (total + kinds)
            probabilities = [(1 - weight) * p for p in probabilities]
            for byte, count in seen.items():
                probabilities[byte] += weight * count / total
        return probabilities


class Ngrams(Counts):
    """Byte counts after every context of up to ``order - 1`` bytes."""

    def __init__(self, text: bytes, order: int) -> None:
        super().__init__()
        self.order = order
        for length in range(order):
            for start in range(len(text) - length):
                self.seen[text[start : start + length]][text[start + length]] += 1

    def predict(self, shown: Sequence[int | None], place: int) -> list[float]:
        """Return a probability per byte at a place of a text whose hidden bytes are None."""
        start = place
        while start > 0 and shown[start - 1] is not None:
            start -= 1
        context = bytes(byte for byte in shown[start:place] if byte is not None)
        lengths = range(min(len(context), self.order - 1) + 1)
        return self.distribution(context[len(context) - length :] for length in lengths)


class Words(Counts):
    """Byte counts by length of the word, place in it, and the letters on both of its sides."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        for place in range(len(text)):
            if text[place] not in SPACES:
                for context in word_contexts(text, place):
                    self.seen[context][text[place]] += 1

    def predict(self, shown: Sequence[int | None], place: int) -> list[float]:
        """Return a probability per byte at a place of a text whose hidden bytes are None."""
        return self.distribution(word_contexts(shown, place))


def word_contexts(text: Sequence[int | None], place: int) -> list[Hashable]:
    """Return what is known of a byte, the shortest context first."""
    start = end = place
    while start > 0 and text[start - 1] not in SPACES:
        start -= 1
    while end < len(text) and text[end] not in SPACES:
        end += 1
    before = text[start - 2] if start > 1 else None
    after = text[end + 1] if end + 1 < len(text) else None
    known = (end - start, place - start)
    contexts: list[Hashable] = [(), known]
    sides = [side for side in (("left", before), ("right", after)) if side[1] is not None]
    contexts += [(*known, side) for side in sides[:1]]
    return contexts + ([(*known, *sides)] if len(sides) == 2 else [])


def score_counts(
    dataset: Dataset,
    split: str,
    length: int,
    orders: Sequence[int],
    config: MaskedLanguageConfig | None = None,
    batch_size: int = 64,
) -> tuple[int, dict[str, tuple[float, float]]]:
    """Return how many bytes are hidden, and of every model the bits per byte and the share right.

    Args:
        dataset: Texts; the counts are of its train split.
        split: Where bytes are hidden.
        length: Bytes of a text.
        orders: Of the n-grams, 1 for frequencies.
        config: What is hidden; the defaults of masked language modelling when not given.
        batch_size: As in the evaluation of models.
    """
    specs = {"bytes": Bytes(length)}
    train = make_eval_loader(dataset.splits["train"], specs, batch_size=256)
    ids = torch.cat([batch.inputs["bytes"].flatten() for batch in train])
    text = bytes((ids[ids >= FIRST_BYTE] - FIRST_BYTE).tolist())
    models: dict[str, Ngrams | Words] = {f"{n}-grams": Ngrams(text, n) for n in orders}
    models["words"] = Words(text)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    bits, right, count = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0
    for batch in make_eval_loader(dataset.splits[split], specs, batch_size=batch_size):
        truth = batch.inputs["bytes"].long()
        draws = sample_generators(generator, batch.position)
        hidden = hide_words(truth, config or MaskedLanguageConfig(), draws)
        for row, column in hidden.masked.nonzero().tolist():
            shown = [i - FIRST_BYTE if i >= FIRST_BYTE else None for i in hidden.ids[row].tolist()]
            byte = int(truth[row, column]) - FIRST_BYTE
            count += 1
            for name, model in models.items():
                probabilities = model.predict(shown, column)
                bits[name] -= log2(probabilities[byte])
                right[name] += max(range(256), key=probabilities.__getitem__) == byte
    return count, {name: (bits[name] / count, right[name] / count) for name in models}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--split", default="test")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--mask_share", type=float, default=0.8)
    parser.add_argument("--random_share", type=float, default=0.1)
    args = parser.parse_args(argv)
    config = MaskedLanguageConfig(mask_share=args.mask_share, random_share=args.random_share)
    count, found = score_counts(open_data(args.data), args.split, args.length, args.orders, config)
    print(f"{count} hidden bytes of {args.data} ({args.split}), texts of {args.length} bytes")
    for name, (bits, right) in found.items():
        print(f"{name}: {bits:.4f} bits per byte, top1 {right:.4f}")


if __name__ == "__main__":
    main()
