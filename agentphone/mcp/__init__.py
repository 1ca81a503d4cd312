"""The Model Context Protocol: conversations as tools for a model. Needs the extra `mcp`.

`agentphone mcp` serves it to Claude, Cursor, VS Code and other clients. A program of your own can serve it too:
`create_server` returns a server of the official SDK (`mcp.server.lowlevel.Server`).
"""

from agentphone.mcp._server import create_server

__all__ = ["create_server"]
