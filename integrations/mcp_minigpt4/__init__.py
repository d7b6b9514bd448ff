"""Eyes for MCP clients: the vision tool as an MCP server. Loads neither torch nor Ray."""

from mcp_minigpt4.server import create_server

__all__ = ["create_server"]
