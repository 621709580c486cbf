"""The run folder: paths, settings, results and data fingerprints of a training run.

File names inside a run folder are defined here and nowhere else.
"""

import gzip
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from perceivers.data.fingerprints import FORMAT, Fingerprint
from perceivers.errors import CheckpointError, RunError
from perceivers.files import make_folder, read_json_file, write_atomic, write_json
from perceivers.foreign import parse_json
from perceivers.reading import check_limit, get_limit, read_file
from perceivers.settings import tolerating
from perceivers.text_names import check_written_path
from perceivers.training.config import (
    AutoencodeConfig,
    ClassifyConfig,
    FlowTrainConfig,
    MlmConfig,
    MultilabelTrainConfig,
    MultitaskConfig,
    PretrainConfig,
    RegressConfig,
    SegmentConfig,
    TrainConfig,
    build_config,
    read_yaml,
)
from perceivers.training.launching import (
    as_typed,
    describe_addresses,
    find_addresses,
    make_absolute,
)
from perceivers.training.run_lock import LOCK_FILES, short_lock
from perceivers.version import __version__

TASKS: dict[str, type[TrainConfig]] = {
    "pretrain": PretrainConfig,
    "mlm": MlmConfig,
    "autoencode": AutoencodeConfig,
    "classify": ClassifyConfig,
    "multilabel": MultilabelTrainConfig,
    "multitask": MultitaskConfig,
    "flow": FlowTrainConfig,
    "segment": SegmentConfig,
    "regress": RegressConfig,
}
# Values of settings for runs that were started before the settings existed.
BEFORE_SETTINGS = {"integer_labels": "indices"}
# Settings that once had no range. Evaluation and reports, which do not use them, accept any value.
ONCE_ACCEPTED = (
    *("ema", "label_smoothing"),
    *("optimizer.betas", "optimizer.clip", "optimizer.weight_decay"),
)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """Complete configuration with absolute addresses; running it again reproduces the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Training and validation metrics, one JSON record per line."""
        return self.path / "metrics.jsonl"

    @property
    def addresses(self) -> Path:
        """Addresses of data and model, as typed and absolute."""
        return self.path / "addresses.json"

    @property
    def data_record(self) -> Path:
        """Fingerprint of the data, to detect changes."""
        return self.path / "data.json"

    @property
    def data_names(self) -> Path:
        """Names and labels of all samples, to describe changes."""
        return self.path / "data_names.json.gz"

    @property
    def numerics(self) -> Path:
        """Precision and library for matrix products, as chosen when the run started."""
        return self.path / "numerics.json"

    @property
    def unreadable(self) -> Path:
        """Unreadable samples, one JSON record per line; the file is missing if there are none."""
        return self.path / "unreadable.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Training state to resume from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def pointer(self) -> Path:
        """File that names the folder of a training state in parts (sharded runs)."""
        return self.path / "checkpoints" / "last.json"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a training state to resume from."""
        return self.checkpoint.is_file() or self.pointer.is_file()

    @property
    def best_model(self) -> Path:
        """Model folder of the weights with the best validation metric."""
        return self.path / "model"

    @property
    def last_model(self) -> Path:
        """Model folder of the last checkpoint."""
        return self.path / "last"

    @property
    def figures(self) -> Path:
        """Folder of images and plots."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """Report as a self-contained HTML page."""
        return self.path / "report.html"

    @property
    def results(self) -> Path:
        """Metrics on held-out data, by split."""
        return self.path / "results.json"

    def check_free(self, *, overwrite: bool = False) -> None:
        """Check that a run folder can be created here; nothing is written.

        Raises:
            RunError: The path is a file, or a folder that is not empty and that ``overwrite`` does
                not allow to replace: it is off, or the folder is not a run folder.
        """
        check_written_path(self.path, "--out")
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"--out {self.path} is a file; give a folder to create")
        if self.path.is_dir() and any(e.name not in LOCK_FILES for e in self.path.iterdir()):
            if not overwrite:
                raise RunError(
                    f"{self.path} already holds a run or other files; continue it with 'perceivers "
                    f"resume {self.path}', replace it with --overwrite, or choose another --out"
                )
            if not self.config.is_file():
                raise RunError(
                    f"{self.path} is not a run folder, so --overwrite does not delete it; choose "
                    f"another --out"
                )

    def create(self, task: str, config: TrainConfig, *, overwrite: bool = False) -> None:
        """Create the folder and write configuration, environment and command.

        Raises:
            RunError: As for ``check_free``.
        """
        self.check_free(overwrite=overwrite)
        make_folder(self.path)
        self._clear()
        self.write_config(task, config)
        write_json(self.path / "environment.json", environment())
        write_atomic(self.path / "command.txt", " ".join(sys.argv) + "\n")

    def _clear(self) -> None:
        """Delete everything but the configuration, which marks the folder as a run folder."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != self.config and entry.name not in LOCK_FILES:
                entry.unlink()

    def write_config(self, task: str, config: TrainConfig) -> None:
        """Write the complete configuration, and the addresses as they were typed."""
        absolute = make_absolute(config)
        text = yaml.safe_dump({"task": task, **absolute.to_json()}, sort_keys=False)
        write_atomic(self.config, text)
        typed = as_typed(config, self.read_addresses())
        write_json(self.addresses, describe_addresses(typed, absolute))

    def read_config(self) -> tuple[str, TrainConfig]:
        """Return the task's name and its configuration.

        Configurations of older versions are accepted even if they contain settings without effect,
        or out-of-range numbers that matter for training only; ``resume`` rejects the latter.

        Raises:
            RunError: This is not a run folder.
        """
        if not self.config.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no config.yaml")
        settings = read_yaml(self.config)
        task = settings.pop("task", None)
        if not isinstance(task, str) or task not in TASKS:
            raise RunError(f"{self.config}: task is {task!r}; expected one of {list(TASKS)}")
        with tolerating("unused"), tolerating("range", only=ONCE_ACCEPTED):
            found = build_config(TASKS[task], {**BEFORE_SETTINGS, **settings})
            return task, find_addresses(found, self.read_addresses())

    def read_addresses(self) -> dict[str, Any]:
        """Return the addresses as they were typed; empty for older runs, which lack them."""
        return read_json_file(self.addresses) if self.addresses.exists() else {}

    def describe_older_settings(self) -> list[str]:
        """Return notes on settings that did not exist when the run started."""
        missing = BEFORE_SETTINGS.keys() - read_yaml(self.config).keys()
        return [
            f"this run was started before the setting {name} existed and resumes with {name}="
            f"{BEFORE_SETTINGS[name]}"
            for name in sorted(missing)
        ]

    def read_results(self) -> dict[str, dict[str, Any]]:
        """Return the results recorded by ``add_results``, by split; empty if there are none.

        Raises:
            CheckpointError: The file is damaged.
        """
        if not self.results.exists():
            return {}
        results = read_json_file(self.results)
        for split, entry in results.items():
            figures = entry.get("figures") if isinstance(entry, dict) else None
            matrix = entry.get("confusion") if isinstance(entry, dict) else None
            numbers = isinstance(figures, dict) and all(
                isinstance(value, int | float) for value in figures.values()
            )
            if not numbers or not _is_square(matrix) or not _is_fill(entry.get("fill", {})):
                raise CheckpointError(
                    f"{self.results} is damaged at {split!r}: expected numbers by name, a square "
                    f"table of counts or null, and errors by modality under 'fill'; delete the "
                    f"file and evaluate again"
                )
        return results

    def add_results(self, split: str, figures: dict[str, Any]) -> None:
        """Record the results of one split, keeping those of other splits.

        Raises:
            RunError: The run folder is gone.
        """
        if not self.config.is_file():
            raise RunError(f"{self.path} is no longer a run folder; its results are not recorded")
        with short_lock(self.path / ".results.lock"):
            write_json(self.results, {**self.read_results(), split: figures})


def _is_square(matrix: Any) -> bool:
    if matrix is None:
        return True
    return isinstance(matrix, list) and all(
        isinstance(row, list)
        and len(row) == len(matrix)
        and all(type(count) is int and count >= 0 for count in row)
        for row in matrix
    )


def _is_fill(found: Any) -> bool:
    """Return whether an entry has the format that ``evaluate --fill`` writes."""
    return isinstance(found, dict) and all(
        isinstance(each, dict)
        and isinstance(each.get("given"), list)
        and isinstance(each.get("samples"), int)
        and {"unit", "mean_of", "other_error"} <= each.keys()
        and all(isinstance(each.get(key), int | float) for key in ("error", "mean_error"))
        for each in found.values()
    )


def environment() -> dict[str, Any]:
    """Return versions of packages and hardware."""
    packages = {}
    for name in ("torch", "numpy", "safetensors", "lightning-fabric", "pillow"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "perceivers": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **packages,
    }


# -- Fingerprints of a run's data in its folder: ``data.json`` and ``data_names.json.gz`` --------

KEYS = ("classes", "columns", "targets", "mask_classes", "splits")


def write_fingerprint(
    folder: RunFolder, found: Fingerprint, *, accepted: list[str] | None = None
) -> None:
    """Write a fingerprint, with a list of all changes that the user has accepted.

    Args:
        folder: Run folder.
        found: Fingerprint to write.
        accepted: Accepted differences from the previous data; None if there are none.
    """
    earlier = _read_digests(folder).get("accepted", []) if folder.data_record.exists() else []
    if accepted:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        earlier = [*earlier, {"time": now, "differences": accepted}]
    text = json.dumps(found.samples).encode()
    # Names first: the record written after them holds their checksum (``names_crc``).
    write_atomic(folder.data_names, gzip.compress(text, compresslevel=1, mtime=0))
    record: dict[str, Any] = {**found.digests, "names_crc": zlib.crc32(text)}
    write_json(folder.data_record, {**record, "accepted": earlier})


def read_fingerprint(folder: RunFolder) -> Fingerprint | None:
    """Return the fingerprint of a run's data; None for runs without one.

    Raises:
        RunError: The record is damaged.
    """
    if not folder.data_record.exists():
        return None
    digests = _read_digests(folder)
    samples: Mapping[str, Any] = {}
    if folder.data_names.exists():
        text = _unpack(folder)
        if zlib.crc32(text) == digests.get("names_crc"):
            parsed = parse_json(text, str(folder.data_names), error=RunError)
            samples = parsed if isinstance(parsed, dict) else {}
    return Fingerprint(digests, samples)


def _read_digests(folder: RunFolder) -> dict[str, Any]:
    found = read_json_file(folder.data_record)
    whole = all(key in found for key in KEYS) and isinstance(found["splits"], dict)
    if found.get("format") != FORMAT or not whole:
        raise RunError(
            f"{folder.data_record} is not a data record of format {FORMAT}; restore it, or delete "
            f"it to resume without comparing the data"
        )
    return found


def _unpack(folder: RunFolder) -> bytes:
    """Return the JSON of the names; empty if damaged, as names are used for messages only."""
    packed = read_file(folder.data_names, limit="json", error=RunError)
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = unpacker.decompress(packed, get_limit("json"))
    except zlib.error:
        return b""
    if unpacker.unconsumed_tail:
        check_limit("json", get_limit("json") + 1, str(folder.data_names), error=RunError)
    return text


# -- Saving the state of a run whose folder was moved or removed during training -----------------


def keep_records(folder: RunFolder) -> dict[str, bytes]:
    """Return the contents of the small files that a run writes once, when it starts."""
    paths = (folder.addresses, folder.data_record, folder.data_names, folder.numerics)
    return {path.name: read_file(path) for path in paths if path.is_file()}


def make_rescue_folder(
    lost: RunFolder, config: TrainConfig, records: Mapping[str, bytes]
) -> RunFolder:
    """Create a run folder next to a lost one, with the run's settings and ``records``.

    If its parent is not writable, the folder is created in the working directory or in the
    directory for temporary files.

    Raises:
        RunError: None of these places is writable.
    """
    path = Path(os.path.abspath(lost.path))  # noqa: PTH100 - keeps symbolic links
    beside = next(parent for parent in path.parents if parent.is_dir())
    name = f"{path.name}.rescued-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    task = next(task for task, kind in TASKS.items() if type(config) is kind)
    for parent in (beside, Path.cwd(), Path(tempfile.gettempdir())):
        with suppress(OSError):
            (parent / name).mkdir()
            folder = RunFolder(parent / name)
            folder.create(task, replace(config, out=str(folder.path)))
            for name, content in records.items():
                write_atomic(folder.path / name, content)
            return folder
    raise RunError(f"{lost.path} is gone, and no folder could be made to save its state in")
