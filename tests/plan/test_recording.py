"""Operations and live bytes by hand."""

import torch

from perceivers.plan.counting import StepRecorder


def test_a_product_counts_two_operations_per_multiplication() -> None:
    with StepRecorder() as seen:
        torch.mm(torch.ones(2, 3), torch.ones(3, 5))
    assert seen.flops == 2 * 2 * 3 * 5


def test_storages_count_once_until_they_are_freed() -> None:
    known = torch.ones(100)
    with StepRecorder([known]) as seen:
        first = torch.ones(10)
        assert seen.now == 40
        view = first[2:]
        known.add_(1)
        assert seen.now == 40
        second = first + 1
        assert (seen.now, seen.peak) == (80, 80)
        del first
        assert seen.now == 80  # the view holds it
        del view, second
        assert (seen.now, seen.peak) == (0, 80)


def test_a_backward_pass_is_twice_the_forward_pass() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    other = torch.ones(4, 4, requires_grad=True)
    with StepRecorder([weight, other]) as seen:
        loss = (weight @ other).sum()
        assert seen.flops == 128
        loss.backward()
    assert seen.flops == 3 * 128


def test_fused_attention_is_counted() -> None:
    q = torch.ones(1, 2, 8, 4)
    with StepRecorder() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert seen.flops == 2 * 2 * 2 * 8 * 8 * 4
