"""`AsyncClient`: combine settings, connections and endpoints, and close the connections."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx
from attrs import NOTHING, NothingType, evolve

from agentphone._config import DEFAULT_BASE_URL, Config, resolve_api_key, resolve_base_url
from agentphone._conversations import AsyncConversations
from agentphone._hints import AsyncClientHints
from agentphone._http.pool import Connections
from agentphone._http.transport import NO_COPY, Transport
from agentphone._messages import AsyncMessages
from agentphone._secret import Secret
from agentphone.errors import ConfigurationError

SANDBOX_PREFIX = "sandbox:"
SANDBOX_HOST = "http://sandbox.localhost"
SANDBOX_KEY = "sandbox"


class AsyncClient(AsyncClientHints):
    """A client of AgentPhone's conversations for asyncio and trio.

    Create one and keep it: it owns the connections, and can be shared by all tasks, event loops and threads. Creating
    it opens no connection. Close it with `aclose()` or `async with`. In a hook or a transport of a blocking `Client`,
    its calls raise `RuntimeError`.

    Args:
        api_key: The API key. Default: the environment variable AGENTPHONE_API_KEY.
        base_url: The URL of the API: `https://...`, with or without a final `/v1`; `sandbox:` for a local AgentPhone in
            memory, with demo data, that belongs to this client; or `sandbox:FILE.db` for one that is stored in a file.
            Default: the environment variable AGENTPHONE_BASE_URL, or `https://api.agentphone.to`.
        timeout: Seconds for one attempt, without waiting for a free connection; or an `httpx.Timeout` for its phases;
            None for no limit.
        deadline: Seconds for a whole call with its retries and delays; None for no limit. Iterators apply it to each
            request.
        max_retries: The maximum number of retries of a call that failed for a temporary reason, from 0.
        max_connections: The maximum number of requests in flight at once, at least 1; further calls wait.
        transport: An `httpx.AsyncBaseTransport` that sends the requests instead of the network. The client closes it.
        http_client: An `httpx.AsyncClient` to send through, with its proxies, certificates or hooks. The client does
            not close it.
        allow_http: Whether to allow `http://` to other machines, which sends the key unencrypted.
        ssl_context: The SSL context of the connections. Default: httpx's, created once for all clients. It is not
            changed, except through a proxy of the environment: httpcore then sets its ALPN protocols to `http/1.1`.
        max_response_bytes: The size of the largest response body that is read, in bytes after decompression.
        max_retry_after: The longest `Retry-After` to wait for, in seconds; with a longer one the call fails at once.
        on_request: Called with each `httpx.Request` before it is sent. It may add headers, and it sees the key.
        on_response: Called with each `httpx.Response`, after its headers were received and before its body is read.
        on_retry: Called with the error and the delay in seconds before each retry.

    Raises:
        ConfigurationError: No key was found, or a value is invalid. The error names the setting and never contains the
            key.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | httpx.URL | None = None,
        timeout: float | httpx.Timeout | None = 30.0,
        deadline: float | None = None,
        max_retries: int = 3,
        max_connections: int = 20,
        transport: httpx.AsyncBaseTransport | None = None,
        http_client: httpx.AsyncClient | None = None,
        allow_http: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        max_response_bytes: int = 64 * 1024 * 1024,
        max_retry_after: float = 60.0,
        on_request: Callable[[httpx.Request], object] | None = None,
        on_response: Callable[[httpx.Response], object] | None = None,
        on_retry: Callable[[Exception, float], object] | None = None,
    ) -> None:
        secret = Secret(api_key)
        del api_key  # tools that print the local variables of a traceback would show it
        if transport is not None and http_client is not None:
            raise ConfigurationError("transport and http_client exclude each other; pass only one of them.")
        # httpx's blocking classes are easily passed by mistake, above all to `Client`, and fail at the first call.
        if not isinstance(transport, httpx.AsyncBaseTransport | None):
            raise TypeError(
                f"transport must be an httpx.AsyncBaseTransport, also for Client, got {type(transport).__name__}"
            )
        if not isinstance(http_client, httpx.AsyncClient | None):
            raise TypeError(
                f"http_client must be an httpx.AsyncClient, also for Client, got {type(http_client).__name__}"
            )
        url = resolve_base_url(base_url)
        sandbox_path: str | None = None
        default_key: str | None = None
        if url.startswith(SANDBOX_PREFIX) and (transport is not None or http_client is not None):
            if base_url is not None:
                raise ConfigurationError(f"base_url={url!r} has its own transport; do not pass another one.")
            url = DEFAULT_BASE_URL  # an argument takes precedence over the environment
        elif url.startswith(SANDBOX_PREFIX):
            sandbox_path = url.removeprefix(SANDBOX_PREFIX)
            url, default_key = SANDBOX_HOST, SANDBOX_KEY
        config = Config(
            api_key=resolve_api_key(secret, default_key),
            base_url=url,
            timeout=timeout,
            deadline=deadline,
            max_retries=max_retries,
            max_connections=max_connections,
            allow_http=allow_http,
            ssl_context=ssl_context,
            max_response_bytes=max_response_bytes,
            max_retry_after=max_retry_after,
            on_request=on_request,
            on_response=on_response,
            on_retry=on_retry,
        )
        if sandbox_path is not None:  # after the settings were checked, because it may create a file
            transport = _SandboxTransport(sandbox_path)
        self._owns_connections = True
        self._wire_up(config, Connections(config, transport=transport, http_client=http_client))

    def _wire_up(self, config: Config, connections: Connections) -> None:
        self._config = config
        self._connections = connections
        transport = Transport(config, connections)
        self._conversations = AsyncConversations(transport)
        self._messages = AsyncMessages(transport)

    @property
    def conversations(self) -> AsyncConversations:
        """The conversations of the API key's project."""
        return self._conversations

    @property
    def messages(self) -> AsyncMessages:
        """Sending messages and reactions."""
        return self._messages

    def with_options(
        self,
        *,
        timeout: float | httpx.Timeout | NothingType | None = NOTHING,
        deadline: float | NothingType | None = NOTHING,
        max_retries: int | NothingType = NOTHING,
    ) -> AsyncClient:
        """Create a client with other settings that shares this client's connections.

        Only the client that created the connections closes them; closing the new one is not necessary and does nothing.
        Settings that are not passed stay as they are.

        Args:
            timeout: Seconds for one attempt, or an `httpx.Timeout`, or None for no limit.
            deadline: Seconds for a whole call with its retries and delays, or None for no limit.
            max_retries: The maximum number of retries of a call that failed for a temporary reason, from 0.

        Returns:
            The new client.

        Raises:
            ConfigurationError: A value is out of range.
            TypeError: An argument has the wrong type.
        """
        given = {"timeout": timeout, "deadline": deadline, "max_retries": max_retries}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not NOTHING}
        derived = object.__new__(AsyncClient)
        derived._owns_connections = False
        derived._wire_up(evolve(self._config, **changes), self._connections)
        return derived

    async def aclose(self) -> None:
        """Close the connections. Later calls raise `ClientClosedError`; closing again does nothing."""
        if self._owns_connections:
            await self._connections.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> str:
        # Called by copy and pickle. A copy would close the connections of the original.
        raise TypeError(NO_COPY)

    def __repr__(self) -> str:
        # Tools that print the local variables of a traceback call this on a client whose constructor has failed.
        config = getattr(self, "_config", None)
        return f"<{type(self).__name__} {config.base_url if config else '(not created)'}>"


class _SandboxTransport(httpx.AsyncBaseTransport):
    """A sandbox that belongs to one client and is closed with it. Only this class imports `agentphone.sandbox`."""

    def __init__(self, path: str) -> None:
        try:
            import sqlite3

            from agentphone.sandbox import Sandbox
        except ImportError as error:
            raise ConfigurationError(
                f"base_url='sandbox:' needs the optional packages of the sandbox ({error}): pip install '.[sandbox]'"
            ) from None
        if path.startswith("//"):  # written like a URL, it would name a file in the root directory
            raise ConfigurationError(f"base_url={SANDBOX_PREFIX + path!r}: write sandbox:FILE.db, without //")
        try:
            self._sandbox = Sandbox(path or None)
        except (sqlite3.Error, ValueError) as error:
            raise ConfigurationError(f"base_url={SANDBOX_PREFIX + path!r}: {error}") from error
        if not path:
            self._sandbox.load_demo_data()
        self._transport = self._sandbox.transport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        self._sandbox.close()
