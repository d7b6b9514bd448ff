"""MiniGPT-4 for transformers. Importing this package registers the classes with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from minigpt4_serve.model.configuration_minigpt4 import MiniGPT4Config
from minigpt4_serve.model.image_processing_minigpt4 import MiniGPT4ImageProcessor
from minigpt4_serve.model.modeling_minigpt4 import MiniGPT4ForConditionalGeneration
from minigpt4_serve.model.processing_minigpt4 import EncodedChat, MiniGPT4Processor
from minigpt4_serve.model.tokenization_minigpt4 import MiniGPT4Tokenizer
from minigpt4_serve.prompt.templates import ConversationTemplate, Turn
from minigpt4_serve.prompt.variants import TEMPLATES

__all__ = [
    "TEMPLATES",
    "ConversationTemplate",
    "EncodedChat",
    "MiniGPT4Config",
    "MiniGPT4ForConditionalGeneration",
    "MiniGPT4ImageProcessor",
    "MiniGPT4Processor",
    "MiniGPT4Tokenizer",
    "Turn",
]

# exist_ok: a second import under another name (for example in a worker that unpickles by value) must not fail.
AutoConfig.register("minigpt4", MiniGPT4Config, exist_ok=True)
AutoModelForImageTextToText.register(MiniGPT4Config, MiniGPT4ForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(MiniGPT4Config, slow_tokenizer_class=MiniGPT4Tokenizer, exist_ok=True)
AutoImageProcessor.register(MiniGPT4Config, slow_image_processor_class=MiniGPT4ImageProcessor, exist_ok=True)
AutoProcessor.register(MiniGPT4Config, MiniGPT4Processor, exist_ok=True)
