"""Vision for MCP clients: the tool as an MCP server. Imports neither torch nor Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_minigpt4.server import create_server

__all__ = ["create_server"]


def __getattr__(name: str) -> Any:
    # Imported on access: help and errors of the command line work without the SDK, which takes a second to import.
    if name != "create_server":
        raise AttributeError(name)
    from mcp_minigpt4.server import create_server

    return create_server
