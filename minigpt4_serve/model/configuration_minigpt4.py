"""The configuration class of all variants."""

from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig

from minigpt4_serve.prompt.variants import VARIANTS

__all__ = ["MiniGPT4Config"]


class MiniGPT4Config(PreTrainedConfig):
    """Vision tower, optional Q-Former, one projection, one LLM.

    Args:
        vision_config: the EVA ViT as ``Blip2VisionConfig``. ``layer_norm_eps`` is that of its blocks.
        qformer_config: ``Blip2QFormerConfig``, or None: then adjacent patches are concatenated (Llama-2, v2).
        text_config: any decoder-only LLM of ``AutoModelForCausalLM``; Llama if not given.
        num_query_tokens: learned queries of the Q-Former, each of which becomes an image token.
        patches_per_token: patches that are concatenated into one image token without a Q-Former.
        post_layernorm_eps: epsilon of ``ln_vision``, which is outside the tower and differs from the tower's.
        conversation_format: name of the variant, a key of ``minigpt4_serve.prompt.variants.VARIANTS``.
        image_token_id: id of an image token in ``input_ids``: the first id beyond the LLM's embedding, so that no text
            can produce it. It must not be looked up in the embedding.
        lora_config: ``{"r", "lora_alpha", "target_modules"}`` of LoRA weights that are stored beside the LLM's weights
            (v2 with ``--keep-lora``); None if there are none or they have been merged.

    Raises:
        ValueError: unknown ``conversation_format``.
    """

    model_type = "minigpt4"
    sub_configs: ClassVar[dict[str, type]] = {
        "vision_config": Blip2VisionConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": AutoConfig,
    }

    # A dict or None as arguments; sub-configurations (or None for no Q-Former) after __post_init__.
    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    patches_per_token: int = 4
    post_layernorm_eps: float = 1e-5
    conversation_format: str = "vicuna"
    image_token_id: int = -1  # replaced by the LLM's vocabulary size unless given
    lora_config: dict[str, Any] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.conversation_format not in VARIANTS:
            raise ValueError(
                f"conversation_format must be one of {', '.join(VARIANTS)}, not {self.conversation_format!r}."
            )
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = Blip2VisionConfig(**{"initializer_range": 0.02, **(self.vision_config or {})})
        if self.qformer_config is not None:
            if not isinstance(self.qformer_config, PreTrainedConfig):
                self.qformer_config = Blip2QFormerConfig(**self.qformer_config)
            self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        if not isinstance(self.text_config, PreTrainedConfig):
            text = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(text.pop("model_type", "llama"), **text)
        if self.image_token_id < 0:
            self.image_token_id = self.text_config.vocab_size
        super().__post_init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens per image: 32, 64 or 256 in the published models."""
        if self.qformer_config is not None:
            return self.num_query_tokens
        vision = self.vision_config
        return int(vision.image_size // vision.patch_size) ** 2 // self.patches_per_token

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return self.text_config

    @property
    def max_position_embeddings(self) -> int:
        """Context length in tokens, image tokens included."""
        return int(self.text_config.max_position_embeddings)
