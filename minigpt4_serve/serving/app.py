"""Import path of Serve config files: ``import_path: minigpt4_serve.serving.app:build``."""

from minigpt4_serve.server.ray.app import build

__all__ = ["build"]
