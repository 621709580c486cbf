"""The task ``mlm``: masked language modelling on bytes.

Legend: B batch, L bytes per text.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from perceivers.checkpoints.loading import Loaded
from perceivers.data import find_files
from perceivers.data.byte_codec import decode_ids, text_ids
from perceivers.errors import DataError
from perceivers.finite import check_answer
from perceivers.reading import read_file
from perceivers.report.by_modality import list_texts
from perceivers.report.html import Section
from perceivers.tasks import MaskedLanguage, MaskedLanguageConfig
from perceivers.tasks.mlm import EVALUATION_SEED, hide_words, score_bytes, text_modality
from perceivers.training.config import MlmConfig
from perceivers.types import FIRST_BYTE, MASK
from perceivers.workflows.building import fresh_autoencoder, fresh_or_continued
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    Prepared,
    Report,
    TaskRow,
    first_batch,
    model_info,
)

SHOWN = 8


def prepare_mlm(config: MlmConfig) -> Prepared:
    """Prepare masked language modelling on bytes."""
    dataset = open_dataset(config)
    model, notes = fresh_or_continued(config, dataset, build=fresh_autoencoder)
    task = MaskedLanguage(model, config.mlm)
    notes = [*dataset.notes, *notes]
    return Prepared(task, dataset, model.config.data_inputs, model_info(config, "mlm"), notes)


def fill_texts(
    loaded: Loaded, paths: Sequence[str | Path], texts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Fill every ``[MASK]`` of texts and text files with the most likely byte."""
    name = text_modality(loaded.model)
    spec = loaded.model.config.inputs[name]
    given: list[tuple[str, str, str | bytes]] = [("text", f"text {t[:40]!r}", t) for t in texts]
    for path in find_files([str(path) for path in paths], ("bytes",)) if paths else ():
        given.append(("file", str(path), read_file(path)))
    for kind, where, text in given:
        try:
            ids = text_ids(text, spec, where, parse_masks=True)
            if not (ids == MASK).any():
                raise DataError(f"{where} has no [MASK]; write one for every byte to be filled in")
            # Predict bytes only: special ids do not occur within a text.
            scores = score_bytes(loaded.model, {name: ids}, {})[..., FIRST_BYTE:]
            check_answer(scores, where)
        except DataError as error:
            if kind == "text":
                raise
            yield {"file": where, "error": str(error).removeprefix(where).lstrip(": ")}
            continue
        hidden = ids == MASK
        best = scores.softmax(-1).max(-1)
        filled = torch.where(hidden, best.indices + FIRST_BYTE, ids)
        yield {
            kind: text if kind == "text" else where,
            "filled": decode_ids(filled[0].numpy()),
            "answer": decode_ids(filled[0][hidden[0]].numpy()),
            "probability": round(float(best.values[hidden].mean()), 6),
        }


@torch.no_grad()
def sections(report: Report) -> list[Section]:
    """Show held-out texts with hidden words filled in."""
    loaded, config = report.loaded, report.config
    assert isinstance(config, MlmConfig)
    name = text_modality(loaded.model)
    ids = first_batch(loaded, config, SHOWN).inputs[name].long()
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    hidden = hide_words(ids, config.mlm, generator)
    best = score_bytes(loaded.model, {name: hidden.ids}, {}).argmax(-1)
    text = (
        "Validation texts, not used in training. Hidden words are shown as underscores (in some "
        "places the model read another word); every hidden byte is replaced by the most likely one."
    )
    code = list_texts(ids, hidden.masked, best)
    return [Section(title="Masked bytes", text=text, code=code)]


ROW = TaskRow(
    name="mlm",
    verb="pretrain",
    title="Masked bytes",
    config=MlmConfig,
    settings=("mlm", MaskedLanguageConfig),
    prepare=prepare_mlm,
    rebuild=lambda loaded, settings: MaskedLanguage(loaded.model, settings),
    fill_texts=fill_texts,
    report=sections,
    next=('perceivers predict {run} --text "a [MASK][MASK][MASK] byte each"',),
)
