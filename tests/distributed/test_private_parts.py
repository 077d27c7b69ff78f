"""What this project touches of other libraries' insides is still where it was seen: DeepSpeed 0.19, accelerate 1.15.

A name that has moved fails here, before it fails in a training on many GPUs.
"""

import re

import pytest
from installed_source import source

DEEPSPEED = [
    ("runtime/zero/partition_parameters.py", r"param\.ds_id\s*=", "ds_id marks a parameter that ZeRO-3 shards"),
    ("runtime/zero/partition_parameters.py", r"param\.ds_numel\s*=", "ds_numel is the size of the whole parameter"),
    ("runtime/zero/partition_parameters.py", r"class GatheredParameters", "gathers sharded parameters"),
    ("utils/mixed_precision_linkage.py", r"\._hp_mapping\s*=", "_hp_mapping marks a parameter with a float32 copy"),
    ("utils/tensor_fragment.py", r"def safe_get_full_fp32_param", "reads the float32 copy"),
    ("utils/tensor_fragment.py", r"def safe_set_full_fp32_param", "writes the float32 copy"),
    ("runtime/zero/stage3.py", r"self\.persistent_parameters\s*=", "what ZeRO-3 keeps whole"),
    ("runtime/engine.py", r"def coalesce_grad_reduction", "reduces gradients once, at the end of a step"),
    ("runtime/engine.py", r"def set_gradient_accumulation_boundary\(self, is_boundary", "where a step ends"),
]
ACCELERATE = [
    ("accelerator.py", r"self\.deepspeed_engine_wrapped\s*=", "where the wrapper of the engine hangs"),
    ("utils/deepspeed.py", r"class DeepSpeedEngineWrapper", "the wrapper that is replaced"),
    ("utils/deepspeed.py", r"def backward\(self, loss, sync_gradients=True", "what the replacement must take"),
    ("utils/deepspeed.py", r"def get_global_grad_norm\(self", "what the replacement hands on"),
]


@pytest.mark.parametrize(("path", "pattern", "use"), DEEPSPEED, ids=[use for *_, use in DEEPSPEED])
def test_deepspeed_has_it_where_it_was_seen(path: str, pattern: str, use: str) -> None:
    assert re.search(pattern, source("deepspeed", path)), use


@pytest.mark.parametrize(("path", "pattern", "use"), ACCELERATE, ids=[use for *_, use in ACCELERATE])
def test_accelerate_has_it_where_it_was_seen(path: str, pattern: str, use: str) -> None:
    assert re.search(pattern, source("accelerate", path)), use
