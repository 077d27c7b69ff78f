"""Layers as plain NumPy in float64, the vocabulary of the adapters' independent rewrites."""

import math
from typing import Any

import numpy as np


def array(tensor: Any) -> np.ndarray:
    """A tensor or parameter as float64."""
    return tensor.detach().double().numpy()


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def linear(x: np.ndarray, module: Any) -> np.ndarray:
    """A linear layer, or a convolution of width 1."""
    y = x @ array(module.weight).reshape(module.weight.shape[0], -1).T
    return y if module.bias is None else y + array(module.bias)


def layer_norm(x: np.ndarray, module: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.eps) * array(module.weight) + array(module.bias)


def cross_attention(module: Any, query: np.ndarray, other: np.ndarray, heads: int) -> np.ndarray:
    """``query (T, d)`` attends to ``other (S, d)``, both without padding."""
    q, k, v = linear(query, module.query), linear(other, module.key), linear(other, module.value)
    size = q.shape[-1] // heads
    read = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        read.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(size)) @ v[:, part])
    return linear(np.concatenate(read, axis=-1), module.output)
