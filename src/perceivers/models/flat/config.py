"""Token configs and JSON conversion for the flat model families, Perceiver and Perceiver IO."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perceivers.adapters.config import TokenConfig, build_nested
from perceivers.adapters.tokens import default_tokens
from perceivers.errors import ConfigError, suggest
from perceivers.types import ModalitySpec, spec_from_json, spec_to_json


def complete_tokens(
    inputs: Mapping[str, ModalitySpec], tokens: Mapping[str, TokenConfig]
) -> dict[str, TokenConfig]:
    """Return a token config for every modality, with defaults for those not in ``tokens``.

    Raises:
        ConfigError: There is no modality, its name is invalid, or ``tokens`` has an unknown one.
    """
    if not inputs:
        raise ConfigError("a model needs at least one input modality")
    # Names become keys of module dictionaries, which may not contain dots.
    if any("." in name or not name for name in inputs):
        raise ConfigError(f"modality names {list(inputs)} must be non-empty and without dots")
    unknown = sorted(tokens.keys() - inputs.keys())
    if unknown:
        raise ConfigError(
            f"tokens are described for {unknown}, but the inputs are {list(inputs)}"
            + suggest(unknown[0], inputs)
        )
    return {name: tokens.get(name) or default_tokens(spec) for name, spec in inputs.items()}


def choose_tokens(
    inputs: Mapping[str, ModalitySpec], settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, TokenConfig]:
    """Return a token config for every modality: from ``overrides``, else from the variant.

    Raises:
        ConfigError: A setting is invalid, or belongs to an unknown modality.
    """
    if "tokens" in overrides:
        tokens = overrides["tokens"]
    else:
        tokens = {n: t for n, t in settings.get("tokens", {}).items() if n in inputs}
    built = {name: build_nested(TokenConfig, entry) for name, entry in tokens.items()}
    return complete_tokens(inputs, built)


def config_to_json(config: Any) -> dict[str, Any]:
    """Convert a config to JSON-serialisable data; ``config_from_json`` is the inverse."""
    data = asdict(config)
    data["inputs"] = {name: spec_to_json(spec) for name, spec in config.inputs.items()}
    return data


def config_from_json(kind: Any, data: Mapping[str, Any], tables: Mapping[str, type]) -> Any:
    """Rebuild a config from the output of ``config_to_json``.

    Args:
        kind: Class of the config.
        data: JSON data.
        tables: Fields that hold configs by name -> class of these configs.

    Raises:
        ConfigError: A field is missing, unknown or invalid.
    """
    values = dict(data)
    try:
        if "inputs" in values:
            values["inputs"] = {n: spec_from_json(s) for n, s in values["inputs"].items()}
        for table, entry in tables.items():
            if table in values:
                values[table] = {
                    n: build_nested(entry, v, given=()) for n, v in values[table].items()
                }
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{kind.__name__} is malformed: {error}") from error
    return build_nested(kind, values, given=())
