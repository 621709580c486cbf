"""Fingerprints of a run's data in its folder: ``data.json`` and ``data_names.json.gz``."""

import gzip
import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from perceivers.data.fingerprints import FORMAT, Fingerprint
from perceivers.errors import RunError
from perceivers.files import read_json_file, write_atomic, write_json
from perceivers.foreign import parse_json
from perceivers.limits import check_limit, get_limit
from perceivers.reading import read_file
from perceivers.training.run_folder import RunFolder

KEYS = ("classes", "columns", "targets", "mask_classes", "splits")


def write_fingerprint(
    folder: RunFolder, found: Fingerprint, *, accepted: list[str] | None = None
) -> None:
    """Write a fingerprint; changes that were accepted are kept in a list.

    Args:
        folder: Of the run.
        found: What to write.
        accepted: How these data differ from those before; None where nothing was accepted.
    """
    earlier = _read_digests(folder).get("accepted", []) if folder.data_record.exists() else []
    if accepted:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        earlier = [*earlier, {"time": now, "differences": accepted}]
    text = json.dumps(found.samples).encode()
    # Names first: the digests say whether they belong to them.
    write_atomic(folder.data_names, gzip.compress(text, compresslevel=1, mtime=0))
    record: dict[str, Any] = {**found.digests, "names_crc": zlib.crc32(text)}
    write_json(folder.data_record, {**record, "accepted": earlier})


def read_fingerprint(folder: RunFolder) -> Fingerprint | None:
    """Return the fingerprint that a run was started with; None for runs that have none.

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
            f"{folder.data_record} is no record of a run's data of format {FORMAT}; restore it, or "
            f"delete it to resume without comparing the data"
        )
    return found


def _unpack(folder: RunFolder) -> bytes:
    """Return the JSON of the names; empty where it is damaged, as it only makes messages."""
    packed = read_file(folder.data_names, limit="json", error=RunError)
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = unpacker.decompress(packed, get_limit("json"))
    except zlib.error:
        return b""
    if unpacker.unconsumed_tail:
        check_limit("json", get_limit("json") + 1, str(folder.data_names), error=RunError)
    return text
