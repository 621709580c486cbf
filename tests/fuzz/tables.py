"""Kinds of tables, JSON lines and YAML."""

import json
import os
from pathlib import Path

import numpy as np
from tests.fuzz.bench import Bench, kind

import perceivers as pv

WORDS = ("red", "green", "blue", "round", "square", "long", "short", "caf\u00e9", "stra\u00dfe")
DEEP = "[" * 100_000 + "]" * 100_000


def texts(bench: Bench, count: int) -> list[str]:
    """Return texts that all differ and hold letters beyond ASCII."""
    return [
        f"{number} {bench.pick(*WORDS)} caf\u00e9 {bench.pick(*WORDS)}" for number in range(count)
    ]


def table(bench: Bench, classes: str = "ab") -> str:
    """Return a table of texts in two classes."""
    lines = [f"{text},{classes[number % 2]}" for number, text in enumerate(texts(bench, 24))]
    return "\n".join(["text,label", *lines]) + "\n"


@kind
def labels_in_another_encoding(bench: Bench) -> None:
    """Labels that are not UTF-8 are refused with the file, and the line or the encoding."""
    path = bench.folder / "topics.csv"
    encoding = bench.pick("cp1252", "latin-1", "utf-16", "utf-16-le", "utf-32")
    path.write_bytes(table(bench, "a\u00e9").encode(encoding))
    says = (r"topics\.csv", r"line 3|UTF-16|UTF-32|zero byte")
    bench.refuse("data", "check", path, says=says)


@kind
def texts_in_another_encoding(bench: Bench) -> None:
    """Texts are bytes in any 8-bit encoding; the check counts those that are not UTF-8."""
    path = bench.folder / "topics.csv"
    path.write_bytes(table(bench).encode(bench.pick("cp1252", "latin-1", "cp1250")))
    outcome = bench.call("data", "check", path)
    assert outcome.code == 0, outcome
    assert "24 not in UTF-8" in outcome.out, outcome


@kind
def table_with_a_byte_order_mark(bench: Bench) -> None:
    """A table in UTF-8 is the same with and without a byte order mark."""
    text = table(bench)
    found = []
    for name, encoding in (("plain.csv", "utf-8"), ("marked.csv", "utf-8-sig")):
        path = bench.folder / name
        path.write_bytes(text.encode(encoding))
        data = pv.open_data(str(path))
        found.append((data.classes, {split: len(rows) for split, rows in data.splits.items()}))
    assert found[0] == found[1]
    assert list(found[0][0]) == ["a", "b"]


@kind
def table_whose_cells_name_no_image(bench: Bench) -> None:
    """A cell that names a device, a pipe, a folder or nothing is a broken sample, by its name."""
    from tests.fuzz.signals import encode, pixels

    rows = []
    for number in range(24):
        (bench.folder / f"{number}.png").write_bytes(encode(pixels(bench), "PNG"))
        rows.append(f"{number}.png,{'ab'[number % 2]}")
    os.mkfifo(bench.folder / "pipe.png")
    (bench.folder / "folder.png").mkdir()
    bad = bench.pick("/dev/zero", "pipe.png", "folder.png", "gone.png", "a" * 300 + ".png")
    rows.insert(bench.whole(0, 24), f"{bad},a")
    path = bench.folder / "photos.csv"
    path.write_text("\n".join(["image,label", *rows]) + "\n")
    outcome = bench.call("data", "check", path)
    said = outcome.out + outcome.err
    assert bad[:100] in said, outcome
    # A table that names files that are not there is refused as a whole, or counts them as broken.
    assert outcome.code == 2 or "broken: " in outcome.out, outcome


@kind
def table_with_ids_for_labels(bench: Bench) -> None:
    """Whole numbers without 0..n-1 name the classes; those that run from 0 are the classes."""
    count = bench.whole(2, 6)
    start, step = bench.pick((0, 1), (1, 1), (-1, 2), (1007, 1000), (10**12, 7))
    ids = [start + step * number for number in range(count)]
    rows = [f"text {number},{ids[number % count]}" for number in range(12 * count)]
    path = bench.folder / "ids.csv"
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    assert list(pv.open_data(str(path)).classes) == [str(each) for each in ids]


@kind
def json_line_that_is_none(bench: Bench) -> None:
    """A line that no JSON parser takes is refused, with its number."""
    lines = [json.dumps({"text": t, "label": "ab"[n % 2]}) for n, t in enumerate(texts(bench, 24))]
    place = bench.whole(0, 24)
    lines[place] = bench.pick(
        '{"text": "x", "label": ' + "7" * 5000 + "}",
        '{"text": ' + DEEP + ', "label": "a"}',
        '{"text": "x", "label": "a"',
        '{"text": "x", "label": NaN}',
        '{"text": "x", "label": "\\ud800"}',
        '{"text": "x", "label": 1e999}',
        '{"text": "x", "label": "a", "label": "b"}',
        "[1, 2]",
        "nonsense",
    )
    path = bench.folder / "topics.jsonl"
    path.write_text("\n".join(lines) + "\n")
    bench.refuse("data", "check", path, says=(r"topics\.jsonl", rf"\b{place + 1}\b"))


@kind
def settings_file_that_is_none(bench: Bench) -> None:
    """A YAML file of settings that cannot be read is refused by name, before anything is made."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for here, there in zip("bcdefgh", "abcdefg", strict=True):
        bomb += f"{here}: &{here} [{', '.join([f'*{there}'] * 10)}]\n"
    content = bench.pick(
        bomb.encode(),
        b"steps: " + b"[" * 5000,
        b"seed: 2001-99-99\n",
        b"steps: 3\nsteps: 4\n",
        b"model: !!python/object/apply:os.system [true]\n",
        b"steps: !!int abc\n",
        b"model: caf\xe9\n",
        b"\xff\xfe" + "steps: 3\n".encode("utf-16-le"),
        b"- a\n- b\n",
        b"steps: {\n",
        bench.noise(200),
    )
    (bench.folder / "mine.yaml").write_bytes(content)
    bench.refuse(
        *("train", "--config", "mine.yaml", "--model", "hip_nano", "--data", "digits"),
        *("--out", "run"),
        says=(r"mine\.yaml",),
    )
    assert not Path("run").exists()


@kind
def answer_that_a_spreadsheet_would_run(bench: Bench) -> None:
    """Text cells of our tables that begin like formulas are escaped; numbers stay numbers."""
    name = bench.pick("=1+1", "@x", "+a", "-b", "=HYPERLINK(1)") + str(bench.whole(0, 99))
    root = bench.folder / "new"
    root.mkdir()
    from tests.fuzz.signals import encode

    image = bench.rng.integers(0, 256, (8, 8), dtype=np.uint8)
    os.chdir(root)
    Path(f"{name}.png").write_bytes(encode(image, "PNG"))
    run = bench.runs / "finished" / "classify_hip" / "model"
    outcome = bench.call("predict", run, f"./{name}.png", "--out", "answers.csv")
    assert outcome.code == 0, outcome
    cells = Path("answers.csv").read_text().splitlines()[1].split(",")
    assert not any(cell.lstrip('"').startswith(("=", "@")) for cell in cells), cells
    assert any(cell.replace(".", "", 1).isdigit() for cell in cells), cells
