"""Frozen settings of the page, built once by the command line. Knows no Gradio."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings import is_loopback

__all__ = ["PASSWORD_VARIABLE", "PageSettings"]

PASSWORD_VARIABLE = "MINIGPT4_WEB_PASSWORD"  # noqa: S105 — its name, not one


class PageSettings(BaseModel):
    """Where the page listens, who may see it, and which server answers.

    Raises:
        InvalidRequest: it would be open to the network without a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    server_url: str
    api_key: SecretStr | None = None
    """The server's key; it never reaches a browser."""
    model: str | None = None
    """The only model that the server lists if not given."""
    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    """0 takes any free one."""
    password: SecretStr | None = None
    max_picture_bytes: int = Field(default=20 * 2**20, ge=1)
    """Largest file that is taken from a browser."""

    def model_post_init(self, context: object) -> None:
        """Refuse an open door."""
        if self.password is None and not is_loopback(self.host):
            raise InvalidRequest(
                f"Without a password the page is for this machine only; set {PASSWORD_VARIABLE} to use {self.host}."
            )
