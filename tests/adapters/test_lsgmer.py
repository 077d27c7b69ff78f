"""LSGMER (arXiv 2504.05158) against a NumPy rewrite, its divergence, its moving average, its missing modalities."""

import math

import numpy as np
import pytest
import torch
from numpy_reference import array, cross_attention, layer_norm, linear, softmax

from llm_mer.adapters.base import FusionInputs, FusionTargets, ModalitySequence
from llm_mer.adapters.lsgmer import (
    LabelSignalEnhancement,
    LSGMERAdapter,
    LSGMERConfig,
    bin_targets,
    jensen_shannon,
    ordinal_anchors,
)

SIZES = {"text": 5, "audio": 4, "vision": 3}
LENGTHS = {"text": [4, 2, 3], "audio": [3, 5, 1], "vision": [2, 2, 4]}
D, HEADS, CLASSES, BINS, TAU = 8, 2, 4, 5, 0.1
RANGE = (-3.0, 3.0)


def build(double: bool = True, train: bool = False, **options: object) -> LSGMERAdapter:
    torch.manual_seed(0)
    settings: dict = {
        "hidden_size": D,
        "num_heads": HEADS,
        "num_pseudo_tokens": 2,
        "dropout": 0.0,
        "feature_sizes": SIZES,
        "backbone_size": 6,
        "num_classes": CLASSES,
        "score_range": RANGE,
        "num_score_bins": BINS,
    }
    adapter = LSGMERAdapter(LSGMERConfig(**{**settings, **options}))
    adapter = adapter.double() if double else adapter
    return adapter.train(train)


def make_inputs(dtype: torch.dtype = torch.float64, targets: FusionTargets | None = None, pad: int = 2) -> FusionInputs:
    generator = torch.Generator().manual_seed(1)
    sequences = {}
    for modality, lengths in LENGTHS.items():
        real = torch.randn(3, 5, SIZES[modality], generator=generator, dtype=torch.float64).to(dtype)
        features = torch.full((3, 5 + pad, SIZES[modality]), math.nan, dtype=dtype)
        features[:, :5] = real
        mask = torch.arange(5 + pad) < torch.tensor(lengths)[:, None]
        features[~mask] = math.nan
        sequences[modality] = ModalitySequence(features, mask)
    return FusionInputs(**sequences, targets=targets)


def rows(inputs: FusionInputs, index: list[int]) -> FusionInputs:
    def pick(s: ModalitySequence) -> ModalitySequence:
        return ModalitySequence(s.features[index], s.mask[index])

    return FusionInputs(text=pick(inputs.text), audio=pick(inputs.audio), vision=pick(inputs.vision))


# --- the NumPy rewrite, one sample at a time, without padding ---------------------------------------------------------


def enhance(module: LabelSignalEnhancement, labels: np.ndarray, h0: np.ndarray, h1: np.ndarray) -> tuple:
    attention = softmax(labels @ linear(h1, module.key).T / math.sqrt(D))  # (C, T)
    signal = attention @ linear(h1, module.value)  # (C, d)
    share = attention / attention.sum(axis=0, keepdims=True)
    h2 = np.stack([sum(share[c, t] * signal[c] for c in range(len(labels))) for t in range(len(h1))])
    gate = 1 / (1 + np.exp(-h2))
    return gate * h0 + h2, gate, share


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (b @ a) / (np.linalg.norm(a) * np.linalg.norm(b, axis=-1))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return float(0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum())


def reference(adapter: LSGMERAdapter, inputs: FusionInputs, i: int) -> dict:
    labels = array(adapter.label_embeddings)
    h0 = {}
    for modality in ("text", "audio", "vision"):
        sequence, projection = inputs.sequence(modality), adapter.projections[modality]
        real = array(sequence.features[i])[array(sequence.mask[i]).astype(bool)]
        missing = len(real) == 0
        h0[modality] = (
            array(projection.missing)[None] if missing else layer_norm(linear(real, projection.linear), projection.norm)
        )
    pooled, gates, focus = [], [], []
    for modality in h0:
        others = np.concatenate([h0[m] for m in h0 if m != modality])
        h1 = h0[modality] + cross_attention(adapter.cross_attends[modality], h0[modality], others, HEADS)
        h, gate, share = enhance(adapter.enhancements[modality], labels, h0[modality], h1)
        pooled.append(h.mean(axis=0))
        gates.append(gate.mean())
        focus.append((np.abs(share - 1 / len(labels)).sum(axis=0) / 2).mean())
    weights = softmax(linear(np.concatenate(pooled), adapter.fusion_gate))
    h = sum(w * p for w, p in zip(weights, pooled, strict=True))
    similarity = cosine(h, labels)
    p_class, p_bin = softmax(linear(h, adapter.classifier)), softmax(linear(h, adapter.bin_classifier))
    return {
        "h": h,
        "weights": weights,
        "gates": np.array(gates),
        "focus": np.array(focus),
        "p_class": p_class,
        "p_bin": p_bin,
        "apc_class": divergence(p_class, softmax(similarity[:CLASSES] / TAU)),
        "apc_bin": divergence(p_bin, softmax(similarity[CLASSES:] / TAU)),
        "score": float(p_bin @ np.linspace(*RANGE, BINS)),
    }


def test_fusion_equals_the_numpy_rewrite() -> None:
    adapter, inputs = build(), make_inputs()
    output = adapter(inputs)
    for i in range(3):
        expected = reference(adapter, inputs, i)
        np.testing.assert_allclose(array(output.features[i]), expected["h"], atol=1e-10)
        np.testing.assert_allclose(array(output.diagnostics["fusion_weights"][i]), expected["weights"], atol=1e-10)
        np.testing.assert_allclose(array(output.diagnostics["label_gate"][i]), expected["gates"], atol=1e-10)
        np.testing.assert_allclose(array(output.diagnostics["label_focus"][i]), expected["focus"], atol=1e-10)
        np.testing.assert_allclose(softmax(array(output.logits[i])), expected["p_class"], atol=1e-10)
        np.testing.assert_allclose(float(output.scores[i].detach()), expected["score"], atol=1e-6)


def test_label_signal_enhancement_equals_the_numpy_rewrite() -> None:
    torch.manual_seed(3)
    module = LabelSignalEnhancement(D).double()
    labels, h0, h1 = (torch.randn(*s, dtype=torch.float64) for s in ((4, D), (2, 6, D), (2, 6, D)))
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False]])
    enhanced, gate, share = module(labels, h0, h1, mask)
    for i in range(2):
        keep = array(mask[i]).astype(bool)
        expected = enhance(module, array(labels), array(h0[i])[keep], array(h1[i])[keep])
        for got, want in zip((enhanced[i][keep], gate[i][keep], share[i][:, keep]), expected, strict=True):
            np.testing.assert_allclose(array(got), want, atol=1e-12)
    assert torch.allclose(share.sum(dim=1), mask.double())


def test_a_step_no_label_attends_to_gets_a_finite_signal_and_gradient() -> None:
    module = LabelSignalEnhancement(D)
    h1 = (torch.randn(1, 3, D) * 1e4).requires_grad_()
    enhanced, _, share = module(torch.randn(4, D), torch.randn(1, 3, D), h1, torch.tensor([[True, True, False]]))
    enhanced.sum().backward()
    assert torch.isfinite(enhanced).all()
    assert torch.isfinite(h1.grad).all()
    torch.testing.assert_close(share.sum(dim=1), torch.tensor([[1.0, 1.0, 0.0]]))


def test_losses_equal_the_numpy_rewrite_for_classes_and_scores_in_one_batch() -> None:
    classes, scores = [2, -100, 0], [math.nan, 1.0, -3.0]
    targets = FusionTargets(torch.tensor(classes), torch.tensor(scores))
    adapter, inputs = build(), make_inputs(targets=targets)
    losses = adapter(inputs).aux_losses
    assert set(losses) == {"ce", "apc"}
    ce, apc = [], []
    for i in range(3):
        expected = reference(adapter, inputs, i)
        if classes[i] != -100:
            ce.append(-math.log(expected["p_class"][classes[i]]))
            apc.append(expected["apc_class"])
        if not math.isnan(scores[i]):
            position = (scores[i] - RANGE[0]) / (RANGE[1] - RANGE[0]) * (BINS - 1)
            low = math.floor(position)
            target = np.zeros(BINS)
            target[low] = 1 - (position - low)
            if position > low:
                target[low + 1] = position - low
            ce.append(-float(target @ np.log(expected["p_bin"])))
            apc.append(expected["apc_bin"])
    np.testing.assert_allclose(float(losses["ce"].detach()), np.mean(ce), atol=1e-6)
    np.testing.assert_allclose(float(losses["apc"].detach()), np.mean(apc), atol=1e-6)


def test_jsd_is_within_bounds_symmetric_and_zero_exactly_where_equal() -> None:
    torch.manual_seed(0)
    log_p = torch.log_softmax(torch.randn(200, 6, dtype=torch.float64) * 5, -1)
    log_q = torch.log_softmax(torch.randn(200, 6, dtype=torch.float64) * 5, -1)
    value = jensen_shannon(log_p, log_q)
    assert bool((value > 0).all())
    assert bool((value <= math.log(2)).all())
    torch.testing.assert_close(value, jensen_shannon(log_q, log_p))
    assert float(jensen_shannon(log_p, log_p).abs().max()) < 1e-15
    for i in range(5):
        assert math.isclose(float(value[i]), divergence(np.exp(array(log_p[i])), np.exp(array(log_q[i]))), abs_tol=1e-12)


def test_jsd_of_disjoint_distributions_is_ln_2() -> None:
    log_p = torch.log_softmax(torch.tensor([500.0, -500.0], dtype=torch.float64), -1)
    assert math.isclose(float(jensen_shannon(log_p, log_p.flip(-1))), math.log(2), abs_tol=1e-12)


@pytest.mark.parametrize("score", [-3.0, -2.2, 0.0, 0.4, 3.0])
def test_the_expectation_of_a_bin_target_is_the_score(score: float) -> None:
    target = bin_targets(torch.tensor([score], dtype=torch.float64), BINS, RANGE)[0]
    assert math.isclose(float(target.sum()), 1.0, abs_tol=1e-12)
    assert int((target > 1e-9).sum()) <= 2
    assert math.isclose(float(target @ torch.linspace(*RANGE, BINS, dtype=torch.float64)), score, abs_tol=1e-12)


def test_scores_beyond_the_range_fall_into_the_outer_bins() -> None:
    target = bin_targets(torch.tensor([-9.0, 9.0]), BINS, RANGE)
    assert target.argmax(-1).tolist() == [0, BINS - 1]
    assert target.max(-1).values.tolist() == [1.0, 1.0]


def test_fresh_bin_anchors_are_ordered() -> None:
    anchors = ordinal_anchors(7, 16)
    similarity = torch.nn.functional.cosine_similarity(anchors[:1], anchors, dim=-1)
    assert bool((similarity.diff() < 0).all())
    assert math.isclose(float(similarity[-1]), -1.0, abs_tol=1e-5)


# --- moving average ---------------------------------------------------------------------------------------------------


def test_moving_average_equals_its_closed_form_over_epochs() -> None:
    alpha = 0.9
    adapter = build(moving_average_alpha=alpha)
    start = adapter.label_embeddings.detach().clone()
    generator = torch.Generator().manual_seed(5)
    trained = [torch.randn(start.shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    for t, value in enumerate(trained, start=1):
        before = adapter.previous_labels.clone()
        with torch.no_grad():
            adapter.label_embeddings.copy_(value)
        drift = adapter.on_epoch_end()["label_drift"]
        weights = [alpha ** (t - 1 - k) * (1 - alpha) for k in range(t)]
        closed = alpha**t * array(start) + sum(w * array(v) for w, v in zip(weights, trained, strict=False))
        np.testing.assert_allclose(array(adapter.label_embeddings), closed, atol=1e-12)
        np.testing.assert_allclose(array(adapter.previous_labels), closed, atol=1e-12)
        assert math.isclose(drift, np.linalg.norm(closed - array(before), axis=-1).mean(), rel_tol=1e-5)


def test_moving_average_goes_on_exactly_after_a_save_in_mid_epoch() -> None:
    adapter = build()
    with torch.no_grad():
        adapter.label_embeddings.add_(1.0)
    adapter.on_epoch_end()
    with torch.no_grad():
        adapter.label_embeddings.mul_(-2.0)  # trained on, the epoch not over
    torch.manual_seed(99)
    resumed = LSGMERAdapter(adapter.config).double()
    resumed.load_state_dict(adapter.state_dict())
    assert resumed.on_epoch_end() == adapter.on_epoch_end()
    assert torch.equal(resumed.label_embeddings, adapter.label_embeddings)
    assert torch.equal(resumed.previous_labels, adapter.previous_labels)


def test_without_moving_average_the_trained_labels_stay() -> None:
    adapter = build(use_moving_average=False)
    with torch.no_grad():
        adapter.label_embeddings.add_(1.0)
    trained = adapter.label_embeddings.detach().clone()
    assert math.isclose(adapter.on_epoch_end()["label_drift"], math.sqrt(D), rel_tol=1e-6)
    assert torch.equal(adapter.label_embeddings, trained)
    assert adapter.on_epoch_end()["label_drift"] == 0.0


# --- label initialisation ---------------------------------------------------------------------------------------------


def test_backbone_labels_keep_the_cosines_of_the_label_words_on_every_rank() -> None:
    words = torch.randn(CLASSES, 20, generator=torch.Generator().manual_seed(2))
    adapters = []
    for seed in (1, 2):
        adapter = build(label_init="backbone")
        bins = adapter.label_embeddings[CLASSES:].detach().clone()
        torch.manual_seed(seed)
        adapter.initialise_from_backbone(words)
        assert torch.equal(adapter.label_embeddings[CLASSES:], bins)
        adapters.append(adapter)
    labels = array(adapters[0].label_embeddings[:CLASSES])
    assert torch.equal(adapters[0].label_embeddings, adapters[1].label_embeddings)
    assert torch.equal(adapters[0].label_embeddings, adapters[0].previous_labels)
    for c in range(CLASSES):
        np.testing.assert_allclose(cosine(labels[c], labels), cosine(array(words[c]), array(words)), atol=1e-6)
    assert math.isclose(np.linalg.norm(labels, axis=1).mean(), math.sqrt(D), rel_tol=1e-6)


def test_random_labels_ignore_the_backbone_and_a_wrong_count_is_an_error() -> None:
    adapter = build()
    before = adapter.label_embeddings.detach().clone()
    adapter.initialise_from_backbone(torch.randn(CLASSES, 20))
    assert torch.equal(adapter.label_embeddings, before)
    with pytest.raises(ValueError, match="label vectors for 4 classes"):
        build(label_init="backbone").initialise_from_backbone(torch.randn(CLASSES + 1, 20))
    with pytest.raises(ValueError, match="needs a backbone"):
        build(label_init="backbone", backbone_size=0, num_pseudo_tokens=0)


# --- missing modalities, padding, gradients, precision ----------------------------------------------------------------


@pytest.mark.parametrize("missing", [("text",), ("audio",), ("vision",), ("text", "vision"), ("audio", "vision")])
def test_a_missing_modality_equals_its_stand_in_and_never_leaks(missing: tuple[str, ...]) -> None:
    adapter, inputs, absent = build(), make_inputs(), make_inputs()
    for modality in missing:
        sequence = inputs.sequence(modality)
        sequence.mask[1] = False
        setattr(absent, modality, None)
    tokens, features = adapter(inputs).pseudo_tokens, adapter(inputs).features
    np.testing.assert_allclose(array(features[1]), reference(adapter, inputs, 1)["h"], atol=1e-10)
    torch.testing.assert_close(tokens[1], adapter(absent).pseudo_tokens[1])
    for modality in missing:
        inputs.sequence(modality).features[1] = 7.0
    torch.testing.assert_close(adapter(inputs).pseudo_tokens, tokens)


@pytest.mark.parametrize("train", [False, True])
def test_a_sample_is_the_same_alone_in_a_batch_and_with_more_padding(train: bool) -> None:
    adapter, inputs = build(train=train), make_inputs()
    together = adapter(inputs)
    longer = adapter(make_inputs(pad=6))
    torch.testing.assert_close(together.pseudo_tokens, longer.pseudo_tokens)
    for i in range(3):
        alone = adapter(rows(inputs, [i]))
        torch.testing.assert_close(alone.pseudo_tokens[0], together.pseudo_tokens[i])
        for name, value in together.diagnostics.items():
            assert value.shape[0] == 3
            torch.testing.assert_close(alone.diagnostics[name][0], value[i])


ABLATIONS: list[dict] = [
    {},
    {"use_label_enhancement": False},
    {"use_joint_optimisation": False},
    {"use_label_enhancement": False, "use_joint_optimisation": False},
    {"use_cross_modal": False},
    {"use_dynamic_fusion": False},
    {"label_gate_vision": False},
    {"use_text": False},
    {"use_audio": False, "use_vision": False},
    {"num_classes": 0},
    {"score_range": None},
    {"auxiliary_head": True},
]


@pytest.mark.parametrize("options", ABLATIONS, ids=lambda o: "+".join(f"{k}={v}" for k, v in o.items()) or "full")
def test_every_ablation_trains_every_parameter_and_names_its_losses(options: dict) -> None:
    adapter = build(train=True, **options)
    targets = FusionTargets(torch.tensor([2, 1, 0]), torch.tensor([0.5, -1.0, 2.0]))
    output = adapter(make_inputs(targets=targets))
    weights = LSGMERAdapter.default_loss_weights
    loss = output.pseudo_tokens.square().sum() + (output.pseudo_tokens * 0.3).sum()
    for name, value in output.aux_losses.items():
        loss = loss + weights[name] * value
    loss.backward()
    for name, parameter in adapter.named_parameters():
        if not name.endswith(".missing"):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert ("apc" in output.aux_losses) == options.get("use_joint_optimisation", True)
    assert ("l1" in output.aux_losses) == options.get("auxiliary_head", False)
    assert "ce" in output.aux_losses
    assert isinstance(adapter.on_epoch_end(), dict)
    assert adapter.warnings_from(output.diagnostics) is not None


def test_dynamic_fusion_off_is_the_mean_and_vision_can_stay_ungated() -> None:
    output = build(use_dynamic_fusion=False, label_gate_vision=False)(make_inputs())
    assert torch.equal(output.diagnostics["fusion_weights"], torch.full((3, 3), 1 / 3, dtype=torch.float64))
    assert output.diagnostics["label_gate"].shape == (3, 2)


def test_unknown_targets_give_zero_losses_with_a_graph() -> None:
    adapter = build()
    targets = FusionTargets(torch.full((3,), -100), torch.full((3,), math.nan))
    losses = adapter(make_inputs(targets=targets)).aux_losses
    total = losses["ce"] + losses["apc"]
    total.backward()
    assert float(total.detach()) == 0.0
    assert float(adapter.label_embeddings.grad.abs().max()) == 0.0


def test_inference_without_targets_has_no_losses() -> None:
    output = build()(make_inputs())
    assert output.aux_losses == {}
    assert output.logits.shape == (3, CLASSES)
    assert output.scores.shape == (3,)


def test_gradients_pass_gradcheck() -> None:
    adapter = build(hidden_size=4, num_pseudo_tokens=1)
    inputs = make_inputs(targets=FusionTargets(torch.tensor([2, -100, 0]), torch.tensor([math.nan, 1.2, 0.3])))

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(adapter, dict(zip(names, parameters, strict=True)), (inputs,))
        return output.pseudo_tokens.sum(dim=0).flatten().sin().sum() + output.aux_losses["ce"] + output.aux_losses["apc"]

    chosen = ("label_embeddings", "enhancements.audio.key.weight", "cross_attends.vision.query.weight", "fusion_gate.weight")
    names = [n for n, _ in adapter.named_parameters() if n in chosen]
    assert len(names) == len(chosen)
    values = [dict(adapter.named_parameters())[n].detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(loss, values)


def test_bfloat16_autocast_agrees_with_float32() -> None:
    adapter = build(double=False, hidden_size=32, num_heads=4)
    inputs = make_inputs(torch.float32, FusionTargets(torch.tensor([2, 1, 0]), torch.tensor([0.5, -1.0, 2.0])))
    exact = adapter(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = adapter(inputs)
    torch.testing.assert_close(rough.pseudo_tokens.float(), exact.pseudo_tokens, atol=2e-2, rtol=2e-2)
    for name in exact.aux_losses:
        torch.testing.assert_close(rough.aux_losses[name].float(), exact.aux_losses[name], atol=2e-2, rtol=2e-2)


def test_a_fusion_that_reads_one_modality_is_reported() -> None:
    adapter = build()
    weights = torch.tensor([[0.01, 0.98, 0.01]]).expand(20, 3)
    assert adapter.warnings_from({"fusion_weights": torch.full((20, 3), 1 / 3)}) == []
    assert "reads audio alone" in adapter.warnings_from({"fusion_weights": weights})[0]


def test_label_embeddings_that_point_the_same_way_are_reported() -> None:
    adapter = build()
    with torch.no_grad():
        adapter.label_embeddings[3] = 2 * adapter.label_embeddings[1]
    (warning,) = adapter.warnings_from({})
    assert "classes 1 and 3 have collapsed" in warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0, "score_range": None}, "needs a classification or a regression task"),
        ({"label_init": "clever"}, "choose random or backbone"),
        ({"moving_average_alpha": 1.5}, "moving_average_alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"num_score_bins": 1}, "num_score_bins"),
    ],
)
def test_impossible_options_are_clear_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


NOBODY, EVERYBODY = torch.tensor([[False] * 3, [True] * 3]), torch.ones(2, 3, dtype=torch.bool)
"""Masks of two samples; in the first one no key is real."""


def test_label_enhancement_over_masked_keys_alone_leaves_half_of_each_step() -> None:
    """No signal: half of the step itself is left, by a gate of σ(0)."""
    modules = [m for m in build(double=False).modules() if isinstance(m, LabelSignalEnhancement)]
    assert modules
    for module in modules:
        h_0, h_1 = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
        enhanced, gate, share = module(torch.randn(4, 8), h_0, h_1, NOBODY)
        assert not share[0].any()
        assert bool((gate[0] == 0.5).all())
        assert torch.equal(enhanced[0], 0.5 * h_0[0])
        assert not torch.equal(enhanced[1], 0.5 * h_0[1])
