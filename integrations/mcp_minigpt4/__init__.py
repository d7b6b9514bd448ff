"""Eyes for MCP clients: the vision tool as an MCP server. Loads neither torch nor Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_minigpt4.server import create_server

__all__ = ["create_server"]


def __getattr__(name: str) -> Any:
    # When it is asked for: the command line helps and complains without the SDK, which takes a second to import.
    if name != "create_server":
        raise AttributeError(name)
    from mcp_minigpt4.server import create_server

    return create_server
