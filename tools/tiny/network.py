"""Dimensions and first weights of the embedded model. Knows the model, not the data or the training."""

import math

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig
from world import SIDE

from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration

__all__ = ["CELLS", "CONTEXT", "QUERIES", "new_model", "optimizers"]

CELLS = 4
"""Queries own the cells of a grid this many wide and high; one more query owns the whole."""
QUERIES = CELLS * CELLS + 1
CONTEXT = 1024
_WIDTH = 128
_SPEECH_WIDTH = 192
_PATCH = 14


def new_model(vocabulary: int, *, seed: int = 0) -> MiniGPT4ForConditionalGeneration:
    """The model before it has learnt anything, float32."""
    torch.manual_seed(seed)
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=_WIDTH,
            intermediate_size=4 * _WIDTH,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=_PATCH,
            initializer_range=0.02,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=_WIDTH,
            intermediate_size=4 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=_SPEECH_WIDTH,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        ),
        num_query_tokens=QUERIES,
        attn_implementation="eager",  # twice as fast as SDPA to train on CPUs
    )
    model = MiniGPT4ForConditionalGeneration(config)
    _place_eyes(model)
    # Equal content attends to equal content from the first step: recall is the slowest thing to learn otherwise.
    for layer in model.language_model.model.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return model


@torch.no_grad()
def _place_eyes(model: MiniGPT4ForConditionalGeneration) -> None:
    """Patches know where they are, and every query looks at its own cell from the first step."""
    side = SIDE // _PATCH
    patches = torch.tensor([[(c + 0.5) / side, (r + 0.5) / side] for r in range(side) for c in range(side)])
    cells = torch.tensor([[(c + 0.5) / CELLS, (r + 0.5) / CELLS] for r in range(CELLS) for c in range(CELLS)])
    seat = _sines(patches)
    vision = model.vision_model
    vision.embeddings.position_embedding[0, 1:] = seat * 0.5
    vision.embeddings.position_embedding[0, 0] = 0
    nn.init.normal_(vision.embeddings.class_embedding, std=0.5)
    assert model.query_tokens is not None
    assert model.qformer is not None
    model.query_tokens[0, :-1] = _sines(cells)
    nn.init.normal_(model.query_tokens[0, -1], std=0.5)
    for layer in model.qformer.encoder.layer:
        attention = layer.crossattention.attention
        attention.key.weight.copy_(attention.query.weight)


def _sines(points: torch.Tensor) -> torch.Tensor:
    """Two-dimensional sines and cosines ``[N, 2]`` → ``[N, _WIDTH]``, amplitude 1."""
    frequencies = math.pi * 1.28 ** torch.arange(_WIDTH // 4)
    frequencies = frequencies.clamp(max=math.pi * 12)
    angles = points.unsqueeze(-1) * frequencies  # [N, 2, _WIDTH / 4]
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton and Schulz's iteration (K. Jordan, 2024), in float32.

    torch's own works in bfloat16, which is fifty times slower on processors that only know float32.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, steps: int = 4) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                memory = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                memory.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(memory, group["momentum"])
                tall = update.shape[0] > update.shape[1]
                matrix = update.T if tall else update
                matrix = matrix / (matrix.norm() + 1e-7)
                for _ in range(group["steps"]):
                    square = matrix @ matrix.T
                    polynomial = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
                    matrix = torch.addmm(matrix, polynomial, matrix, beta=3.4445)
                # 0.2 √(longer side): the root mean square of an AdamW update, so that both share one rate.
                scale = 0.2 * math.sqrt(max(parameter.shape)) * group["lr"]
                parameter.mul_(1 - 0.02 * group["lr"]).sub_(matrix.T if tall else matrix, alpha=scale)


def optimizers(modules: list[nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the rest; ``rate`` is AdamW's scale for both.

    ``initial_lr`` holds each group's full rate, for schedules.
    """
    matrices, others = [], []
    seen: set[int] = set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            hidden = parameter.ndim == 2 and min(parameter.shape) >= 64 and "embed" not in name and "head" not in name
            (matrices if hidden else others).append(parameter)
    result: list[torch.optim.Optimizer] = []
    if matrices:
        result.append(Muon(matrices, lr=rate))
    if others:
        result.append(torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)))
    for optimizer in result:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return result
