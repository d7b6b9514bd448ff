"""8-bit and 4-bit quantization of the LLM's linear layers, with bitsandbytes."""

import logging
import warnings
from typing import Any

import torch
from torch import nn

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration

__all__ = ["quantize"]

# LLM.int8(): activation columns with a value beyond this are multiplied in full precision. The original's value.
_OUTLIER_THRESHOLD = 6.0


def quantize(model: MiniGPT4ForConditionalGeneration, kind: str, device: torch.device) -> None:
    """Quantize the LLM's inner linear layers in place and move them, one by one, to ``device``.

    ``int8`` is LLM.int8(), ``low_resource`` in the original; ``int4`` is NF4 with computation in the model's dtype.
    The vision tower, the projection, embeddings and the output head keep their dtype: they are small in comparison, and
    quantizing them degrades image understanding first.

    Raises:
        InvalidRequest: bitsandbytes isn't installed.
    """
    library = _import_bitsandbytes(kind)
    llm = model.language_model
    dtype = model.dtype
    for name, layer in list(llm.named_modules()):
        if not isinstance(layer, nn.Linear) or name.endswith("lm_head"):
            continue
        if layer.in_features % 64 or layer.out_features % 32:
            continue  # NF4's kernels need complete blocks; layers of all published LLMs have them
        shape = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": False}
        if kind == "int8":
            quantized = library.Linear8bitLt(
                **shape, has_fp16_weights=False, threshold=_OUTLIER_THRESHOLD, device="meta"
            )
            quantized.weight = library.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            quantized = library.Linear4bit(**shape, compute_dtype=dtype, quant_type="nf4", device="meta")
            quantized.weight = library.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", module=quantized
            )
        quantized.bias = layer.bias
        llm.set_submodule(name, quantized.to(device).eval())  # .to() quantizes


def _import_bitsandbytes(kind: str) -> Any:
    """The module with the library's layers, imported on demand: it is optional and takes seconds to import."""
    # The library recommends other libraries at import and logs rounding at every product.
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
