"""minigpt4-serve: MiniGPT-4 behind an OpenAI-compatible API. Importing this loads neither torch nor Ray."""

from minigpt4_serve.errors import MiniGPT4Error

__all__ = ["MiniGPT4Error", "__version__"]

__version__ = "0.2.0.dev0"
