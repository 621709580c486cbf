"""What a training run is made of. One set of dataclasses serves Python, YAML and the command line.

``build_config`` turns loose settings (keywords, a YAML file, flags) into a config and names the key
that is wrong.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from perceivers.data import AugmentConfig
from perceivers.data.flow_pairs import WARPS
from perceivers.errors import ConfigError, suggest
from perceivers.foreign import parse_yaml
from perceivers.reading import read_file
from perceivers.settings import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Part,
    Positive,
    Range,
    Rate,
    Seed,
    Settings,
    UsedIf,
)
from perceivers.tasks import (
    AutoencodingConfig,
    ClassificationConfig,
    FlowConfig,
    MaskedAutoencodingConfig,
    MaskedLanguageConfig,
    RegressionConfig,
    SegmentationConfig,
)
from perceivers.tasks.multilabel import MultilabelConfig
from perceivers.training.loggers import check_loggers

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Precision = Literal["auto", "float32", "bf16", "bf16-pure"]
C = TypeVar("C", bound="TrainConfig")
# What timers of the operating system count: 30 years, and a year for the processes' own.
MOST_SECONDS, MOST_MINUTES = 1e9, 5e5
GENERATED = UsedIf("warps", True, otherwise="on measured pairs; they are for warps:PHOTOGRAPHS")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings, prefix="optimizer."):
    """Update rule; weights decay, biases and norms do not, latents and tables if asked for."""

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    """adamw; lamb (as in the Perceiver papers; arXiv 1904.00962, weight norms not clamped); or
    muon: orthogonalised updates for weight matrices (arXiv 2502.16982), adamw for the rest."""
    lr: Positive = 1e-3
    """Peak learning rate, per step of the whole batch."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """Decay rates of the two moments."""
    momentum: Annotated[Rate, UsedIf("name", "muon")] = 0.95
    """Decay rate of Muon's momentum."""
    matrix_lr: Annotated[Positive, UsedIf("name", "muon")] = 3.0
    """Factor on the learning rate of the matrices that Muon updates."""
    weight_decay: NonNegative = 0.05
    """Decay of weights, relative to the learning rate."""
    decay_arrays: Annotated[bool, UsedIf("weight_decay", above=0)] = False
    """Let latents, queries and position tables decay too, as the Perceiver recipes do."""
    eps: Positive | None = None
    """Added to the root of the second moment; None takes 1e-8 for adamw and muon, and 1e-6
    for lamb."""
    layer_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    """Factor per layer below the head on the learning rate; 1 trains all alike."""
    position_lr: Positive = 20.0
    """Factor on the learning rate of learned position tables, which start in disorder and have far
    to go (docs/log.md)."""
    clip: NonNegative = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Settings, prefix="schedule."):
    """Learning rate over the run, as a share of the peak."""

    name: Literal["cosine", "constant-cosine"] = "cosine"
    """cosine after warm-up, or constant for a share of the run and then cosine."""
    warmup: Fraction = 0.05
    """Share of the steps with linear warm-up, 0..1."""
    constant: Annotated[Fraction, UsedIf("name", "constant-cosine")] = 0.5
    """Share of the steps held at the peak (constant-cosine only), 0..1."""
    final: Fraction = 0.0
    """Share of the peak at the last step, 0..1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings, prefix=""):
    """Settings that every training verb shares."""

    model: str
    """A variant name ('perceivers models'), a model folder or a run folder."""
    data: str
    """A data address: digits, a folder of class sub-folders, shards x-{000..099}.tar, or x.npz."""
    out: str
    """Run folder to create."""
    steps: Count = 2000
    """Optimizer steps."""
    batch_size: Count = 64
    """Samples per step and process, over all accumulated parts."""
    accumulate: Count = 1
    """Parts in which a batch is computed, to bound memory."""
    size: Count | None = None
    """Side of square pictures in pixels; None takes the model's or the data's own."""
    channels: Count | None = None
    """Colour channels of pictures; None takes the model's or the data's own."""
    labels: list[str] = field(default_factory=list)
    """Label columns to learn, where the data have several; the data's own when empty."""
    integer_labels: Literal["values", "indices"] = "values"
    """Integers in label columns: values (each distinct one is a class, unless they run from 0
    without gaps) or indices of classes, from 0 to the highest."""
    modalities: list[str] = field(default_factory=list)
    """Modalities to read; all that the data have when empty."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sizes of modalities, for instance bytes: {length: 512} or video: {frames: 8}."""
    val_share: Part = 0.1
    """Share of the training data set aside for validation when the data has no such split."""
    seed: Seed = 0
    """Seed of weights, order, augmentation and masks."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    modality_dropout: Fraction | dict[str, Fraction] = 0.0
    """Probability that training hides a modality from a sample, 0..1, one for all or by name; one
    modality always stays. For models that are to answer when some are missing."""
    ema: Rate = 0.0
    """Decay of an average of the weights that is evaluated and saved instead; 0 switches it off."""
    recompute: bool = False
    """Recompute self-attention layers in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the model's blocks (torch.compile), which takes a warm-up that is reported; gives
    little on CPUs. Repeats itself bit for bit, but not the numbers of an uncompiled run."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config to override, for instance drop_path_rate: 0.1."""
    precision: Precision = "auto"
    """auto (bf16 autocast on CUDA, and on CPUs where a run of 200 steps or more is measured to be
    faster in it; float32 elsewhere), float32, bf16 or bf16-pure."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    devices: Count = 1
    """How many devices, each with a process of its own, on this machine (on every node)."""
    nodes: Count = 1
    """How many machines; every one runs the same command (torchrun, Slurm)."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How processes share the work: ddp (each holds the whole model), fsdp (each holds a part), or
    auto: ddp where there are several."""
    timeout_minutes: Annotated[float, Range(above=0, most=MOST_MINUTES)] = 10.0
    """Give up when the processes have waited this long for one of them."""
    workers: Natural = 0
    """Processes that read and augment data."""
    log_every: Count = 20
    """Steps between training records."""
    eval_every: Count = 200
    """Steps between evaluations on the validation split."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    patience: Natural = 0
    """Stop after this many evaluations without improvement; 0 never does."""
    minutes: NonNegative = 0.0
    """Stop when this much time has passed; 0 never does."""
    limit: Natural = 0
    """Dry run: at most this many steps and evaluation batches; 0 means all."""
    max_bad_share: Fraction = 0.05
    """Stop when more than this share of the samples read so far could not be read."""
    loader_timeout: Annotated[float, Range(0, MOST_SECONDS)] = 300.0
    """Stop when no batch comes for this many seconds; 0 waits for ever."""
    memory_limit: NonNegative | None = None
    """Memory in GB that the run may take; what is free when not given. 0 starts it without a
    check."""
    loggers: list[str] = field(default_factory=list)
    """Beside metrics.jsonl: tensorboard, trackio or wandb (offline unless WANDB_MODE is set)."""

    def __post_init__(self) -> None:
        """Reject values out of range, before anything is read or written."""
        super().__post_init__()
        check_loggers(self.loggers)
        if self.accumulate and self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size={self.batch_size} does not divide into "
                f"accumulate={self.accumulate} parts"
            )
        if self.augment.copies and self.batch_size % self.augment.copies:
            raise ConfigError(
                f"batch_size={self.batch_size} counts the copies of a sample; it is not a multiple "
                f"of augment.copies={self.augment.copies}"
            )

    @property
    def total_steps(self) -> int:
        """Steps of this run, with the limit of a dry run."""
        return min(self.steps, self.limit) if self.limit else self.steps

    def to_json(self) -> dict[str, Any]:
        """Return plain data with lists for tuples."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Masked auto-encoding."""

    mask: MaskedAutoencodingConfig = field(default_factory=MaskedAutoencodingConfig)

    def __post_init__(self) -> None:
        """Reject latent targets that nobody teaches."""
        super().__post_init__()
        if self.mask.target != "latent" or self.mask.teacher:
            return
        if not self.ema:
            raise ConfigError(
                "mask.target=latent needs a teacher: give mask.teacher, a run or model folder of a "
                "masked autoencoder, or ema (0.99, say), so that averaged weights teach"
            )
        if self.strategy == "fsdp":
            raise ConfigError(
                "averaged weights cannot teach with strategy fsdp, where no process holds them as "
                "a whole; use strategy ddp, or give mask.teacher"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TrainConfig):
    """Classification, from pre-trained weights (finetune) or from scratch (train)."""

    head: Literal["query", "mean"] = "query"
    """A learned query that reads the processor, or the mean of its latents."""
    loss: ClassificationConfig = field(default_factory=ClassificationConfig)


@dataclass(frozen=True, kw_only=True)
class MlmConfig(TrainConfig):
    """Masked language modelling on bytes."""

    mlm: MaskedLanguageConfig = field(default_factory=MaskedLanguageConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencodeConfig(TrainConfig):
    """Auto-encoding through the latents, with or without hidden tokens."""

    autoencode: AutoencodingConfig = field(default_factory=AutoencodingConfig)


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig(TrainConfig):
    """Several classifications at once, one per label column."""

    label_smoothing: Rate = 0.0
    """Share of the target spread evenly over a task's classes, 0..1."""


@dataclass(frozen=True, kw_only=True)
class MultilabelTrainConfig(TrainConfig):
    """Any number of labels per sample."""

    multilabel: MultilabelConfig = field(default_factory=MultilabelConfig)


@dataclass(frozen=True, kw_only=True)
class FlowTrainConfig(TrainConfig):
    """Optical flow."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    max_flow: Annotated[Positive, GENERATED] = 8.0
    """Largest motion of generated pairs (warps:PHOTOGRAPHS) in pixels."""
    repeats: Annotated[Count, GENERATED] = 4
    """Pairs generated from each photograph."""

    @property
    def warps(self) -> bool:
        """Whether pairs are generated."""
        return self.data.startswith(WARPS)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TrainConfig):
    """Semantic segmentation, from pre-trained weights (finetune) or from scratch (train)."""

    head: Literal["family", "bottleneck", "full", "queries", "pyramid"] = "family"
    """Read-out per element. HiP: bottleneck (from the processor) or full (through the decoder);
    Perceiver IO: queries; Hiera: pyramid. family takes the system's first."""
    segment: SegmentationConfig = field(default_factory=SegmentationConfig)


@dataclass(frozen=True, kw_only=True)
class RegressConfig(TrainConfig):
    """Numbers per sample, from pre-trained weights (finetune) or from scratch (train)."""

    targets: list[str] = field(default_factory=list)
    """Columns of the data that hold the numbers to be predicted."""
    head: Literal["query", "mean"] = "query"
    """A learned query that reads the processor, or the mean of its latents."""
    regress: RegressionConfig = field(default_factory=RegressionConfig)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def build_config(kind: type[C], settings: Mapping[str, Any]) -> C:
    """Turn loose settings into a config; nested settings may be dicts or config objects.

    Raises:
        ConfigError: A key is unknown (names the nearest), of the wrong type or out of range.
    """
    from jsonargparse import ArgumentError

    parser = _parser_of(kind)
    plain = {key: _as_plain(value) for key, value in settings.items()}
    _check_keys(kind, plain)
    try:
        return kind(**parser.instantiate(parser.parse_object(plain)).as_dict())
    except ArgumentError as error:
        raise ConfigError(str(error)) from error


@cache
def _parser_of(kind: type[TrainConfig]) -> "ArgumentParser":
    """Return the parser of a config's fields; building one takes longer than parsing."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None)
    return parser


def _as_plain(value: Any) -> Any:
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value


def _check_keys(kind: Any, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Name the first unknown key, with a suggestion."""
    fields = kind.__dataclass_fields__
    for key, value in settings.items():
        if key not in fields:
            raise ConfigError(
                f"unknown setting {prefix}{key}{suggest(key, fields)} "
                f"({kind.__name__} has {', '.join(fields)})"
            )
        nested = fields[key].default_factory
        if not hasattr(nested, "__dataclass_fields__"):
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"setting {prefix}{key} is {value!r}; it must hold settings of its own "
                f"({', '.join(nested.__dataclass_fields__)})"
            )
        _check_keys(nested, value, f"{prefix}{key}.")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: The file is missing, or not YAML, or not a mapping.
    """
    if not os.path.lexists(path):
        raise ConfigError(
            f"there is no file {path}, and no packaged recipe of that name; 'perceivers recipes' "
            f"lists those"
        )
    data = parse_yaml(read_file(path, limit="yaml", error=ConfigError), str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold 'setting: value' lines, found {type(data).__name__}")
    return data
