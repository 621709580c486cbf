"""HiP as a whole: what may influence what, missing modalities, heads, sizes, modes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.errors import ConfigError, InputError
from perceivers.masking import MaskPlan, draw_mask_plan
from perceivers.models import HiP, HiPHead, HiPLevel, create_model
from perceivers.models.hip.encoder import HiPEncoded
from perceivers.nn.blocks import PerceiverBlock
from perceivers.types import Array, Audio, Image, Labels, ModalitySpec, Points, Video

Build = Callable[..., HiP]
Draw = Callable[..., dict[str, Tensor]]
EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-12)
TWO: dict[str, ModalitySpec] = {"a": Audio(21), "b": Array((9, 5), 2)}
LABELLED: dict[str, ModalitySpec] = {**TWO, "label": Labels(5)}


def same(ours: HiPEncoded, theirs: HiPEncoded) -> bool:
    pairs = zip(ours.levels, theirs.levels, strict=True)
    return all(torch.allclose(x, y, **EXACT) for x, y in pairs)


# -- structure -------------------------------------------------------------------------------


def test_levels_have_the_declared_shapes(build: Build, draw: Draw) -> None:
    model = build()
    encoded = model.forward_features(draw())
    assert [tuple(x.shape) for x in encoded.levels] == [(2, 6, 4, 8), (2, 1, 6, 16)]
    assert encoded.processor is encoded.levels[-1]
    assert model.decode(encoded).shape == (2, 6, 4, 12)


def test_the_first_reconstruction_is_exactly_zero(rng: torch.Generator) -> None:
    model = create_model("hip_nano", inputs={"image": Image(8, 8, 3)})
    image = torch.rand(2, 3, 8, 8, generator=rng)
    assert not model(image)["image"].any()
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.readout.unembed["image"].weight)  # pyright: ignore[reportArgumentType]
    assert model(image)["image"].any()


@pytest.mark.parametrize("init", ["balanced", "paper"])
def test_parameters_start_as_the_table_says(init: str) -> None:
    model = create_model("hip_nano", inputs={"image": Image(32, 32)}, init=init)
    state = model.state_dict()
    balanced = {"encoder.blocks.0.latents": 0.5, "encoder.inputs.positions.image.table": 0.5}
    for name, deviation in balanced.items():
        array = state[name]
        rows = array.numel() // array.shape[-1]
        expected = deviation if init == "balanced" else rows**-0.5
        assert abs(float(array.std()) / expected - 1) < 0.06, name
    linear = state["encoder.blocks.1.layers.0.mlp.out.weight"]
    assert abs(float(linear.std()) * linear.shape[1] ** 0.5 - 1) < 0.03
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name


def test_every_parameter_gets_a_gradient(build: Build, draw: Draw) -> None:
    """Data-parallel training needs one for each, even where it is zero."""
    model = build(inputs=LABELLED, labels=("label",)).train()
    inputs = draw(LABELLED)
    torch.stack([x.square().mean() for x in model(inputs).values()]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    model.zero_grad()
    model.encode(inputs).processor.sum().backward()
    assert any(p.grad is None for p in model.parameters())


def test_samples_do_not_see_one_another(build: Build, draw: Draw) -> None:
    model, inputs = build(inputs=LABELLED, labels=("label",)), draw(LABELLED, batch=3)
    whole = model(inputs)
    alone = model({name: x[1:2] for name, x in inputs.items()})
    for name in whole:
        torch.testing.assert_close(whole[name][1:2], alone[name], **EXACT)
        assert not torch.allclose(whole[name][:1], alone[name])


def test_recomputation_changes_neither_values_nor_gradients(build: Build, draw: Draw) -> None:
    model, inputs = build(dropout_rate=0.2).train(), draw()
    results = []
    for on in (False, True):
        model.set_recompute(on)
        blocks = [m for m in model.modules() if isinstance(m, PerceiverBlock)]
        assert [block.recompute for block in blocks] == [on] * 3
        model.zero_grad()
        with torch.random.fork_rng(devices=[]):
            out = model(inputs)
            torch.stack([x.square().sum() for x in out.values()]).sum().backward()
        results.append(
            ({n: x.detach() for n, x in out.items()}, [p.grad for p in model.parameters()])
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_bfloat16_weights_run(rng: torch.Generator) -> None:
    model = create_model("hip_nano", inputs={"image": Image(8, 8)}, num_classes=3).bfloat16()
    logits = model(torch.rand(2, 3, 8, 8, generator=rng))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


# -- masking ---------------------------------------------------------------------------------


def hide(
    model: HiP, keep: dict[str, Tensor], inputs: dict[str, Tensor], fresh: Tensor, name: str
) -> Tensor:
    """Replace the hidden raw elements of one modality."""
    share = next(s for s in model.layout().shares if s.name == name)
    kept = share.merge(keep[name].expand(-1, share.num_groups, -1).unsqueeze(-1))  # [B, N, 1]
    kept = model.adapter(name).unflatten(kept.expand(-1, -1, model.config.inputs[name].channels))
    return torch.where(kept, inputs[name], fresh)


@pytest.mark.parametrize("kind", ["groupwise", "independent", "groups", "uniform"])
def test_masked_elements_cannot_influence_the_encoder(
    build: Build, draw: Draw, rng: torch.Generator, kind: Any
) -> None:
    model, inputs, fresh = build(), draw(), draw()
    plan = draw_mask_plan(model.layout(), 2, kind=kind, ratio=0.5, generator=rng)
    keep = dict(plan.to_dense(model.layout()).keep)
    before = model.encode(inputs, plan)
    changed = {name: hide(model, keep, inputs, fresh[name], name) for name in inputs}
    assert all(not torch.equal(changed[name], inputs[name]) for name in inputs)
    assert same(model.encode(changed, plan), before)
    opposite = {
        name: hide(model, {n: ~k for n, k in keep.items()}, inputs, fresh[name], name)
        for name in inputs
    }
    assert not same(model.encode(opposite, plan), before)


@pytest.mark.parametrize("kind", ["groupwise", "independent", "groups", "uniform"])
def test_masked_elements_get_no_gradient_and_visible_ones_do(
    build: Build, draw: Draw, rng: torch.Generator, kind: Any
) -> None:
    model, inputs = build(), {name: x.requires_grad_() for name, x in draw().items()}
    plan = draw_mask_plan(model.layout(), 2, kind=kind, ratio=0.5, generator=rng)
    keep = plan.to_dense(model.layout()).keep
    predictions = model.reconstruct(model.encode(inputs, plan), plan)
    torch.stack([x.square().sum() for x in predictions.values()]).sum().backward()
    for share in model.layout().shares:
        grad = inputs[share.name].grad
        assert grad is not None
        grouped = share.split(model.adapter(share.name).flatten(grad))
        kept = keep[share.name].expand(2, share.num_groups, -1) & share.valid()
        assert not grouped[~kept].any()
        assert grouped[kept].all()


def test_only_masked_slots_are_reconstructed_with_a_packed_plan(
    build: Build, draw: Draw, rng: torch.Generator
) -> None:
    model, inputs = build(), draw()
    plan = draw_mask_plan(model.layout(), 2, ratio=0.75, generator=rng)
    out = model.reconstruct(model.encode(inputs, plan), plan)
    assert {name: tuple(x.shape) for name, x in out.items()} == {
        "a": (2, 2, 9, 1),
        "b": (2, 4, 9, 2),
    }


# -- padding ---------------------------------------------------------------------------------


def test_what_padded_slots_hold_cannot_matter(
    build: Build, draw: Draw, rng: torch.Generator
) -> None:
    model, inputs = build(), draw()
    expected = model.encode(inputs)
    seen: list[Tensor] = []

    def spoil(at: bool) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens, mask = args[0], args[1]
            seen.append(mask)
            where = (mask.squeeze(2) == at).unsqueeze(-1)
            noise = torch.randn(tokens.shape, generator=rng, dtype=tokens.dtype)
            return torch.where(where, noise, tokens), mask

        return hook

    block = model.encoder.blocks[0]
    handle = block.register_forward_pre_hook(spoil(at=False))
    assert same(model.encode(inputs), expected)
    assert int((~seen[0]).sum()) == 6 * 12 - 21 - 45  # all slots less the elements
    handle.remove()
    handle = block.register_forward_pre_hook(spoil(at=True))
    assert not same(model.encode(inputs), expected)
    handle.remove()


def test_padding_is_attended_to_when_asked_as_in_the_release(build: Build, draw: Draw) -> None:
    inputs = draw()
    hidden, attended = build(), build(mask_padding=False)
    attended.load_state_dict(hidden.state_dict())
    assert not same(hidden.encode(inputs), attended.encode(inputs))
    masks = []
    attended.encoder.blocks[0].register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    attended.encode(inputs)
    assert masks == [None]


def test_without_padding_no_mask_slows_attention_down(build: Build, draw: Draw) -> None:
    inputs: dict[str, ModalitySpec] = {"a": Audio(36)}
    model = build(inputs=inputs)
    masks = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    model.encode(draw(inputs))
    assert masks == [None]


# -- missing modalities and order ------------------------------------------------------------


def test_a_missing_modality_equals_one_that_is_wholly_hidden(build: Build, draw: Draw) -> None:
    model, inputs = build(), draw()
    keep = {
        s.name: torch.full((2, 1, s.slots), s.name == "a", dtype=torch.bool)
        for s in model.layout().shares
    }
    missing = model.encode({"a": inputs["a"]})
    assert same(missing, model.encode(inputs, MaskPlan(keep=keep)))
    assert not same(missing, model.encode(inputs))
    out = model({"a": inputs["a"]})
    assert out["b"].shape == inputs["b"].shape  # and it is predicted
    assert out["b"].any()


def test_a_missing_modality_is_legal_with_a_packed_plan(
    build: Build, draw: Draw, rng: torch.Generator
) -> None:
    model, inputs = build(), draw()
    plan = draw_mask_plan(model.layout(), 2, ratio=0.5, generator=rng)
    encoded = model.encode({"b": inputs["b"]}, plan)
    dense = model.encode({"b": inputs["b"]}, plan.to_dense(model.layout()))
    for ours, theirs in zip(encoded.levels, dense.levels, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    assert not same(encoded, model.encode(inputs, plan))


def test_groups_are_dealt_over_declared_or_present_modalities(build: Build, draw: Draw) -> None:
    inputs = draw()
    declared, present = build(), build(deal_over="present")
    alone = {"a": inputs["a"]}
    assert [s.num_groups for s in declared.encode(alone).layout.shares] == [2, 4]
    assert [s.num_groups for s in present.encode(alone).layout.shares] == [6]
    assert list(present(alone)) == ["a"]
    assert list(declared(alone)) == ["a", "b"]
    assert same(declared.encode(inputs), present.encode(inputs))
    assert not same(declared.encode(alone), present.encode(alone))


def test_the_declared_order_matters_and_the_call_s_order_only_in_the_release_s_mode(
    build: Build, draw: Draw
) -> None:
    inputs = draw()
    turned = dict(reversed(inputs.items()))
    declared = build()
    assert same(declared.encode(inputs), declared.encode(turned))
    other = build(inputs=dict(reversed(TWO.items())))
    other.load_state_dict(declared.state_dict())
    assert not same(other.encode(inputs), declared.encode(inputs))
    present = build(deal_over="present")
    present.load_state_dict(declared.state_dict())
    assert same(present.encode(turned), other.encode(inputs))


# -- heads -----------------------------------------------------------------------------------

RAW: dict[str, tuple[ModalitySpec, tuple[int, ...]]] = {
    "image": (Image(4, 6, 3), (2, 5, 4, 6)),
    "video": (Video(2, 3, 4, 1), (2, 5, 2, 3, 4)),
    "sound": (Audio(20, 2), (2, 5, 20)),
    "cloud": (Points(14), (2, 14, 5)),
    "table": (Array((3, 4), 2), (2, 3, 4, 5)),
}


@pytest.mark.parametrize("kind", ["dense_bottleneck", "dense_full"])
@pytest.mark.parametrize("name", RAW)
def test_dense_heads_answer_in_the_raw_layout(
    build: Build, draw: Draw, name: str, kind: Any
) -> None:
    spec, shape = RAW[name]
    inputs: dict[str, ModalitySpec] = {"other": Audio(21), name: spec}
    head = HiPHead(kind=kind, num_outputs=5, modality=name)
    model = build(inputs=inputs, head=head, decoder=kind == "dense_full")
    raw = draw(inputs)
    out = model(raw)
    assert out.shape == shape
    assert not torch.allclose(out, model(draw(inputs)))
    assert torch.equal(model.eval()(raw), model.train()(raw))


@pytest.mark.parametrize("kind", ["dense_bottleneck", "dense_full"])
def test_dense_heads_answer_for_a_missing_modality_unless_groups_are_dealt_anew(
    build: Build, draw: Draw, kind: Any
) -> None:
    head = HiPHead(kind=kind, num_outputs=5, modality="b")
    alone = {"a": draw()["a"]}
    assert build(head=head)(alone).shape == (2, 9, 5, 5)
    with pytest.raises(InputError, match=rf"head '{kind}' needs the input 'b', which is missing"):
        build(head=head, deal_over="present")(alone)


def test_dense_values_do_not_depend_on_where_padding_lies(build: Build, draw: Draw) -> None:
    """The bottleneck head asks each position for itself: one chunk or many, padded or not."""
    head = HiPHead(kind="dense_bottleneck", num_outputs=5, modality="b")
    model = build(head=head, decoder=False)
    inputs = draw()
    whole = model(inputs)
    model.head.chunk = 7  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    torch.testing.assert_close(model(inputs), whole, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("kind", ["query", "mean"])
def test_class_heads_return_logits_in_both_modes(build: Build, draw: Draw, kind: Any) -> None:
    model = build(head=HiPHead(kind=kind, num_outputs=7), decoder=False)
    inputs = draw()
    assert model(inputs).shape == (2, 7)
    assert torch.equal(model.train()(inputs), model.eval()(inputs))
    assert not torch.allclose(model(inputs), model(draw()))


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_the_label_head_never_looks_at_its_label(
    build: Build, draw: Draw, decoder: bool, length: int
) -> None:
    specs = {**TWO, "label": Labels(5, length)}
    head = HiPHead(kind="label", modality="label")
    model = build(inputs=specs, labels=("label",), head=head, decoder=decoder)
    inputs = draw(specs)
    logits = model(inputs)
    assert logits.shape == (2, 5 * length)
    bare = {name: x for name, x in inputs.items() if name != "label"}
    assert torch.equal(model(bare), logits)
    other = (inputs["label"] + 1) % 5
    assert torch.equal(model({**bare, "label": other}), logits)
    assert not torch.allclose(
        model.encode({**bare, "label": other}).processor, model.encode(inputs).processor
    )


def test_a_given_bottleneck_label_informs_the_reconstruction(build: Build, draw: Draw) -> None:
    model, inputs = build(inputs=LABELLED, labels=("label",)), draw(LABELLED)
    blank = {name: x for name, x in inputs.items() if name != "label"}
    assert model(blank)["label"].shape == (2, 1, 5)
    assert not torch.allclose(model(blank)["a"], model(inputs)["a"])
    unknown = {**blank, "label": torch.full_like(inputs["label"], -1)}
    assert not torch.allclose(model(unknown)["a"], model(inputs)["a"])
    first = model.encode(inputs).levels[0]
    assert torch.equal(model.encode(blank).levels[0], first)  # it enters at the processor only


# -- decoding --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_decoding_in_chunks_equals_decoding_whole(build: Build, draw: Draw, chunk: int) -> None:
    model = build()
    encoded = model.encode(draw())
    whole = model.reconstruct(encoded)
    parts = model.reconstruct(encoded, chunk_size=chunk)
    torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-9)
    other = model.reconstruct(model.encode(draw()), chunk_size=chunk)
    assert not torch.allclose(other["a"], whole["a"])


def test_only_several_chunks_are_computed_again_for_the_backward_pass(
    build: Build, draw: Draw
) -> None:
    for chunk, reads in ((12, 2), (11, 2 * 2 * 2), (6, 2 * 2 * 2)):
        model = build(decode_chunk=chunk).train()
        assert model.decoder is not None
        calls: list[int] = []
        model.decoder.readout.read.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        out = model(draw())  # two modalities of 12 slots per group
        torch.stack([x.square().sum() for x in out.values()]).sum().backward()
        assert len(calls) == reads


def test_chunked_gradients_equal_whole_ones(build: Build, draw: Draw) -> None:
    inputs = draw()
    grads = []
    for chunk in (100, 5):
        model = build(decode_chunk=chunk).train()
        out = model(inputs)
        torch.stack([x.square().sum() for x in out.values()]).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


def test_a_model_without_decoder_says_so(build: Build, draw: Draw) -> None:
    model = build(decoder=False, head=HiPHead(kind="mean", num_outputs=2))
    with pytest.raises(ConfigError, match=r"this model has no decoder; build it with decoder=True"):
        model.reconstruct(model.encode(draw()))


@pytest.mark.parametrize(("total", "train"), [(64, 32), (128, 64)])
def test_the_processor_trains_on_fewer_latents_than_it_evaluates_with(
    build: Build, draw: Draw, total: int, train: int
) -> None:
    outer = HiPLevel(num_groups=2, num_latents=4, latent_dim=8, depth=1, num_heads=2)
    middle = HiPLevel(
        num_groups=1, num_latents=total, latent_dim=16, depth=1, num_heads=2, train_latents=train
    )
    model, inputs = build(levels=(outer, middle, outer)), draw()
    assert model.train().encode(inputs).processor.shape == (2, 1, train, 16)
    assert not torch.equal(model(inputs)["a"], model(inputs)["a"])
    assert model.eval().encode(inputs).processor.shape == (2, 1, total, 16)
    assert torch.equal(model(inputs)["a"], model(inputs)["a"])


# -- positions -------------------------------------------------------------------------------


def test_fourier_positions_are_concatenated_and_query_as_they_are(build: Build, draw: Draw) -> None:
    model = build(positions="fourier", num_bands=3)
    width = 2 * (2 * 3 + 1)  # the widest modality has two axes
    assert model.config.fourier_dim == model.config.query_dim == width
    assert model.config.input_dim == 8 + width
    assert model.decoder is not None
    assert model.decoder.readout.read.mlp.out.out_features == width
    assert not any("positions" in name for name in model.state_dict())
    inputs = draw()
    out = model(inputs)
    assert {name: x.shape for name, x in out.items()} == {n: x.shape for n, x in inputs.items()}
    shuffled = {"a": inputs["a"].flip(2), "b": inputs["b"]}
    assert not torch.allclose(model.encode(shuffled).processor, model.encode(inputs).processor)


@pytest.mark.parametrize("positions", ["learned", "fourier"])
def test_resizing_keeps_weights_and_interpolates_learned_tables(
    build: Build, draw: Draw, positions: str
) -> None:
    small: dict[str, ModalitySpec] = {
        "image": Image(4, 4, 2),
        "sound": Audio(20),
        "label": Labels(3),
    }
    large = {**small, "image": Image(8, 6, 2), "sound": Audio(40)}
    waves = {"num_bands": 2} if positions == "fourier" else {}
    model = build(inputs=small, labels=("label",), positions=positions, **waves)
    other = model.resized(large)
    assert other.config.inputs == large
    assert not other.training
    assert {p.dtype for p in other.parameters()} == {torch.float64}
    old, new = model.state_dict(), other.state_dict()
    changed = [name for name in old if old[name].shape != new[name].shape]
    tables = [f"encoder.inputs.positions.{name}.table" for name in ("image", "sound")]
    assert changed == (tables if positions == "learned" else [])
    assert all(torch.equal(old[n], new[n]) for n in old if n not in changed)
    out = other(draw(large))
    assert out["image"].shape == (2, 2, 8, 6)
    again = model.resized(small)
    raw = draw(small)
    assert torch.equal(again(raw)["image"], model(raw)["image"])


def test_resizing_refuses_other_modalities(build: Build) -> None:
    model = build()
    wrong: list[dict[str, ModalitySpec]] = [
        {"a": Audio(21)},
        {"a": Audio(21, 2), "b": Array((9, 5), 2)},
        {"a": Points(21, 1), "b": Array((9, 5), 2)},
        dict(reversed(TWO.items())),
    ]
    for inputs in wrong:
        with pytest.raises(ConfigError, match=r"a model of \{'a'.* cannot be resized to"):
            model.resized(inputs)


# -- inputs ----------------------------------------------------------------------------------


def test_a_bare_tensor_is_the_only_modality(build: Build, draw: Draw) -> None:
    inputs: dict[str, ModalitySpec] = {"b": Array((9, 5), 2), "label": Labels(4)}
    model = build(inputs=inputs, labels=("label",))
    raw = draw(inputs)["b"]
    assert torch.equal(model(raw)["b"], model({"b": raw})["b"])
    assert torch.equal(model.forward_features(raw).processor, model.encode({"b": raw}).processor)
    with pytest.raises(InputError, match=r"a bare tensor is ambiguous for a model of \['a', 'b'\]"):
        build()(raw)


def test_wrong_inputs_are_refused_with_their_names_and_values(build: Build, draw: Draw) -> None:
    model, inputs = build(inputs=LABELLED, labels=("label",)), draw(LABELLED)
    cases = [
        (
            {**inputs, "labl": inputs["label"]},
            r"input 'labl' is unknown; the model takes \['a', 'b', "
            r"'label'\]; did you mean 'label'\?",
        ),
        ({}, r"no input given; the model needs at least one of \['a', 'b', 'label'\]"),
        ({"label": inputs["label"]}, r"no input given"),
        ({"a": inputs["a"], "b": inputs["b"][:1]}, r"different batch sizes \{'a': 2, 'b': 1\}"),
        ({"a": inputs["a"], "label": inputs["label"][:1]}, r"\{'a': 2, 'label': 1\}"),
        ({"a": inputs["a"][..., 1:]}, r"input 'a' has shape \(2, 1, 20\)"),
        ({"a": torch.tensor(1.0)}, r"input 'a' must be a tensor with a batch axis"),
    ]
    for wrong, text in cases:
        with pytest.raises(InputError, match=text):
            model(wrong)


@pytest.mark.unhooked
def test_a_list_is_no_input(build: Build) -> None:
    with pytest.raises(InputError, match=r"input 'a' must be a tensor with a batch axis, got \[1"):
        build()({"a": [1.0]})
