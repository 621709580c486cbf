"""How much a model knows from each combination of its modalities.

Paper: Perceiver (arXiv 2103.03206) Sec. 4.2 reports sound alone, pictures alone, and both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import torch

from perceivers.checkpoints.loading import load_with_info
from perceivers.data import Batch, make_eval_loader
from perceivers.errors import ConfigError
from perceivers.settings import Count, Natural, checked
from perceivers.tasks.presence import can_lack
from perceivers.workflows.class_matching import check_classes
from perceivers.workflows.evaluation import choose_split, open_for_model
from perceivers.workflows.objectives import rebuild_task
from perceivers.workflows.origin import own_data, run_config

# Every combination is an evaluation of its own; of 6 modalities there are 63.
MAX_MODALITIES = 6


@dataclass(frozen=True)
class SubsetFigures:
    """What a model reaches with some modalities.

    Attributes:
        modalities: What it was shown.
        samples: Samples that hold at least one of them; others were left out.
        figures: Name to value.
    """

    modalities: tuple[str, ...]
    samples: int
    figures: dict[str, float]


@checked
def evaluate_subsets(
    model: str | Path,
    *,
    data: str | None = None,
    split: str = "test",
    batch_size: Count = 64,
    workers: Natural = 0,
    limit: Natural = 0,
) -> list[SubsetFigures]:
    """Evaluate a model with every combination of its modalities; all of them come first.

    A modality that is left out is hidden as if samples lacked it.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        data: Data address; the run's own when not given.
        split: ``test``, ``val`` or ``train``.
        batch_size: Samples at once.
        workers: Processes that read data.
        limit: Dry run: at most this many batches; 0 means all.

    Raises:
        ConfigError: The model reads a single modality, or too many for all combinations.
        UserError: As ``evaluate``.
    """
    loaded = load_with_info(model)
    names = tuple(loaded.model.config.data_inputs)
    if not can_lack(loaded.model) or len(names) > MAX_MODALITIES:
        raise ConfigError(
            f"{model} reads {len(names)} modalities ({', '.join(names)}); combinations are "
            f"evaluated of 2 to {MAX_MODALITIES}"
        )
    config = run_config(model)
    dataset, specs = open_for_model(loaded, config, data or own_data(model, config))
    source = choose_split(dataset, split)
    check_classes(loaded, dataset, config)
    task = rebuild_task(loaded, config)
    found = []
    for count in range(len(names), 0, -1):
        for shown in combinations(names, count):
            loader = make_eval_loader(source, specs, batch_size=batch_size, workers=workers)
            seen = _Counter()
            batches = seen.count(restrict(islice(loader, limit or None), shown, names))
            figures = task.evaluate(batches)
            found.append(SubsetFigures(shown, seen.samples, figures))
    return found


def restrict(
    batches: Iterable[Batch], shown: Sequence[str], names: Sequence[str]
) -> Iterator[Batch]:
    """Yield batches whose samples lack all modalities but some.

    Samples that then hold nothing are left out, and batches without samples too.

    Args:
        batches: Of one view per sample.
        shown: What stays.
        names: All modalities that the model reads.
    """
    for batch in batches:
        everywhere = torch.ones(len(batch), dtype=torch.bool)
        nowhere = torch.zeros_like(everywhere)
        held = {n: batch.present.get(n, everywhere) if n in shown else nowhere for n in names}
        rows = torch.stack(list(held.values())).any(0).nonzero().flatten()
        if len(rows):
            batch.present = {**batch.present, **held}
            yield batch.take(rows)


class _Counter:
    """Counts samples that pass by."""

    def __init__(self) -> None:
        self.samples = 0

    def count(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield what comes."""
        for batch in batches:
            self.samples += len(batch)
            yield batch
