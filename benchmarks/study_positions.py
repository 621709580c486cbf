"""How the start and the learning rate of learned positions decide what is learned.

    python benchmarks/study_positions.py

Short masked autoencoding and fine-tuning of hip_nano on the built-in digits, a row per setting:
deviation of the position table at the start, factor on its learning rate, reconstruction loss
(mean of the last 50 steps), how alike neighbouring positions became, and validation accuracy.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import perceivers as pv
from perceivers.checkpoints.loading import transfer_encoder
from perceivers.data import make_eval_loader, open_data
from perceivers.models.hip import HiP
from perceivers.nn.linear import truncated_normal_
from perceivers.nn.positions import LearnedPositions
from perceivers.training.config import OptimizerConfig, ScheduleConfig
from perceivers.training.optimizers import make_optimizer, schedule_scale, set_learning_rate

SETTINGS = ((0.02, 1.0), (0.125, 1.0), (0.5, 1.0), (1.0, 1.0), (0.02, 20.0), (0.5, 20.0))
BATCH = 64
LossOf = Callable[[torch.Generator], Tensor]


@dataclass
class Split:
    """All pictures and labels of a split in memory."""

    images: Tensor
    labels: Tensor


def read(name: str) -> tuple[Split, dict[str, pv.Image]]:
    """Read one split of the digits."""
    data = open_data("digits")
    specs = data.specs()
    batches = list(make_eval_loader(data.splits[name], specs, batch_size=256))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    images = torch.cat([batch.inputs["image"] for batch in batches])
    return Split(images, torch.cat(labels)), specs  # pyright: ignore[reportReturnType]


def table_of(model: HiP) -> Tensor:
    """The learned rows, on their grid."""
    module = model.encoder.inputs.positions["image"]
    assert isinstance(module, LearnedPositions)
    return module.table


def optimise(model: HiP, steps: int, rate: float, factor: float, loss_of: LossOf) -> float:
    """Run a short schedule; return the mean loss of the last 50 steps."""
    optimizer = make_optimizer(model, OptimizerConfig(lr=rate, position_lr=factor))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        set_learning_rate(optimizer, rate * schedule_scale(ScheduleConfig(), step, steps))
        loss = loss_of(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-50:]) / len(losses[-50:])


def neighbour_similarity(model: HiP) -> float:
    """Mean cosine similarity of horizontally and vertically adjacent positions."""
    rows = F.normalize(table_of(model).detach().reshape(8, 8, -1), dim=-1)
    pairs = [(rows[1:] * rows[:-1]).sum(-1), (rows[:, 1:] * rows[:, :-1]).sum(-1)]
    return float(torch.cat([pair.flatten() for pair in pairs]).mean())


def study(deviation: float, factor: float, steps: int) -> tuple[float, float, float]:
    """Pre-train and fine-tune once."""
    train, specs = read("train")
    held, _ = read("val")
    torch.manual_seed(0)
    model = pv.create_model("hip_nano", inputs=specs)
    with torch.no_grad():
        truncated_normal_(table_of(model), deviation)

    def pick(generator: torch.Generator) -> Tensor:
        return torch.randint(len(train.images), (BATCH,), generator=generator)

    def reconstruction(generator: torch.Generator) -> Tensor:
        images = train.images[pick(generator)]
        plan = pv.draw_mask_plan(model.layout(), BATCH, ratio=0.75, generator=generator)
        return pv.mae_losses(model, {"image": images}, plan).total

    loss = optimise(model, steps, 2e-3, factor, reconstruction)
    classifier = pv.create_model("hip_nano", inputs=specs, num_classes=10)
    transfer_encoder(model, classifier)

    def cross_entropy(generator: torch.Generator) -> Tensor:
        index = pick(generator)
        logits = classifier(train.images[index])
        assert isinstance(logits, Tensor)
        return F.cross_entropy(logits, train.labels[index], label_smoothing=0.1)

    optimise(classifier, steps, 1e-3, factor, cross_entropy)
    with torch.no_grad():
        predicted = classifier.eval()(held.images)
    assert isinstance(predicted, Tensor)
    accuracy = float((predicted.argmax(-1) == held.labels).float().mean())
    return loss, neighbour_similarity(model), accuracy


def main() -> None:
    """Print one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250, help="steps of each phase")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print("| deviation | rate factor | reconstruction loss | neighbour similarity | val top-1 |")
    print("|---|---|---|---|---|")
    for deviation, factor in SETTINGS:
        loss, similarity, accuracy = study(deviation, factor, steps)
        print(f"| {deviation} | {factor:g} | {loss:.4f} | {similarity:.2f} | {accuracy:.3f} |")


if __name__ == "__main__":
    main()
