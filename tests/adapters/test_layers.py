"""The shared building blocks against float64 NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy_reference import array, softmax

from llm_mer.adapters.layers import (
    AuxiliaryHead,
    HeadOutput,
    ModalityProjection,
    MultiHeadAttention,
    PseudoTokenProjection,
    attend,
    class_loss,
    masked_mean,
    masked_softmax,
    real_steps_first,
    score_loss,
    score_unit,
)

B, T, S, D = 3, 4, 5, 6
MASK = torch.tensor([[True] * 5, [False, True, False, True, False], [False] * 5])  # (B, S): whole, holed, empty


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def standardise(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


# --- pooling and softmax ----------------------------------------------------------------------------------------------


def test_masked_mean_is_the_mean_over_real_steps_and_zero_without_one() -> None:
    values = randn(B, S, D)
    values[~MASK] = math.nan
    pooled = masked_mean(values, MASK)
    for i in range(2):
        np.testing.assert_allclose(array(pooled[i]), array(values[i])[MASK[i].numpy()].mean(axis=0), atol=1e-14)
    assert torch.equal(pooled[2], torch.zeros(D, dtype=torch.float64))


def test_real_steps_come_first_in_their_order() -> None:
    mask = torch.tensor([[False, True, False, True], [True, True, True, False]])
    assert real_steps_first(mask).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def test_masked_mean_passes_no_gradient_to_masked_steps() -> None:
    values = randn(B, S, D).masked_fill(~MASK.unsqueeze(-1), math.inf).requires_grad_()
    masked_mean(values, MASK).sum().backward()
    expected = MASK / MASK.sum(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(values.grad, expected.double().unsqueeze(-1).expand(B, S, D))


def test_masked_softmax_is_the_softmax_of_real_entries_and_zero_without_one() -> None:
    scores = randn(B, S)
    scores[~MASK] = math.nan
    weights = masked_softmax(scores, MASK)
    for i in range(2):
        expected = np.zeros(S)
        expected[MASK[i].numpy()] = softmax(array(scores[i])[MASK[i].numpy()])
        np.testing.assert_allclose(array(weights[i]), expected, atol=1e-14)
    assert not weights[2].any()


def test_masked_softmax_over_another_dimension_broadcasts_its_mask() -> None:
    scores = randn(B, S, 2)
    weights = masked_softmax(scores, MASK.unsqueeze(-1), dim=1)
    torch.testing.assert_close(weights.transpose(1, 2), masked_softmax(scores.transpose(1, 2), MASK.unsqueeze(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_of_large_scores_is_finite(dtype: torch.dtype) -> None:
    weights = masked_softmax(
        torch.tensor([[6e4, -6e4, 6e4], [-6e4, 6e4, 0.0]], dtype=dtype), torch.tensor([[1, 1, 0], [1, 0, 0]])
    )
    torch.testing.assert_close(weights.float(), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


# --- attention --------------------------------------------------------------------------------------------------------


def test_attend_equals_numpy_and_is_zero_where_no_key_is_real() -> None:
    query, key, value = randn(B, T, D), randn(B, S, D), randn(B, S, D)
    output, weights = attend(query, key, value, MASK)
    for i in range(2):
        real = MASK[i].numpy()
        expected = softmax(array(query[i]) @ array(key[i])[real].T / math.sqrt(D))
        np.testing.assert_allclose(array(weights[i])[:, real], expected, atol=1e-14)
        np.testing.assert_allclose(array(output[i]), expected @ array(value[i])[real], atol=1e-14)
        assert not weights[i][:, ~MASK[i]].any()
    assert not output[2].any()
    assert not weights[2].any()


def test_attend_over_masked_keys_alone_has_a_finite_zero_gradient() -> None:
    query, key, value = (randn(B, n, D).requires_grad_() for n in (T, S, S))
    attend(query, key, value, MASK)[0].square().sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[2].any()


def test_attend_takes_its_softmax_in_float32_under_bfloat16() -> None:
    query, key, value = (torch.randn(1, 64, 8) * 2 for _ in range(3))
    exact, _ = attend(query, key, value, torch.ones(1, 64, dtype=torch.bool))
    rough, weights = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), torch.ones(1, 64, dtype=torch.bool))
    assert rough.dtype == weights.dtype == torch.bfloat16
    assert float((rough.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_multi_head_attention_equals_numpy_and_is_zero_where_no_key_is_real() -> None:
    module = MultiHeadAttention(D, 2).double()
    query, other = randn(B, T, D), randn(B, S, D)
    output = module(query, other, other, MASK)

    def linear(x: torch.Tensor, layer: torch.nn.Linear) -> np.ndarray:
        return array(x) @ array(layer.weight).T + array(layer.bias)

    for i in range(2):
        real = other[i][MASK[i]]
        q, k, v = linear(query[i], module.query), linear(real, module.key), linear(real, module.value)
        half = D // 2
        heads = [softmax(q[:, p] @ k[:, p].T / math.sqrt(half)) @ v[:, p] for p in (slice(0, half), slice(half, D))]
        expected = linear(torch.from_numpy(np.concatenate(heads, axis=-1)), module.output)
        np.testing.assert_allclose(array(output[i]), expected, atol=1e-13)
    assert not output[2].any()


def test_multi_head_attention_needs_heads_that_divide_its_size() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        MultiHeadAttention(6, 4)


# --- projections ------------------------------------------------------------------------------------------------------


def test_modality_projection_equals_numpy_at_real_steps_and_zero_at_padded_ones() -> None:
    module = ModalityProjection(S, D).double()
    features = randn(B, S, S)
    features[~MASK] = math.nan
    values, mask = module(features, MASK)
    for i in range(2):
        real = MASK[i].numpy()
        expected = standardise(array(features[i])[real] @ array(module.linear.weight).T + array(module.linear.bias))
        np.testing.assert_allclose(array(values[i])[real], expected, atol=1e-12)
        assert not values[i][~MASK[i]].any()
    assert torch.equal(mask[:2], MASK[:2])


def test_modality_projection_replaces_a_missing_modality_by_one_learned_step() -> None:
    module = ModalityProjection(S, D).double()
    values, mask = module(torch.full((B, S, S), math.nan, dtype=torch.float64), torch.zeros(B, S, dtype=torch.bool))
    assert mask.sum(dim=1).tolist() == [1] * B
    for i in range(B):
        assert torch.equal(values[i][mask[i]], module.missing.unsqueeze(0))
        assert not values[i][~mask[i]].any()
    alone, alone_mask = module(randn(B, 0, S), torch.zeros(B, 0, dtype=torch.bool))
    assert torch.equal(alone, module.stand_in(B)[0])
    assert alone_mask.tolist() == [[True]] * B


@pytest.mark.parametrize("expansion", ["linear", "repeat"])
def test_pseudo_tokens_equal_numpy(expansion: str) -> None:
    module = PseudoTokenProjection(D, 8, 3, expansion, embedding_norm=2.5).double()
    fused = randn(B, D)
    projected = array(fused) @ array(module.linear.weight).T + array(module.linear.bias)
    tokens = projected.reshape(B, -1, 8)
    expected = standardise(np.repeat(tokens, 3, axis=1) if expansion == "repeat" else tokens) * 2.5 / math.sqrt(8)
    np.testing.assert_allclose(array(module(fused)), expected, atol=1e-7)  # the scale starts as a float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 2.5, rtol=1e-3)


def test_pseudo_tokens_refuse_an_unknown_expansion_and_no_backbone() -> None:
    with pytest.raises(ValueError, match="choose linear, repeat or labels"):
        PseudoTokenProjection(D, 8, 3, "magic", 1.0)
    with pytest.raises(ValueError, match="backbone_size"):
        PseudoTokenProjection(D, 0, 3, "linear", 1.0)


# --- the auxiliary head and its losses --------------------------------------------------------------------------------


def test_the_head_predicts_in_the_unit_of_the_score_range() -> None:
    head: Any = AuxiliaryHead(D, 4, (1.0, 9.0)).double()
    fused = randn(B, D)
    output = head(fused)
    weight, bias = array(head.regressor.weight)[0], float(head.regressor.bias.detach())
    np.testing.assert_allclose(array(output.scores), 5 + 4 * (array(fused) @ weight + bias), atol=1e-12)
    expected = array(fused) @ array(head.classifier.weight).T + array(head.classifier.bias)
    np.testing.assert_allclose(array(output.logits), expected, atol=1e-12)


def test_the_head_has_only_the_parts_its_tasks_need() -> None:
    classes, scores = AuxiliaryHead(D, 4, None), AuxiliaryHead(D, 0, (-1.0, 1.0))
    assert classes(torch.randn(2, D)).scores is None
    assert scores(torch.randn(2, D)).logits is None
    assert not any(name.startswith("regressor") for name, _ in classes.named_parameters())
    with pytest.raises(ValueError, match="needs a classification or a regression task"):
        AuxiliaryHead(D, 0, None)


def test_class_loss_is_the_mean_cross_entropy_of_known_classes() -> None:
    logits, classes = randn(4, 3), torch.tensor([2, -100, 0, -100])
    p = softmax(array(logits))
    assert math.isclose(float(class_loss(logits, classes)), -(math.log(p[0, 2]) + math.log(p[2, 0])) / 2, rel_tol=1e-12)


def test_score_loss_is_the_mean_absolute_error_of_known_scores() -> None:
    predicted: Any = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = score_loss(predicted, torch.tensor([0.0, math.nan, 5.5]))
    loss.backward()
    assert float(loss.detach()) == (1.0 + 2.5) / 2
    assert predicted.grad.tolist() == [0.5, 0.0, -0.5]


def test_scores_of_published_ranges_are_trained_in_points_and_others_in_halves_of_their_range() -> None:
    assert [score_unit(bounds) for bounds in ((-3.0, 3.0), (-1.0, 1.0), None)] == [1.0, 1.0, 1.0]
    assert [score_unit(bounds) for bounds in ((0.0, 100.0), (0.0, 1.0), (1.0, 9.0))] == [50.0, 0.5, 4.0]
    assert float(score_loss(torch.tensor([20.0]), torch.tensor([70.0]), score_unit((0.0, 100.0)))) == 1.0


def test_losses_without_a_known_target_are_zero_with_a_graph() -> None:
    logits: Any = torch.randn(2, 3, requires_grad=True)
    scores: Any = torch.randn(2, requires_grad=True)
    losses = AuxiliaryHead.losses(HeadOutput(logits, scores), torch.tensor([-100, -100]), torch.tensor([math.nan] * 2))
    (losses["ce"] + losses["l1"]).backward()
    assert [float(losses[name].detach()) for name in ("ce", "l1")] == [0.0, 0.0]
    assert not logits.grad.any()
    assert not scores.grad.any()


def test_losses_exist_only_where_both_prediction_and_target_do() -> None:
    logits, scores, classes, truth = torch.randn(2, 3), torch.randn(2), torch.tensor([0, 1]), torch.tensor([0.5, 1.0])
    assert set(AuxiliaryHead.losses(HeadOutput(logits, None), classes, truth)) == {"ce"}
    assert set(AuxiliaryHead.losses(HeadOutput(None, scores), classes, truth)) == {"l1"}
    assert AuxiliaryHead.losses(HeadOutput(logits, scores), None, None) == {}
