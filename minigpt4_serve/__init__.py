"""minigpt4-serve: the fast way to run MiniGPT-4. Importing this loads neither torch nor Ray."""

from minigpt4_serve.errors import MiniGPT4Error

__all__ = ["MiniGPT4Error", "__version__"]

__version__ = "0.1.0"
