"""Data sets of Hugging Face's ``datasets``: ``hf:NAME``, ``hf:NAME/CONFIG:SPLIT``, ``hf:FOLDER``.

Samples stay in the library's memory-mapped files and are read one by one.

Legend: n rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.labels import DEFAULT_COLUMN, Chosen
from perceivers.data.manifests import as_array, describe_missing, label_rows
from perceivers.data.media_kinds import KINDS, LISTED, TEXT, name_modalities
from perceivers.data.pictures import read_bytes
from perceivers.data.row_source import Column, Found, Part, RowSource, settle_missing
from perceivers.data.sound_tracks import add_sound
from perceivers.data.sources import Encoded
from perceivers.data.tables import SPLIT_WORDS, Table
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.foreign import read_int

HUGGING_FACE = "hf:"
FEATURES = {"Image": "image", "Audio": "audio", "Video": "video"}
# Files that mark a folder written by ``save_to_disk``.
SAVED = ("dataset_dict.json", "state.json")
SCANNED_ROWS = 1000
SLICE = re.compile(r"(?P<name>[^\[]+)(?:\[(?P<first>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


@dataclass(frozen=True, eq=False)
class FeatureCells(Column):
    """Cells of one column of a data set.

    Args:
        table: The column, undecoded, as a ``datasets.Dataset``.
        column: Name of the column.
        kind: Kind of modality.
        where: Address and split, for messages.
        held: Which cells are not empty ``[n]``.
    """

    table: Any
    column: str
    kind: str
    where: str
    held: NDArray[np.bool_]

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return self.kind not in {"bytes", *LISTED} or self.kind == "audio"

    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells are not empty ``[n]``."""
        return self.held

    def load(self, row: int) -> Encoded | NDArray:
        """Return one cell: the bytes of a file, a text, or an array.

        Raises:
            DataError: A file that a cell names cannot be read.
        """
        cell = self.table[row][self.column]
        place = f"{self.where}/{row}/{self.column}"
        if self.kind == "bytes":
            return np.frombuffer(cell.encode("utf-8", "surrogateescape"), np.uint8)
        if isinstance(cell, dict):
            if cell["bytes"] is None:
                return Encoded(cell["path"], read_bytes(cell["path"]))
            return Encoded(f"{place} ({cell['path']})" if cell["path"] else place, cell["bytes"])
        array = as_array(cell, self.kind, place)
        assert array is not None, place
        return array


def read_hugging_face(address: str, chosen: Chosen) -> Found:
    """Open a data set that is on this machine, or that the library may download.

    Columns of images, audio and videos are modalities, and so are texts of the column ``text`` (or
    of the only text column, if there is nothing else) and numbers of ``points`` and ``array``. A
    split named ``validation`` becomes ``val``; the split that an address names becomes ``train``,
    and so does an only split.

    Args:
        address: ``hf:`` and the name of a data set or the path of a folder, optionally with a
            split: ``hf:owner/name/config:train[:1000]``.
        chosen: Label columns, by default ``label`` or the only column of classes; and columns of
            numbers.

    Raises:
        DataError: The data set is neither on this machine nor available, or has no modality.
        ConfigError: A split or a column that does not exist.
    """
    name, wanted = _parse(address)
    splits, notes = _choose_splits(_load(address, name), wanted, address)
    kinds, noted = _find_kinds(splits["train"], address)
    names = name_modalities(kinds)
    parts = {
        split: {
            names[column]: Part(kind, _make_cells(data, column, kind, f"{address}/{split}"))
            for column, kind in kinds.items()
        }
        for split, data in splits.items()
    }
    parts, _ = add_sound(parts, last=True)
    chosen, told = _choose_labels(splits["train"], list(kinds), chosen)
    tables = {s: _read_plain(data, s, list(kinds), chosen) for s, data in splits.items()}
    for split in [split for split in tables if split != "train"]:
        if _hides_labels(tables[split], chosen):
            del tables[split]
            told.append(f"{split}: has no labels, so it is left out")
    rows = {s: RowSource(parts[s], table.rows, table.names) for s, table in tables.items()}
    sources = settle_missing(rows)
    found = label_rows(sources, tables, list(kinds), chosen, address)
    every = (*notes, *noted, *told, *describe_missing(sources), *found.notes)
    return found._replace(notes=every)


def _parse(address: str) -> tuple[str, str]:
    """Return the name or path of a data set, and the requested split, empty if there is none."""
    rest = address.removeprefix(HUGGING_FACE).strip()
    if not rest:
        raise DataError(
            f"data address {address!r} has no name; give 'hf:owner/name', 'hf:owner/name/config' "
            f"or 'hf:FOLDER'"
        )
    if Path(rest).expanduser().exists():
        return rest, ""
    name, _, split = rest.partition(":")
    return name, split


def _load(address: str, name: str) -> Mapping[str, Any]:
    try:
        library = import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{address}: needs the package 'datasets', which cannot be imported ({error}); run "
            f'pip install "perceivers[hub]"'
        ) from error
    path = Path(name).expanduser()
    # The library and its readers of file formats raise all kinds of exceptions.
    try:
        if any((path / mark).is_file() for mark in SAVED):
            loaded = library.load_from_disk(str(path))
        elif path.exists():
            loaded = library.load_dataset(str(path))
        else:
            loaded = _load_named(library, name)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        offline = isinstance(error, ConnectionError)
        raise DataError(
            f"{address}: cannot be opened ({reason})"
            + (
                "; it is not on this machine: load it once where there is a network, save it with "
                "save_to_disk, and give 'hf:FOLDER'"
                if offline
                else "; check the name: 'hf:owner/name', 'hf:owner/name/config' or 'hf:FOLDER'"
            )
        ) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _load_named(library: Any, name: str) -> Any:
    """Load from the Hub: ``owner/name/config``, ``owner/name``, or ``name/config``."""
    owner, _, rest = name.partition("/")
    short, _, config = rest.partition("/")
    if config:
        return library.load_dataset(f"{owner}/{short}", config)
    try:
        return library.load_dataset(name)
    except library.exceptions.DatasetNotFoundError:
        if not rest:
            raise
        return library.load_dataset(owner, rest)


def _choose_splits(
    found: Mapping[str, Any], wanted: str, address: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the data by our names of splits, and notes on splits that are left out."""
    if wanted:
        match = SLICE.fullmatch(wanted)
        split = match["name"] if match else wanted
        if match is None or split not in found:
            raise ConfigError(
                f"{address}: split {wanted!r} is asked for, but the splits are "
                f"{', '.join(found)}{suggest(split, found)}; write one of them, or a part of it "
                f"such as '{next(iter(found))}[:1000]' or '[:10%]'"
            )
        data = found[split]
        first, end = (_count(match[key], len(data)) for key in ("first", "end"))
        rows = range(len(data))[first:end]
        if not len(rows):
            raise ConfigError(f"{address}: {wanted!r} is empty; the split has {len(data)} rows")
        return {"train": data.select(rows)}, []
    splits: dict[str, Any] = {}
    for name in sorted(found, key=lambda name: name != "train"):
        split = SPLIT_WORDS.get(name)
        if split is not None:
            splits.setdefault(split, found[name])
    if "train" not in splits and len(found) == 1:
        return {"train": next(iter(found.values()))}, []
    if "train" not in splits:
        raise DataError(
            f"{address}: the splits are {', '.join(found)}, and none is 'train'; say which one to "
            f"train on: '{address}:{next(iter(found))}'"
        )
    others = [name for name in found if not any(found[name] is data for data in splits.values())]
    notes = [f"splits that are left out: {', '.join(others)}"] if others else []
    return splits, notes


def _count(text: str | None, total: int) -> int | None:
    """Return one end of a slice as a row number."""
    if text is None:
        return None
    if text.endswith("%"):
        return round(read_int(text[:-1], "a percentage of rows", error=ConfigError) / 100 * total)
    return read_int(text, "a number of rows", error=ConfigError)


def _find_kinds(data: Any, address: str) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each column that is a modality, and notes."""
    kinds: dict[str, str] = {}
    for name, feature in data.features.items():
        own = KINDS.get(name.lower())
        if (feature_name := type(feature).__name__) in FEATURES:
            kinds[name] = FEATURES[feature_name]
        elif (own in LISTED and _is_list(feature)) or (own == "bytes" and _is_text(feature)):
            kinds[name] = own
    if kinds:
        return kinds, []
    texts = [name for name, feature in data.features.items() if _is_text(feature)]
    if len(texts) != 1:
        raise DataError(
            f"{address}: no column is a modality; the columns are {list(data.features)}, but "
            f"modalities are images, audio, videos, a column {TEXT!r}, or numbers in 'points' or "
            f"'array'; rename one"
        )
    return {texts[0]: "bytes"}, [f"the text is the column {texts[0]!r}"]


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in {"string", "large_string"}


def _is_list(feature: Any) -> bool:
    return type(feature).__name__ in {"List", "LargeList", "Sequence", "list"} or bool(
        re.fullmatch(r"Array\dD", type(feature).__name__)
    )


def _make_cells(data: Any, column: str, kind: str, where: str) -> Column:
    feature = data.features[column]
    if type(feature).__name__ in FEATURES:
        # The library would decode whole files; our readers decode only what is needed.
        data = data.cast_column(column, type(feature)(decode=False))
    table = data.select_columns([column]).with_format(None)
    held: list[NDArray[np.bool_]] = []
    for batch in table.with_format("arrow").iter(SCANNED_ROWS):
        held.append(_find_held(batch.column(0)))
    return FeatureCells(table, column, kind, where, np.concatenate(held))


def _find_held(column: Any) -> NDArray[np.bool_]:
    """Tell which cells of an Arrow column are not empty, without reading the contents."""
    arrow, compute = import_module("pyarrow"), import_module("pyarrow.compute")
    held = column.is_valid()
    if arrow.types.is_struct(column.type):
        inner = [compute.struct_field(column, field).is_valid() for field in ("bytes", "path")]
        held = compute.and_(held, compute.or_(*inner))
    elif arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        held = compute.and_(held, compute.fill_null(compute.greater(_length(column), 0), False))
    return held.to_numpy(zero_copy_only=False).astype(np.bool_)


def _length(column: Any) -> Any:
    return import_module("pyarrow.compute").binary_length(column)


def _choose_labels(data: Any, media: Sequence[str], chosen: Chosen) -> tuple[Chosen, list[str]]:
    """Use the only class column if no label is chosen and no column is named ``label``."""
    classed = [
        name
        for name, feature in data.features.items()
        if type(feature).__name__ == "ClassLabel" and name not in {*media, *chosen.targets}
    ]
    if chosen.labels or DEFAULT_COLUMN in data.features or len(classed) != 1:
        return chosen, []
    return chosen._replace(labels=tuple(classed)), [f"the label is the column {classed[0]!r}"]


def _read_plain(data: Any, split: str, media: Sequence[str], chosen: Chosen) -> Table:
    """Return the columns that may be labels or numbers; text columns only if requested."""
    asked = {*chosen.labels, *chosen.targets, DEFAULT_COLUMN}
    columns: dict[str, list[Any]] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for name, feature in data.features.items():
        if name in media or not hasattr(feature, "dtype") or _is_list(feature):
            continue
        if _is_text(feature) and name not in asked:
            continue
        arrow = data.select_columns([name]).with_format("arrow")[:]
        values = arrow.column(0).to_pylist()
        if type(feature).__name__ == "ClassLabel":
            classes[name] = tuple(feature.names)
            # Test splits without labels use -1.
            values = [None if value == -1 else value for value in values]
        columns[name] = values
    rows = np.arange(len(data))
    return Table(Path(split), columns, rows, rows, {}, classes)


def _hides_labels(table: Table, chosen: Chosen) -> bool:
    """Tell whether a split has no labels at all, like test splits of competitions."""
    asked = chosen.labels or (DEFAULT_COLUMN,)
    known = [name for name in asked if name in table.columns and name not in chosen.targets]
    return bool(known) and all(value is None for name in known for value in table.columns[name])
