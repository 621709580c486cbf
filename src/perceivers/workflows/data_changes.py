"""Before a run is resumed: are its data where they were, and are they the same?"""

from collections.abc import Callable
from functools import partial

from perceivers.data.fingerprints import compare_fingerprints, take_fingerprint
from perceivers.errors import DataError, RunError
from perceivers.training.config import TrainConfig
from perceivers.training.launching import ADDRESSES
from perceivers.training.run_folder import RunFolder, read_fingerprint, write_fingerprint
from perceivers.workflows.preparing import Prepared


def check_presence(folder: RunFolder, config: TrainConfig) -> None:
    """Refuse to resume without the data, or the model that training started from.

    Raises:
        RunError: They are not where the run's settings say.
    """
    for name, (_, is_there) in ADDRESSES.items():
        address = getattr(config, name)
        if not is_there(address):
            raise RunError(
                f"{folder.path}: there is no {name} at {address} any more; if it moved, say where "
                f"it is: perceivers resume {folder.path} --{name} ADDRESS"
            )


def compare_data(folder: RunFolder, prepared: Prepared, *, accept: bool) -> Callable[[], None]:
    """Compare the data with those that a run started on.

    Args:
        folder: Of the run.
        prepared: Holds the data; gets notes on what was found.
        accept: Go on with other data.

    Returns:
        What records the data, to be called when the run goes on.

    Raises:
        DataError: They differ, and ``accept`` is off.
    """
    found, before = take_fingerprint(prepared.dataset), read_fingerprint(folder)
    if before is None:
        prepared.notes.append(
            "this run kept no record of its data, so nobody can tell whether they changed; it "
            "keeps one from here on"
        )
        return partial(write_fingerprint, folder, found)
    differences = compare_fingerprints(before, found)
    if not differences:
        return lambda: None
    what = "; ".join(differences)
    if not accept:
        raise DataError(
            f"{folder.path}: the data are not those that the run started on: {what}. Restore them, "
            f"or go on with them as they are now: --accept_changed_data"
        )
    prepared.notes.append(f"the data changed, which was accepted: {what}")
    return partial(write_fingerprint, folder, found, accepted=differences)
