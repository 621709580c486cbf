"""Convert released parameters to model folders, and verify them against stored outputs."""

from dataclasses import dataclass
from pathlib import Path

from perceivers.checkpoints.bundle import parse_datasets, read_bundle, read_json, require
from perceivers.checkpoints.haiku import model_from_haiku
from perceivers.checkpoints.loading import load
from perceivers.checkpoints.unpickle import read_parameter_pickle
from perceivers.checkpoints.verify import Difference, verify_bundle
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models.saving import ModelInfo

PICKLES = {".pickle", ".pkl", ".pystate"}


@dataclass(frozen=True)
class Conversion:
    """A written model folder, and how its outputs compare (empty when not verified)."""

    folder: Path
    parameters: int
    differences: list[Difference]

    @property
    def is_verified(self) -> bool:
        """Whether outputs were compared and all agree."""
        return bool(self.differences) and all(d.is_within for d in self.differences)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    verify: bool = False,
    config: str | Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a parity bundle (``.npz``) or a Haiku parameter pickle to a model folder.

    Args:
        source: Bundle, or pickle (read without executing anything in it).
        out: Model folder to write.
        verify: Load the written folder, run it on the bundle's inputs, compare with its outputs.
        config: For a pickle: JSON with ``model``, ``kwargs`` and ``datasets`` as in a bundle.
        overwrite: Replace a model already in ``out``.

    Raises:
        UserError: The source is damaged or incomplete, or the parameters do not fit.
    """
    source, out = Path(source), Path(out)
    if not source.is_file():
        raise CheckpointError(f"{source} does not exist or is not a file")
    provenance = {"source": source.name, "converted_from": "Haiku parameters"}
    info = ModelInfo(license="as stated by the source of the parameters", provenance=provenance)
    if source.suffix in PICKLES:
        if verify:
            raise ConfigError(
                "a parameter pickle holds no outputs to verify against; use a parity bundle (.npz)"
            )
        if config is None:
            raise ConfigError(
                "a parameter pickle says nothing about its model; give --config with a JSON file "
                "holding 'model', 'kwargs' and 'datasets' as in a parity bundle"
            )
        path = Path(config)
        try:
            stated = read_json(path.read_text(), str(path))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        model = model_from_haiku(
            read_parameter_pickle(source),
            require(stated, "model", str(path)),
            require(stated, "kwargs", str(path)),
            parse_datasets(stated, str(path)),
        )
        bundle = None
    elif source.suffix == ".npz":
        bundle = read_bundle(source)
        model = model_from_haiku(bundle.params, bundle.model, bundle.kwargs, bundle.datasets)
    else:
        raise CheckpointError(
            f"{source}: cannot convert '{source.suffix}' files; give a parity bundle (.npz) or a "
            f"Haiku parameter pickle ({', '.join(sorted(PICKLES))})"
        )
    model.save_pretrained(out, info=info, overwrite=overwrite)
    differences = verify_bundle(load(out), bundle) if verify and bundle is not None else []
    return Conversion(out, sum(p.numel() for p in model.parameters()), differences)
