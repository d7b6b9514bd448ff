"""The model, composed of transformers' modules: ViT → Q-Former, if any → linear projection → LLM.

This implementation is the reference for the engine's faster one; tests compare them token by token.
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
        vision = config.vision_config
        qformer = config.qformer_config
        text = config.text_config
        # All parts get the same dtype, even if the LLM's configuration names another (usually float16).
        dtype = torch.get_default_dtype()
        self.vision_model = Blip2VisionModel._from_config(vision, dtype=dtype)
        # ln_vision of the original: it is outside the tower there, with torch's default epsilon.
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

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embeddings of images ``[N, 3, H, W]`` for the LLM: ``[N, num_image_tokens, text hidden size]``."""
        # [N, 1 + patches, width]; the first row is the class token's.
        states = self.vision_model(pixel_values.to(self.vision_model.dtype)).last_hidden_state
        if self.qformer is not None and self.query_tokens is not None:
            queries = self.query_tokens.expand(len(states), -1, -1)
            states = self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        else:
            # Four consecutive patches in raster order, not a 2 × 2 square; the class token is dropped.
            patches = states[:, 1:]
            states = patches.reshape(len(states), -1, patches.shape[-1] * self.config.patches_per_token)
        # The bias has the dtype of computation; a quantized weight is stored in integers.
        return self.language_projection(states.to(self.language_projection.bias.dtype))

    def embed_prompt(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Input embeddings ``[B, T, hidden]``, with image features in place of the image tokens.

        Args:
            input_ids: ``[B, T]``; image tokens are ``config.image_token_id``.
            pixel_values: ``[N, 3, H, W]``, all images of the batch in reading order.

        Raises:
            ValueError: the number of image tokens doesn't match the number of images.
        """
        is_image = torch.eq(input_ids, self.config.image_token_id)  # [B, T]
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        images = 0 if pixel_values is None else len(pixel_values)
        image_tokens = int(is_image.sum())
        if image_tokens != images * self.config.num_image_tokens:
            raise ValueError(
                f"input_ids has {image_tokens} image tokens, but {images} images have "
                f"{images * self.config.num_image_tokens}."
            )
        if pixel_values is None or not images:
            return embeds
        features = self.get_image_features(pixel_values).to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), features)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocabulary]``; with ``labels`` also the token-mean cross-entropy.

        Labels of -100 and of image tokens are ignored, so ``labels=input_ids`` works.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            inputs_embeds = self.embed_prompt(input_ids, pixel_values)
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.image_token_id, -100)
        if attention_mask is not None and "position_ids" not in kwargs and "past_key_values" not in kwargs:
            # Positions are counted without padding, so that a left-padded row gives the same result as the row alone.
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
    ) -> Any:
        """Prompt and new ids, ``[B, T + ≤ max_new_tokens]``; without ``input_ids`` the new ids only.

        As in transformers, ``inputs`` is another name of ``input_ids``, and ``return_dict_in_generate`` returns an
        object whose ``sequences`` are these ids.

        The LLM gets the prompt as embeddings (``inputs_embeds`` ``[B, T, hidden]``, computed if not given), so a
        repetition penalty covers generated ids only, not the prompt, as in the original. Stopping criteria and logits
        processors get the generated ids only, too.

        Raises:
            ValueError: neither ids nor embeddings, or not as many image tokens as the images have.
        """
        input_ids = kwargs.pop("inputs", input_ids)
        embeds = inputs_embeds
        if embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            embeds = self.embed_prompt(input_ids, pixel_values)
        if attention_mask is None:
            attention_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        config = copy.deepcopy(kwargs.pop("generation_config", None) or self.generation_config)
        model_kwargs = config.update(**kwargs)
        with warnings.catch_warnings():
            # transformers warns that the penalty doesn't cover the prompt, which is intended.
            warnings.filterwarnings("ignore", message="Passing `repetition_penalty`")
            generated = self.language_model.generate(
                inputs_embeds=embeds, attention_mask=attention_mask, generation_config=config, **model_kwargs
            )
        if input_ids is None:
            return generated
        if isinstance(generated, torch.Tensor):
            return _after_prompt(input_ids, generated)
        generated.sequences = _after_prompt(input_ids, generated.sequences)
        return generated


def _after_prompt(prompt: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Prompts ``[B, T]`` and the answers ``[B · n, new]``, n to each prompt, as ``[B · n, T + new]``."""
    repeated = prompt.repeat_interleave(len(new) // len(prompt), dim=0)
    return torch.cat([repeated.to(new.device), new], dim=1)
