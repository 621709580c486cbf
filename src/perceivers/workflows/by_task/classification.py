"""The task ``classify``: one class per sample."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, make_eval_loader
from perceivers.errors import DataError
from perceivers.report.figures import draw_confusion, draw_mistakes
from perceivers.report.html import Section, per_class_table
from perceivers.tasks import Classification, ClassificationConfig, Task
from perceivers.tasks.base import Choices, answer, held_modalities
from perceivers.tasks.classification import balanced_weights
from perceivers.tasks.metrics import device_of, new_accuracies, result, results, update
from perceivers.training.config import ClassifyConfig
from perceivers.types import Image
from perceivers.workflows.building import classifier
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    Metrics,
    Prepared,
    Record,
    Report,
    TaskRow,
    model_info,
    rank_classes,
)

SHOWN = 10


def prepare_classification(config: ClassifyConfig) -> Prepared:
    """Prepare classification with one class per sample."""
    dataset = open_dataset(config)
    if dataset.columns or len(dataset.classes) < 2:
        found = list(dataset.columns) or f"{len(dataset.classes)} classes"
        raise DataError(
            f"{config.data} has {found}; classification needs one label with at least 2 classes "
            f"(class sub-folders, .cls entries in shards, 'label' in an .npz), or choose a column "
            f"with --labels; several at once: --task multitask or multilabel"
        )
    model, notes = classifier(config, dataset, len(dataset.classes), config.head)
    weights = None
    if config.loss.class_weights == "balanced":
        labels = dataset.splits["train"].labels
        assert labels is not None
        weights = balanced_weights(torch.as_tensor(labels), len(dataset.classes))
    task = Classification(model, len(dataset.classes), config.loss, weights)
    info = model_info(config, "classify", dataset.classes)
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


@torch.no_grad()
def confusion_metrics(loaded: Loaded, task: Task, batches: Iterable[Batch]) -> Metrics:
    """Evaluate a single-label classifier: accuracies and confusion matrix.

    Raises:
        DataError: The data have no labels.
    """
    task.eval()
    device = device_of(loaded.model)
    metrics, choices = new_accuracies(len(loaded.info.classes), device), Choices(device)
    for batch in batches:
        if batch.labels is None:
            raise DataError("the data have no labels; evaluation of a classifier needs them")
        logits = answer(task.model, batch.inputs, held_modalities(task.model, batch))
        chosen = choices.of(logits)
        for metric in metrics.values():
            update(metric, chosen, batch.labels)
    matrix = result(metrics.pop("matrix")).long().cpu()
    figures = {**choices.judge(results(metrics)), "samples": int(matrix.sum())}
    return figures, matrix


def records(loaded: Loaded, outputs: Tensor, top: int) -> list[Record]:
    """Return the most probable class and the first ``top`` of every sample."""
    rows = rank_classes(outputs.float().softmax(-1), loaded.info.classes, top)
    return [{**best[0], "top": best} for best in rows]


def classification_sections(report: Report) -> list[Section]:
    """Show confusion matrix, per-class table and mistakes on an evaluated split."""
    if not report.results:
        text = f"Not evaluated on held-out data yet: perceivers evaluate {report.folder.path}"
        return [Section(title="Held-out data", text=text)]
    split = "test" if "test" in report.results else next(iter(report.results))
    matrix = np.asarray(report.results[split]["confusion"])
    classes = report.loaded.info.classes
    path = draw_confusion(
        report.folder.figures / f"confusion_{split}.png",
        matrix=matrix,
        classes=classes,
        title=f"Confusion on {split}",
    )
    sections = [
        Section(
            title=f"Held-out data ({split})",
            text=views_note(report.results[split].get("views", "")),
            figures=[(path, "Rows are the truth, columns the prediction.")],
            tables=[per_class_table(matrix, classes)],
        )
    ]
    mistakes = mistakes_section(report, split)
    return [*sections, mistakes] if mistakes else sections


def views_note(views: str) -> str:
    """Describe the views over which probabilities were averaged; empty for a single view."""
    return f"Probabilities are the mean over {views} views of each sample." if views else ""


def mistakes_section(report: Report, split: str) -> Section | None:
    """Show the most confident wrong predictions; None if there are none or no images."""
    loaded, classes = report.loaded, report.loaded.info.classes
    inputs = loaded.model.config.data_inputs
    name = next((n for n, spec in inputs.items() if isinstance(spec, Image)), None)
    dataset = open_dataset(report.config)
    if split not in dataset.splits or name is None:
        return None
    wrong: list[tuple[float, int, int, Any]] = []
    loader = make_eval_loader(dataset.splits[split], loaded.model.config.data_inputs, batch_size=64)
    adapter = loaded.model.adapter(name)
    for batch in loader:
        if batch.labels is None:
            return None
        with torch.no_grad():
            best = loaded.model(batch.inputs).float().softmax(-1).max(-1)
        for row in (best.indices != batch.labels).nonzero().flatten().tolist():
            raw = batch.inputs[name][row : row + 1]
            picture = adapter.restore(adapter.normalise(adapter.flatten(raw), torch.float32))
            truth, predicted = int(batch.labels[row]), int(best.indices[row])
            wrong.append((float(best.values[row]), truth, predicted, picture[0].numpy()))
    if not wrong:
        return None
    wrong = sorted(wrong, key=lambda entry: -entry[0])[: 2 * SHOWN]
    path = draw_mistakes(
        report.folder.figures / f"mistakes_{split}.png",
        images=np.stack([entry[3] for entry in wrong]),
        truth=[classes[entry[1]] for entry in wrong],
        predicted=[classes[entry[2]] for entry in wrong],
        confidence=[entry[0] for entry in wrong],
        title="Most confident mistakes",
    )
    return Section(title="Mistakes", figures=[(path, "Truth, prediction, confidence.")])


ROW = TaskRow(
    name="classify",
    verb="train",
    title="Classification",
    config=ClassifyConfig,
    settings=("loss", ClassificationConfig),
    prepare=prepare_classification,
    # Mixing and class weights are for training; metrics use neither.
    rebuild=lambda loaded, settings: Classification(
        loaded.model, len(loaded.info.classes), ClassificationConfig()
    ),
    metrics=confusion_metrics,
    averages_views=True,
    records=records,
    checks_choice=True,
    report=classification_sections,
    shows_metrics=False,
    draws_positions=False,
)
