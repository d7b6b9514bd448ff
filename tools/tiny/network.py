"""Architecture, initial weights and optimizers of the embedded model."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from tools.tiny.config import ModelConfig
from tools.tiny.world import SIDE

__all__ = ["CELLS", "PATCH", "QUERIES", "Muon", "new_model", "new_optimizers"]

CELLS = 4
"""Each cell of a grid this many cells wide and high has a query of its own; one more query is for the whole image."""
QUERIES = CELLS * CELLS + 1
PATCH = 14
"""Side of the vision encoder's patches, in pixels."""


def new_model(config: ModelConfig, vocabulary_size: int, *, seed: int = 0) -> MiniGPT4ForConditionalGeneration:
    """An untrained model in float32, its weights drawn from ``seed`` (which becomes torch's global seed)."""
    torch.manual_seed(seed)
    width = config.vision_width
    model = MiniGPT4ForConditionalGeneration(
        MiniGPT4Config(
            vision_config=Blip2VisionConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                image_size=SIDE,
                patch_size=PATCH,
                initializer_range=0.02,  # transformers' default is 1e-10
            ),
            qformer_config=Blip2QFormerConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=config.qformer_layers,
                num_attention_heads=config.vision_heads,
                cross_attention_frequency=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            text_config=LlamaConfig(
                vocab_size=vocabulary_size,
                hidden_size=config.language_width,
                intermediate_size=config.language_feed_forward,
                num_hidden_layers=config.language_layers,
                num_attention_heads=config.language_heads,
                max_position_embeddings=config.context_length,
                tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=None,
            ),
            num_query_tokens=QUERIES,
            attn_implementation="eager",  # type: ignore[call-arg]  # trains twice as fast as SDPA on CPUs
        )
    )
    _initialize_positions(model)
    # Equal keys and queries attend to equal content from the first step; associative recall is learned last otherwise.
    for layer in model.language_model.model.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return model


@torch.no_grad()
def _initialize_positions(model: MiniGPT4ForConditionalGeneration) -> None:
    """Two-dimensional sinusoidal positions for patches, and for each query that of its cell, so that its
    cross-attention finds the cell's patches from the first step.
    """
    side = SIDE // PATCH
    patches = torch.tensor([[(c + 0.5) / side, (r + 0.5) / side] for r in range(side) for c in range(side)])
    cells = torch.tensor([[(c + 0.5) / CELLS, (r + 0.5) / CELLS] for r in range(CELLS) for c in range(CELLS)])
    embeddings = model.vision_model.embeddings
    width = embeddings.position_embedding.shape[-1]
    embeddings.position_embedding[0, 1:] = 0.5 * _sinusoids(patches, width)
    embeddings.position_embedding[0, 0] = 0
    nn.init.normal_(embeddings.class_embedding, std=0.5)
    assert model.query_tokens is not None
    assert model.qformer is not None
    model.query_tokens[0, :-1] = _sinusoids(cells, width)
    nn.init.normal_(model.query_tokens[0, -1], std=0.5)
    layers: Iterable[Any] = model.qformer.encoder.layer
    for layer in layers:
        attention = layer.crossattention.attention
        attention.key.weight.copy_(attention.query.weight)


def _sinusoids(points: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of amplitude 1 for points in 0 … 1: ``[N, 2]`` → ``[N, width]``."""
    frequencies = math.pi * 1.28 ** torch.arange(width // 4)
    frequencies = frequencies.clamp(max=math.pi * 12)
    angles = points.unsqueeze(-1) * frequencies  # [N, 2, width / 4]
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


class Muon(torch.optim.Optimizer):
    """SGD whose momentum is orthogonalized by a Newton-Schulz iteration (K. Jordan, 2024), in float32.

    torch's own works in bfloat16, which is fifty times slower on CPUs without bfloat16 instructions.

    Args:
        parameters: matrices only.
        lr: learning rate, on the scale of AdamW's.
        steps: iterations of Newton-Schulz.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, steps: int = 4) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                tall = update.shape[0] > update.shape[1]
                matrix = update.T if tall else update
                matrix = matrix / (matrix.norm() + 1e-7)
                for _ in range(group["steps"]):
                    square = matrix @ matrix.T
                    polynomial = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
                    matrix = torch.addmm(matrix, polynomial, matrix, beta=3.4445)
                # 0.2 √(longer side) gives the root mean square of an AdamW update, so that both share one rate.
                scale = 0.2 * math.sqrt(max(parameter.shape)) * group["lr"]
                parameter.mul_(1 - 0.02 * group["lr"]).sub_(matrix.T if tall else matrix, alpha=scale)


def new_optimizers(modules: Iterable[nn.Module], learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, heads, vectors and small matrices.

    Each group's ``initial_lr`` is its full rate, which the learning-rate schedule scales.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            hidden = parameter.ndim == 2 and min(parameter.shape) >= 64 and "embed" not in name and "head" not in name
            (matrices if hidden else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=learning_rate))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
