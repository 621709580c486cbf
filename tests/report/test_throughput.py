"""The figure of a bench: any number of models, sizes and ends."""

from pathlib import Path

import pytest
from PIL import Image

from perceivers.report.figures import throughput
from perceivers.report.figures.throughput import Line, draw_throughput

MANY = {
    f"model number {i} with a long name": Line(
        [224, 384, 512, 1024], [0.1 + i, 0.2, 0.4, 1.0], [1.0, 1.1, 1.5, 3.0], 2048
    )
    for i in range(9)
}


@pytest.mark.parametrize(
    "lines",
    [
        MANY,
        {"a": Line([8], [0.01], [0.2])},
        {"a": Line([8, 16], [0.01, 0.01], [0.2, 0.2]), "b": Line([], [], [], 8)},
        {"a": Line([], [], [], None)},
    ],
    ids=["many", "one size", "nothing of one", "nothing"],
)
def test_whatever_was_measured_is_drawn(
    lines: dict[str, Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput.style, "DPI", 40)
    passes = {"Training step": lines, "Forward pass": lines}
    if len(lines) > 2:
        del passes["Forward pass"]
    path = draw_throughput(tmp_path / "a.png", passes=passes, limits=(4.0,), title="t")
    with Image.open(path) as image:
        width, height = image.size
    assert (height > 0.8 * width) == (len(passes) == 2)


def test_labels_of_near_sizes_do_not_touch() -> None:
    assert throughput._apart([224, 230, 384, 4096], 1000.0, 0.1) == [224, 384, 4096]
    assert throughput._apart([], 10.0, 0.1) == []
    texts = [throughput._short(count) for count in (64, 50_176, 1_048_576, 16_777_216)]
    assert texts == ["64", "50.2 k", "1.05 M", "16.8 M"]
