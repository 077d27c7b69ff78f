"""What every fusion adapter must hold, for every name of the registry; a new adapter is tested once it is registered."""

import dataclasses
import math
import re
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    BACKBONE_SIZE,
    BATCH,
    CASES,
    CLASSES,
    LENGTHS,
    TASKS,
    Case,
    build,
    drop,
    fill,
    hide,
    make_inputs,
    map_tensors,
    pad,
    per_sample,
    rows,
    weighted_loss,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_mer.adapters import adapter_class, adapter_names, build_adapter
from llm_mer.adapters.base import (
    IGNORE_CLASS,
    MODALITIES,
    MODALITY_ABLATIONS,
    AdapterConfig,
    FusionAdapter,
    FusionInputs,
    FusionOutput,
    FusionTargets,
)
from llm_mer.adapters.layers import MultiHeadAttention

SUBSETS = list(chain(combinations(MODALITIES, 1), combinations(MODALITIES, 2)))

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_adapter = pytest.mark.parametrize("case", [c for c in CASES if c.task == "both"], ids=str)
every_subset = pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
train_and_eval = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def assert_same(got: FusionOutput, want: FusionOutput, atol: float = 1e-5, pick: list[int] | None = None) -> None:
    """Two outputs agree, the second one at the samples ``pick``."""
    left, right = per_sample(got), per_sample(want)
    assert left.keys() == right.keys()
    for name, value in left.items():
        expected = right[name] if pick is None else right[name][pick]
        torch.testing.assert_close(value, expected, atol=atol, rtol=0.0, msg=partial("{}: {}".format, name))


def is_finite(output: FusionOutput) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in [*per_sample(output).values(), *output.aux_losses.values()])


# --- 1. batch independence --------------------------------------------------------------------------------------------


@train_and_eval
@every_case
def test_a_sample_does_not_depend_on_its_batch_mates(case: Case, train: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case)
    together = adapter(inputs)
    for index in ([0], [1], [2], [3], [1, 3]):
        assert_same(adapter(rows(inputs, index)), together, pick=index)


@train_and_eval
@every_case
def test_the_order_of_samples_does_not_matter(case: Case, train: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case)
    order = [2, 0, 3, 1]
    assert_same(adapter(rows(inputs, order)), adapter(inputs), pick=order)


@train_and_eval
@every_case
def test_losses_do_not_depend_on_the_order_of_samples_or_on_padding(case: Case, train: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case, targets=True)
    losses = adapter(inputs).aux_losses
    assert losses
    for other in (rows(inputs, [2, 0, 3, 1]), pad(inputs, 3, 2), fill(inputs, 1e4)):
        torch.testing.assert_close(adapter(other).aux_losses, losses, atol=1e-5, rtol=1e-5)


# --- 2. padding invariance --------------------------------------------------------------------------------------------


@train_and_eval
@every_case
def test_values_in_padded_steps_are_never_read(case: Case, train: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case)
    output = adapter(inputs)  # NaN in every padded and missing step
    assert is_finite(output)
    for value in (0.0, 1e4, -math.inf):
        assert_same(adapter(fill(inputs, value)), output, atol=0.0)


@train_and_eval
@pytest.mark.parametrize("front", [False, True], ids=["behind", "in front"])
@every_case
def test_more_padding_changes_nothing(case: Case, train: bool, front: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case)
    assert_same(adapter(pad(inputs, 3, 2, front)), adapter(inputs))


@every_case
def test_padded_steps_get_no_gradient(case: Case) -> None:
    adapter, inputs = build(case, train=True), make_inputs(case, targets=True)

    def leaf(_: str, tensor: Tensor) -> Tensor:
        return tensor.clone().requires_grad_() if tensor.is_floating_point() and tensor.ndim == 3 else tensor

    inputs = map_tensors(inputs, leaf)
    output = adapter(inputs)
    (output.pseudo_tokens.sin().sum() + weighted_loss(adapter, output)).backward()
    values = [(s.features, s.mask) for m in MODALITIES if (s := inputs.sequence(m))]
    if inputs.context is not None:
        values += [(getattr(inputs.context, m), getattr(inputs.context, f"{m}_mask")) for m in MODALITIES]
    used = [(features.grad, mask) for features, mask in values if features.grad is not None]
    assert used
    for gradient, mask in used:
        assert torch.isfinite(gradient).all()
        assert not gradient[~mask].any()
        assert gradient[mask].any()


# --- 3. missing modality ----------------------------------------------------------------------------------------------


@every_subset
@every_case
def test_any_proper_subset_of_modalities_works_and_the_rest_never_leaks(case: Case, subset: tuple[str, ...]) -> None:
    missing = [m for m in MODALITIES if m not in subset]
    adapter, inputs = build(case), make_inputs(case, targets=True, complete=True)
    for train, value in ((False, math.nan), (True, 1e4)):
        adapter.train(train)
        hidden = hide(inputs, missing)
        output = adapter(hidden)
        assert is_finite(output)
        assert_same(adapter(drop(inputs, missing)), output)
        assert_same(adapter(fill(hidden, value, missing)), output, atol=0.0)
        output.pseudo_tokens.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in adapter.parameters() if p.grad is not None)


@every_subset
@every_adapter
def test_one_sample_may_lack_what_the_others_have(case: Case, subset: tuple[str, ...]) -> None:
    missing = [m for m in MODALITIES if m not in subset]
    adapter, inputs = build(case), make_inputs(case, complete=True)
    whole, mixed, bare = adapter(inputs), adapter(hide(inputs, missing, [2])), adapter(drop(inputs, missing))
    assert_same(mixed_rows(mixed, [0, 1, 3]), whole, pick=[0, 1, 3])
    assert_same(mixed_rows(mixed, [2]), bare, pick=[2])
    assert not torch.allclose(mixed.pseudo_tokens[2], whole.pseudo_tokens[2])


def mixed_rows(output: FusionOutput, index: list[int]) -> FusionOutput:
    """Some samples of an output."""
    parts: dict[str, Any] = {name: value[index] for name, value in per_sample(output).items() if "." not in name}
    return FusionOutput(diagnostics={name: value[index] for name, value in output.diagnostics.items()}, **parts)


@every_case
def test_a_sequence_without_a_step_is_a_missing_modality(case: Case) -> None:
    adapter, inputs = build(case), make_inputs(case, complete=True)

    def cut(name: str, tensor: Tensor) -> Tensor:
        return tensor[:, :0] if name.startswith("audio.") else tensor

    assert_same(adapter(map_tensors(hide(inputs, ["audio"]), cut)), adapter(drop(inputs, ["audio"])))


@train_and_eval
@every_case
def test_no_modality_at_all_is_an_error_that_names_the_samples(case: Case, train: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case)
    with pytest.raises(ValueError, match=re.escape("[1, 3]")):
        adapter(hide(inputs, MODALITIES, [1, 3]))
    with pytest.raises(ValueError, match="modality"):
        adapter(drop(inputs, MODALITIES))


@every_subset
@every_adapter
def test_a_modality_switched_off_is_never_read(case: Case, subset: tuple[str, ...]) -> None:
    missing = [m for m in MODALITIES if m not in subset]
    inputs = make_inputs(case, complete=True)
    adapter = build(case, **{f"use_{m}": False for m in missing})
    output = adapter(inputs)
    assert is_finite(output)
    assert_same(adapter(fill(hide(inputs, missing), math.nan, missing)), output, atol=0.0)
    assert_same(adapter(drop(inputs, missing)), output, atol=0.0)


@every_subset
@every_adapter
def test_a_modality_that_the_data_lacks_needs_no_size(case: Case, subset: tuple[str, ...]) -> None:
    present = {m: size for m, size in build(case).config.feature_sizes.items() if m in subset}
    missing = [m for m in MODALITIES if m not in subset]
    adapter = build(case, feature_sizes=present, context_sizes={m: 8 for m in subset})
    assert is_finite(adapter(drop(make_inputs(case, complete=True), missing)))


@every_adapter
def test_modality_dropout_hides_in_training_only_and_never_everything(case: Case) -> None:
    adapter, inputs = build(case, modality_dropout=0.9), make_inputs(case, complete=True)
    plain = build(case)
    assert_same(adapter(inputs), plain(inputs), atol=0.0)
    adapter.train()
    outputs = [adapter(inputs) for _ in range(5)]
    assert all(is_finite(output) for output in outputs)
    assert any(not torch.allclose(output.pseudo_tokens, plain(inputs).pseudo_tokens, atol=1e-3) for output in outputs)


# --- 4. gradients -----------------------------------------------------------------------------------------------------


def zero_gradient(adapter: torch.nn.Module) -> set[str]:
    """Parameters that mathematics leaves without a gradient: a key's bias adds the same to all scores of a softmax."""
    attentions = {n for n, module in adapter.named_modules() if isinstance(module, MultiHeadAttention)}
    return {f"{name}.key.bias" for name in attentions}


@every_case
def test_gradients_reach_every_trainable_parameter(case: Case) -> None:
    adapter, inputs = build(case, double=True, train=True), make_inputs(case, torch.float64, targets=True)
    output = adapter(inputs)
    direction = torch.randn(output.pseudo_tokens.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ((output.pseudo_tokens * direction).sum() + weighted_loss(adapter, output)).backward()
    parameters = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    zero = zero_gradient(adapter)
    assert zero <= parameters.keys()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, f"{name} is outside the graph"
        assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
        size = float(parameter.grad.abs().max())
        assert (size < 1e-12) if name in zero else (size > 1e-9), f"{name} has a gradient of {size}"


@every_adapter
def test_gradients_reach_every_trainable_parameter_without_an_auxiliary_head(case: Case) -> None:
    adapter, inputs = build(case, double=True, train=True, auxiliary_head=False), make_inputs(case, torch.float64, True)
    output = adapter(inputs)
    losses = weighted_loss(adapter, output) if output.aux_losses else 0.0
    (output.pseudo_tokens.sin().sum() + losses).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, f"{name} is outside the graph"
        assert torch.isfinite(parameter.grad).all()


@every_case
def test_pseudo_tokens_pass_gradcheck(case: Case) -> None:
    options: dict[str, Any] = {"hidden_size": 4, "num_pseudo_tokens": 1, "backbone_size": 3}
    adapter = build(case, double=True, **options)
    inputs = fill(rows(make_inputs(case, torch.float64), [0, 3]), 0.0)
    leaves: dict[str, Tensor] = {}

    def collect(name: str, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            leaves[name] = tensor[:, :4].clone().requires_grad_()
        elif name.endswith("mask") or name.endswith("speakers"):
            return tensor[:, :4]
        return tensor

    inputs = map_tensors(inputs, collect)
    # A fixed mixture of the tokens, not the tokens: one backward pass instead of one per entry.
    direction = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def mixture(*values: Tensor) -> Tensor:
        given = dict(zip(leaves, values, strict=True))
        return (adapter(map_tensors(inputs, lambda name, tensor: given.get(name, tensor))).pseudo_tokens * direction).sum()

    # Entry by entry once per adapter; along random directions for its other cases.
    fast = case.task != "both" or bool(case.options)
    assert torch.autograd.gradcheck(mixture, tuple(leaves.values()), atol=1e-6, rtol=1e-3, fast_mode=fast)


# --- 5. precision -----------------------------------------------------------------------------------------------------


@every_case
def test_bfloat16_autocast_agrees_with_float32(case: Case) -> None:
    adapter, inputs = build(case, hidden_size=32, num_heads=4), make_inputs(case, targets=True)
    assert_bfloat16_agrees(adapter, inputs)


@every_adapter
def test_bfloat16_autocast_agrees_with_float32_over_long_sequences(case: Case) -> None:
    defaults = {entry.name: entry.default for entry in dataclasses.fields(adapter_class(case.adapter).config_class)}
    sizes = {name: defaults[name] for name, value in case.options.items() if type(value) is int}  # as large as a user's
    adapter = build(case, hidden_size=32, num_heads=4, **sizes)
    generator = torch.Generator().manual_seed(4)

    def long(name: str, tensor: Tensor) -> Tensor:
        if name.startswith("context"):
            return tensor
        if name.endswith("mask"):
            return tensor.repeat_interleave(25, dim=1)
        return torch.randn(BATCH, 175, tensor.shape[2], generator=generator)

    assert_bfloat16_agrees(adapter, map_tensors(make_inputs(case), long))


def assert_bfloat16_agrees(adapter: FusionAdapter, inputs: FusionInputs) -> None:
    """Within 2e-2 of the scale of each output."""
    exact = adapter(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = adapter(inputs)
    pairs = [(name, value, per_sample(rough)[name]) for name, value in per_sample(exact).items()]
    pairs += [(name, value, rough.aux_losses[name]) for name, value in exact.aux_losses.items()]
    for name, value, other in pairs:
        scale = float(value.detach().abs().max().clamp(min=1e-3 if name.startswith("diagnostics") else 0.0))
        difference = float((other.float() - value).detach().abs().max())
        assert difference <= 2e-2 * scale + 1e-6, f"{name}: {difference} of {scale}"


@every_adapter
def test_bfloat16_autocast_trains(case: Case) -> None:
    adapter, inputs = build(case, train=True), make_inputs(case, targets=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = adapter(inputs)
        loss = output.pseudo_tokens.float().sin().sum() + weighted_loss(adapter, output)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter.parameters() if p.grad is not None)


@every_adapter
def test_attention_over_masked_keys_alone_adds_nothing(case: Case) -> None:
    """For the shared attention; an adapter's own kinds of attention are tested beside its equations."""
    torch.manual_seed(5)
    nobody = torch.tensor([[False] * 3, [True] * 3])  # the first sample has no real key
    for module in build(case).modules():
        if isinstance(module, MultiHeadAttention):
            values = torch.randn(2, 3, module.query.in_features)
            output = module(values, values, values, nobody)
            assert not output[0].any()
            assert output[1].any()


# --- 7. scale of the output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", ["linear", "repeat"])
@pytest.mark.parametrize("norm", [0.5, 30.0])
@every_adapter
def test_pseudo_tokens_start_at_the_norm_of_the_backbones_embeddings(case: Case, norm: float, expansion: str) -> None:
    adapter = build(case, hidden_size=32, num_heads=4, backbone_embedding_norm=norm, token_expansion=expansion)
    tokens = adapter(make_inputs(case)).pseudo_tokens
    assert tokens.shape == (BATCH, 3, BACKBONE_SIZE)
    assert math.isclose(float(tokens.detach().norm(dim=-1).mean()), norm, rel_tol=0.02)
    assert bool((tokens[:, :1] == tokens).all()) == (expansion == "repeat")


# --- shapes, losses, diagnostics, targets -----------------------------------------------------------------------------


@every_case
def test_predictions_have_one_row_per_sample(case: Case) -> None:
    output = build(case)(make_inputs(case))
    assert not {"ce", "l1"} & output.aux_losses.keys()  # nothing to learn from without targets
    assert (output.logits is None) == (case.task == "regression")
    assert (output.scores is None) == (case.task == "classification")
    if output.logits is not None:
        assert output.logits.shape == (BATCH, CLASSES)
    if output.scores is not None:
        assert output.scores.shape == (BATCH,)


@every_case
def test_without_a_backbone_the_head_still_predicts(case: Case) -> None:
    adapter = build(case, train=True, num_pseudo_tokens=0, backbone_size=0)
    output = adapter(make_inputs(case, targets=True))
    assert output.pseudo_tokens.shape[:2] == (BATCH, 0)
    weighted_loss(adapter, output).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, f"{name} is outside the graph"


@train_and_eval
@every_case
def test_diagnostics_are_detached_and_have_one_row_per_sample(case: Case, train: bool) -> None:
    for samples in ([0, 1, 2, 3], [1]):
        output = build(case, train=train)(rows(make_inputs(case, targets=True), samples))
        assert output.diagnostics
        for name, value in output.diagnostics.items():
            assert value.shape[0] == len(samples), name
            assert not value.requires_grad, name
        assert output.features is not None
        assert not output.features.requires_grad


@every_case
def test_warnings_are_text_for_any_diagnostics_of_the_adapter(case: Case) -> None:
    adapter = build(case)
    warnings = adapter.warnings_from(adapter(make_inputs(case)).diagnostics)
    assert all(isinstance(warning, str) and warning for warning in warnings)


def ablated_cases() -> list[Case]:
    """Every adapter for both kinds of task, with its example options and under each of its ablations."""
    found = [case for case in CASES if case.task == "both"]
    for name in adapter_names():
        cls = adapter_class(name)
        small = cls.example_options[0]
        found += [Case(name, "both", {**small, **changes}) for changes in {**MODALITY_ABLATIONS, **cls.ablations}.values()]
    return found


@pytest.mark.parametrize("case", ablated_cases(), ids=str)
def test_what_an_adapter_says_of_its_diagnostics_is_what_it_returns(case: Case) -> None:
    adapter = build(case, train=True)
    known = adapter.diagnostic_info([f"label {i}" for i in range(CLASSES)])
    assert len({info.name for info in known}) == len(known)
    values = adapter(make_inputs(case, targets=True)).diagnostics
    parts = {info.name: (len(info.parts),) for info in known if info.of_samples}
    assert parts == {name: tuple(value.shape[1:]) for name, value in values.items()}
    for info in known:
        if info.kind in ("weights", "gates"):
            assert float(values[info.name].min()) >= 0.0
            assert float(values[info.name].max()) <= 1.0 + 1e-6
        if info.kind == "weights":
            torch.testing.assert_close(values[info.name].sum(dim=1), torch.ones(BATCH))
    followed = {name: len(vectors) for name, vectors in adapter.followed_vectors().items()}
    assert {info.name: len(info.parts) for info in known if info.kind == "trajectory"} == followed
    logged = adapter.on_epoch_end()
    assert {info.name: len(info.parts) for info in known if info.kind == "epoch_value"} == dict.fromkeys(logged, 1)


@train_and_eval
@every_case
def test_losses_are_scalars_that_have_a_default_weight(case: Case, train: bool) -> None:
    adapter = build(case, train=train)
    losses = adapter(make_inputs(case, targets=True)).aux_losses
    assert losses
    assert losses.keys() <= adapter.default_loss_weights.keys()
    for value in losses.values():
        assert value.shape == ()
        assert torch.isfinite(value)
        assert value.requires_grad


@train_and_eval
@every_case
def test_pseudo_tokens_do_not_depend_on_the_targets(case: Case, train: bool) -> None:
    adapter, inputs = build(case, train=train), make_inputs(case)
    asked = dataclasses.replace(
        inputs, targets=FusionTargets(torch.tensor([1, 1, 1, 1]), torch.tensor([0.0, 2.0, 1.0, 3.0]))
    )
    assert_same(adapter(make_inputs(case, targets=True)), adapter(inputs), atol=0.0)
    assert_same(adapter(asked), adapter(inputs), atol=0.0)


@every_case
def test_unknown_targets_teach_nothing_and_break_nothing(case: Case) -> None:
    unknown = FusionTargets(torch.full((BATCH,), IGNORE_CLASS), torch.full((BATCH,), math.nan))
    adapter = build(case, train=True)
    losses = adapter(dataclasses.replace(make_inputs(case), targets=unknown)).aux_losses
    for name in ("ce", "l1"):
        if name in losses:
            assert float(losses[name].detach()) == 0.0
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter.parameters() if p.grad is not None)


@every_case
def test_a_sample_without_a_target_of_one_kind_adds_nothing_to_its_loss(case: Case) -> None:
    adapter, inputs = build(case, train=True), make_inputs(case, targets=True)
    known = [0, 2, 3] if case.task == "classification" else [1, 2, 3] if case.task == "regression" else None
    if known is None:
        inputs.targets = FusionTargets(torch.tensor([2, IGNORE_CLASS, 0, 3]), torch.full((BATCH,), math.nan))
        known = [0, 2, 3]
    whole, part = adapter(inputs).aux_losses, adapter(rows(inputs, known)).aux_losses
    for name in {"ce", "l1"} & whole.keys():
        torch.testing.assert_close(whole[name], part[name], atol=1e-5, rtol=1e-5)


@every_adapter
def test_without_context_a_sample_is_its_own_conversation(case: Case) -> None:
    adapter, inputs = build(case, context_sizes={}), dataclasses.replace(make_inputs(case, targets=True), context=None)
    output = adapter(inputs)
    assert is_finite(output)
    assert_same(adapter(rows(inputs, [2])), output, pick=[2])
    assert_same(adapter(pad(inputs, 3)), output)


# --- saving, learning, registration -----------------------------------------------------------------------------------


@every_case
def test_a_state_dict_round_trip_through_safetensors_is_exact(case: Case, tmp_path: Path) -> None:
    adapter, inputs = build(case), make_inputs(case)
    state = adapter.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "adapter.safetensors")
    loaded = build(case, seed=99)
    assert not torch.equal(loaded(inputs).pseudo_tokens, adapter(inputs).pseudo_tokens)
    loaded.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
    assert_same(loaded(inputs), adapter(inputs), atol=0.0)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name])
        assert value.dtype == state[name].dtype


@every_case
def test_what_a_final_checkpoint_leaves_out_is_not_needed_for_pseudo_tokens(case: Case) -> None:
    adapter, inputs = build(case), make_inputs(case)
    left_out = adapter.training_only_parameters()
    assert all(any(name.startswith(prefix) for name in adapter.state_dict()) for prefix in left_out)
    kept = {n: v for n, v in adapter.state_dict().items() if not n.startswith(left_out or ("\0",))}
    loaded = build(case, seed=99)
    loaded.load_state_dict(kept, strict=False)
    assert_same(loaded(inputs), adapter(inputs), atol=0.0)


@pytest.mark.parametrize("case", [c for c in CASES if not c.options or c.task == "both"], ids=str)
def test_it_overfits_eight_samples_in_thirty_steps(case: Case) -> None:
    inputs = make_inputs(case, complete=True)
    more = make_inputs(case, complete=True)
    generator = torch.Generator().manual_seed(7)

    def eight(name: str, tensor: Tensor) -> Tensor:
        other = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        return torch.cat([tensor, other])

    inputs = map_tensors(more, eight)
    classes = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]) if case.task != "regression" else torch.full((8,), IGNORE_CLASS)
    scores = torch.tensor([-3.0, 3.0, 0.0, 1.5, -1.5, 3.0, 0.0, -3.0])
    inputs.targets = FusionTargets(classes, scores if case.task != "classification" else torch.full((8,), math.nan))
    adapter = build(case, train=True, hidden_size=32, num_heads=4)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=5e-3)
    history = []
    for _ in range(31):
        loss = weighted_loss(adapter, adapter(inputs))
        history.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert history[-1] < 0.5 * history[0], f"{history[0]:.3f} -> {history[-1]:.3f}"
    assert all(isinstance(value, float) for value in adapter.on_epoch_end().values())


@pytest.mark.parametrize("name", adapter_names())
def test_registered_adapters_describe_themselves(name: str) -> None:
    cls = adapter_class(name)
    assert cls.name == name
    assert issubclass(cls.config_class, AdapterConfig)
    assert cls.__doc__
    for entry in dataclasses.fields(cls.config_class):
        assert entry.metadata.get("derived") or entry.metadata.get("help"), f"{entry.name} has no help"


def test_unknown_adapters_and_foreign_configurations_are_clear_errors() -> None:
    with pytest.raises(ValueError, match="choose one of " + ", ".join(map(re.escape, adapter_names()))):
        adapter_class("nope")
    for name in adapter_names():
        own = adapter_class(name).config_class
        if own is not AdapterConfig:
            with pytest.raises(TypeError, match=own.__name__):
                build_adapter(name, AdapterConfig())


@every_adapter
def test_an_adapter_without_any_modality_is_a_clear_error(case: Case) -> None:
    with pytest.raises(ValueError, match="no modality to read"):
        build(case, feature_sizes={}, context_sizes={})


def test_every_adapter_and_task_is_a_case() -> None:
    assert {(c.adapter, c.task) for c in CASES} == {(a, t) for a in adapter_names() for t in TASKS}
    absent: dict[str, list[int]] = {m: [i for i, n in enumerate(lengths) if n == 0] for m, lengths in LENGTHS.items()}
    assert all(absent.values())
    inputs: FusionInputs = make_inputs(CASES[0])
    assert inputs.batch_size == BATCH
