"""What this project overrides or reads inside transformers 5.23, peft 0.21 and liger-kernel 0.8 is where it was seen.

A name that has moved fails here, before it is overridden in vain.
"""

import re

import pytest
from installed_source import source

TRANSFORMERS = [
    ("trainer.py", r"def _get_train_sampler\(self, train_dataset", "overridden: samples of one length together"),
    ("trainer.py", r"self\._get_train_sampler", "the sampler that is overridden is the one used"),
    ("trainer.py", r"def _get_output_dir\(self, trial", "overridden: a checkpoint is staged"),
    ("trainer.py", r"self\._get_output_dir\(trial=trial\)", "the folder that is overridden is the one used"),
    ("trainer.py", r"def _save_checkpoint\(self, model", "overridden: a checkpoint is complete or absent"),
    ("trainer.py", r"self\._save_checkpoint\(model, trial", "the saving that is overridden is the one used"),
    ("trainer.py", r"def _save\(self, output_dir", "overridden: the description beside the weights"),
    ("trainer.py", r"self\._save\(output_dir", "the writing that is overridden is the one used"),
    ("trainer.py", r"def _prepare_inputs\(", "moves a batch to the device"),
    ("trainer_pt_utils.py", r"class LengthGroupedSampler", "batches of like length"),
    (
        "generation/utils.py",
        r"def _validate_model_kwargs\(self\b.*, model_kwargs",
        "overridden: the adapter's tensors pass",
    ),
    ("generation/utils.py", r"self\._validate_model_kwargs\(", "the check that is overridden is the one used"),
    ("generation/utils.py", r"def prepare_inputs_for_generation\(", "overridden: pseudo tokens enter with the prompt"),
    ("generation/utils.py", r"is_first_iteration", "tells the first step of generation"),
    ("modeling_utils.py", r"def _init_weights\(self, module", "overridden: parts initialise themselves"),
    ("modeling_utils.py", r"\b_supports_sdpa\b", "declared by the model"),
    ("modeling_utils.py", r"\b_supports_flash_attn\b", "declared by the model"),
    ("modeling_utils.py", r"\b_supports_flex_attn\b", "declared by the model"),
    ("modeling_utils.py", r"\b_supports_attention_backend\b", "declared by the model"),
    ("modeling_utils.py", r"def is_activation_checkpointing\(self", "read in place of its deprecated name"),
    ("modeling_utils.py", r"def is_gradient_checkpointing\(self", "deprecated, and still asked for by peft and trl"),
    ("configuration_utils.py", r"def _attn_implementation\(self", "the attention of a loaded backbone"),
    ("models/auto/tokenization_auto.py", r"def get_tokenizer_config\(", "tells a tokenizer's declared class"),
    ("models/auto/auto_factory.py", r'kwargs\["_from_auto"\] = True', "an option that AutoModel adds"),
    ("models/auto/auto_factory.py", r'kwargs\["trust_remote_code"\] = trust_remote_code', "an option that AutoModel adds"),
    ("models/auto/auto_factory.py", r'kwargs\["adapter_kwargs"\] = adapter_kwargs', "an option that AutoModel adds"),
    ("models/auto/auto_factory.py", r'adapter_config\["base_model_name_or_path"\]', "where AutoModel looks for config.json"),
    ("utils/logging.py", r"are_progress_bars_disabled\(\)", "bars go with the hub library's"),
]
PEFT = [
    ("utils/other.py", r"self\.original_module\s*=", "an adapter's untrained copy, which is not the one that is read"),
    ("utils/other.py", r"self\.modules_to_save\s*=", "an adapter's trained copy"),
    ("utils/integrations.py", r"def dequantize_module_weight\(", "a quantised layer's weight, to be merged"),
    ("peft_model.py", r"is_gradient_checkpointing", "asked of the model under its deprecated name"),
    ("mapping_func.py", r"base_model_name_or_path", "compared with the model's own name, which is left empty"),
]
LIGER = [
    ("transformers/monkey_patch.py", r"^MODEL_TYPE_TO_APPLY_LIGER_FN\s*=", "families and their kernels"),
    ("transformers/monkey_patch.py", r"def _apply_liger_kernel_to_instance\(", "replaces layers of a model"),
    ("transformers/functional.py", r"def liger_fused_linear_cross_entropy\(", "the answer's loss"),
]


@pytest.mark.parametrize(("path", "pattern", "use"), TRANSFORMERS)
def test_transformers_has_it_where_it_was_seen(path: str, pattern: str, use: str) -> None:
    assert re.search(pattern, source("transformers", path)), use


@pytest.mark.parametrize(("path", "pattern", "use"), PEFT)
def test_peft_has_it_where_it_was_seen(path: str, pattern: str, use: str) -> None:
    assert re.search(pattern, source("peft", path)), use


@pytest.mark.parametrize(("path", "pattern", "use"), LIGER)
def test_liger_kernel_has_it_where_it_was_seen(path: str, pattern: str, use: str) -> None:
    assert re.search(pattern, source("liger_kernel", path), flags=re.MULTILINE), use
