"""Every family by every modality by every task: what can be built, as tasks with a batch each.

``python -m tests.contracts.combinations`` writes what was found into docs/combinations.md.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, UserError
from perceivers.models.registry import FAMILIES
from perceivers.tasks import (
    Autoencoding,
    AutoencodingConfig,
    Classification,
    ClassificationConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
    MaskedLanguage,
    MaskedLanguageConfig,
    Multilabel,
    MultilabelConfig,
    Multitask,
    OpticalFlow,
    Regression,
    RegressionConfig,
    Segmentation,
    SegmentationConfig,
)
from perceivers.tasks.base import Task
from perceivers.tasks.flow import TARGET as FLOW
from perceivers.tasks.flow import FlowConfig
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.training.run_folder import TASKS
from perceivers.types import FIRST_BYTE, ModalitySpec
from perceivers.workflows.building import masked_modality

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"
SPECS: dict[str, ModalitySpec] = {
    "image": pv.Image(32, 32, 1),
    "video": pv.Video(2, 16, 32, 1),
    "audio": pv.Audio(1024),
    "points": pv.Points(16, 3),
    "points, ragged": pv.Points(16, 3, ragged=True),
    "array": pv.Array((32, 32), 1),
    "bytes": pv.Bytes(192),
}
# A second modality, to find which families read several.
OTHER: dict[str, ModalitySpec] = {"other": pv.Array((6,), 2)}
COLUMNS = {"odd": ("no", "yes"), "third": ("0", "1", "2")}
TARGETS = {"age": (40.0, 10.0), "weight": (70.0, 5.0)}
CLASSES = ("a", "b", "c")
SIZE = 3

Cell = tuple[str, str, str]


def name_of(modality: str) -> str:
    """Return what an input is called: points of either kind are points."""
    return modality.partition(",")[0]


def build(cell: Cell, *, several: bool = False) -> Task:
    """Build the smallest variant of a family that reads a modality for a task.

    Args:
        cell: Family, modality, task.
        several: Read another modality beside it.

    Raises:
        UserError: No small variant does.
    """
    family, modality, task = cell
    specs = {name_of(modality): SPECS[modality], **(OTHER if several else {})}
    errors: list[UserError] = []
    for variant in small_variants(family, task):
        try:
            return _make_task(task, _build_model(family, variant, specs, task))
        except UserError as error:
            errors.append(error)
    raise errors[-1] if errors else ConfigError(f"no {family} is for {task}")


def small_variants(family: str, task: str) -> list[str]:
    """Return our own small variants; of a family without any its smallest."""
    names = [name for name in FAMILIES[family].variants if not name.startswith("mae_")]
    if task == "flow":
        return [name for name in names if "flow_tiny" in name]
    small = [name for name in names if "nano" in name]
    return small or [name for name in names if "tiny" in name]


def _build_model(family: str, variant: str, specs: Mapping[str, ModalitySpec], task: str) -> Any:
    entry = FAMILIES[family]
    if task == "segment":
        if entry.as_segmenter is None:
            raise ConfigError(f"{family} has no answer per element")
        base = entry.configure(
            entry.variants[variant], inputs=specs, num_classes=None, head="query", overrides={}
        )
        name = masked_modality(specs)
        return entry.module(entry.as_segmenter(base, len(CLASSES), name, "family"))
    own = (entry.autoencoder or {}) if task in {"pretrain", "mlm"} else {}
    if family == "entity_set" and task == "classify":
        return pv.create_model(variant, inputs=specs)  # the classes are the slots
    classes: Any = {
        "classify": len(CLASSES),
        "multilabel": sum(len(names) if len(names) > 2 else 1 for names in COLUMNS.values()),
        "multitask": {column: len(names) for column, names in COLUMNS.items()},
        "regress": len(TARGETS),
    }.get(task)
    return pv.create_model(variant, inputs=specs, num_classes=classes, **own)


def _make_task(task: str, model: Any) -> Task:
    makers = {
        "pretrain": lambda: MaskedAutoencoding(model, MaskedAutoencodingConfig(ratio=0.5)),
        "mlm": lambda: MaskedLanguage(model, MaskedLanguageConfig(ratio=0.5)),
        "autoencode": lambda: Autoencoding(model, AutoencodingConfig()),
        "classify": lambda: Classification(model, model.config.num_classes, ClassificationConfig()),
        "multilabel": lambda: Multilabel(model, COLUMNS, MultilabelConfig()),
        "multitask": lambda: Multitask(model, COLUMNS),
        "regress": lambda: Regression(model, TARGETS, RegressionConfig()),
        "segment": lambda: Segmentation(model, CLASSES, SegmentationConfig()),
        "flow": lambda: OpticalFlow(model, FlowConfig()),
    }
    return makers[task]()


def find_cells() -> tuple[Cell, ...]:
    """Return every combination that can be built."""
    found = []
    with torch.device("meta"):
        for family in FAMILIES:
            for modality in SPECS:
                for task in TASKS:
                    try:
                        build((family, modality, task))
                    except UserError:
                        continue
                    found.append((family, modality, task))
    return tuple(found)


@cache
def reads_several(family: str) -> bool:
    """Tell whether a family reads more than one modality."""
    try:
        with torch.device("meta"):
            build((family, "image", "classify"), several=True)
    except UserError:
        return False
    return True


def read_cells() -> tuple[Cell, ...]:
    """Return the combinations that the page claims."""
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return tuple(
        (family, modality, task)
        for family, modality, tasks in rows
        for task in re.findall(r"`(\w+)`", tasks)
    )


# -- batches ---------------------------------------------------------------------------------------


def make_batch(cell: Cell, task: Task) -> Batch:
    """Return three smooth samples; texts and ragged clouds are of different lengths."""
    _, modality, name = cell
    rng = torch.Generator().manual_seed(0)
    specs = task.model.config.data_inputs
    inputs = {key: draw(spec, rng) for key, spec in specs.items()}
    place = torch.arange(SIZE)
    labels, targets = None, None
    if name == "classify":
        labels = place % task.model.config.num_classes
    elif name in {"multilabel", "multitask"}:
        labels = torch.tensor([[0, 0], [1, 2], [0, 1]])
    elif name == "regress":
        targets = torch.tensor([[50.0, 70.0], [40.0, 75.0], [30.0, 65.0]])
    elif name == "segment":
        grid = specs[name_of(modality)].grid
        bands = torch.arange(torch.Size(grid).numel()).view(grid) * len(CLASSES)
        inputs[MASKS] = bands // bands.numel()
        inputs[MASKS] = inputs[MASKS].expand(SIZE, *grid).clone()
    elif name == "flow":
        size = specs[name_of(modality)].grid[1:]
        inputs[FLOW] = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(SIZE, 2, *size).clone()
    return Batch(inputs, labels, place, [], targets=targets, position=place)


def draw(spec: ModalitySpec, rng: torch.Generator) -> Tensor:
    """Draw three samples of a modality: slow waves, words, points on a line."""
    length = torch.tensor([spec.num_tokens, spec.num_tokens // 2, 3]).unsqueeze(1)
    there = torch.arange(spec.num_tokens) < length  # [B, N]
    if spec.kind == "bytes":
        words = torch.randint(FIRST_BYTE + 97, FIRST_BYTE + 101, there.shape, generator=rng)
        words[:, ::5] = FIRST_BYTE + 32
        return torch.where(there, words, 0)
    axes = [torch.linspace(0, 1.5, size) for size in spec.grid]
    wave = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)
    phase = 6 * torch.rand(SIZE, spec.channels, generator=rng)
    values = (wave + phase.view(SIZE, spec.channels, *[1] * wave.ndim)).sin()
    if spec.kind in {"image", "video"}:
        return 0.5 + 0.5 * values
    if spec.channels_first:
        return values
    values = values.movedim(1, -1)
    ragged = isinstance(spec, pv.Points) and spec.ragged
    return torch.where(there.unsqueeze(-1), values, torch.nan) if ragged else values


# -- the page --------------------------------------------------------------------------------------

HEAD = """# What runs

Every model family by every modality by every task, found by building the smallest variants. A test
trains each combination, saves and loads it, and changes what samples lack. `python -m
tests.contracts.combinations` writes this page. The tasks are described on [the command
line](cli.md#pretrain-finetune-train), the modalities under
[concepts](concepts.md#specs-and-raw-tensors).

| family | modality | tasks |
|---|---|---|
"""


def write_page() -> str:
    """Return the page."""
    rows: dict[tuple[str, str], list[str]] = {}
    for family, modality, task in find_cells():
        rows.setdefault((family, modality), []).append(f"`{task}`")
    lines = [
        f"| `{family}` | {modality} | {', '.join(tasks)} |"
        for (family, modality), tasks in rows.items()
    ]
    several = [f"`{family}`" for family in FAMILIES if reads_several(family)]
    tail = (
        f"\n\nSeveral modalities at once, of which samples may lack some: {', '.join(several)}.\n"
        f"What pads a text and rows that are no point are never read and never scored; a Hiera\n"
        f"reads padding as zeros, and does not score it either.\n"
    )
    return HEAD + "\n".join(lines) + tail


if __name__ == "__main__":
    PAGE.write_text(write_page())
