"""Building and describing the configs of the flat systems as plain data."""

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
    """Return how every modality becomes tokens, by default where nothing is said.

    Raises:
        ConfigError: There is no modality, a name has a dot, or tokens speak of an unknown one.
    """
    if not inputs:
        raise ConfigError("a model needs at least one input modality")
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
    """Return how every modality becomes tokens: as asked, else as the variant has it.

    Raises:
        ConfigError: A setting is impossible, or speaks of an unknown modality.
    """
    if "tokens" in overrides:
        tokens = overrides["tokens"]
    else:
        tokens = {n: t for n, t in settings.get("tokens", {}).items() if n in inputs}
    built = {name: build_nested(TokenConfig, entry) for name, entry in tokens.items()}
    return complete_tokens(inputs, built)


def config_to_json(config: Any) -> dict[str, Any]:
    """Return a config as plain data."""
    data = asdict(config)
    data["inputs"] = {name: spec_to_json(spec) for name, spec in config.inputs.items()}
    return data


def config_from_json(kind: Any, data: Mapping[str, Any], tables: Mapping[str, type]) -> Any:
    """Rebuild a config whose inputs are specs and whose ``tables`` hold configs by name.

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
