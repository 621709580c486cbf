"""End-to-end demo on built-in real data: pre-train, fine-tune, test and report.

Uses scikit-learn's 1,797 scanned digits of 8 x 8 pixels, so it needs no network. Classical
baselines are fitted on the same split for comparison; on data this small they are strong.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data import Source, open_data
from perceivers.errors import RunError
from perceivers.report.console import Shown
from perceivers.report.html import HtmlTable, Section, write_html
from perceivers.settings import Natural, Range, checked
from perceivers.tasks import ClassificationConfig, MaskedAutoencodingConfig
from perceivers.training.config import (
    ClassifyConfig,
    OptimizerConfig,
    PretrainConfig,
    ScheduleConfig,
)
from perceivers.version import __version__
from perceivers.workflows.by_task import masked
from perceivers.workflows.by_task.classification import classification_sections
from perceivers.workflows.reporting import (
    curves_section,
    open_report,
    overview_section,
    positions_section,
    settings_section,
)
from perceivers.workflows.run import Run
from perceivers.workflows.training import finetune, pretrain, train

DATA = "digits"
MODEL = "hip_nano"
PRETRAIN_STEPS = 700
FINETUNE_STEPS = 1800
FINETUNE_RATE = 2e-3
# Learning rates tried from scratch; the best on validation is reported.
SCRATCH_RATES = (1e-3, 2e-3, 4e-3)


@dataclass
class DemoResult:
    """Results of the demo.

    Attributes:
        report: Path of the HTML report.
        scores: Test accuracy (0..1) and seconds by method.
        is_dry: Whether this was a dry run, whose results are meaningless.
    """

    report: Path
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    is_dry: bool = False

    def summary(self) -> list[str]:
        """Return the results as lines for the console."""
        width = max(map(len, self.scores))
        lines = [f"test accuracy on {DATA}, the same held-out split for all:"]
        lines += [
            f"  {name:<{width}}  {100 * top1:6.2f} %   {seconds:6.1f} s"
            for name, (top1, seconds) in self.scores.items()
        ]
        if self.is_dry:
            lines.append("(a dry run: these numbers mean nothing)")
        return [*lines, f"report: {self.report}"]


def show(result: DemoResult) -> Shown:
    """Show the test accuracies."""
    return Shown(result.summary())


def pretrain_config(out: Path, seed: int, limit: int) -> PretrainConfig:
    """Return the settings of the demo's pre-training."""
    return PretrainConfig(
        model=MODEL,
        data=DATA,
        out=str(out),
        steps=PRETRAIN_STEPS,
        batch_size=64,
        seed=seed,
        limit=limit,
        optimizer=OptimizerConfig(lr=2e-3),
        mask=MaskedAutoencodingConfig(ratio=0.75),
        eval_every=200,
        checkpoint_every=200,
    )


def classify_config(
    model: str, out: Path, *, steps: int, lr: float, seed: int, limit: int
) -> ClassifyConfig:
    """Return the settings for fine-tuning, or for training from scratch."""
    return ClassifyConfig(
        model=model,
        data=DATA,
        out=str(out),
        steps=steps,
        batch_size=64,
        seed=seed,
        limit=limit,
        optimizer=OptimizerConfig(lr=lr, betas=(0.9, 0.99)),
        schedule=ScheduleConfig(warmup=0.05),
        loss=ClassificationConfig(label_smoothing=0.1, mixup=0.3),
        ema=0.998,
        model_options={"drop_path_rate": 0.1},
        eval_every=200,
        checkpoint_every=200,
    )


@checked
def run_demo(
    out: str | Path = "runs/demo",
    *,
    compare: bool = False,
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
    limit: Natural = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> DemoResult:
    """Pre-train, fine-tune and test a small HiP on scikit-learn's scanned digits.

    Args:
        out: Folder for the runs and ``report.html``.
        compare: Also train the same model from scratch for the same number of steps, with the
            learning rate that is best on validation.
        seed: Seed of all runs.
        limit: Dry run: at most this many steps per run; 0 means no limit.
        overwrite: Replace an earlier demo in ``out``.
        quiet: Print no progress.

    Raises:
        RunError: ``out`` is not empty and ``overwrite`` is off.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise RunError(f"{folder} already holds files; pass --overwrite or another --out")
    say = _silent if quiet else _say
    scores: dict[str, tuple[float, float]] = {}
    options = {"overwrite": overwrite, "quiet": quiet}
    began = time.perf_counter()
    say("1/3 pre-training by masked autoencoding")
    pretrained = pretrain(pretrain_config(folder / "pretrain", seed, limit), **options)
    say("2/3 fine-tuning")
    config = classify_config(
        str(pretrained.path),
        folder / "finetune",
        steps=FINETUNE_STEPS,
        lr=FINETUNE_RATE,
        seed=seed,
        limit=limit,
    )
    tuned = finetune(config, **options)
    say("3/3 testing on held-out digits")
    figures = tuned.evaluate()
    scores["HiP, pre-trained and fine-tuned"] = (figures["top1"], time.perf_counter() - began)
    if compare:
        scores |= compare_from_scratch(folder, seed, limit, options, say)
    scores |= classical_baselines(seed)
    result = DemoResult(folder / "report.html", scores, is_dry=bool(limit))
    write_demo_report(result, pretrained, tuned)
    tuned.write_report()
    return result


def _say(text: str) -> None:
    import sys

    sys.stderr.write(text + "\n")


def _silent(text: str) -> None:
    """Say nothing."""


def compare_from_scratch(
    folder: Path, seed: int, limit: int, options: dict[str, bool], say: Any
) -> dict[str, tuple[float, float]]:
    """Train from scratch for the same total number of steps; validation picks the learning rate."""
    total = PRETRAIN_STEPS + FINETUNE_STEPS
    best: tuple[float, Run, float, float] | None = None
    for lr in SCRATCH_RATES:
        say(f"from scratch, {total} steps, learning rate {lr:g}")
        began = time.perf_counter()
        config = classify_config(
            MODEL, folder / f"scratch_{lr:g}", steps=total, lr=lr, seed=seed, limit=limit
        )
        run = train(config, **options)
        value = run.evaluate(split="val")["top1"]
        if best is None or value > best[0]:
            best = (value, run, lr, time.perf_counter() - began)
    assert best is not None
    _, run, lr, seconds = best
    name = f"HiP from scratch, {total} steps (lr {lr:g} by validation)"
    return {name: (run.evaluate()["top1"], seconds)}


def flat_pixels(source: Source) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the images of a split as rows of pixels in 0..1, and their labels."""
    rows = [np.asarray(source.read(i)["image"], np.float64).ravel() for i in range(len(source))]
    assert source.labels is not None
    return np.stack(rows) / 255.0, np.asarray(source.labels)


def classical_baselines(seed: int) -> dict[str, tuple[float, float]]:
    """Fit three classical classifiers to the raw pixels of the same training split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    splits = open_data(DATA).splits
    train_x, train_y = flat_pixels(splits["train"])
    test_x, test_y = flat_pixels(splits["test"])
    scores = {}
    for name, model in (
        ("logistic regression on pixels", LogisticRegression(max_iter=2000, random_state=seed)),
        ("3 nearest neighbours", KNeighborsClassifier(3)),
        ("support vector machine", SVC(gamma="scale", random_state=seed)),
    ):
        began = time.perf_counter()
        accuracy = float(model.fit(train_x, train_y).score(test_x, test_y))
        scores[name] = (accuracy, time.perf_counter() - began)
    return scores


def write_demo_report(result: DemoResult, pretrained: Run, tuned: Run) -> None:
    """Write one HTML page on both runs."""
    first, second = open_report(pretrained.folder), open_report(tuned.folder)
    rows = [
        (name, f"{100 * top1:.2f} %", f"{seconds:.1f} s")
        for name, (top1, seconds) in result.scores.items()
    ]
    text = (
        "A Hierarchical Perceiver read a quarter of the pixels of scanned digits and learned to "
        "reconstruct the rest. Its encoder was then fine-tuned to classify the digits. Nothing in "
        "the model is specific to images."
    )
    if result.is_dry:
        text += "\n\nThis was a dry run: the numbers mean nothing."
    note = "All rows use the same training and test splits. Times are in seconds on this machine."
    comparison = HtmlTable(header=("method", "test accuracy", "time"), rows=rows, note=note)
    overview = overview_section(second)
    sections = [
        Section(title="What happened", text=text, facts=overview.facts, tables=[comparison]),
        *masked.sections(first),
        positions_section(first),
        *classification_sections(second),
        retitled(curves_section(first), "Pre-training curves"),
        retitled(curves_section(second), "Fine-tuning curves"),
        retitled(settings_section(first), "Configuration of the pre-training"),
        retitled(settings_section(second), "Configuration of the fine-tuning"),
        commands(pretrained, tuned),
    ]
    write_html(
        result.report,
        title="Hierarchical Perceiver, from raw pixels to a classifier",
        subtitle="perceivers demo",
        sections=[section for section in sections if section],
        footer=f"Written by perceivers {__version__}.",
    )


def retitled(section: Section, title: str) -> Section:
    """Return a copy of a section with another title."""
    return Section(**{**vars(section), "title": title})


def commands(pretrained: Run, tuned: Run) -> Section:
    """Return a section of commands that do the same with the reader's images."""
    model = pretrained.config.model
    code = "\n".join(
        [
            "# MY_FOLDER contains one sub-folder of images per class",
            f"perceivers pretrain --model {model} --data MY_FOLDER --size 32 --out runs/pretrained",
            "perceivers finetune --model runs/pretrained --data MY_FOLDER --out runs/classifier",
            "perceivers evaluate runs/classifier --split val",
            "perceivers predict runs/classifier SOME_IMAGE.jpg",
            "",
            "# the runs of this demo",
            f"perceivers evaluate {tuned.path}",
            f"perceivers export {tuned.path} --format onnx",
        ]
    )
    return Section(title="Do the same with your own images", code=code)
