"""The LLM's linear layers with 8 or 4 bits a weight, through bitsandbytes. Knows nothing of files."""

import logging
import warnings
from typing import Any

import torch
from torch import nn

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration

__all__ = ["quantize"]

# LLM.int8(): columns of activations beyond this are multiplied in full precision. The original's value.
_OUTLIERS = 6.0


def quantize(model: MiniGPT4ForConditionalGeneration, kind: str, device: torch.device) -> None:
    """Replace the LLM's inner linear layers in place, one after the other, on the device they shall run on.

    ``int8`` is LLM.int8(), what the original calls ``low_resource``; ``int4`` is NF4, weight-only. Vision, projection,
    embeddings and the output head keep their dtype: together they are small, and the picture suffers first.

    Raises:
        InvalidRequest: bitsandbytes isn't installed.
    """
    library = _bitsandbytes(kind)
    llm, dtype = model.language_model, model.dtype
    for name, layer in list(llm.named_modules()):
        if not isinstance(layer, nn.Linear) or name.endswith("lm_head"):
            continue
        if layer.in_features % 64 or layer.out_features % 32:
            continue  # NF4's kernels need whole blocks; every published LLM has them
        shape = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": False}
        if kind == "int8":
            small = library.Linear8bitLt(**shape, has_fp16_weights=False, threshold=_OUTLIERS, device="meta")
            small.weight = library.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            small = library.Linear4bit(**shape, compute_dtype=dtype, quant_type="nf4", device="meta")
            small.weight = library.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=small)
        small.bias = layer.bias
        llm.set_submodule(name, small.to(device).eval())  # moving is what quantizes


def _bitsandbytes(kind: str) -> Any:
    """The library's layers. Asked for here only, since hardly anybody needs it and it takes seconds to import."""
    # It recommends further libraries at import, and reports its own rounding at every product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
    except ImportError as error:
        raise InvalidRequest(
            f"quantization={kind} needs the library bitsandbytes: install minigpt4-serve[quantize].",
            param="quantization",
        ) from error
    return bitsandbytes.nn
