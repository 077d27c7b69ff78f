"""EGMF (arXiv 2601.07565) against a NumPy rewrite, its ablation flags, its warnings."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from builders import Case, build, make_inputs, weighted_loss
from numpy_reference import array, cross_attention, gelu, layer_norm, linear, sigmoid, silu, softmax
from torch import nn

from llm_mer.adapters.egmf import EXPERT_PAIRS, EGMFAdapter, SequenceEncoder, egmf_warnings, pairwise_cosine

EXPERTS = ("local", "semantic", "global")
D, HEADS = 8, 2


def egmf(double: bool = True, train: bool = False, **options: Any) -> Any:
    adapter = build(Case("egmf", "both"), double=double, train=train, **options)
    assert isinstance(adapter, EGMFAdapter)
    return adapter


def inputs64() -> Any:
    return make_inputs(Case("egmf", "both"), torch.float64)


# --- the NumPy rewrite, one sample at a time, without padding ---------------------------------------------------------


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def lstm_direction(module: Any, x: np.ndarray, suffix: str) -> np.ndarray:
    w_x, w_h = array(getattr(module, f"weight_ih_l0{suffix}")), array(getattr(module, f"weight_hh_l0{suffix}"))
    bias = array(getattr(module, f"bias_ih_l0{suffix}")) + array(getattr(module, f"bias_hh_l0{suffix}"))
    h = c = np.zeros(module.hidden_size)
    steps = []
    for value in x:
        i, f, g, o = np.split(w_x @ value + w_h @ h + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        steps.append(h)
    return np.stack(steps)


def encode(module: Any, x: np.ndarray) -> np.ndarray:
    if module.kind == "lstm":
        backward = lstm_direction(module.lstm, x[::-1], "_reverse")[::-1]
        return np.concatenate([lstm_direction(module.lstm, x, ""), backward], axis=-1)
    x = layer_norm(x + cross_attention(module.attention, x, x, HEADS), module.norm_attention)
    inner = gelu(linear(x, module.feed_forward[0]))
    return layer_norm(x + linear(inner, module.feed_forward[2]), module.norm_feed_forward)


def reference(adapter: Any, inputs: Any, i: int) -> dict[str, np.ndarray]:
    h = {}
    for modality in ("text", "audio", "vision"):
        sequence, projection = inputs.sequence(modality), adapter.projections[modality]
        real = array(sequence.features[i])[array(sequence.mask[i]).astype(bool)]
        x = layer_norm(linear(real, projection.linear), projection.norm) if len(real) else array(projection.missing)[None]
        h[modality] = x if modality == "text" else encode(adapter.encoders[modality], x)
    h_t, h_av = h["text"], np.concatenate([h["audio"], h["vision"]])
    f_t = layer_norm(h_t + cross_attention(adapter.text_attends, h_t, h_av, HEADS), adapter.norm_text)
    f_av = layer_norm(h_av + cross_attention(adapter.audio_visual_attends, h_av, h_t, HEADS), adapter.norm_audio_visual)
    fused = linear(np.concatenate([f_t.mean(axis=0), f_av.mean(axis=0)]), adapter.fusion)
    outputs = []
    kept = [i for i, name in enumerate(EXPERTS) if getattr(adapter.config, f"use_expert_{name}")]
    kinds = [((mish, 8), (gelu, 4), (silu, 2))[i] for i in kept]
    for module, (activation, reduction) in zip(adapter.experts, kinds, strict=True):
        inner = linear(fused, module[0])
        assert inner.shape == (D // reduction,)
        outputs.append(linear(activation(inner), module[2]))
    w = softmax(linear(fused, adapter.gate_network))
    alpha = softmax(linear(gelu(linear(np.concatenate([fused, w]), adapter.context_gate[0])), adapter.context_gate[2]))

    def cosine(a: int, b: int) -> float:
        if a not in kept or b not in kept:
            return 0.0
        x, y = outputs[kept.index(a)], outputs[kept.index(b)]
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    def three(values: np.ndarray) -> np.ndarray:
        spread = np.zeros(3)
        spread[kept] = values
        return spread

    return {
        "features": fused + sum(a * output for a, output in zip(alpha, outputs, strict=True)),
        "expert_weights": three(alpha),
        "feature_gate": three(w),
        "expert_cosine": np.array([cosine(a, b) for a, b in ((0, 1), (0, 2), (1, 2))]),
        "fused": fused,
        "outputs": np.stack(outputs),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"audio_visual_encoder": "transformer"}, *({f"use_expert_{name}": False} for name in EXPERTS)],
    ids=lambda options: "+".join(options),
)
def test_fusion_equals_the_numpy_rewrite_with_missing_modalities_too(options: dict[str, Any]) -> None:
    adapter, inputs = egmf(**options), inputs64()
    output = adapter(inputs)
    for i in range(4):
        expected = reference(adapter, inputs, i)
        np.testing.assert_allclose(array(output.features[i]), expected["features"], atol=1e-12)
        for name in ("expert_weights", "feature_gate", "expert_cosine"):
            np.testing.assert_allclose(array(output.diagnostics[name][i]), expected[name], atol=1e-12)


def test_the_experts_are_a_mish_a_gelu_and_a_silu_bottleneck() -> None:
    adapter = egmf(hidden_size=32)
    assert [type(e[1]) for e in adapter.experts] == [nn.Mish, nn.GELU, nn.SiLU]
    assert [e[0].out_features for e in adapter.experts] == [4, 8, 16]
    assert [(e[0].in_features, e[2].out_features) for e in adapter.experts] == [(32, 32)] * 3


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_the_encoder_reads_real_steps_wherever_they_stand(kind: str) -> None:
    torch.manual_seed(0)
    encoder = SequenceEncoder(kind, D, HEADS, 0.0).double()
    values, mask = torch.randn(2, 5, D, dtype=torch.float64), torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    encoded = encoder(values, mask)
    for i in range(2):
        want = encode(encoder, array(values[i])[mask[i].numpy()])
        np.testing.assert_allclose(array(encoded[i])[mask[i].numpy()], want, atol=1e-12)


# --- ablation flags ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=lambda off: "+".join(EXPERTS[i] for i in off))
def test_an_expert_switched_off_weighs_nothing_and_the_others_share(off: tuple[int, ...]) -> None:
    adapter, inputs = egmf(**{f"use_expert_{EXPERTS[i]}": False for i in off}), inputs64()
    output = adapter(inputs)
    kept = [i for i in range(3) if i not in off]
    for name in ("expert_weights", "feature_gate"):
        assert not output.diagnostics[name][:, list(off)].any()
        assert bool((output.diagnostics[name][:, kept] > 0).all())
        torch.testing.assert_close(output.diagnostics[name].sum(dim=1), torch.ones(4, dtype=torch.float64))
    cosine = output.diagnostics["expert_cosine"]
    for column, pair in enumerate(EXPERT_PAIRS):
        assert bool((cosine[:, column] == 0.0).all()) == bool(set(pair) & set(off))


@pytest.mark.parametrize("gating", ["hierarchical", "feature", "uniform"])
@pytest.mark.parametrize("off", [(0,), (1,), (2,), (0, 1), (0, 2)], ids=lambda off: "+".join(EXPERTS[i] for i in off))
def test_an_expert_switched_off_is_not_built_and_every_parameter_that_is_learns(off: tuple[int, ...], gating: str) -> None:
    adapter = egmf(train=True, gating=gating, **{f"use_expert_{EXPERTS[i]}": False for i in off})
    whole = egmf(gating=gating)
    experts = sum(p.numel() for i in off for p in whole.experts[i].parameters())
    fewer = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in adapter.parameters())
    assert fewer == experts if gating == "uniform" else fewer > experts
    assert [type(e[1]) for e in adapter.experts] == [m for i, m in enumerate((nn.Mish, nn.GELU, nn.SiLU)) if i not in off]
    output = adapter(make_inputs(Case("egmf", "both"), torch.float64, targets=True))
    (output.pseudo_tokens.sin().sum() + weighted_loss(adapter, output)).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert name.endswith("key.bias") or float(parameter.grad.abs().max()) > 1e-9, name


def test_feature_gating_uses_the_first_level_alone() -> None:
    adapter, inputs = egmf(gating="feature"), inputs64()
    output = adapter(inputs)
    assert adapter.context_gate is None
    assert torch.equal(output.diagnostics["expert_weights"], output.diagnostics["feature_gate"])
    adapter.context_gate = egmf().context_gate  # the rewrite computes both levels
    for i in range(4):
        expected = reference(adapter, inputs, i)
        np.testing.assert_allclose(array(output.diagnostics["expert_weights"][i]), expected["feature_gate"], atol=1e-12)
        want = expected["fused"] + expected["feature_gate"] @ expected["outputs"]
        np.testing.assert_allclose(array(output.features[i]), want, atol=1e-12)


@pytest.mark.parametrize(("off", "weights"), [({}, [1 / 3] * 3), ({"use_expert_semantic": False}, [0.5, 0.0, 0.5])])
def test_uniform_gating_weighs_the_used_experts_alike(off: dict, weights: list[float]) -> None:
    adapter = egmf(gating="uniform", **off)
    output = adapter(inputs64())
    expected = torch.tensor(weights, dtype=torch.float64).expand(4, 3)
    torch.testing.assert_close(output.diagnostics["expert_weights"], expected)
    assert not any(name.startswith(("gate_network", "context_gate")) for name, _ in adapter.named_parameters())


@pytest.mark.parametrize("off", ["text", "audio", "vision"])
def test_a_modality_switched_off_has_no_parameters_and_changes_nothing(off: str) -> None:
    adapter, inputs = egmf(**{f"use_{off}": False}), inputs64()
    assert not any(f".{off}." in name for name, _ in adapter.named_parameters())
    without = dataclasses.replace(inputs, **{off: None})
    assert torch.equal(adapter(inputs).pseudo_tokens, adapter(without).pseudo_tokens)


@pytest.mark.parametrize("only", ["text", "audio"])
def test_one_side_alone_attends_to_itself(only: str) -> None:
    adapter = egmf(**{f"use_{m}": m == only for m in ("text", "audio", "vision")})
    inputs: Any = make_inputs(Case("egmf", "both"), torch.float64, complete=True)
    output = adapter(inputs)
    for i in range(4):
        sequence, projection = inputs.sequence(only), adapter.projections[only]
        real = array(sequence.features[i])[sequence.mask[i].numpy()]
        h = layer_norm(linear(real, projection.linear), projection.norm)
        h = encode(adapter.encoders[only], h) if only != "text" else h
        f_t = layer_norm(h + cross_attention(adapter.text_attends, h, h, HEADS), adapter.norm_text)
        f_av = layer_norm(h + cross_attention(adapter.audio_visual_attends, h, h, HEADS), adapter.norm_audio_visual)
        fused = linear(np.concatenate([f_t.mean(axis=0), f_av.mean(axis=0)]), adapter.fusion)
        np.testing.assert_allclose(
            array(output.diagnostics["feature_gate"][i]), softmax(linear(fused, adapter.gate_network))
        )


def test_repeat_gives_one_token_many_times_and_linear_gives_different_ones() -> None:
    repeated, expanded = egmf(token_expansion="repeat"), egmf(token_expansion="linear")
    inputs = inputs64()
    tokens = repeated(inputs).pseudo_tokens
    assert torch.equal(tokens, tokens[:, :1].expand_as(tokens))
    assert repeated.pseudo_tokens.linear.out_features * 3 == expanded.pseudo_tokens.linear.out_features
    different = expanded(inputs).pseudo_tokens
    assert bool(((different[:, 0] - different[:, 1]).norm(dim=-1) > 0.1).all())
    with torch.no_grad():  # the same three rows of weights: linear holds repeat as a special case
        expanded.load_state_dict({n: v for n, v in repeated.state_dict().items() if "linear" not in n}, strict=False)
        expanded.pseudo_tokens.linear.weight.copy_(repeated.pseudo_tokens.linear.weight.repeat(3, 1))
        expanded.pseudo_tokens.linear.bias.copy_(repeated.pseudo_tokens.linear.bias.repeat(3))
        for name, value in repeated.named_parameters():
            if not name.startswith("pseudo_tokens"):
                dict(expanded.named_parameters())[name].copy_(value)
    torch.testing.assert_close(expanded(inputs).pseudo_tokens, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({f"use_expert_{name}": False for name in EXPERTS}, "at least one of its three experts"),
        ({"gating": "none"}, "choose hierarchical, feature or uniform"),
        ({"audio_visual_encoder": "cnn"}, "choose lstm or transformer"),
    ],
)
def test_impossible_options_are_clear_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        egmf(**options)


# --- warnings ---------------------------------------------------------------------------------------------------------

APART = torch.tensor([[0.1, -0.2, 0.3]]).expand(10, 3)
SELECTIVE = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).repeat(4, 1)[:10]


def test_a_healthy_gate_with_different_experts_is_not_reported() -> None:
    assert egmf_warnings(SELECTIVE, APART) == []
    assert egmf_warnings(torch.tensor([[0.5, 0.3, 0.2]]).expand(10, 3), APART) == []  # constant, but it prefers an expert


def test_a_uniform_mean_of_selective_weights_is_not_a_collapse() -> None:
    weights = torch.eye(3).repeat(3, 1)  # mean exactly uniform, each sample decided
    assert egmf_warnings(weights, APART[:9]) == []


def test_a_collapsed_gate_is_reported_with_its_weights() -> None:
    (warning,) = egmf_warnings(torch.tensor([[0.34, 0.33, 0.33]]).expand(10, 3), APART)
    assert "gate has collapsed" in warning
    assert "0.34" in warning


@pytest.mark.parametrize(("margin", "collapsed"), [(0.018, True), (0.022, False)])
def test_collapse_is_within_two_hundredths_of_uniform(margin: float, collapsed: bool) -> None:
    weights = torch.tensor([[1 / 3 + margin, 1 / 3 - margin, 1 / 3]]).expand(10, 3)
    assert bool(egmf_warnings(weights, APART)) == collapsed


@pytest.mark.parametrize(("spread", "collapsed"), [(0.018, True), (0.022, False)])
def test_collapse_needs_a_spread_below_two_hundredths(spread: float, collapsed: bool) -> None:
    sign = torch.tensor([1.0, -1.0]).repeat(5).unsqueeze(1)
    weights = 1 / 3 + sign * torch.tensor([[spread, -spread, 0.0]])
    assert bool(egmf_warnings(weights, APART)) == collapsed


def test_redundant_experts_are_reported_by_pair() -> None:
    warnings = egmf_warnings(SELECTIVE, torch.tensor([[0.95, 0.2, 0.91]]).expand(10, 3))
    assert ["E1 and E2" in warnings[0], "E2 and E3" in warnings[1]] == [True, True]
    assert len(warnings) == 2
    assert egmf_warnings(SELECTIVE, torch.full((10, 3), 0.89)) == []


def test_pairwise_cosine_of_equal_and_opposite_outputs_is_one_and_minus_one() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pairwise_cosine(torch.stack([x, 3 * x, -x], dim=1)), torch.tensor([[1.0, -1.0, -1.0]] * 2))


def test_the_adapter_reports_its_own_diagnostics_but_not_a_gate_that_is_uniform_by_choice() -> None:
    collapsed = {"expert_weights": torch.full((10, 3), 1 / 3), "expert_cosine": APART}
    assert len(egmf().warnings_from(collapsed)) == 1
    assert egmf(gating="uniform").warnings_from(collapsed) == []
    assert egmf().warnings_from({}) == []


@pytest.mark.parametrize("off", ["local", "semantic", "global"])
def test_warnings_look_at_the_experts_that_are_switched_on(off: str) -> None:
    place = ("local", "semantic", "global").index(off)
    on = [i for i in range(3) if i != place]
    adapter = egmf(**{f"use_expert_{off}": False})
    weights, cosine = torch.full((10, 3), 0.5), torch.full((10, 3), 0.95)
    weights[:, place] = 0.0
    collapsed, redundant = adapter.warnings_from({"expert_weights": weights, "expert_cosine": cosine})
    assert "collapsed: mean expert weights [0.5, 0.5]" in collapsed
    assert f"E{on[0] + 1} and E{on[1] + 1} are redundant" in redundant
    weights[:, on] = torch.tensor([0.7, 0.3])
    assert adapter.warnings_from({"expert_weights": weights, "expert_cosine": APART}) == []


def test_an_expert_alone_has_no_gate_to_collapse_and_no_neighbour_to_repeat() -> None:
    adapter = egmf(use_expert_local=False, use_expert_global=False)
    weights = torch.tensor([[0.0, 1.0, 0.0]]).expand(10, 3)
    assert adapter.warnings_from({"expert_weights": weights, "expert_cosine": torch.full((10, 3), 0.99)}) == []
