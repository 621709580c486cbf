"""Propose commands for inspected data, which run in order from the same folder, unedited."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.data.dataset import Dataset
from perceivers.data.files import find_kind, is_data_file
from perceivers.data.inspecting import DataFacts
from perceivers.data.inspecting_labels import UNBALANCED
from perceivers.data.row_source import FileCells, RowSource
from perceivers.data.shards import expand_braces
from perceivers.data.sources import Source
from perceivers.errors import DataError
from perceivers.workflows.opening import WARPS
from perceivers.workflows.proposing_setups import Purpose, Setup, choose_setup

RUNS = "runs"
# From this percentage of unreadable samples, the command sets ``max_bad_share``. The default limit
# of training is higher, but the training split may exceed the average over all splits.
BAD_PERCENT = 3
# From this fraction of samples without labels, pre-training is proposed first.
UNLABELLED_SHARE = 0.5
SHOWN_TEXT = 60
# Splits that are searched for an example file, in this order.
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Proposal:
    """Proposed commands.

    Args:
        task: Value of ``--task``.
        recipe: Packaged recipe that the settings are based on; empty if there is none.
        reason: Explanation in one or two sentences.
        commands: Shell commands, in order.
        hints: Sentences on alternatives.
    """

    task: str
    recipe: str
    reason: str
    commands: tuple[str, ...]
    hints: tuple[str, ...] = ()


def propose(
    facts: DataFacts,
    dataset: Dataset,
    asked: Mapping[str, Sequence[str]] | None = None,
    *,
    cuda: bool = False,
) -> Proposal:
    """Propose commands for data with at least one readable training sample.

    Args:
        facts: Result of the inspection.
        dataset: The data.
        asked: Requested columns, under ``labels`` and ``targets``.
        cuda: Whether a CUDA GPU is available.
    """
    task = choose_data_task(facts)
    run = free_run(dataset.address)
    if task not in PURPOSES:
        setup = choose_setup(facts, "unlabelled", cuda=cuda)
        return _without_labels(facts, dataset, setup, run, cuda)
    setup = choose_setup(facts, PURPOSES[task], cuda=cuda)
    common = common_settings(facts, asked or {})
    settings = task_settings(facts, task, setup)
    reason = f"{setup.reason} {_afford(settings, cuda)}"
    first: list[str] = []
    verb, model = "train", setup.model
    if _mostly_unlabelled(facts):
        before = choose_setup(facts, "unlabelled", cuda=cuda)
        pretrained = f"{run}_pretrained"
        line = train_line(
            "pretrain", before.model, {**before.options, **common}, dataset.address, pretrained
        )
        first = [line]
        verb, model = "finetune", pretrained
        # The pre-trained run determines the model.
        settings.pop("model_options", None)
        reason += " Most samples have no label, so the model is pre-trained on all of them."
    commands = [
        *first,
        train_line(verb, model, {**settings, **common}, dataset.address, run),
        _evaluate_line(dataset, run),
    ]
    predict = _predict_line(facts, dataset, run)
    commands += [predict] if predict else []
    hints = _hints(facts)
    if "modalities" in setup.options:
        both = choose_setup(facts, PURPOSES[task], cuda=cuda, together=True)
        options = {**({"task": task} if task != "classify" else {}), **both.options, **common}
        reason += " A single modality takes fewer steps than both."
        line = train_line("train", both.model, options, dataset.address, f"{run}_both")
        hints.append(f"to read both together, which takes many more steps: {line}")
    return Proposal(task, setup.recipe, reason, tuple(commands), tuple(hints))


def propose_flow(address: str) -> Proposal:
    """Propose commands for frame pairs, generated (``warps:PHOTOGRAPHS``) or measured.

    Args:
        address: Data address of the pairs.
    """
    run = free_run(address.removeprefix(WARPS))
    words = ["perceivers", "train", "--config", "optical_flow", "--data", address, "--out", run]
    commands = (shlex.join(words), shlex.join(["perceivers", "evaluate", run]))
    hints = ()
    if not address.startswith(WARPS):
        hints = (
            f"a few measured pairs are not enough for training: train on warped images (--data "
            f"{WARPS}PHOTOGRAPHS) and evaluate on these pairs: perceivers evaluate RUN --data "
            f"{shlex.quote(address)}",
        )
    reason = "A small Perceiver IO learns the motion between two frames of 48 x 64 pixels."
    return Proposal("flow", "optical_flow", reason, commands, hints)


# Purpose of the model by task; for data without such a task, pre-training is proposed.
PURPOSES: Mapping[str, Purpose] = {
    "classify": "label",
    "multilabel": "label",
    "multitask": "columns",
    "regress": "label",
    "segment": "segment",
}


def choose_data_task(facts: DataFacts) -> str:
    """Return the task that suits the data: a supervised one, or ``pretrain``.

    Masks take precedence over numbers, and numbers over labels. Several label columns mean
    ``multitask``, or ``multilabel`` if all of them are binary.
    """
    if any(found.kind == "mask" for found in facts.modalities.values()):
        return "segment"
    if facts.targets:
        return "regress"
    if len(facts.labels) > 1:
        binary = all(len(column.classes) == 2 for column in facts.labels)
        return "multilabel" if binary else "multitask"
    if facts.labels and sum(count > 0 for count in facts.labels[0].counts["train"]) > 1:
        return "classify"
    return "pretrain"


def free_run(address: str) -> str:
    """Return a run folder named after an address that does not exist yet."""
    words = [re.sub(r"[^A-Za-z0-9]+", "_", part).strip("_") for part in Path(address).parts[-1:]]
    stem = re.sub(r"_(csv|jsonl|parquet|npz|txt|tar)$", "", "".join(words)) or "data"
    name, number = f"{RUNS}/{stem}", 2
    while Path(name).exists() or Path(f"{name}_pretrained").exists():
        name, number = f"{RUNS}/{stem}_{number}", number + 1
    return name


def _without_labels(
    facts: DataFacts, dataset: Dataset, setup: Setup, run: str, cuda: bool
) -> Proposal:
    """Propose pre-training, and commands that show its results."""
    common = common_settings(facts, {})
    options = {**setup.options, **common}
    commands = [
        train_line("pretrain", setup.model, options, dataset.address, run),
        _evaluate_line(dataset, run),
    ]
    task = str(setup.options.get("task", "pretrain"))
    example = _example_file(facts, dataset)
    if task == "mlm":
        text = _mask_letter(_some_text(dataset, setup.options["inputs"]["bytes"]["length"]))
        commands += [shlex.join(["perceivers", "predict", run, "--text", text])] if text else []
    elif example:
        words = ["perceivers", "reconstruct", run, example, "--out", f"{run}/reconstructed"]
        commands.append(shlex.join(words))
    words = ["perceivers", "embed", run, dataset.address, "--out", f"{run}/features.npz"]
    commands.append(shlex.join(words))
    reason = f"{setup.reason} {_afford(setup.options, cuda)}"
    return Proposal(task, setup.recipe, reason, tuple(commands), tuple(_hints(facts)))


def common_settings(facts: DataFacts, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return settings that depend on the data alone."""
    settings: dict[str, Any] = {key: list(columns) for key, columns in asked.items() if columns}
    looked_at = sum(split.looked_at for split in facts.splits.values())
    if 100 * facts.num_broken >= BAD_PERCENT * looked_at:
        # One and a half times the observed percentage plus 5, rounded up.
        percent = 5 + -(-150 * facts.num_broken // looked_at)
        settings["max_bad_share"] = min(100, percent) / 100
    return settings


def _afford(options: Mapping[str, Any], cuda: bool) -> str:
    where = "a GPU" if cuda else "two CPU cores; raise --steps for more"
    return f"{options['steps']:,} steps of {options['batch_size']} samples take minutes on {where}."


def _mostly_unlabelled(facts: DataFacts) -> bool:
    """Return whether, in every label column, at least half of the training labels are missing."""
    total = facts.splits["train"].samples
    return bool(facts.labels) and all(
        column.unknown["train"] >= UNLABELLED_SHARE * total for column in facts.labels
    )


def task_settings(facts: DataFacts, task: str, setup: Setup) -> dict[str, Any]:
    """Return a setup's settings for a supervised task, in the form for ``train_line``."""
    settings = {"task": task, **setup.options} if task != "classify" else dict(setup.options)
    if task == "classify" and facts.labels[0].imbalance > UNBALANCED:
        settings["loss"] = {"class_weights": "balanced"}
    return settings


def train_line(verb: str, model: str, settings: Mapping[str, Any], address: str, run: str) -> str:
    """Return the command line of a training verb.

    Args:
        verb: Training verb, such as ``train``.
        model: A variant or run folder.
        settings: Settings other than model, data and out; nested ones are mappings.
        address: Data address.
        run: Folder for the run.
    """
    words = ["perceivers", verb, "--model", model, "--data", address]
    for key, value in settings.items():
        words += _flags(key, value)
    return shlex.join([*words, "--out", run])


def _flags(key: str, value: Any) -> list[str]:
    """Return a setting as flags, with one flag per field of nested settings."""
    if isinstance(value, Mapping) and key not in {"inputs", "model_options"}:
        return [word for name, field in value.items() for word in _flags(f"{key}.{name}", field)]
    return [f"--{key}", value if isinstance(value, str) else json.dumps(value)]


def _evaluate_line(dataset: Dataset, run: str) -> str:
    """Return the command that evaluates on the test split, or else on the validation split."""
    split = [] if "test" in dataset.splits else ["--split", "val"]
    return shlex.join(["perceivers", "evaluate", run, *split])


def _predict_line(facts: DataFacts, dataset: Dataset, run: str) -> str:
    """Return a command that predicts a file or text of the data; empty if there is none."""
    words = ["perceivers", "predict", run]
    if example := _example_file(facts, dataset):
        out = ["--out", f"{run}/masks"] if "mask" in facts.modalities else []
        return shlex.join([*words, example, *out])
    if "mask" in facts.modalities:
        return ""
    if list(facts.modalities) == ["bytes"]:
        return shlex.join([*words, "--text", _some_text(dataset, SHOWN_TEXT)])
    # Samples that consist of several files are paired by name, so the whole folder is given.
    paired = any(_lies_in_folder(source) for source in dataset.splits.values())
    if data := dataset.address if paired else _data_file(dataset.address):
        return shlex.join([*words, data, "--out", f"{run}/predictions.jsonl"])
    return ""


def _lies_in_folder(source: Source) -> bool:
    """Return whether samples are files of a folder other than images alone."""
    if source.is_pictures or not isinstance(source, RowSource):
        return False
    return isinstance(next(iter(source.parts.values())).cells, FileCells)


def _example_file(facts: DataFacts, dataset: Dataset) -> str:
    """Return a file that contains a whole sample; empty if there is none."""
    wanted = {name for name, found in facts.modalities.items() if found.kind != "mask"}
    for split in SPLITS:
        path = facts.examples.get(split, "") or _named_file(dataset, split)
        kind = find_kind(path)
        gives = {"video", "audio"} if kind == "video" else {kind}
        if kind and wanted <= gives and Path(path).is_file():
            return path
    return ""


def _named_file(dataset: Dataset, split: str) -> str:
    """Return the path that the first sample of a split has if its name is a file name."""
    source = dataset.splits.get(split)
    return str(Path(dataset.address) / source.names[0]) if source else ""


def _data_file(address: str) -> str:
    """Return a table, ``.npz`` file or tar of the data, preferably of the test split."""
    if "{" in address:
        address = expand_braces(address)[0]
    if is_data_file([address]):
        return address
    if Path(address).is_dir():
        for split in SPLITS:
            found = sorted(path for path in Path(address).glob(f"{split}*") if is_data_file([path]))
            if found:
                return str(found[0])
    return ""


def _some_text(dataset: Dataset, length: int) -> str:
    """Return a short text of the data, at most ``length`` bytes; empty if none can be read."""
    source = dataset.splits.get("test", dataset.splits["val"])
    for index in range(min(len(source), 8)):
        try:
            raw = source.read(index)["bytes"]
        except DataError:
            continue
        # Cutting may split a character, whose bytes are then ignored.
        text = np.asarray(raw).astype(np.uint8).tobytes()[:length].decode("utf-8", "ignore")
        if text := " ".join(re.sub(r"[^\w\s.,;:'?!-]", "", text).split()):
            return text
    return ""


def _mask_letter(text: str) -> str:
    """Mask the last letter of a word in the middle of a text; empty if no word is found."""
    letters = [match.end() for match in re.finditer(r"[a-z]{3,}", text)]
    if not letters:
        return ""
    place = letters[len(letters) // 2]
    return f"{text[: place - 1]}[MASK]{text[place:]}"


def _hints(facts: DataFacts) -> list[str]:
    hints = []
    if columns := facts.choices.labels:
        flag = shlex.join(_flags("labels", [columns[0]]))
        hints.append(
            f"to learn a label instead, choose its column: {flag} (available: {', '.join(columns)})"
        )
    if columns := facts.choices.numbers:
        flag = shlex.join(_flags("targets", [columns[0]]))
        hints.append(
            f"to predict a number instead, choose its column: {flag} (available: "
            f"{', '.join(columns)})"
        )
    return hints
