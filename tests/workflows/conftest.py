"""One short run of every task, made when a test first asks for it."""

from pathlib import Path

import pytest
from tests.workflows import making

import perceivers as pv

TEXT = {"bytes": {"length": 32}}
CLIP = {"video": {"frames": 2, "height": 8, "width": 8}, "audio": {"samples": 64}}
FRAMES = {"video": {"height": 16, "width": 20}}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every kind."""
    root = tmp_path_factory.mktemp("made")
    making.write_texts(root / "texts.csv")
    making.write_one_label(root / "topics.csv", ("sky", "wood", "home"))
    making.write_one_label(root / "moods.csv", ("sad", "glad"))
    making.write_clouds(root / "clouds.npz")
    making.write_clips(root / "clips")
    making.write_sounds(root / "sounds")
    making.write_photographs(root / "photographs")
    return root


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared runs go; tests that change one copy it first."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def mlm_run(made: Path, runs: Path) -> pv.Run:
    """Masked bytes."""
    return making.quietly(
        pv.pretrain,
        task="mlm",
        model=making.NANO,
        data=made / "texts.csv",
        out=runs / "mlm",
        inputs=TEXT,
    )


@pytest.fixture(scope="session")
def clip_run(made: Path, runs: Path) -> pv.Run:
    """Autoencoded films, sounds and labels."""
    return making.quietly(
        pv.pretrain,
        task="autoencode",
        model=making.NANO,
        data=made / "clips",
        out=runs / "clips",
        inputs=CLIP,
        model_options={"mask_tokens": True},
        autoencode={"points": 32},
    )


@pytest.fixture(scope="session")
def picture_run(made: Path, runs: Path) -> pv.Run:
    """Autoencoded pictures of which most is hidden."""
    return making.quietly(
        pv.pretrain,
        model=making.NANO,
        data=made / "photographs",
        out=runs / "pictures",
        size=8,
        autoencode={"points": 16, "mask_ratio": 0.75},
    )


@pytest.fixture(scope="session")
def text_run(made: Path, runs: Path) -> pv.Run:
    """A classifier of texts."""
    return making.quietly(
        pv.train,
        model=making.NANO,
        data=made / "topics.csv",
        out=runs / "topics",
        inputs=TEXT,
    )


@pytest.fixture(scope="session")
def cloud_run(made: Path, runs: Path) -> pv.Run:
    """A classifier of point sets."""
    return making.quietly(
        pv.train, model="perceiver_nano", data=made / "clouds.npz", out=runs / "clouds"
    )


@pytest.fixture(scope="session")
def multilabel_run(made: Path, runs: Path) -> pv.Run:
    """Both label columns at once."""
    return making.quietly(
        pv.train,
        task="multilabel",
        model=making.NANO,
        data=made / "texts.csv",
        out=runs / "multilabel",
        labels=["topic", "mood"],
        inputs=TEXT,
    )


@pytest.fixture(scope="session")
def multitask_run(made: Path, runs: Path) -> pv.Run:
    """A task per table."""
    return making.quietly(
        pv.train,
        task="multitask",
        model=making.NANO,
        data=f"{made / 'topics.csv'} + {made / 'moods.csv'}",
        out=runs / "multitask",
        inputs=TEXT,
    )


@pytest.fixture(scope="session")
def flow_run(made: Path, runs: Path) -> pv.Run:
    """Flow of warped photographs, in tiles of 16 x 20 pixels."""
    return making.quietly(
        pv.train,
        task="flow",
        model="perceiver_io_flow_tiny",
        data=f"warps:{made / 'photographs'}",
        out=runs / "flow",
        inputs=FRAMES,
        model_options={"trunk": {"depth": 1, "num_latents": 16}},
        max_flow=3.0,
        repeats=1,
    )
