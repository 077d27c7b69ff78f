"""GatedxLSTM (arXiv 2503.20919): who fills which turn, the gated fusion against NumPy, streaming against parallel."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_reference import array, layer_norm, linear, silu
from torch import Tensor

from llm_mer.adapters.base import MODALITIES, ConversationContext, FusionInputs, ModalitySequence
from llm_mer.adapters.gated_xlstm import GatedXLSTMAdapter, GatedXLSTMConfig, StreamEncoder, select_turns

FRAME_SIZES = {"text": 5, "audio": 4, "vision": 3}
VECTOR_SIZES = {"text": 5, "audio": 8, "vision": 3}  # audio: mean and standard deviation
LENGTHS = {"text": [4, 2, 3], "audio": [3, 5, 0], "vision": [2, 0, 4]}  # 0: the target lacks the modality
SPEAKERS = [[0, 1, 1, 0, 0], [1, 0], [0, 0, 0]]  # the third sample is a monologue
STEPS, SIZE = 4, 8


def build(train: bool = False, double: bool = True, **options: object) -> GatedXLSTMAdapter:
    torch.manual_seed(0)
    settings: dict = {
        "hidden_size": 8,
        "num_heads": 2,
        "num_pseudo_tokens": 2,
        "num_steps": STEPS,
        "step_size": SIZE,
        "dropout": 0.0,
        "feature_sizes": FRAME_SIZES,
        "context_sizes": VECTOR_SIZES,
        "backbone_size": 6,
        "num_classes": 4,
        "auxiliary_head": True,
    }
    adapter = GatedXLSTMAdapter(GatedXLSTMConfig(**{**settings, **options}))
    return (adapter.double() if double else adapter).train(train)


def make_inputs(dtype: torch.dtype = torch.float64, pad: int = 1) -> FusionInputs:
    """Three samples; padded steps, padded utterances and missing vectors hold NaN."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    window = torch.tensor([len(s) for s in SPEAKERS])
    mask = torch.arange(5 + pad) < window[:, None]
    speakers = torch.full((3, 5 + pad), -1)
    for i, row in enumerate(SPEAKERS):
        speakers[i, : len(row)] = torch.tensor(row)
    context = ConversationContext(mask, speakers, window - 1)
    inputs = FusionInputs(context=context)
    for modality, lengths in LENGTHS.items():
        features = torch.full((3, 5 + pad, FRAME_SIZES[modality]), math.nan, dtype=dtype)
        features[:, :5] = randn(3, 5, FRAME_SIZES[modality])
        known_steps = torch.arange(5 + pad) < torch.tensor(lengths)[:, None]
        features[~known_steps] = math.nan
        setattr(inputs, modality, ModalitySequence(features, known_steps))
        vectors = torch.full((3, 5 + pad, VECTOR_SIZES[modality]), math.nan, dtype=dtype)
        vectors[:, :5] = randn(3, 5, VECTOR_SIZES[modality])
        known = mask.clone()
        known[:, :5] &= torch.rand(3, 5, generator=generator) < 0.8
        known[torch.arange(3), window - 1] = torch.tensor(lengths) > 0
        vectors[~known] = math.nan
        setattr(context, modality, vectors)
        setattr(context, f"{modality}_mask", known)
    return inputs


def rows(inputs: FusionInputs, index: list[int]) -> FusionInputs:
    def pick(part: object) -> object:
        return replace(part, **{k: v[index] for k, v in vars(part).items() if v is not None})

    return FusionInputs(**{k: pick(v) for k, v in vars(inputs).items() if v is not None})


# --- who fills which turn -----------------------------------------------------------------------------------------------


def turns_of(speakers: list[int], target: int, turns: int = 3) -> dict[str, list[int | None]]:
    """The rule of SYSTEMS.md in plain Python; a turn before the dialogue has nobody."""
    chosen: dict[str, list[int | None]] = {"speaker": [], "interlocutor": []}
    for turn in range(target - turns + 1, target + 1):
        own = [i for i, s in enumerate(speakers) if i <= turn and (s == 0 or i == target)]
        other = [i for i, s in enumerate(speakers) if i < turn and s > 0 and i != target]
        chosen["speaker"].append(own[-1] if own else None)
        chosen["interlocutor"].append(other[-1] if other else None)
    return chosen


def selected(mask: Tensor, speakers: Tensor, target: int, turns: int = 3) -> dict[str, list[int | None]]:
    slots = select_turns(mask[None], speakers[None], torch.tensor([target]), turns)
    return {
        role: [int(i) if e else None for i, e in zip(s.index[0].tolist(), s.exists[0].tolist(), strict=True)]
        for role, s in slots.items()
    }


def test_turns_of_a_dialogue_are_filled_by_the_latest_utterance_of_each_role() -> None:
    # A B A B A, the last is asked: its own utterances at 2, 2, 4 and the other's before 2, 3, 4.
    assert turns_of([0, 1, 0, 1, 0], 4) == {"speaker": [2, 2, 4], "interlocutor": [1, 1, 3]}
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        count, turns = int(torch.randint(1, 9, (), generator=generator)), int(torch.randint(1, 5, (), generator=generator))
        speakers = torch.randint(-1, 3, (count,), generator=generator)
        target = int(torch.randint(0, count, (), generator=generator))
        if torch.rand((), generator=generator) < 0.8:
            speakers[target] = 0
        expected = turns_of(speakers.tolist(), target, turns)
        assert selected(torch.ones(count, dtype=torch.bool), speakers, target, turns) == expected
        # Padding anywhere moves places and nothing else.
        places = torch.randperm(count + 3, generator=generator)[:count].sort().values
        mask, padded = torch.zeros(count + 3, dtype=torch.bool), torch.full((count + 3,), 1)
        mask[places], padded[places] = True, speakers
        moved = {role: [None if i is None else int(places[i]) for i in row] for role, row in expected.items()}
        assert selected(mask, padded, int(places[target]), turns) == moved


def test_a_target_of_unknown_speaker_has_itself_and_every_named_other() -> None:
    mask = torch.ones(4, dtype=torch.bool)
    assert selected(mask, torch.tensor([1, -1, 2, -1]), 3) == {"speaker": [None, None, 3], "interlocutor": [0, 0, 2]}
    assert selected(mask, torch.full((4,), -1), 3)["interlocutor"] == [None, None, None]


# --- the NumPy rewrite, one sample at a time, without padding ---------------------------------------------------------


def xlstm(stack: torch.nn.Module, steps: np.ndarray) -> np.ndarray:
    """mLSTM blocks (arXiv 2405.04517) as a plain recurrence without stabiliser: ``(S, s)`` to its last step ``(s,)``."""
    eps = 1e-5

    def norm(x: np.ndarray, weight: Tensor) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * (1 + array(weight)).reshape(x.shape[-1:])

    def blockwise(x: np.ndarray, weight: Tensor) -> np.ndarray:
        blocks = x.reshape(len(x), weight.shape[0], -1)
        return np.einsum("sbd,bod->sbo", blocks, array(weight)).reshape(len(x), -1)

    x = steps
    for block in stack.blocks:
        layer, cell = block.xlstm, block.xlstm.mlstm_cell
        up, z = np.split(linear(norm(x, block.xlstm_norm.weight), layer.proj_up), 2, axis=-1)
        kernel = array(layer.conv1d.conv.weight)[:, 0]  # (inner, 4)
        padded = np.concatenate([np.zeros((3, up.shape[1])), up])
        convolved = np.stack([(padded[t : t + 4].T * kernel).sum(axis=1) for t in range(len(up))])
        active = silu(convolved + array(layer.conv1d.conv.bias))
        q, k, v = (
            blockwise(source, w.weight) for source, w in ((active, layer.q_proj), (active, layer.k_proj), (up, layer.v_proj))
        )
        gates = np.concatenate([q, k, v], axis=-1)
        i, f = np.exp(linear(gates, cell.igate)), 1 / (1 + np.exp(-linear(gates, cell.fgate)))
        heads = i.shape[1]
        q, k, v = (a.reshape(len(a), heads, -1) for a in (q, k, v))
        size = q.shape[-1]
        hidden = np.zeros_like(q)
        for head in range(heads):
            memory, normaliser = np.zeros((size, size)), np.zeros(size)
            for t in range(len(q)):
                key = k[t, head] / math.sqrt(size)
                memory = f[t, head] * memory + i[t, head] * np.outer(v[t, head], key)
                normaliser = f[t, head] * normaliser + i[t, head] * key
                hidden[t, head] = memory @ q[t, head] / max(abs(normaliser @ q[t, head]), 1.0)
            weight = cell.outnorm.weight.unflatten(0, (heads, -1))[head]
            hidden[:, head] = norm(hidden[:, head], weight)
        mixed = hidden.reshape(len(x), -1) + array(layer.learnable_skip) * active
        x = x + linear(mixed * silu(z), layer.proj_down)
    return norm(x, stack.post_blocks_norm.weight)[-1]


def reference(adapter: GatedXLSTMAdapter, inputs: FusionInputs, i: int) -> tuple[np.ndarray, np.ndarray]:
    parts, gates = [], []
    for role, modality in adapter.streams:
        module = adapter.vectors[modality]
        steps = []
        for place in turns_of(SPEAKERS[i], len(SPEAKERS[i]) - 1)[role]:
            if place is None:
                continue
            vector = array(module.missing)
            if bool(getattr(inputs.context, f"{modality}_mask")[i, place]):
                vector = array(getattr(inputs.context, modality)[i, place])
                if module.linear is not None:
                    vector = layer_norm(linear(vector, module.linear), module.norm)
            steps += list(vector.reshape(-1, SIZE))
        encoded, gate = np.zeros(SIZE), 0.0
        if steps:
            encoded = xlstm(adapter.encoders[f"{role}_{modality}"].stack, np.stack(steps))
            gate = 1 / (1 + np.exp(-linear(encoded, adapter.gates[f"{role}_{modality}"])[0]))
        parts.append(gate * encoded)
        gates.append(gate)
    return linear(np.concatenate(parts), adapter.fusion), np.array(gates)


@pytest.mark.parametrize("options", [{}, {"num_blocks": 2}, {"num_steps": 1}])  # audio's 8 values are one step
def test_the_fused_vector_and_gates_equal_a_numpy_rewrite(options: dict) -> None:
    adapter, inputs = build(**options), make_inputs()
    assert (adapter.vectors["audio"].linear is None) == (options == {"num_steps": 1})
    with torch.no_grad():  # gates of a fresh stack hardly depend on its input
        for name, parameter in adapter.named_parameters():
            if "gate.weight" in name:
                parameter.normal_(0, 0.3)
    output = adapter(inputs)
    for i in range(3):
        fused, gates = reference(adapter, inputs, i)
        # The package adds 1e-6 to the normaliser.
        np.testing.assert_allclose(array(output.features[i]), fused, atol=1e-4)
        np.testing.assert_allclose(array(output.diagnostics["stream_gates"][i]), gates, atol=1e-4)


def test_a_512_vector_is_cut_into_sixteen_steps_of_32_as_it_is() -> None:
    config = GatedXLSTMConfig(feature_sizes=FRAME_SIZES, context_sizes=dict.fromkeys(MODALITIES, 512), num_pseudo_tokens=0)
    adapter = GatedXLSTMAdapter(config).eval()
    vectors, present = torch.randn(2, 3, 512), torch.tensor([[True, True, False], [True, True, True]])
    steps = adapter.vectors["audio"](vectors, present)
    assert torch.equal(steps[present], vectors.view(2, 3, 16, 32)[present])
    assert torch.equal(steps[0, 2].flatten(), adapter.vectors["audio"].missing)  # the stand-in is learned all the same
    assert [name for name, _ in adapter.vectors.named_parameters()] == [f"{m}.missing" for m in MODALITIES]
    assert len(adapter.streams) == 6
    config = replace(config, use_vision=False)
    order = [("speaker", "text"), ("speaker", "audio"), ("interlocutor", "text"), ("interlocutor", "audio")]
    assert list(GatedXLSTMAdapter(config).streams) == order


def test_frames_of_the_size_of_a_step_are_used_as_they_are() -> None:
    adapter = build(level="frame", feature_sizes={**FRAME_SIZES, "audio": SIZE})
    mask = torch.tensor([[False, True, True], [True, False, False]])
    frames = torch.randn(2, 3, SIZE, dtype=torch.float64).masked_fill(~mask.unsqueeze(-1), math.nan)
    steps, kept = adapter.frames["audio"](frames, mask)
    assert kept.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(steps[0, :2], frames[0, 1:])
    assert torch.equal(steps[1, 0], frames[1, 0])
    assert not steps[~kept].any()
    assert not list(adapter.frames["audio"].parameters())
    assert adapter.frames["text"].linear is not None  # of another size


def test_projecting_always_projects_what_would_fit_too() -> None:
    sizes = {"feature_sizes": dict.fromkeys(MODALITIES, SIZE), "context_sizes": dict.fromkeys(MODALITIES, STEPS * SIZE)}
    adapter = build(level="frame", vector_projection="always", **sizes)
    vector, frames = torch.randn(1, 1, STEPS * SIZE, dtype=torch.float64), torch.randn(1, 2, SIZE, dtype=torch.float64)
    for module, values in ((adapter.vectors["audio"], vector), (adapter.frames["audio"], frames)):
        steps = module(values, torch.ones(values.shape[:2], dtype=torch.bool))
        steps = steps[0] if isinstance(steps, tuple) else steps
        expected = layer_norm(linear(array(values[0]), module.linear), module.norm)
        np.testing.assert_allclose(array(steps[0]).reshape(expected.shape), expected, atol=1e-12)


# --- what it reads ------------------------------------------------------------------------------------------------------


def test_speakers_are_read() -> None:
    adapter, inputs = build(), make_inputs()
    tokens = adapter(inputs).pseudo_tokens
    speakers = inputs.context.speakers.clone()
    speakers[0, 1:3] = 0  # the dialogue becomes a monologue
    changed = adapter(replace(inputs, context=replace(inputs.context, speakers=speakers))).pseudo_tokens
    assert (changed[0] - tokens[0]).abs().max() > 1e-3
    assert torch.equal(changed[1:], tokens[1:])


def test_the_gate_is_each_samples_own() -> None:
    adapter, inputs = build(), make_inputs()
    gates = adapter(inputs).diagnostics["stream_gates"]
    assert gates.shape == (3, 6)
    assert float(gates[:, 0].std()) > 1e-3
    for i in range(3):
        torch.testing.assert_close(adapter(rows(inputs, [i])).diagnostics["stream_gates"][0], gates[i])


def test_a_missing_interlocutor_is_zeros_with_a_closed_gate() -> None:
    adapter, inputs = build(), make_inputs()
    output = adapter(inputs)
    assert torch.equal(output.diagnostics["stream_gates"][2, 3:], torch.zeros(3, dtype=torch.float64))
    assert bool((output.diagnostics["stream_gates"][:2] > 0).all())
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "interlocutor" in name:
                parameter.normal_()
    assert torch.equal(adapter(inputs).pseudo_tokens[2], output.pseudo_tokens[2])


def test_utterances_after_the_target_are_not_read() -> None:
    adapter, inputs = build(), rows(make_inputs(), [0])
    context = inputs.context
    for modality in MODALITIES:
        getattr(context, f"{modality}_mask")[0, :5] = True
        setattr(context, modality, getattr(context, modality).nan_to_num(0.1))
    context.target[0] = 2
    context.speakers[0] = torch.tensor([1, 1, 0, 1, 1, -1])
    tokens = adapter(inputs).pseudo_tokens
    context.audio[0, 3:] += 5.0
    assert torch.equal(adapter(inputs).pseudo_tokens, tokens)


@pytest.mark.parametrize("level", ["utterance", "frame"])
def test_a_sample_does_not_depend_on_its_batch_mates_nor_on_padding(level: str) -> None:
    adapter, inputs = build(level=level), make_inputs()
    tokens = adapter(inputs).pseudo_tokens
    assert bool(tokens.isfinite().all())
    alone = torch.cat([adapter(rows(inputs, [i])).pseudo_tokens for i in range(3)])
    torch.testing.assert_close(alone, tokens, atol=1e-10, rtol=0)
    torch.testing.assert_close(adapter(make_inputs(pad=4)).pseudo_tokens, tokens, atol=1e-10, rtol=0)
    front = make_inputs()  # padding before what is real
    for modality in MODALITIES:
        sequence = front.sequence(modality)
        setattr(front, modality, ModalitySequence(sequence.features.roll(1, 1), sequence.mask.roll(1, 1)))
    moved = {k: v.roll(1, 1) for k, v in vars(front.context).items() if k != "target"}
    front.context = ConversationContext(**moved, target=front.context.target + 1)
    torch.testing.assert_close(adapter(front).pseudo_tokens, tokens, atol=1e-10, rtol=0)


@pytest.mark.parametrize("level", ["utterance", "frame"])
@pytest.mark.parametrize("kept", [("text",), ("audio",), ("text", "vision")])
def test_a_modality_that_is_hidden_and_one_that_never_was_are_the_same(level: str, kept: tuple[str, ...]) -> None:
    adapter, hidden, dropped = build(level=level), rows(make_inputs(), [0]), rows(make_inputs(), [0])
    for modality in set(MODALITIES) - set(kept):
        hidden.sequence(modality).mask[:] = False
        setattr(hidden.context, f"{modality}_mask", torch.zeros(1, 6, dtype=torch.bool))
        setattr(dropped, modality, None)
        setattr(dropped.context, modality, None)
        setattr(dropped.context, f"{modality}_mask", None)
    a, b = adapter(hidden).pseudo_tokens, adapter(dropped).pseudo_tokens
    assert bool(a.isfinite().all())
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_without_context_the_target_is_a_window_of_one() -> None:
    adapter, inputs = build(), make_inputs()
    output = adapter(replace(inputs, context=None))
    assert bool(output.pseudo_tokens.isfinite().all())
    assert torch.equal(output.diagnostics["stream_gates"][:, 3:], torch.zeros(3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="audio frames of size 4 cannot be pooled"):
        build(context_sizes={**VECTOR_SIZES, "audio": 7})(replace(inputs, context=None))


def test_frames_of_the_target_take_the_place_of_its_vector() -> None:
    adapter, inputs = build(level="frame"), make_inputs()
    tokens = adapter(inputs).pseudo_tokens
    other = make_inputs()
    other.context.text[0, 4] += 1.0  # the target's vector
    assert torch.equal(adapter(other).pseudo_tokens, tokens)
    other.text.features[0, 0] += 1.0
    assert (adapter(other).pseudo_tokens[0] - tokens[0]).abs().max() > 1e-4
    other = make_inputs()
    for modality in MODALITIES:  # frames after the limit
        sequence = other.sequence(modality)
        other.sequence(modality).mask &= sequence.mask.long().cumsum(1) <= 2
    short = build(level="frame", max_frames=2)
    torch.testing.assert_close(short(inputs).pseudo_tokens, short(other).pseudo_tokens, atol=1e-10, rtol=0)


# --- streaming ----------------------------------------------------------------------------------------------------------

DIALOGUE = ["ann", "bob", "ann", "ann", "ann", "ann", "cem", None, "bob", "bob", "ann", "bob"]


def dialogue(dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor | None]]:
    generator = torch.Generator().manual_seed(3)
    heard = []
    for turn in range(len(DIALOGUE)):
        vectors: dict[str, Tensor | None] = {
            m: torch.randn(size, generator=generator).to(dtype) for m, size in VECTOR_SIZES.items()
        }
        if turn % 4 == 2:
            vectors["audio"] = None
        heard.append(vectors)
    return heard


def window_of(heard: list[dict[str, Tensor | None]], target: int, window: int) -> FusionInputs:
    """What the collator builds for one utterance."""
    start = max(0, target - window + 1)
    names, known = DIALOGUE[start : target + 1], {} if DIALOGUE[target] is None else {DIALOGUE[target]: 0}
    speakers = []
    for name in names:
        speakers.append(-1 if name is None else known.setdefault(name, max(known.values(), default=0) + 1))
    mask = torch.ones(1, len(names), dtype=torch.bool)
    inputs = FusionInputs(context=ConversationContext(mask, torch.tensor([speakers]), torch.tensor([len(names) - 1])))
    for modality, size in VECTOR_SIZES.items():
        vectors = [v[modality] for v in heard[start : target + 1]]
        present = torch.tensor([[v is not None for v in vectors]])
        filled = torch.stack([torch.full((size,), math.nan) if v is None else v for v in vectors])[None]
        setattr(inputs.context, modality, filled)
        setattr(inputs.context, f"{modality}_mask", present)
        setattr(inputs, modality, ModalitySequence(torch.zeros(1, 1, FRAME_SIZES[modality]), present[:, -1:]))
    return inputs


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("window", [None, 8, 2])
@pytest.mark.parametrize("options", [{}, {"num_blocks": 2, "num_steps": 16, "step_size": 32, "num_heads": 4}])
def test_streaming_a_dialogue_equals_the_parallel_mode(window: int | None, options: dict, recurrent: bool) -> None:
    adapter, heard = build(double=False, **options), dialogue()
    stream = adapter.stream(window, recurrent)
    for turn, name in enumerate(DIALOGUE):
        expected = adapter(window_of(heard, turn, window or len(DIALOGUE)))
        output = stream.step(name, heard[turn])
        torch.testing.assert_close(output.pseudo_tokens, expected.pseudo_tokens, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            output.diagnostics["stream_gates"], expected.diagnostics["stream_gates"], atol=1e-4, rtol=0
        )
    assert not adapter.recurrent


def test_streaming_frames_equals_the_parallel_mode() -> None:
    adapter, heard = build(double=False, level="frame"), dialogue()
    stream, generator = adapter.stream(), torch.Generator().manual_seed(4)
    for turn, name in enumerate(DIALOGUE):
        frames = {}
        for modality, size in FRAME_SIZES.items():
            known = torch.full((1, 6), heard[turn][modality] is not None)
            frames[modality] = ModalitySequence(torch.randn(1, 6, size, generator=generator), known)
        inputs = replace(window_of(heard, turn, len(DIALOGUE)), **frames)
        tokens = stream.step(name, heard[turn], frames).pseudo_tokens
        torch.testing.assert_close(tokens, adapter(inputs).pseudo_tokens, atol=1e-4, rtol=0)


def test_streaming_keeps_a_constant_number_of_utterances() -> None:
    adapter, heard = build(double=False), dialogue()
    stream, kept = adapter.stream(), []
    for _ in range(5):
        for name, vectors in zip(DIALOGUE, heard, strict=True):
            stream.step(name, vectors)
            kept.append(stream.kept)
    assert max(kept) == max(kept[:12]) == 3 + 3  # three turns, three speakers
    first = adapter.stream().step("ann", heard[0]).pseudo_tokens
    stream.reset()
    assert torch.equal(stream.step("bob", heard[0]).pseudo_tokens, first)


def test_streaming_refuses_what_it_cannot_read() -> None:
    adapter = build(double=False)
    with pytest.raises(ValueError, match="no modality at all"):
        adapter.stream().step("ann", {"text": None})
    with pytest.raises(ValueError, match="window is 0"):
        adapter.stream(0)


# --- training, options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"level": "frame"}, {"use_gates": False}, {"use_interlocutor": False}])
def test_every_parameter_gets_a_finite_gradient(options: dict) -> None:
    adapter, inputs = build(train=True, **options), make_inputs()
    inputs.text.mask[1] = False  # so that every modality's stand-in is used
    adapter(inputs).pseudo_tokens.pow(3).sum().backward()
    for name, parameter in adapter.named_parameters():
        if name.startswith("head."):
            continue
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_gradcheck_passes_in_float64() -> None:
    """The package's stack computes in float64 as it is; no cast at its border."""
    adapter, inputs = build(step_size=4, num_steps=2, hidden_size=4, num_heads=1), make_inputs()
    values = [getattr(inputs.context, m).nan_to_num(0.3).requires_grad_() for m in MODALITIES]

    def fused(*arguments: Tensor) -> Tensor:
        context = replace(inputs.context, **dict(zip(MODALITIES, arguments, strict=True)))
        return adapter.fuse(replace(inputs, context=context)).vector

    assert fused(*values).dtype == torch.float64
    assert torch.autograd.gradcheck(fused, values)


@pytest.mark.parametrize("options", [{}, {"level": "frame"}, {"num_steps": 16, "step_size": 32, "num_heads": 4}])
def test_bfloat16_autocast_agrees_with_float32(options: dict) -> None:
    adapter, inputs = build(double=False, **options), make_inputs(torch.float32)
    expected = adapter(inputs).pseudo_tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = adapter(inputs).pseudo_tokens
    torch.testing.assert_close(tokens.float(), expected, atol=2e-2, rtol=2e-2)


def test_ablations_leave_out_what_they_name() -> None:
    inputs = make_inputs()
    gates = build(use_gates=False)(inputs).diagnostics["stream_gates"]
    assert torch.equal(gates[:2], torch.ones(2, 6, dtype=torch.float64))
    adapter = build(use_interlocutor=False)
    tokens = adapter(inputs).pseudo_tokens
    assert not any("interlocutor" in name for name, _ in adapter.named_parameters())
    inputs.context.text[0, 1:3] += 1.0
    assert torch.equal(adapter(inputs).pseudo_tokens, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "turn"}, "level is 'turn'"),
        ({"vector_projection": "no"}, "vector_projection is 'no'"),
        ({"turns": 0}, "turns is 0"),
        ({"step_size": 0}, "step_size"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_stream_without_a_real_step_is_zeros() -> None:
    encoder = next(m for m in build(double=False).modules() if isinstance(m, StreamEncoder))
    encoded = encoder(torch.randn(2, 3, SIZE), torch.tensor([[False] * 3, [True] * 3]))
    assert not encoded[0].any()
    assert encoded[1].any()
