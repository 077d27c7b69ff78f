"""GIA-MIC (arXiv 2506.00865) against a NumPy rewrite, its constraint, its missing modalities."""

import math

import numpy as np
import pytest
import torch
from numpy_reference import array, cross_attention, gelu, layer_norm, linear, sigmoid, softmax

from llm_mer.adapters.base import FusionInputs, FusionTargets, ModalitySequence
from llm_mer.adapters.gia_mic import (
    GatedInteractiveAttention,
    GIAMICAdapter,
    GIAMICConfig,
    ModalityInvariantGenerator,
    invariant_constraint,
    symmetric_kl,
)
from llm_mer.adapters.layers import real_steps_to_front

SIZES = {"text": 5, "audio": 4, "vision": 3}
LENGTHS = {"text": [4, 2, 3], "audio": [3, 5, 1], "vision": [2, 2, 4]}
ORDER = ("vision", "audio", "text")
D, HEADS = 8, 2


def build(double: bool = True, train: bool = False, **options: object) -> GIAMICAdapter:
    torch.manual_seed(0)
    settings: dict = {
        "hidden_size": D,
        "num_heads": HEADS,
        "num_pseudo_tokens": 2,
        "dropout": 0.0,
        "feature_sizes": SIZES,
        "backbone_size": 6,
        "num_classes": 4,
    }
    adapter = GIAMICAdapter(GIAMICConfig(**{**settings, **options}))
    adapter = adapter.double() if double else adapter
    return adapter.train(train)


def make_inputs(dtype: torch.dtype = torch.float64, targets: FusionTargets | None = None, pad: int = 2) -> FusionInputs:
    generator = torch.Generator().manual_seed(1)
    sequences = {}
    for modality, lengths in LENGTHS.items():
        features = torch.full((3, 5 + pad, SIZES[modality]), math.nan, dtype=dtype)
        features[:, :5] = torch.randn(3, 5, SIZES[modality], generator=generator, dtype=torch.float64).to(dtype)
        mask = torch.arange(5 + pad) < torch.tensor(lengths)[:, None]
        features[~mask] = math.nan
        sequences[modality] = ModalitySequence(features, mask)
    return FusionInputs(**sequences, targets=targets)


def rows(inputs: FusionInputs, index: list[int]) -> FusionInputs:
    def pick(s: ModalitySequence) -> ModalitySequence:
        return ModalitySequence(s.features[index], s.mask[index])

    return FusionInputs(text=pick(inputs.text), audio=pick(inputs.audio), vision=pick(inputs.vision))


# --- the NumPy rewrite, one sample at a time, without padding ---------------------------------------------------------


def transformer(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    x = layer_norm(x + cross_attention(module.attention, x, x, HEADS), module.norm_attention)
    inner = gelu(linear(x, module.feed_forward[0]))
    return layer_norm(x + linear(inner, module.feed_forward[2]), module.norm_feed_forward)


def interact(module: GatedInteractiveAttention, h_a: np.ndarray, h_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h_ab = softmax(linear(h_a, module.query) @ linear(h_b, module.key).T / math.sqrt(D)) @ linear(h_b, module.value)
    gate = np.full(D, 0.5) if module.gate is None else sigmoid(linear(h_ab.mean(axis=0), module.gate))
    return gate * h_ab + (1 - gate) * h_a, gate


def generate(module: ModalityInvariantGenerator, h_vst: np.ndarray, msr: np.ndarray) -> np.ndarray:
    share = cross_attention(module.attends, h_vst, msr, HEADS)
    steps = len(h_vst)
    both = np.concatenate([np.repeat(msr.mean(axis=0)[None], steps, axis=0), h_vst], axis=-1)
    filtered = share * sigmoid(both @ array(module.filter.weight)[:, :, 0].T + array(module.filter.bias))
    weight, bias = array(module.refine.weight), array(module.refine.bias)  # (d, d, 3)
    out = []
    for centre in range(0, steps, 2):
        window = [t for t in (centre - 1, centre, centre + 1) if 0 <= t < steps]
        step = bias + sum(weight[:, :, t - centre + 1] @ filtered[t] for t in window)
        out.append(step + filtered[window].mean(axis=0))
    return np.stack(out)


def skl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum())


def reference(adapter: GIAMICAdapter, inputs: FusionInputs, i: int) -> dict:
    encoded, present = {}, {}
    for modality in ORDER:
        sequence, projection = inputs.sequence(modality), adapter.projections[modality]
        real = array(sequence.features[i])[array(sequence.mask[i]).astype(bool)]
        present[modality] = len(real) > 0
        x = layer_norm(linear(real, projection.linear), projection.norm) if len(real) else array(projection.missing)[None]
        encoded[modality] = transformer(adapter.encoders[modality], x)
    msr, gates = {}, []
    for a in ORDER:
        taken = [interact(adapter.interactions[f"{a}_{b}"], encoded[a], encoded[b]) for b in ORDER if b != a]
        gates += [gate for _, gate in taken]
        msr[a] = sum(h for h, _ in taken) if present[a] else encoded[a]
    h_vst = np.concatenate([encoded[m] for m in ORDER])
    mir = {m: generate(adapter.generators[m], h_vst, msr[m]).mean(axis=0) for m in ORDER}
    pairs = [(a, b) for a, b in (("vision", "audio"), ("vision", "text"), ("audio", "text")) if present[a] and present[b]]
    divergence = [skl(softmax(mir[a]), softmax(mir[b])) for a, b in pairs]
    return {
        "h": np.concatenate([msr[m].mean(axis=0) for m in ORDER] + [mir[m] for m in ORDER]),
        "gate_mean": np.array([g.mean() for g in gates]),
        "gate_variance": np.array([g.var() for g in gates]),
        "mic": 3 / len(pairs) * sum(divergence) if pairs else None,
    }


def test_fusion_equals_the_numpy_rewrite() -> None:
    adapter, inputs = build(), make_inputs()
    output = adapter(inputs)
    expected = [reference(adapter, inputs, i) for i in range(3)]
    for i, want in enumerate(expected):
        np.testing.assert_allclose(array(output.features[i]), want["h"], atol=1e-10)
        for name in ("gate_mean", "gate_variance"):
            np.testing.assert_allclose(array(output.diagnostics[name][i]), want[name], atol=1e-10)
    np.testing.assert_allclose(float(output.aux_losses["mic"].detach()), np.mean([w["mic"] for w in expected]), atol=1e-10)


@pytest.mark.parametrize("learned_gate", [True, False])
def test_gated_interactive_attention_equals_the_numpy_rewrite(learned_gate: bool) -> None:
    torch.manual_seed(3)
    module = GatedInteractiveAttention(D, learned_gate).double()
    h_a, h_b = torch.randn(2, 4, D, dtype=torch.float64), torch.randn(2, 6, D, dtype=torch.float64)
    mask_a = torch.tensor([[True] * 4, [True, False, True, False]])
    mask_b = torch.tensor([[True] * 6, [False, True, False, False, True, True]])
    mixed, gate = module(h_a, mask_a, h_b, mask_b)
    for i in range(2):
        real_a, real_b = array(mask_a[i]).astype(bool), array(mask_b[i]).astype(bool)
        want, want_gate = interact(module, array(h_a[i])[real_a], array(h_b[i])[real_b])
        np.testing.assert_allclose(array(mixed[i])[real_a], want, atol=1e-12)
        np.testing.assert_allclose(array(gate[i]), want_gate, atol=1e-12)
    assert bool(((gate > 0) & (gate < 1)).all())


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_the_generator_equals_the_numpy_rewrite_and_its_mask_follows_the_stride(steps: int) -> None:
    torch.manual_seed(4)
    module = ModalityInvariantGenerator(D, HEADS, 0.0).double()
    shared, msr = torch.randn(1, 8, D, dtype=torch.float64), torch.randn(1, 3, D, dtype=torch.float64)
    shared_mask, msr_mask = torch.arange(8)[None] < steps, torch.tensor([[True, True, False]])
    invariant, mask = module(shared, shared_mask, msr, msr_mask)
    assert int(mask.sum()) == math.ceil(steps / 2)
    assert invariant.shape[1] == mask.shape[1] == 4
    want = generate(module, array(shared[0, :steps]), array(msr[0, :2]))
    np.testing.assert_allclose(array(invariant[0])[array(mask[0]).astype(bool)], want, atol=1e-12)


def test_real_steps_move_to_the_front_in_order() -> None:
    values = torch.arange(1.0, 6.0).reshape(1, 5, 1)
    moved, mask = real_steps_to_front(values, torch.tensor([[False, True, False, True, True]]))
    assert moved.flatten().tolist() == [2.0, 4.0, 5.0, 0.0, 0.0]
    assert mask.tolist() == [[True, True, True, False, False]]


def test_symmetric_kl_is_symmetric_positive_and_zero_exactly_where_equal() -> None:
    torch.manual_seed(0)
    log_p = torch.log_softmax(torch.randn(100, D, dtype=torch.float64) * 3, -1)
    log_q = torch.log_softmax(torch.randn(100, D, dtype=torch.float64) * 3, -1)
    value = symmetric_kl(log_p, log_q)
    assert bool((value > 0).all())
    torch.testing.assert_close(value, symmetric_kl(log_q, log_p))
    assert torch.equal(symmetric_kl(log_p, log_p), torch.zeros(100, dtype=torch.float64))
    for i in range(5):
        assert math.isclose(float(value[i]), skl(np.exp(array(log_p[i])), np.exp(array(log_q[i]))), rel_tol=1e-10)


def test_the_constraint_rescales_the_pairs_that_are_left_to_three() -> None:
    torch.manual_seed(0)
    vectors = [torch.randn(4, D, dtype=torch.float64) for _ in range(3)]
    present = [torch.tensor(p) for p in ([True, True, True, False], [True, True, False, False], [True, False, False, True])]
    loss, divergence = invariant_constraint(vectors, present)
    p = [softmax(array(v)) for v in vectors]
    whole = sum(skl(p[i][0], p[j][0]) for i, j in ((0, 1), (1, 2), (2, 0)))
    one_pair = 3 * skl(p[0][1], p[1][1])
    assert math.isclose(float(loss), (whole + one_pair) / 2, rel_tol=1e-10)  # two samples have no pair at all
    assert divergence.shape == (4, 3)
    assert torch.equal(divergence[2:], torch.zeros(2, 3, dtype=torch.float64))


def test_the_constraint_without_any_pair_is_zero_with_a_graph() -> None:
    inputs = make_inputs()
    inputs.audio.mask[:] = False
    inputs.vision = None
    adapter = build()
    loss = adapter(inputs).aux_losses["mic"]
    loss.backward()
    assert float(loss.detach()) == 0.0


# --- missing modalities, padding, gradients, precision ----------------------------------------------------------------


@pytest.mark.parametrize("missing", [("text",), ("audio",), ("vision",), ("text", "vision"), ("audio", "vision")])
def test_a_missing_modality_skips_its_pairs_and_never_leaks(missing: tuple[str, ...]) -> None:
    adapter, inputs, absent = build(), make_inputs(), make_inputs()
    for modality in missing:
        inputs.sequence(modality).mask[1] = False
        setattr(absent, modality, None)
    output = adapter(inputs)
    expected = [reference(adapter, inputs, i) for i in range(3)]
    np.testing.assert_allclose(array(output.features[1]), expected[1]["h"], atol=1e-10)
    mic = [e["mic"] for e in expected if e["mic"] is not None]
    np.testing.assert_allclose(float(output.aux_losses["mic"].detach()), np.mean(mic), atol=1e-10)
    torch.testing.assert_close(output.pseudo_tokens[1], adapter(absent).pseudo_tokens[1])
    used = [float(a not in missing) for a, _ in adapter.ordered_pairs]
    assert output.diagnostics["gate_used"][1].tolist() == used
    for modality in missing:
        inputs.sequence(modality).features[1] = 7.0
    torch.testing.assert_close(adapter(inputs).pseudo_tokens, output.pseudo_tokens)


def test_padding_between_and_inside_modalities_changes_nothing() -> None:
    adapter, plain, holed = build(), make_inputs(), make_inputs()
    for modality in ORDER:
        sequence = holed.sequence(modality)
        order = torch.tensor([5, 0, 1, 6, 2, 3, 4])  # padding first and among the real steps
        holed_sequence = ModalitySequence(sequence.features[:, order], sequence.mask[:, order])
        setattr(holed, modality, holed_sequence)
    torch.testing.assert_close(adapter(holed).pseudo_tokens, adapter(plain).pseudo_tokens)
    torch.testing.assert_close(adapter(make_inputs(pad=7)).pseudo_tokens, adapter(plain).pseudo_tokens)


@pytest.mark.parametrize("train", [False, True])
def test_a_sample_is_the_same_alone_and_in_a_batch(train: bool) -> None:
    adapter, inputs = build(train=train), make_inputs()
    together = adapter(inputs)
    for i in range(3):
        alone = adapter(rows(inputs, [i]))
        torch.testing.assert_close(alone.pseudo_tokens[0], together.pseudo_tokens[i])
        for name, value in together.diagnostics.items():
            assert value.shape[0] == 3
            torch.testing.assert_close(alone.diagnostics[name][0], value[i])


ABLATIONS: list[dict] = [
    {},
    {"use_msr": False},
    {"use_mir": False},
    {"use_mic": False},
    {"use_attention_gate": False},
    {"use_vision": False},
    {"use_audio": False, "use_vision": False},
    {"auxiliary_head": True},
]


@pytest.mark.parametrize("options", ABLATIONS, ids=lambda o: "+".join(f"{k}={v}" for k, v in o.items()) or "full")
def test_every_ablation_trains_every_parameter_and_names_its_losses(options: dict) -> None:
    adapter = build(train=True, **options)
    output = adapter(make_inputs(targets=FusionTargets(torch.tensor([2, 1, 0]))))
    loss = output.pseudo_tokens.square().sum() + (output.pseudo_tokens * 0.3).sum()
    for name, value in output.aux_losses.items():
        loss = loss + GIAMICAdapter.default_loss_weights[name] * value
    loss.backward()
    for name, parameter in adapter.named_parameters():
        if not name.endswith(".missing"):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    constrained = options.get("use_mic", True) and options.get("use_mir", True) and options.get("use_audio", True)
    assert ("mic" in output.aux_losses) == constrained
    assert ("ce" in output.aux_losses) == options.get("auxiliary_head", False)
    assert output.features.shape == (3, adapter.output_size)
    assert adapter.warnings_from(output.diagnostics) is not None


def test_without_the_gate_both_sides_weigh_one_half_and_no_gate_is_reported() -> None:
    diagnostics = build(use_attention_gate=False)(make_inputs()).diagnostics
    assert set(diagnostics) == {"invariant_divergence"}


def test_nothing_left_to_fuse_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="use_msr or use_mir"):
        build(use_msr=False, use_mir=False)


def test_the_default_weight_of_the_constraint_is_the_papers() -> None:
    assert GIAMICAdapter.default_loss_weights == {"ce": 1.0, "l1": 1.0, "mic": 0.1}


def test_gradients_pass_gradcheck() -> None:
    adapter, inputs = build(hidden_size=4, num_pseudo_tokens=1), make_inputs()
    inputs.audio.mask[1] = False
    chosen = (
        "projections.audio.missing",
        "interactions.vision_text.query.weight",
        "interactions.text_audio.gate.weight",
        "generators.vision.filter.weight",
        "generators.text.refine.weight",
    )
    parameters = dict(adapter.named_parameters())
    values = [parameters[n].detach().clone().requires_grad_() for n in chosen]

    def loss(*replaced: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(adapter, dict(zip(chosen, replaced, strict=True)), (inputs,))
        return output.pseudo_tokens.sum(dim=0).flatten().sin().sum() + output.aux_losses["mic"]

    assert torch.autograd.gradcheck(loss, values)


def test_bfloat16_autocast_agrees_with_float32() -> None:
    adapter = build(double=False, hidden_size=32, num_heads=4)
    inputs = make_inputs(torch.float32)
    exact = adapter(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = adapter(inputs)
    torch.testing.assert_close(rough.pseudo_tokens.float(), exact.pseudo_tokens, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(rough.aux_losses["mic"].float(), exact.aux_losses["mic"], atol=2e-2, rtol=2e-2)


def test_a_gate_that_does_not_select_is_reported_only_where_it_was_used() -> None:
    adapter = build()
    flat = {"gate_mean": torch.full((9, 6), 0.5), "gate_variance": torch.full((9, 6), 0.01), "gate_used": torch.ones(9, 6)}
    assert adapter.warnings_from(flat) == []
    flat["gate_variance"][:, 0] = 1e-5
    assert "vision→audio" in adapter.warnings_from(flat)[0]
    flat["gate_used"][:, 0] = 0.0
    assert adapter.warnings_from(flat) == []


NOBODY, EVERYBODY = torch.tensor([[False] * 3, [True] * 3]), torch.ones(2, 3, dtype=torch.bool)
"""Masks of two samples; in the first one no key is real."""


def test_gated_interaction_over_masked_keys_alone_keeps_a_part_of_the_query() -> None:
    """Nothing to take from the other modality: the gate, its bias alone, keeps a part of the query."""
    modules = [m for m in build(double=False).modules() if isinstance(m, GatedInteractiveAttention)]
    assert modules
    for module in modules:
        h_a, h_b = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
        mixed, gate = module(h_a, EVERYBODY, h_b, NOBODY)
        torch.testing.assert_close(gate[0], torch.sigmoid(module.gate.bias))
        torch.testing.assert_close(mixed[0], (1 - gate[0]) * h_a[0])
        assert not torch.allclose(mixed[1], (1 - gate[1]) * h_a[1])
