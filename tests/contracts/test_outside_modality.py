"""A modality that is registered from outside is opened, trained on, drawn and written."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import perceivers as pv
from perceivers.cli.main import main
from perceivers.data import modality as data_rows
from perceivers.data.augment import Look
from perceivers.data.fitting import SampleReader
from perceivers.data.modality import Cut, Modality, RawFacts, register_modality
from perceivers.errors import ConfigError, DataError
from perceivers.models.masked import Imagined, MaskSettings
from perceivers.report import drawings as drawing_rows
from perceivers.report.by_modality import draw_rows
from perceivers.report.drawings import drawing_of, register_drawing
from perceivers.report.figures.samples import SampleBox, show_wave
from perceivers.report.html import Section
from perceivers.settings import Count, Finite, Positive
from perceivers.types import SPECS, ElementOrder, ModalitySpec, spec_from_json, spec_to_json

CHANNELS = 2
NAMES = ("rising", "square")


# -- The modality: its spec, and one row for each of the two tables ------------------------------


@dataclass(frozen=True)
class Signal(ModalitySpec):
    """Signals ``[B, S, C]`` of a sensor, in files of little-endian float32."""

    kind: ClassVar[str] = "signal"

    steps: Count
    channels: Count = CHANNELS
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    order: ElementOrder = field(default="in_place", repr=False)
    order_seed: int = field(default=0, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Steps."""
        return (self.steps,)


def decode(path: str, data: bytes) -> NDArray[np.float32]:
    if not data or len(data) % (4 * CHANNELS):
        raise DataError(f"{path}: {len(data)} bytes are not whole steps of a signal")
    return np.frombuffer(data, "<f4").reshape(-1, CHANNELS)


def fit(raw: NDArray, path: str, spec: Signal, look: Look) -> NDArray:
    """Read a part of a signal, with zeros after its end."""
    first = look.start(max(1, len(raw) - spec.steps + 1))
    part = raw[first : first + spec.steps]
    return np.pad(part, ((0, spec.steps - len(part)), (0, 0)))


def invert(values: NDArray, spec: Signal, look: Look) -> NDArray:
    if look.rng is None or not look.augment.invert:
        return values
    return -values if look.rng.random() < 0.5 else values


def inspect(raw: NDArray, path: str, cut: Cut) -> RawFacts:
    flags = () if np.ptp(raw) else ("constant",)
    return RawFacts({"steps": len(raw)}, {"channels": str(raw.shape[1])}, flags)


ROW = Modality(
    spec=Signal,
    fit=fit,
    native=lambda raw, ragged: Signal(raw.shape[0], raw.shape[1]),
    merge=lambda found: max(found, key=lambda spec: spec.steps),
    varies=True,
    is_valid=lambda raw, name, spec: raw.ndim == 2 and raw.shape[1] == spec.channels,
    augment=invert,
    augmented_as=("audio",),
    inspect=inspect,
    noun="signal",
    endings=(".toy",),
    decode=decode,
)


def draw(box: SampleBox, name: str, mask: Any, num_classes: int) -> list[Any]:
    return [show_wave(box.arrays[name].T)]


def write(
    folder: Path, stem: str, spec: Signal, signal: Tensor, frame_step: int, sound: Any
) -> list[Path]:
    path = folder / f"{stem}.toy"
    path.write_bytes(signal.numpy().astype("<f4").tobytes())
    return [path]


def section(folder: Path, imagined: Imagined, settings: MaskSettings) -> Section:
    names = [f"sample {number}" for number in range(len(imagined.original))]
    _, steps, channels = imagined.original.shape
    spec = Signal(steps, channels)
    path = draw_rows(folder / "signals.png", [(imagined, names)], spec, "Signals", "Held-out.")
    return Section(title="Reconstructed signals", figures=[(path, "Held-out signals.")])


@pytest.fixture
def registered() -> Iterator[None]:
    register_modality(ROW)
    own = {
        "draw": draw,
        "compare": lambda signal, original: [show_wave(signal.T)],
        "write": write,
        "example": section,
    }
    register_drawing(replace(drawing_of("array"), kind=Signal.kind, **own))
    yield
    del data_rows._ROWS[Signal.kind], SPECS[Signal.kind], drawing_rows._ROWS[Signal.kind]


@pytest.fixture
def signals(tmp_path: Path) -> Path:
    """Twenty labelled files, of 32 steps and more."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        folder = tmp_path / "signals" / name
        folder.mkdir(parents=True)
        for number in range(10):
            time = np.linspace(-0.9, 0.9, 32 + 2 * (number % 3))[:, None]
            values = np.sign(time) * 0.5 if label else time
            noisy = values + rng.normal(0, 0.05, (len(time), CHANNELS))
            (folder / f"{number}.toy").write_bytes(noisy.astype("<f4").tobytes())
    return tmp_path / "signals"


# -- What it is good for -------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_a_modality_from_outside_is_read_like_any_other(
    signals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="'signal' exists already"):
        register_modality(ROW)
    with pytest.raises(ConfigError, match="'signal' are drawn already"):
        register_drawing(drawing_rows.drawings()[Signal.kind])
    data = pv.open_data(str(signals))
    assert data.classes == NAMES
    specs = data.specs()
    spec = specs["signal"]
    assert isinstance(spec, Signal)
    assert (spec.steps, len(spec.mean)) == (36, CHANNELS)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
    assert data.read("train", 0)["signal"].shape == (36, CHANNELS)
    (signals / NAMES[0] / "broken.toy").write_bytes(b"abc")
    assert main(["data", "check", str(signals), "--preview", str(tmp_path / "sheets")]) == 0
    said = capsys.readouterr().out
    assert "3 bytes are not whole steps of a signal" in said
    assert "steps" in said
    assert list((tmp_path / "sheets").glob("*.png"))


@pytest.mark.usefixtures("registered")
def test_a_modality_from_outside_is_read_from_tars_and_tables(
    signals: Path, tmp_path: Path
) -> None:
    """Beside images of the same names, which become a second modality."""
    files = sorted(signals.rglob("*.toy"))
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture, "png")
    rows = ["measured,label"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, file in enumerate(files):
            parts = {
                "toy": file.read_bytes(),
                "png": picture.getvalue(),
                "cls": b"%d" % (number % 2),
            }
            for ending, data in parts.items():
                info = tarfile.TarInfo(f"{number:02}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            rows.append(f"{file},{number % 2}")
    (tmp_path / "x.csv").write_text("\n".join(rows) + "\n")
    for address, names in (("x.tar", {"image", "signal"}), ("x.csv", {"signal"})):
        data = pv.open_data(str(tmp_path / address))
        assert data.classes == ("0", "1")
        assert set(data.specs()) == names
        assert np.isfinite(data.read("val", 0)["signal"]).all()


@pytest.mark.usefixtures("registered")
def test_a_modality_from_outside_is_augmented_by_its_own_settings(signals: Path) -> None:
    source = pv.open_data(str(signals)).splits["train"]
    spec = {"signal": Signal(16)}
    reader = SampleReader(source, spec, pv.AugmentConfig(invert=True))
    means = {float(np.sign(reader(0, np.random.default_rng(n))["signal"][0, 0])) for n in range(20)}
    assert means == {-1.0, 1.0}
    plain = reader(0)["signal"]
    assert np.array_equal(plain, reader(0)["signal"])
    with pytest.raises(ConfigError, match=r"augment\.flip changes image and video"):
        SampleReader(source, spec, pv.AugmentConfig(flip=True))


@pytest.mark.usefixtures("registered")
def test_a_modality_from_outside_is_reconstructed_and_written(
    signals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = pv.pretrain(
        model="hip_nano", data=str(signals), out=str(out), steps=3, batch_size=4, quiet=True
    )
    assert run.task == "pretrain"
    assert "Reconstructed signals" in (out / "report.html").read_text()
    assert (out / "figures" / "signals.png").is_file()
    model = pv.load(out)
    assert isinstance(model.config.data_inputs["signal"], Signal)
    file = next((signals / NAMES[0]).glob("*.toy"))
    written = pv.reconstruct(out, [file], tmp_path / "made")
    kinds = {f"{file.stem}_{kind}.toy" for kind in ("original", "masked", "reconstructed")}
    assert {path.name for path in written} == {*kinds, "overview.png"}
    original = decode("x", (tmp_path / "made" / f"{file.stem}_original.toy").read_bytes())
    whole = fit(decode("x", file.read_bytes()), "x", Signal(36), Look())
    assert np.allclose(original, whole, atol=1e-5)


@pytest.mark.usefixtures("registered")
def test_a_modality_from_outside_is_classified(
    signals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    common = ["--data", str(signals), "--out", out, "--steps", "3", "--batch_size", "4", "--quiet"]
    assert main(["train", "--model", "hip_nano", *common]) == 0
    assert "<img" in (tmp_path / "run" / "report.html").read_text()
    assert 0 <= pv.evaluate(out, split="val").figures["top1"] <= 1
    file = next((signals / NAMES[1]).glob("*.toy"))
    (record,) = pv.predict(out, [file])
    assert record["class"] in NAMES
    folder = list(pv.predict(out, [signals]))
    assert len(folder) == 20
    assert torch.isfinite(torch.tensor([each["probability"] for each in folder])).all()
    assert main(["explain", out, str(file), "--out", str(tmp_path / "maps")]) == 0
    assert list((tmp_path / "maps").glob("*.png"))


def test_without_its_row_a_modality_is_unknown(signals: Path) -> None:
    with pytest.raises(DataError, match="no images, audio, videos or point clouds among 20 files"):
        pv.open_data(str(signals))
    with pytest.raises(ConfigError, match="modality type 'signal' is unknown"):
        spec_from_json({"type": "signal", "steps": 3})
