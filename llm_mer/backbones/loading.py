"""Loading a backbone: any Llama, GLM or Qwen by hub name, folder, GGUF file or package, quantised or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from llm_mer.backbones.attention import MASK_AWARE_ATTENTION
from llm_mer.backbones.gguf import check_biases, check_gguf, gguf_options, without_added_tokens, without_progress_bar
from llm_mer.backbones.gguf_header import GgufHeader
from llm_mer.backbones.hub_kernels import check_hub_kernels
from llm_mer.backbones.sources import LocalBackbone, find_local_backbone
from llm_mer.distributed.sharded_parameters import gathered_parameters
from llm_mer.errors import UserError, first_line, is_out_of_memory
from llm_mer.storage.finite_tensors import require_finite
from llm_mer.storage.json_files import read_json_object

logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

FLASH_ATTENTION: dict[str, Callable[[], bool]] = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
}
"""Flash attention implementations, each with the test of whether this machine can run it."""
PICKLED_WEIGHTS = (
    "has no .safetensors file, and a .bin file is a pickle, which is not opened; if you trust it, convert it with "
    "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) of transformers"
)
READ_BY_TRANSFORMERS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Further JSON of a backbone's folder. transformers would keep the last of two values, and does not bound the nesting."""
GENERIC_TOKENIZER_CLASSES: tuple[str, ...] = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Class names in ``tokenizer_config.json`` that mean: read ``tokenizer.json`` as it is. The second is the older name."""


@dataclass
class LoadedBackbone:
    """A causal language model in eval mode and its tokenizer (which has a pad token)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_backbone(
    source: str | Path,
    dtype: str = "float32",
    quantization: str = "none",
    attn_implementation: str | None = None,
) -> LoadedBackbone:
    """Load a causal language model and its tokenizer. No remote code is run and no pickle is opened (weights are read from
    ``.safetensors`` or ``.gguf`` files only); what lies on this machine never touches the network.

    Args:
        source: what :func:`~llm_mer.backbones.sources.find_local_backbone` finds, or a hub name.
        dtype: ``float32``, ``bfloat16`` or ``float16``; the blocks of a GGUF file become plain weights of it.
        quantization: ``none``, ``int8`` or ``nf4`` (bitsandbytes). attn_implementation: transformers' own choice when None.

    Raises:
        UserError: no such folder or file, an attention implementation or quantisation that this machine or model does not
            support, a missing or unsuitable configuration, weights that are missing, pickled or not finite, a GGUF file that
            is damaged or would not be read completely, or an unreachable hub.
    """
    source = str(source)
    found = find_local_backbone(source)
    header = None
    if found is not None and found.gguf is not None:
        header = check_gguf(found.gguf)
        if quantization != "none":
            raise UserError(
                f"quantization {quantization}: {source} is a GGUF file, whose weights are dequantised as they are read; "
                "leave quantization at none, or name the model's own folder or hub name"
            )
    elif found is not None:
        _check_folder(found.folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    check_attention(attn_implementation)
    options: dict[str, Any] = {
        "dtype": DTYPES[dtype],
        "trust_remote_code": False,
        "local_files_only": found is not None,
        "use_safetensors": True,  # a .bin file is a pickle
    }
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization, DTYPES[dtype])
    loaded = _from_pretrained(source, found, header, options)
    model, tokenizer = loaded.model, loaded.tokenizer
    _check_logits(model, source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if quantization == "nf4":
        check_nf4_blocks(model)
        disable_packed_nf4(model)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return loaded


def _from_pretrained(
    source: str, found: LocalBackbone | None, header: GgufHeader | None, options: dict[str, Any]
) -> LoadedBackbone:
    """Load model and tokenizer. Raises :class:`UserError` for whatever transformers refuses, and for missing weights."""
    place = source if found is None else str(found.folder)
    try:
        if header is None:
            check_hub_kernels(
                PreTrainedConfig.get_config_dict(place, local_files_only=found is not None)[0], f"backbone {source!r}"
            )
        else:
            assert found is not None
            assert found.gguf is not None
            options |= gguf_options(found.gguf)
        with nullcontext() if header is None else without_progress_bar():
            # from_pretrained is typed as returning the model alone; with output_loading_info it returns a pair.
            model, info = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options),
            )
    except OSError as error:
        if "use_safetensors" in str(error):
            raise UserError(f"backbone {source!r} {PICKLED_WEIGHTS}") from error
        raise UserError(f"backbone {source!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise UserError(f"backbone {source!r} is not a causal language model: {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise UserError(f"backbone {source!r}: its weights are damaged or cut off: {error}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        described = "config.json" if header is None else "header"
        raise UserError(f"backbone {source!r}: its weights have other shapes than its {described} says") from error
    except Exception as error:
        if header is None or is_out_of_memory(error):
            raise
        # What a header lacks or says wrongly surfaces as whatever transformers did with it.
        reason = first_line(error.__cause__ or error)
        raise UserError(f"backbone {source!r}: its header is damaged or incomplete: {reason}") from error
    try:
        tokenizer = read_tokenizer(source)
    except Exception as error:  # a damaged file surfaces as whatever its reader raises
        reason = f"the tokenizer's files are missing or damaged: {first_line(error)}"
        raise UserError(f"backbone {source!r}: {reason}") from error
    # transformers initialises missing weights at random without an error.
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        raise UserError(f"backbone {source!r}: its files lack {len(missing)} weights, e.g. {missing[0]!r}")
    # Nor does it report layers that config.json leaves out.
    unread = sorted(str(key) for key in info["unexpected_keys"])
    if unread:
        logger.warning("backbone %r: %d weights in its files are not read, e.g. %r", source, len(unread), unread[0])
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows > 0:  # 0: sharded
        raise UserError(
            f"backbone {source!r}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows; use its own"
        )
    require_finite(model.named_parameters(), f"backbone {source!r}")
    if header is not None:
        assert found is not None
        assert found.gguf is not None
        check_biases(model, found.gguf, header)
    return LoadedBackbone(model, tokenizer)


def _check_logits(model: PreTrainedModel, source: str) -> None:
    """Raises :class:`UserError` for a model that rescales its logits."""
    text_config = model.config.get_text_config()
    for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"):
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise UserError(f"backbone {source!r} rescales its logits ({name}); answer scoring does not know this form")


def check_attention(implementation: str | None) -> None:
    """Check that an attention implementation is known and available on this machine. Raises :class:`UserError`."""
    if implementation in (None, *MASK_AWARE_ATTENTION):
        return
    if implementation not in FLASH_ATTENTION:
        raise UserError(
            f"attn_implementation: {implementation!r} is not one of {', '.join((*MASK_AWARE_ATTENTION, *FLASH_ATTENTION))}"
        )
    if not FLASH_ATTENTION[implementation]():
        raise UserError(
            f"attn_implementation: {implementation} needs a GPU and the package flash-attn, which are not both here; sdpa "
            "works everywhere"
        )


def read_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a GGUF file, a package's model or a hub name, as its files say.

    ``AutoTokenizer`` chooses the class by the model's type: for a Qwen2 model it reads any vocabulary as Qwen's byte-level
    one, so with another kind of tokenizer Chinese text disappears without an error. Files that declare the generic class are
    therefore read with it, since ``tokenizer.json`` describes the tokenizer completely. Raises what transformers raises.
    """
    found = find_local_backbone(source)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": found is not None}
    place = str(source) if found is None else str(found.folder)
    tokenizer: PreTrainedTokenizerBase
    if found is not None and found.gguf is not None:
        header = check_gguf(found.gguf)
        # AutoTokenizer reads the whole file once more, to choose the same class.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(place, gguf_file=found.gguf.name, **options)
        return without_added_tokens(tokenizer, header)
    declared = get_tokenizer_config(place, **options).get("tokenizer_class")
    reader = PreTrainedTokenizerFast if declared in GENERIC_TOKENIZER_CLASSES else AutoTokenizer
    tokenizer = reader.from_pretrained(place, **options)
    return tokenizer


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"backbone: {folder} has no config.json; a backbone folder is one written by save_pretrained")
    model_type = read_json_object(path).get("model_type")
    for name in READ_BY_TRANSFORMERS:
        if (folder / name).is_file():
            read_json_object(folder / name)
    if model_type == "llm_mer":
        raise UserError(
            f"backbone: {folder} holds a trained checkpoint, not a backbone; go on from it with init_checkpoint, or name "
            "the backbone/ folder that `llm-mer merge` writes"
        )
    if model_type == "chatglm":
        raise UserError(
            f"{folder} holds ChatGLM weights in their published layout; convert them once without running their code:\n"
            f"  llm-mer convert-chatglm3 --source {folder} --target OUTPUT_FOLDER"
        )
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise UserError(f"backbone {str(folder)!r} {PICKLED_WEIGHTS}")


def quantization_config(name: str, compute_dtype: torch.dtype) -> Any:
    """bitsandbytes settings for ``int8`` or ``nf4``."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"quantization {name} needs bitsandbytes: pip install 'llm-mer[quantization]'") from None
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_use_double_quant=True,
        )
    raise UserError(f"quantization: {name!r} is not one of none, int8, nf4")


def check_nf4_blocks(model: nn.Module) -> None:
    """Check that on a CPU the rows of NF4 weights are a whole number of quantisation blocks.

    bitsandbytes (0.50) dequantises other rows wrongly there, partly from memory outside the weight, and gives no error.

    Raises:
        UserError: naming the layer and its size.
    """
    import bitsandbytes

    for name, module in model.named_modules():
        if not isinstance(module, bitsandbytes.nn.Linear4bit) or module.weight.device.type != "cpu":
            continue
        weight: Any = module.weight  # a parameter with the state of its quantisation
        size = weight.quant_state.blocksize
        if module.in_features % size:
            raise UserError(
                f"quantization nf4: {name} has {module.in_features} inputs, no multiple of {size}, which bitsandbytes reads "
                "wrongly on a CPU; use quantization int8 or none, or a GPU"
            )


def disable_packed_nf4(model: nn.Module) -> None:
    """Keep gradients flowing through NF4 weights on CPUs with AVX512-BF16.

    There bitsandbytes repacks the weights in the first forward without gradient; afterwards all gradients are zero.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def embedding_norm(model: PreTrainedModel) -> float:
    """Mean Euclidean norm of the rows of the embedding table, the initial scale of the pseudo tokens."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    with gathered_parameters([cast("nn.Parameter", weight)]):
        return float(weight.detach().float().norm(dim=1).mean())
