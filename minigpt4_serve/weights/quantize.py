"""Weight-only quantization of the LLM through torchao. Knows nothing of files."""

import math
import warnings

import torch
from torch import nn

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration

__all__ = ["quantize"]


def quantize(model: MiniGPT4ForConditionalGeneration, kind: str, device: torch.device) -> None:
    """Store the LLM's linear layers with 8 or 4 bits a weight, in place; layer by layer on the target device.

    Vision, projection, embeddings and the output head keep their dtype: together they are small, and the picture
    suffers first. int4 uses groups of up to 128 weights; on CPUs its numbers lie one to a byte, so it saves no more
    than int8 there.

    Raises:
        InvalidRequest: torchao isn't installed, or the kind needs bfloat16 here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, at import
            from torchao.quantization import (  # noqa: PLC0415  (optional)
                Int4WeightOnlyConfig,
                Int8WeightOnlyConfig,
                IntxWeightOnlyConfig,
                PerGroup,
                quantize_,
            )
    except ImportError as error:
        raise InvalidRequest(
            f"quantization={kind} needs the library torchao; install minigpt4-serve[quantize].", param="quantization"
        ) from error

    def inner_linear(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.endswith("lm_head")

    llm = model.language_model
    group = math.gcd(128, *(m.in_features for n, m in llm.named_modules() if inner_linear(m, n)))
    if kind == "int8":
        recipe = Int8WeightOnlyConfig(version=2)
    elif device.type == "cpu":
        recipe = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group))  # type: ignore[attr-defined]
    elif model.dtype == torch.bfloat16 and group >= 32:
        # The packing whose kernel is part of PyTorch itself; the other formats need one more library.
        recipe = Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d")
    else:
        raise InvalidRequest("quantization=int4 on a GPU needs --dtype bfloat16.", param="quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(llm, recipe, filter_fn=inner_linear, device=device)
