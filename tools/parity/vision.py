"""The vision stages: pixels, resized positions, every layer of the ViT and the Q-Former, the projection."""

from collections.abc import Iterator
from hashlib import sha256

import torch
from torch import nn

from tools.parity.comparison import Comparison, exact_matches, largest_error
from tools.parity.subject import Subject

__all__ = ["vision_stages"]

LAYER_LIMIT = 1e-5


@torch.inference_mode()
def vision_stages(subject: Subject) -> Iterator[Comparison]:
    """Pixels, resized positions and the output of every layer up to the projection."""
    recorded = subject.vision
    pixels = subject.pixels(range(len(subject.images)))
    assert pixels is not None
    if "pixel_values" in recorded:
        yield Comparison("pixels", largest_error(pixels, recorded["pixel_values"]))
    if "pixel_sha256" in subject.expected:
        digests = [sha256(image.numpy().tobytes()).hexdigest() for image in pixels]
        yield exact_matches("pixels, SHA-256", list(zip(digests, subject.expected["pixel_sha256"], strict=True)))
    if "pos_embed" in recorded:
        positions = subject.model.vision_model.embeddings.position_embedding
        yield Comparison("resized positions", largest_error(positions, recorded["pos_embed"]))
    ours = _layer_outputs(subject, pixels)
    for name, theirs in recorded.items():
        if name not in ("pixel_values", "pos_embed"):
            error = largest_error(ours[name], theirs) if name in ours else float("inf")
            yield Comparison(name, error, LAYER_LIMIT)


def _layer_outputs(subject: Subject, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output of every layer for all images, by the names that the sets use."""
    model = subject.model
    vit = model.vision_model
    qformer = model.qformer
    layers: dict[str, nn.Module] = {"vit_embeddings": vit.embeddings, "vit_ln": vit.post_layernorm}
    layers |= {f"vit_block_{i}": layer for i, layer in enumerate(vit.encoder.layers)}
    if qformer is not None:
        layers["qformer_hidden_0"] = qformer.layernorm
        layers |= {f"qformer_hidden_{i}": layer for i, layer in enumerate(qformer.encoder.layer, start=1)}
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            # setdefault: the ViT's last norm is applied a second time, for a pooled output that is not compared.
            lambda _, __, output, name=name: outputs.setdefault(
                name, output[0] if isinstance(output, tuple) else output
            )
        )
        for name, layer in layers.items()
    ]
    outputs["image_embeds"] = model.get_image_features(pixels)
    for hook in hooks:
        hook.remove()
    outputs["vit_out"] = outputs[f"vit_block_{len(vit.encoder.layers) - 1}"]
    if qformer is not None:
        outputs["qformer_out"] = outputs[f"qformer_hidden_{len(qformer.encoder.layer)}"]
    else:
        merged = outputs["vit_ln"].shape[-1] * model.config.patches_per_token
        outputs["merged_patches"] = outputs["vit_ln"][:, 1:].reshape(len(pixels), -1, merged)
    return outputs
