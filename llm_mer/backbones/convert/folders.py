"""Weight files (safetensors shards) of a converted backbone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llm_mer.errors import UserError


class ShardWriter:
    """Writes named tensors as ``model-0000i-of-0000n.safetensors`` and their index, holding one shard in memory.

    A shard is written before it would pass ``max_bytes``; a tensor larger than that gets a shard of its own. A single shard
    is called ``model.safetensors`` and has no index, as in ``save_pretrained``.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise UserError(f"max_shard_bytes: {max_bytes} is not a positive number of bytes")
        self.folder, self.max_bytes = folder, max_bytes
        self.shards: list[list[str]] = []
        self.total_bytes = 0
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor. It is copied, so a memory-mapped source may be closed at once."""
        if self._pending and self._pending_bytes + tensor.nbytes > self.max_bytes:
            self._flush()
        self._pending[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the remaining tensors, give the shards their final names and write the index."""
        if self._pending:
            self._flush()
        if len(self.shards) == 1:
            self._part(0).rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for i, names in enumerate(self.shards):
            file = f"model-{i + 1:05d}-of-{len(self.shards):05d}.safetensors"
            self._part(i).rename(self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _part(self, i: int) -> Path:
        return self.folder / f"part-{i:05d}"  # the number of shards is known only at the end

    def _flush(self) -> None:
        save_file(self._pending, self._part(len(self.shards)), metadata={"format": "pt"})
        self.shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0
