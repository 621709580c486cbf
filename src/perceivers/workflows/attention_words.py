"""Answers in words: the class with its probability, the hidden byte, the flow, the value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perceivers.models.entity_set import EntitySet
from perceivers.models.saving import ModelInfo
from perceivers.report import style
from perceivers.tasks.base import is_answer
from perceivers.tasks.flow import FLOW_SCALE, TARGET
from perceivers.types import FIRST_BYTE, Labels
from perceivers.workflows.attention_maps import Answer

# Labels of a model that gives any number of them.
LISTED = 3
SHOWN_VALUES = 4
SURE = 0.9995


@dataclass(frozen=True)
class Speaker:
    """Says what a model's answers mean.

    Args:
        model: Whose answers.
        info: What travelled with it: its task and the names of its classes.
        flow_scale: Pixels per unit of a flow model's output.
    """

    model: Any
    info: ModelInfo
    flow_scale: float = FLOW_SCALE

    def say(self, answer: Answer, truth: Mapping[int, int]) -> str:
        """Return one answer in words.

        Args:
            answer: What the model returned.
            truth: Ids of bytes that were hidden here, by their place.
        """
        output = getattr(self.model.config, "outputs", {}).get(answer.output)
        if not bool(is_answer(answer.values.flatten())):
            return "no answer: it holds NaN or infinity"
        if isinstance(self.model, EntitySet):
            chance = float(answer.values.softmax(-1)[answer.index])
            return f"chosen: row {answer.index}, {show_chance(chance)}"
        if answer.output in getattr(self.model.config, "byte_outputs", ()):
            return _say_byte(answer, truth.get(answer.index))
        if answer.output == TARGET and self.info.task in {"", "flow"} and answer.modality:
            # Adding zero turns a rounded -0.0 into 0.0.
            values = self._at_the_mark(answer) * self.flow_scale
            right, down = (round(v, 1) + 0.0 for v in values.tolist())
            return f"flow at the cross: {right:.1f} px to the right, {down:.1f} px down"
        if output is not None and answer.modality and not self._is_label(answer.output):
            return f"{answer.output} at the mark: {self._say_values(answer)}"
        if self.info.task == "multilabel":
            return _say_labels(answer.values.sigmoid(), self.info.classes)
        names = self.info.columns.get(answer.output) or self.info.classes
        chance = answer.values.softmax(-1)
        best = int(chance.argmax())
        name = names[best] if len(names) == len(chance) else f"class {best}"
        words = f"{name}, {show_chance(float(chance[best]))}"
        return f"{answer.output}: {words}" if answer.output and self._is_one_of_many else words

    def _at_the_mark(self, answer: Answer) -> Tensor:
        """Values of the element in the middle, where a query answers a whole patch of them."""
        output = self.model.config.outputs[answer.output]
        middle = tuple(size // 2 for size in output.patch)
        return answer.values.reshape(*output.patch, output.channels)[middle]

    @property
    def _is_one_of_many(self) -> bool:
        return len(getattr(self.model.config, "outputs", {})) > 1

    def _is_label(self, output: str) -> bool:
        return isinstance(self.model.config.inputs.get(output), Labels)

    def _say_values(self, answer: Answer) -> str:
        """The first element of an answer, in the units of the raw input."""
        spec = self.model.config.inputs[answer.modality]
        values = answer.values[: spec.channels].reshape(1, 1, -1)
        adapter = self.model.adapter(answer.modality)
        if values.shape[-1] == spec.channels:
            values = values * adapter.std.to(values) + adapter.mean.to(values)
        shown = [style.number(value) for value in values.flatten()[:SHOWN_VALUES].tolist()]
        return ", ".join(shown)


def show_chance(chance: float) -> str:
    """Return a probability in percent, not to more digits than a reader wants."""
    return "over 99.9 %" if chance > SURE else style.percent(chance)


def show_byte(number: int) -> str:
    """Return an id as a reader knows it: the character, or the byte in hexadecimal."""
    if number < FIRST_BYTE:
        return f"special id {number}"
    char = chr(number - FIRST_BYTE)
    return repr(char) if char.isascii() and char.isprintable() else f"byte {number - FIRST_BYTE:#x}"


def _say_byte(answer: Answer, truth: int | None) -> str:
    chance = answer.values.softmax(-1)
    best = int(chance.argmax())
    hidden = "" if truth is None else f" (hidden: {show_byte(truth)})"
    return f"place {answer.index}{hidden}: {show_byte(best)}, {show_chance(float(chance[best]))}"


def _say_labels(chances: Tensor, names: Sequence[str]) -> str:
    """The likeliest of labels of which any number may hold."""
    best = torch.topk(chances, min(LISTED, len(chances)))
    found = []
    for chance, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        name = names[place] if len(names) == len(chances) else f"label {place}"
        found.append(f"{name} {show_chance(chance)}")
    return f"likeliest labels: {', '.join(found)}"
