"""Sharded gradients: DeepSpeed's ZeRO-2 on two processes of a CPU against plain autograd on all samples in one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from conftest import torchrun

PROGRAM = """
import json, sys
from types import SimpleNamespace
import deepspeed, torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from llm_mer.distributed.process_group import shutdown_process_group
from llm_mer.distributed.sharded_parameters import OrderedGradientReduction, reduce_gradients_in_parameter_order

deepspeed.init_distributed("gloo")
rank = torch.distributed.get_rank()

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, values, lengths):
        packed = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)[1][0].square().sum(dim=(0, 2)).mean()

def micro_batches(rank):
    # Sequences of one length on one process and of several on the other: the LSTM has its gradients in another order.
    draw = torch.Generator().manual_seed(rank)
    lengths = torch.tensor([[4, 4], [4, 2]][rank])
    return [(torch.randn(2, 4, 3, generator=draw), lengths) for _ in range(2)]

torch.manual_seed(0)
reference = Model()
start = {name: value.clone() for name, value in reference.state_dict().items()}
rate = 1.0
optimiser = torch.optim.SGD(reference.parameters(), lr=rate)
expected = []
for step in range(2):
    optimiser.zero_grad()
    (sum(reference(*batch) for r in range(2) for batch in micro_batches(r)) / 4).backward()
    optimiser.step()
    expected.append({name: value.clone() for name, value in reference.state_dict().items()})

found = {}
for way in ("as they come", "in one order"):
    model = Model()
    model.load_state_dict(start)
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "zero_optimization": {"stage": 2, "overlap_comm": False},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=rate), config=config
    )
    accelerator = SimpleNamespace(deepspeed_engine_wrapped=DeepSpeedEngineWrapper(engine))
    if way == "in one order":
        for _ in range(2):
            reduce_gradients_in_parameter_order(accelerator)
        assert isinstance(accelerator.deepspeed_engine_wrapped, OrderedGradientReduction)
        assert not isinstance(accelerator.deepspeed_engine_wrapped.wrapper, OrderedGradientReduction)
    away = []
    for step in range(2):
        for last, batch in enumerate(micro_batches(rank)):
            accelerator.deepspeed_engine_wrapped.backward(engine(*batch), sync_gradients=bool(last))
        away.append(max(float((p - expected[step][name]).abs().max()) for name, p in model.named_parameters()))
    found[way] = away
if rank == 0:
    moved = max(float((expected[-1][name] - value).abs().max()) for name, value in start.items())
    json.dump({**found, "moved": moved}, open(sys.argv[1], "w"))
shutdown_process_group()
"""


def deepspeed_lacks() -> str | None:
    """Why DeepSpeed cannot run here."""
    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    if shutil.which("g++") is None:
        return "no g++, and DeepSpeed builds an operator on its first run"
    return None


@pytest.mark.slow
@pytest.mark.skipif(deepspeed_lacks() is not None, reason=str(deepspeed_lacks()))
def test_zero2_adds_up_gradients_of_the_same_parameters_though_an_lstm_has_them_in_another_order(tmp_path: Path) -> None:
    """And DeepSpeed alone does not: once it does, ``OrderedGradientReduction`` may go."""
    program, output = tmp_path / "program.py", tmp_path / "found.json"
    program.write_text(PROGRAM)
    result = torchrun(2, program, output, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(output.read_text())
    assert max(found["in one order"]) < 1e-6
    assert found["moved"] > 1e-2
    assert max(found["as they come"]) > 1e-3
