"""The model itself, built from transformers' parts: ViT → (Q-Former) → one projection → LLM. Tensors only.

This plain path is the reference: every faster path is compared with it, token by token.
"""

import copy
import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Blip2QFormerModel, Blip2VisionModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from minigpt4_serve.model.configuration_minigpt4 import MiniGPT4Config
from minigpt4_serve.model.lora import add_lora

__all__ = ["MiniGPT4ForConditionalGeneration"]


class MiniGPT4ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """MiniGPT-4 as a Hugging Face model.

    Submodules: ``vision_model``, ``query_tokens`` and ``qformer`` (only with a Q-Former), ``language_projection``,
    ``language_model``.
    """

    config_class = MiniGPT4Config
    config: MiniGPT4Config
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules = None
    _no_split_modules = ["Blip2EncoderLayer", "Blip2QFormerLayer", "LlamaDecoderLayer"]

    def __init__(self, config: MiniGPT4Config) -> None:
        super().__init__(config)
        vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
        # The LLM folder's own dtype (float16, mostly) must not make one part differ from the others.
        dtype = torch.get_default_dtype()
        self.vision_model = Blip2VisionModel._from_config(vision, dtype=dtype)
        # ln_vision of the original: outside the tower there, with torch's default epsilon instead of the tower's.
        self.vision_model.post_layernorm.eps = config.post_layernorm_eps
        self.query_tokens: nn.Parameter | None = None
        self.qformer: Blip2QFormerModel | None = None
        if qformer is not None:
            self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, qformer.hidden_size))
            self.qformer = Blip2QFormerModel._from_config(qformer, dtype=dtype)
            image_width = qformer.hidden_size
        else:
            image_width = vision.hidden_size * config.patches_per_token
        self.language_projection = nn.Linear(image_width, text.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(text, dtype=dtype)
        if config.lora_config is not None:
            add_lora(self.language_model, config.lora_config)
        if self.language_model._tied_weights_keys:
            self._tied_weights_keys = {
                f"language_model.{k}": f"language_model.{v}" for k, v in self.language_model._tied_weights_keys.items()
            }
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.query_tokens is not None:
            nn.init.normal_(self.query_tokens, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures ``[N, 3, H, W]`` as rows for the LLM ``[N, num_image_tokens, text hidden size]``."""
        seen = self.vision_model(pixel_values.to(self.vision_model.dtype)).last_hidden_state  # [N, 1 + patches, width]
        if self.qformer is not None and self.query_tokens is not None:
            queries = self.query_tokens.expand(len(seen), -1, -1)
            seen = self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state  # [N, queries, w]
        else:
            # Four neighbours in raster order, not a 2 × 2 square; the class token is left out.
            patches = seen[:, 1:]
            seen = patches.reshape(len(seen), -1, patches.shape[-1] * self.config.patches_per_token)
        return self.language_projection(seen.to(self.language_projection.weight.dtype))

    def embed_prompt(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Token rows ``[B, T, hidden]`` with the pictures in their slots.

        Args:
            input_ids: ``[B, T]``; ``config.image_token_id`` marks a slot.
            pixel_values: ``[N, 3, H, W]``, all pictures of the batch in reading order.

        Raises:
            ValueError: the number of slots isn't what the pictures fill.
        """
        slots = torch.eq(input_ids, self.config.image_token_id)  # [B, T]
        embeds = self.get_input_embeddings()(input_ids.masked_fill(slots, 0))
        pictures = 0 if pixel_values is None else len(pixel_values)
        if int(slots.sum()) != pictures * self.config.num_image_tokens:
            raise ValueError(
                f"{int(slots.sum())} image slots in input_ids, but {pictures} pictures fill "
                f"{pictures * self.config.num_image_tokens}."
            )
        if pixel_values is None or not pictures:
            return embeds
        features = self.get_image_features(pixel_values).to(embeds.dtype)
        return embeds.masked_scatter(slots.unsqueeze(-1), features)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocabulary]``; with ``labels`` (-100 is ignored) also the token-mean cross-entropy."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            inputs_embeds = self.embed_prompt(input_ids, pixel_values)
        if attention_mask is not None and "position_ids" not in kwargs and "past_key_values" not in kwargs:
            # Positions follow the mask, so that a row padded on the left equals the row alone.
            kwargs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """New ids only, ``[B, ≤ max_new_tokens]``.

        The prompt goes to the LLM as embeddings (``inputs_embeds`` ``[B, T, hidden]`` if they are made already), so a
        repetition penalty sees the generated ids alone and never the prompt, as in the original.
        """
        embeds = inputs_embeds
        if embeds is None:
            assert input_ids is not None
            embeds = self.embed_prompt(input_ids, pixel_values)
        if attention_mask is None:
            attention_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        rules = copy.deepcopy(kwargs.pop("generation_config", None) or self.generation_config)
        not_rules = rules.update(**kwargs)
        with warnings.catch_warnings():
            # transformers tells that the penalty won't see the prompt: that is what's wanted here.
            warnings.filterwarnings("ignore", message="Passing `repetition_penalty`")
            return self.language_model.generate(
                inputs_embeds=embeds, attention_mask=attention_mask, generation_config=rules, **not_rules
            )
