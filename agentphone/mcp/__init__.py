"""The Model Context Protocol: conversations as tools for a model. Needs the extra `mcp`.

`agentphone mcp` serves it over stdin and stdout to Claude, Cursor, VS Code and other clients.
`agentphone mcp --print-config claude` (or `cursor`, `vscode`) prints what to paste into the client's configuration;
with `--base-url sandbox:` it needs no key. `--http PORT` serves streamable HTTP on this machine instead.

| tool | what it does |
|---|---|
| `list_conversations` | list them, most recent activity first, or find those with one person |
| `get_conversation` | show one with its state and its latest messages |
| `read_messages` | read a history page by page, in both orders, between two timestamps |
| `search_messages` | find words in one conversation or in all |
| `get_state`, `set_state` | read the metadata, and change it key by key |
| `reply` | answer the person, never twice; an unclear outcome is `unconfirmed`, not an error to repeat |
| `react` | react to a message, where the channel can show it |

`--read-only` leaves out `set_state`, `reply`, `react` and the prompt. Results are structured, with a short text beside
them, and bounded: about 20,000 characters of messages at most, with a `next_cursor` where there is more. Each
conversation is a resource, `agentphone://conversations/{id}`, and the prompt `answer_latest_text` prepares an answer.

In a program, `create_server` returns a server of the official SDK. Here it is an ASGI application, for
`uvicorn mcp_app:app`:

```python
# mcp_app.py
from agentphone import AsyncClient
from agentphone.mcp import create_server

app = create_server(AsyncClient(), read_only=True).streamable_http_app()
```
"""

from agentphone.mcp._server import create_server

__all__ = ["create_server"]
