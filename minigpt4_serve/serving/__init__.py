"""Import path of Serve config files: ``minigpt4_serve.serving.app:build``. The server is ``minigpt4_serve.server``."""
