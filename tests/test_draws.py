"""Draws of single samples depend on the seed and the sample alone."""

import torch

from perceivers.draws import rand_rows, sample_generators


def test_a_samples_draw_does_not_depend_on_its_batch(rng: torch.Generator) -> None:
    positions = torch.tensor([3, 7, 2**40])
    together = rand_rows(3, 2, 5, generator=sample_generators(rng, positions))
    alone = [rand_rows(1, 2, 5, generator=sample_generators(rng, p[None]))[0] for p in positions]
    assert together.shape == (3, 2, 5)
    assert torch.equal(together, torch.stack(alone))


def test_samples_and_seeds_differ() -> None:
    def draw(seed: int, *positions: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return rand_rows(
            len(positions), 64, generator=sample_generators(generator, torch.tensor(positions))
        )

    rows = torch.cat([draw(0, 0, 1, 2), draw(1, 0, 1, 2)])
    gaps = torch.cdist(rows, rows) + torch.eye(6)
    assert gaps.min() > 0.5
    assert float(rows.min()) >= 0.0
    assert float(rows.max()) < 1.0
    assert abs(float(rows.mean()) - 0.5) < 0.1


def test_only_the_seed_of_the_generator_counts(rng: torch.Generator) -> None:
    position = torch.tensor([1, 2])
    before = rand_rows(2, 3, generator=sample_generators(rng, position))
    torch.rand(10, generator=rng)
    assert torch.equal(before, rand_rows(2, 3, generator=sample_generators(rng, position)))


def test_samples_without_positions_share_the_generator(rng: torch.Generator) -> None:
    assert sample_generators(rng, None) is rng
    expected = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rand_rows(2, 3, generator=rng), expected)
