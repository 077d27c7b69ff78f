"""LPGNet against a NumPy rewrite; its windows, its blindness to speakers, its students, its ablations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_reference import array, gelu, layer_norm, linear, sigmoid, softmax
from torch import Tensor

from llm_mer.adapters.base import MODALITIES, ConversationContext, FusionInputs, FusionTargets, ModalitySequence
from llm_mer.adapters.lpgnet import InteractionPath, LPGNetAdapter, LPGNetConfig, distillation_divergence

FRAME_SIZES = {"text": 5, "audio": 4, "vision": 3}
VECTOR_SIZES = {"text": 5, "audio": 8, "vision": 3}  # audio: mean and standard deviation
LENGTHS = {"text": [4, 2, 3], "audio": [3, 5, 0], "vision": [2, 0, 4]}  # 0: the target lacks the modality
WINDOWS = [4, 2, 3]
D, CLASSES, RANGE = 8, 4, (-3.0, 3.0)


def build(train: bool = False, double: bool = True, **options: object) -> LPGNetAdapter:
    torch.manual_seed(0)
    settings: dict = {
        "hidden_size": D,
        "num_pseudo_tokens": 2,
        "dropout": 0.0,
        "feature_sizes": FRAME_SIZES,
        "context_sizes": VECTOR_SIZES,
        "backbone_size": 6,
        "num_classes": CLASSES,
        "score_range": RANGE,
        "auxiliary_head": True,
    }
    adapter = LPGNetAdapter(LPGNetConfig(**{**settings, **options}))
    return (adapter.double() if double else adapter).train(train)


def targets() -> FusionTargets:
    return FusionTargets(torch.tensor([2, -100, 1]), torch.tensor([2.5, 2.0, math.nan], dtype=torch.float64))


def make_inputs(dtype: torch.dtype = torch.float64, pad: int = 1, learn: bool = False) -> FusionInputs:
    """Three samples; padded steps, padded utterances and missing vectors hold NaN."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    window = torch.tensor(WINDOWS)
    mask = torch.arange(4 + pad) < window[:, None]
    speakers = torch.where(mask, (window[:, None] - 1 - torch.arange(4 + pad)).clamp(min=0) % 2, -1)
    context = ConversationContext(mask, speakers, window - 1)
    inputs = FusionInputs(context=context, targets=targets() if learn else None)
    for modality, lengths in LENGTHS.items():
        features = torch.full((3, 5 + pad, FRAME_SIZES[modality]), math.nan, dtype=dtype)
        features[:, :5] = randn(3, 5, FRAME_SIZES[modality])
        known_steps = torch.arange(5 + pad) < torch.tensor(lengths)[:, None]
        features[~known_steps] = math.nan
        setattr(inputs, modality, ModalitySequence(features, known_steps))
        vectors = torch.full((3, 4 + pad, VECTOR_SIZES[modality]), math.nan, dtype=dtype)
        vectors[:, :4] = randn(3, 4, VECTOR_SIZES[modality])
        known = mask.clone()
        known[:, :4] &= torch.rand(3, 4, generator=generator) < 0.8
        known[torch.arange(3), window - 1] = torch.tensor(lengths) > 0
        vectors[~known] = math.nan
        setattr(context, modality, vectors)
        setattr(context, f"{modality}_mask", known)
    return inputs


def rows(inputs: FusionInputs, index: list[int]) -> FusionInputs:
    def pick(part: object) -> object:
        return replace(part, **{k: v[index] for k, v in vars(part).items() if v is not None})

    return FusionInputs(**{k: pick(v) for k, v in vars(inputs).items() if v is not None})


# --- the NumPy rewrite, one sample at a time, without padding ---------------------------------------------------------


def interaction(module: torch.nn.Module, query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """``keys (0, d)`` when nothing can be attended to."""
    attended = np.zeros_like(query)
    if len(keys):
        scores = linear(query, module.query) @ linear(keys, module.key).T / math.sqrt(D)
        attended = softmax(scores) @ linear(keys, module.value)
    g = layer_norm(linear(attended.mean(axis=0), module.compress), module.norm_context)
    g = np.where(g > 0, g, 0.01 * g)
    feed_forward = linear(gelu(linear(attended, module.feed_forward[0])), module.feed_forward[3])
    return layer_norm(query + g + feed_forward, module.norm)


def reference(adapter: LPGNetAdapter, streams: dict, target: int | None) -> tuple[np.ndarray, np.ndarray, dict]:
    """``streams[m] = (queries (S, d), keys (S', d))``; the fused vector, ``z`` and every ``h_m``."""
    modal = {}
    for q, (queries, _) in streams.items():
        gated = []
        for k, (_, keys) in streams.items():
            y = interaction(adapter.interactions[f"{q}_{k}"], queries, keys)
            gated.append(y * sigmoid(linear(y, adapter.unimodal_gates[f"{q}_{k}"])))
        joined = linear(np.concatenate(gated, axis=-1), adapter.joins[q])
        modal[q] = joined.mean(axis=0) if target is None else joined[target]
    stacked = np.stack(list(modal.values()))
    z = softmax(linear(stacked, adapter.multimodal_gate), axis=0)
    return (z * stacked).sum(axis=0), z, modal


def window_streams(adapter: LPGNetAdapter, inputs: FusionInputs, i: int) -> dict:
    streams = {}
    for modality in adapter.config.modalities:
        module = adapter.utterances[modality]
        vectors = array(getattr(inputs.context, modality)[i])[: WINDOWS[i]]
        known = getattr(inputs.context, f"{modality}_mask")[i].numpy()[: WINDOWS[i]]
        queries = np.stack([array(module.missing)] * WINDOWS[i])
        queries[known] = layer_norm(linear(vectors[known], module.conv), module.norm)
        streams[modality] = (queries, queries[known])
    return streams


def test_fusion_over_a_window_equals_a_numpy_rewrite() -> None:
    adapter, inputs = build(), make_inputs()
    output = adapter(inputs)
    for i in range(3):
        fused, z, _ = reference(adapter, window_streams(adapter, inputs, i), WINDOWS[i] - 1)
        np.testing.assert_allclose(array(output.features[i]), fused, atol=1e-10)
        np.testing.assert_allclose(array(output.diagnostics["multimodal_gate"][i]), z.mean(axis=-1), atol=1e-10)


def test_fusion_over_frames_equals_a_numpy_rewrite() -> None:
    adapter, inputs = build(level="frame"), make_inputs()
    output = adapter(inputs)
    for i in range(3):
        streams = {}
        for modality in MODALITIES:
            projection, length = adapter.projections[modality], LENGTHS[modality][i]
            real = array(inputs.sequence(modality).features[i])[:length]
            keys = layer_norm(linear(real, projection.linear), projection.norm)
            streams[modality] = (keys if length else array(projection.missing)[None], keys)
        fused, _, _ = reference(adapter, streams, None)
        np.testing.assert_allclose(array(output.features[i]), fused, atol=1e-10)


def test_losses_equal_a_numpy_rewrite() -> None:
    adapter, inputs = build(train=True, temperature=2.0), make_inputs(learn=True)
    losses = {name: loss.detach() for name, loss in adapter(inputs).aux_losses.items()}
    ce, kl, l1, square = ({m: [] for m in MODALITIES} for _ in range(4))
    for i in range(3):
        fused, _, modal = reference(adapter, window_streams(adapter, inputs, i), WINDOWS[i] - 1)
        for m in MODALITIES:
            if not LENGTHS[m][i]:
                continue  # a student learns from samples that have its modality
            student, label, score = adapter.students[m], int(targets().classes[i]), float(targets().scores[i])
            if label >= 0:
                logits, teacher = linear(modal[m], student.classifier), linear(fused, adapter.head.classifier)
                ce[m].append(-np.log(softmax(logits)[label]))
                p, q = softmax(teacher / 2), softmax(logits / 2)
                kl[m].append(4 * (p * np.log(p / q)).sum())
            if not math.isnan(score):
                own, teacher = 3 * linear(modal[m], student.regressor)[0], 3 * linear(fused, adapter.head.regressor)[0]
                l1[m].append(abs(own - score))
                square[m].append((own - teacher) ** 2)

    def total(*parts: dict) -> float:
        return sum(float(np.mean(values)) for part in parts for values in part.values() if values)

    assert float(losses["distill_ce"]) == pytest.approx(total(ce, l1), abs=1e-10)
    assert float(losses["distill_kl"]) == pytest.approx(total(kl, square), abs=1e-10)


def test_the_distillation_divergence_is_zero_only_for_equal_distributions() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0], [3.0, 1.0, 0.0]])
    torch.testing.assert_close(distillation_divergence(logits, logits + 5.0, 1.0), torch.zeros(2))
    assert bool((distillation_divergence(logits, logits.flip(0), 1.0) > 0.1).all())


def test_the_teacher_gets_no_gradient_from_the_divergence() -> None:
    adapter, inputs = build(train=True), make_inputs(learn=True)
    adapter(inputs).aux_losses["distill_kl"].backward()
    assert adapter.head.classifier.weight.grad is None
    assert adapter.multimodal_gate.weight.grad is None
    assert adapter.students["text"].classifier.weight.grad.abs().sum() > 0


# --- what it reads ------------------------------------------------------------------------------------------------------


def test_speakers_are_never_read() -> None:
    adapter, inputs = build(), make_inputs()
    tokens = adapter(inputs).pseudo_tokens
    speakers = inputs.context.speakers
    for other in (1 - speakers, torch.full_like(speakers, -1), torch.arange(15).reshape(3, 5)):
        changed = replace(inputs, context=replace(inputs.context, speakers=other))
        assert torch.equal(adapter(changed).pseudo_tokens, tokens)
    changed.context.speakers = None
    assert torch.equal(adapter(changed).pseudo_tokens, tokens)


def test_earlier_utterances_are_read() -> None:
    adapter, inputs, changed = build(), make_inputs(), make_inputs()
    inputs.context.audio_mask[0, 0] = changed.context.audio_mask[0, 0] = True
    inputs.context.audio[0, 0] = 1.0
    changed.context.audio[0, 0] = torch.arange(8.0, dtype=torch.float64)
    before, after = adapter(inputs).pseudo_tokens, adapter(changed).pseudo_tokens
    assert (before[0] - after[0]).abs().max() > 1e-4
    assert torch.equal(before[1:], after[1:])


def test_the_target_is_read_at_its_place_in_a_bidirectional_window() -> None:
    adapter, inputs = build(), make_inputs()
    inputs.context.target[0] = 1
    for modality in MODALITIES:  # the target has what its sequences have
        getattr(inputs.context, f"{modality}_mask")[0, 1] = True
        getattr(inputs.context, modality)[0, 1] = 0.5
    fused, _, _ = reference(adapter, window_streams(adapter, inputs, 0), 1)
    np.testing.assert_allclose(array(adapter(inputs).features[0]), fused, atol=1e-10)


def test_a_sample_does_not_depend_on_its_batch_mates_nor_on_padding() -> None:
    for level in ("utterance", "frame"):
        adapter, inputs = build(level=level), make_inputs()
        tokens = adapter(inputs).pseudo_tokens
        assert bool(tokens.isfinite().all())
        alone = torch.cat([adapter(rows(inputs, [i])).pseudo_tokens for i in range(3)])
        torch.testing.assert_close(alone, tokens, atol=1e-10, rtol=0)
        torch.testing.assert_close(adapter(make_inputs(pad=4)).pseudo_tokens, tokens, atol=1e-10, rtol=0)


@pytest.mark.parametrize("level", ["utterance", "frame"])
@pytest.mark.parametrize("kept", [("text",), ("audio",), ("text", "vision")])
def test_a_modality_that_is_hidden_and_one_that_never_was_are_the_same(level: str, kept: tuple[str, ...]) -> None:
    adapter, hidden, dropped = build(level=level), make_inputs(), make_inputs()
    hidden, dropped = rows(hidden, [0]), rows(dropped, [0])
    for modality in set(MODALITIES) - set(kept):
        hidden.sequence(modality).mask[:] = False
        setattr(hidden.context, f"{modality}_mask", torch.zeros(1, 5, dtype=torch.bool))
        setattr(dropped, modality, None)
        setattr(dropped.context, modality, None)
        setattr(dropped.context, f"{modality}_mask", None)
    a, b = adapter(hidden).pseudo_tokens, adapter(dropped).pseudo_tokens
    assert bool(a.isfinite().all())
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_a_modality_hidden_from_the_sample_is_hidden_at_the_target_and_only_there() -> None:
    adapter, inputs = build(), rows(make_inputs(), [0])
    inputs.audio.mask[:] = False
    hidden = adapter(inputs).pseudo_tokens
    inputs.context.audio_mask[0, WINDOWS[0] - 1] = False
    torch.testing.assert_close(hidden, adapter(inputs).pseudo_tokens)
    inputs.context.audio_mask[:] = False
    assert not torch.allclose(hidden, adapter(inputs).pseudo_tokens)


def test_without_context_the_pooled_utterance_is_a_window_of_one() -> None:
    adapter, inputs = build(), make_inputs()
    alone = replace(inputs, context=None)
    mask = torch.ones(3, 1, dtype=torch.bool)
    context = ConversationContext(mask, torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    for modality, lengths in LENGTHS.items():
        pooled = []
        for i, length in enumerate(lengths):
            real = array(inputs.sequence(modality).features[i])[: length or 1]
            both = [real.mean(axis=0), real.std(axis=0)] if modality == "audio" else [real.mean(axis=0)]
            pooled.append(torch.from_numpy(np.concatenate(both)))
        setattr(context, modality, torch.stack(pooled).unsqueeze(1))
        setattr(context, f"{modality}_mask", torch.tensor(lengths)[:, None] > 0)
    expected = adapter(replace(inputs, context=context)).pseudo_tokens
    torch.testing.assert_close(adapter(alone).pseudo_tokens, expected, atol=1e-8, rtol=0)


def test_sizes_that_cannot_agree_are_named() -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match="audio frames of size 4 cannot be pooled to the utterance vectors of size 7"):
        build(context_sizes={**VECTOR_SIZES, "audio": 7})(replace(inputs, context=None))
    with pytest.raises(ValueError, match="context vectors of audio have size 8, but the adapter was built for 7"):
        build(context_sizes={**VECTOR_SIZES, "audio": 7})(inputs)


def test_frames_after_the_limit_are_cut_wherever_padding_is() -> None:
    adapter, inputs = build(level="frame", max_frames=2), make_inputs()
    tokens = adapter(inputs).pseudo_tokens
    front = make_inputs()
    for modality in MODALITIES:
        sequence = inputs.sequence(modality)
        cut = ModalitySequence(sequence.features, sequence.mask & (sequence.mask.long().cumsum(1) <= 2))
        setattr(inputs, modality, cut)
        moved = ModalitySequence(sequence.features.roll(1, dims=1), sequence.mask.roll(1, dims=1))
        setattr(front, modality, moved)
    torch.testing.assert_close(adapter(inputs).pseudo_tokens, tokens, atol=1e-10, rtol=0)
    torch.testing.assert_close(adapter(front).pseudo_tokens, tokens, atol=1e-10, rtol=0)


# --- training, inference, options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary_head", [True, False])
def test_students_are_not_needed_at_inference(auxiliary_head: bool) -> None:
    adapter, inputs = build(auxiliary_head=auxiliary_head), make_inputs()
    prefixes = adapter.training_only_parameters()
    kept = {k: v for k, v in adapter.state_dict().items() if not k.startswith(prefixes)}
    dropped = {k for k in adapter.state_dict() if k.startswith(prefixes)}
    assert {k.split(".")[0] for k in dropped} == ({"students"} if auxiliary_head else {"students", "teacher"})
    torch.manual_seed(5)
    other = LPGNetAdapter(adapter.config).double().eval()  # the students it starts with are other ones
    assert set(other.load_state_dict(kept, strict=False).missing_keys) == dropped
    expected, output = adapter(inputs), other(inputs)
    assert torch.equal(output.pseudo_tokens, expected.pseudo_tokens)
    assert (output.logits is None) == (not auxiliary_head)
    if auxiliary_head:
        assert torch.equal(output.logits, expected.logits)
    other.students.clear()
    assert torch.equal(other(inputs).pseudo_tokens, expected.pseudo_tokens)


def test_losses_exist_with_targets_alone() -> None:
    assert build()(make_inputs()).aux_losses == {}
    for auxiliary_head in (True, False):
        adapter = build(auxiliary_head=auxiliary_head)
        assert set(adapter(make_inputs(learn=True)).aux_losses) == set(LPGNetAdapter.default_loss_weights)
    assert set(build(use_distillation=False)(make_inputs(learn=True)).aux_losses) == {"ce", "l1"}
    assert LPGNetAdapter.default_loss_weights == {"ce": 1.5, "l1": 1.5, "distill_ce": 1.0, "distill_kl": 0.3}


def test_losses_without_a_known_target_are_zero() -> None:
    inputs = make_inputs()
    inputs.targets = FusionTargets(torch.full((3,), -100), torch.full((3,), math.nan))
    losses = build(train=True)(inputs).aux_losses
    assert all(loss.item() == 0.0 and loss.requires_grad for loss in losses.values())


@pytest.mark.parametrize("options", [{}, {"level": "frame"}, {"norm": "batch"}, {"auxiliary_head": False}])
def test_every_parameter_gets_a_finite_gradient(options: dict) -> None:
    adapter, inputs = build(train=True, **options), make_inputs(learn=True)
    inputs.text.mask[1] = False  # so that every modality's stand-in is used
    output = adapter(inputs)
    (output.pseudo_tokens.pow(3).sum() + sum(output.aux_losses.values())).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("level", ["utterance", "frame"])
def test_gradcheck_passes_in_float64(level: str) -> None:
    adapter, inputs = build(level=level, hidden_size=4), make_inputs()
    values = [inputs.sequence(m).features if level == "frame" else getattr(inputs.context, m) for m in MODALITIES]
    values = [v.nan_to_num(0.3).requires_grad_() for v in values]

    def tokens(*arguments: Tensor) -> Tensor:
        changed = replace(inputs, context=replace(inputs.context))
        for modality, value in zip(MODALITIES, arguments, strict=True):
            if level == "frame":
                setattr(changed, modality, ModalitySequence(value, inputs.sequence(modality).mask))
            else:
                setattr(changed.context, modality, value)
        return adapter.fuse(changed).vector

    assert torch.autograd.gradcheck(tokens, values)


@pytest.mark.parametrize("options", [{}, {"level": "frame"}])
def test_bfloat16_autocast_agrees_with_float32(options: dict) -> None:
    adapter, inputs = build(double=False, hidden_size=32, **options), make_inputs(torch.float32, learn=True)
    expected = adapter(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = adapter(inputs)
    torch.testing.assert_close(output.pseudo_tokens.float(), expected.pseudo_tokens, atol=2e-2, rtol=2e-2)
    assert all(bool(loss.isfinite()) for loss in output.aux_losses.values())


@pytest.mark.parametrize(
    "options",
    [
        {"use_inter": False},
        {"use_intra": False},
        {"use_feed_forward": False},
        {"use_unimodal_gate": False},
        {"use_multimodal_gate": False},
        {"use_distillation": False},
        {"use_vision": False},
        {"norm": "batch"},
        {"use_text": False, "use_vision": False},
    ],
)
def test_every_ablation_trains_and_leaves_out_what_it_names(options: dict) -> None:
    adapter, inputs = build(train=True, **options), make_inputs(learn=True)
    if options == {"use_text": False, "use_vision": False}:
        inputs = rows(inputs, [0, 1])
    output = adapter(inputs)
    sum(output.aux_losses.values()).backward()
    assert bool(output.pseudo_tokens.isfinite().all())
    pairs = {
        "use_inter": 3,
        "use_intra": 6,
        "use_vision": 4,  # the paper's four attentions
        "use_text": 1,
    }
    assert len(adapter.paths) == pairs.get(next(iter(options)), 9)
    assert ("unimodal_gate" in output.diagnostics) == options.get("use_unimodal_gate", True)
    if not options.get("use_multimodal_gate", True):
        assert torch.equal(output.diagnostics["multimodal_gate"], torch.full((3, 3), 1 / 3, dtype=torch.float64))
    if not options.get("use_distillation", True):
        assert not adapter.students


def test_inter_attention_alone_carries_another_modality_into_a_modality() -> None:
    inputs = make_inputs()
    changed = make_inputs()
    changed.context.audio += 1.0
    for options, same in (({"use_inter": False}, True), ({}, False)):
        adapter = build(**options)
        streams, other = adapter.read(inputs)[0], adapter.read(changed)[0]
        paths = [(q, k) for q, k in adapter.paths if q == "text"]

        def text(adapter: LPGNetAdapter, streams: dict, paths: list) -> list[Tensor]:
            return [
                adapter.interactions[f"{q}_{k}"](
                    streams[q].values, streams[q].query_mask, streams[k].values, streams[k].key_mask
                )
                for q, k in paths
            ]

        pairs = zip(text(adapter, streams, paths), text(adapter, other, paths), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


def test_batch_normalisation_trains_on_a_single_sample() -> None:
    adapter = build(train=True, norm="batch")
    assert bool(adapter(rows(make_inputs(), [0])).pseudo_tokens.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "dialogue"}, "level is 'dialogue'"),
        ({"norm": "group"}, "norm is 'group'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"use_inter": False, "use_intra": False}, "no attention left"),
        ({"use_intra": False, "use_text": False, "use_vision": False}, "no attention left"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_sample_without_any_modality_is_refused() -> None:
    inputs = make_inputs()
    for modality in MODALITIES:
        inputs.sequence(modality).mask[1] = False
    with pytest.raises(ValueError, match=r"samples \[1\]"):
        build()(inputs)


NOBODY, EVERYBODY = torch.tensor([[False] * 3, [True] * 3]), torch.ones(2, 3, dtype=torch.bool)
"""Masks of two samples; in the first one no key is real."""


def test_an_interaction_path_over_masked_keys_alone_does_not_depend_on_the_keys() -> None:
    """What is added to the query is what the layers behind the attention make of zeros, whatever the keys say."""
    modules = [m for m in build(double=False).modules() if isinstance(m, InteractionPath)]
    assert modules
    for module in modules:
        query, key = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
        output = module(query, EVERYBODY, key, NOBODY)
        nothing = torch.zeros(1, 8)
        context = torch.nn.functional.leaky_relu(module.norm_context(module.compress(nothing.unsqueeze(-1)).squeeze(-1)))
        torch.testing.assert_close(output[0], module.norm(query[0] + context + module.feed_forward(nothing)))
        other = module(query, EVERYBODY, torch.randn(2, 3, 8), NOBODY)
        assert torch.equal(other[0], output[0])
        assert not torch.equal(other[1], output[1])
