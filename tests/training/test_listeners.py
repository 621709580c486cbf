"""Records of a run: unreadable samples are kept, once each, and cut back with the run."""

import json
from pathlib import Path

from perceivers.training.events import Event, Noted, Started, Unreadable, UnreadableWriter


def write(path: Path, *events: Event) -> list[dict[str, object]]:
    writer = UnreadableWriter(path)
    for event in events:
        writer(event)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_unreadable_sample_is_recorded_once(tmp_path: Path) -> None:
    bad = Unreadable(2, "train", "cat/1.png: cannot be decoded: header")
    found = write(tmp_path / "u", Started(0, 9), bad, bad, Noted("x"), Unreadable(4, "val", "a: b"))
    assert found == [
        {
            "step": 2,
            "split": "train",
            "sample": "cat/1.png",
            "reason": "cannot be decoded: header",
        },
        {"step": 4, "split": "val", "sample": "a", "reason": "b"},
    ]


def test_a_resumed_run_repeats_nothing_and_drops_later_records(tmp_path: Path) -> None:
    path = tmp_path / "u"
    early, late = (Unreadable(step, "train", f"{step}.png: torn") for step in (3, 5))
    write(path, Started(0, 9), early, late)
    resumed = write(path, Started(4, 9), early)
    assert [record["sample"] for record in resumed] == ["3.png"]
    assert [r["sample"] for r in write(path, Started(4, 9), late)] == ["3.png", "5.png"]


def test_a_run_without_unreadable_samples_has_no_file(tmp_path: Path) -> None:
    assert write(tmp_path / "u", Started(0, 9), Noted("fine")) == []
    assert not (tmp_path / "u").exists()
