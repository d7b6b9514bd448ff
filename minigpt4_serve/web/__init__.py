"""``minigpt4 web``: a page to talk to a picture. A client of the HTTP API: no torch, no Ray, no engine.

Gradio carries the page, its events and its sessions; what is said and shown is decided here, and the browser builds it
from typed data, so that no word of an answer is ever read as HTML. Importing this package doesn't import Gradio.
"""

from minigpt4_serve.web.run import listen, serve_page
from minigpt4_serve.web.settings import PASSWORD_VARIABLE, PageSettings

__all__ = ["PASSWORD_VARIABLE", "PageSettings", "listen", "serve_page"]
