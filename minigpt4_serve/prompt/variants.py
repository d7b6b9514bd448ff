"""The variants of MiniGPT-4, in one table with everything that differs between them."""

from dataclasses import dataclass

from minigpt4_serve.prompt.templates import ConversationTemplate

__all__ = ["TEMPLATES", "VARIANTS", "GenerationDefaults", "Variant"]

_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """How the original's demo of a variant generates: sampling with these parameters.

    The original doesn't set ``top_k``: 50 is the default of the library version that it was written for.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 50
    repetition_penalty: float = 1.05
    max_new_tokens: int = 300


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One member of the family.

    Attributes:
        name: its key in ``VARIANTS``, the value of ``--variant`` and of ``conversation_format`` in model folders.
        template: the prompt format that it was trained with.
        answer_end: string that follows every answer in its training data.
        has_qformer: a Q-Former reads the image; otherwise adjacent patches are concatenated into image tokens.
        has_lora: the checkpoint has LoRA weights for the LLM.
        image_size: side of the square input image of the published model, in pixels.
        llm: the LLM that it was trained with, for messages.
        context_length: tokens that this LLM attends to.
        writes_boxes: its answers may contain bounding boxes (see ``minigpt4_serve.boxes``).
        generation: sampling parameters for requests that don't set them.
    """

    name: str
    template: ConversationTemplate
    answer_end: str
    has_qformer: bool = False
    has_lora: bool = False
    image_size: int = 224
    llm: str
    context_length: int
    writes_boxes: bool = False
    generation: GenerationDefaults = GenerationDefaults()


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="vicuna",
            template=ConversationTemplate(_SYSTEM, "Human: ", "Assistant: ", "###", ("###",)),
            answer_end="###",
            has_qformer=True,
            llm="Vicuna v0",
            context_length=2048,
        ),
        Variant(
            name="llama2",
            # The original's demo stops Llama-2 at ### as well, although it was trained to end with </s>.
            template=ConversationTemplate(_SYSTEM, "<s>[INST] ", " [/INST] ", "", ("###",)),
            answer_end="</s>",
            llm="Llama-2 chat",
            context_length=4096,
        ),
        Variant(
            name="v2",
            # The tokenizer adds its own <s>: v2 was prompted with two of them.
            template=ConversationTemplate("", "<s>[INST] ", " [/INST]", "", ()),
            answer_end="</s>",
            has_lora=True,
            image_size=448,
            llm="Llama-2 chat",
            context_length=4096,
            writes_boxes=True,
            generation=GenerationDefaults(temperature=0.6, max_new_tokens=500),
        ),
    )
}
"""Name → variant."""

TEMPLATES = {variant.name: variant.template for variant in VARIANTS.values()}
"""Name of a variant → its conversation template."""
