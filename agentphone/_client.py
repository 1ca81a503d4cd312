"""`AsyncClient`: wiring and lifetime. It decides which settings and which connections belong together, nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx
from attrs import NOTHING, NothingType, evolve

from agentphone._config import DEFAULT_BASE_URL, Config, resolve_api_key, resolve_base_url
from agentphone._conversations import AsyncConversations
from agentphone._http.pool import Connections
from agentphone._http.transport import NO_COPY, Transport
from agentphone._secret import Secret
from agentphone.errors import ConfigurationError

SANDBOX_PREFIX = "sandbox:"
SANDBOX_HOST = "http://sandbox.localhost"
SANDBOX_KEY = "sandbox"


class AsyncClient:
    """A client of AgentPhone's conversations for asyncio and trio.

    Make one and keep it: it holds the connections, and may be shared by all tasks, event loops and threads. Making it
    opens nothing. Close it with `aclose()` or `async with`.

    Args:
        api_key: The API key. Default: the environment's AGENTPHONE_API_KEY.
        base_url: Where the API is: `https://...`, with or without `/v1` at its end; or `sandbox:` for a local
            AgentPhone of this client's own, in memory with demonstration data, or `sandbox:FILE.db` for one that is
            kept in a file. Default: the environment's AGENTPHONE_BASE_URL, else `https://api.agentphone.to`.
        timeout: Seconds for one attempt, waiting for a free connection not included; or an `httpx.Timeout` for its
            phases; None for no limit.
        deadline: Seconds for a whole call with its retries and pauses; None for no limit. Iterators: for each request.
        max_retries: How often a call that failed for a passing reason is tried again, from 0.
        max_connections: How many requests may be in flight at once, from 1; further calls wait.
        transport: What sends instead of the network: an `httpx.AsyncBaseTransport`. The client closes it.
        http_client: An `httpx.AsyncClient` to send through, for its proxies, certificates or hooks. It stays yours
            to close.
        allow_http: Whether `http://` may go to other machines than this one, with the key unencrypted.
        ssl_context: The SSL context for the connections; by default that of httpx, made once for all clients.
        max_response_bytes: The largest body that is read, in bytes after decompression.
        max_retry_after: The longest `Retry-After` that is waited for, in seconds; a longer one ends the call at once.
        on_request: Called with each `httpx.Request` before it is sent; it may add headers. It sees the key.
        on_response: Called with each `httpx.Response` when its headers are there and its body is not.
        on_retry: Called with the error and the pause in seconds before each further attempt.

    Raises:
        ConfigurationError: No key was found, or a value cannot be used; the text names it and never tells the key.
        TypeError: An argument is of another type.
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
        del api_key  # from here on no error of ours shows it among the locals of this frame
        if transport is not None and http_client is not None:
            raise ConfigurationError("transport and http_client both say what sends; give one of them.")
        # Those of httpx's blocking half are easily taken for it, above all with `Client`, and fail at the first call.
        if not isinstance(transport, httpx.AsyncBaseTransport | None):
            raise TypeError(
                f"transport is an httpx.AsyncBaseTransport, also for Client, not {type(transport).__name__}"
            )
        if not isinstance(http_client, httpx.AsyncClient | None):
            raise TypeError(f"http_client is an httpx.AsyncClient, also for Client, not {type(http_client).__name__}")
        url = resolve_base_url(base_url)
        sandbox_path: str | None = None
        default_key: str | None = None
        if url.startswith(SANDBOX_PREFIX) and (transport is not None or http_client is not None):
            if base_url is not None:
                raise ConfigurationError(f"base_url={url!r} brings its own transport; leave out the other one.")
            url = DEFAULT_BASE_URL  # what was given wins over the environment
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
        if sandbox_path is not None:  # after the settings were found good: it makes a file
            transport = _SandboxTransport(sandbox_path)
        self._owns_connections = True
        self._wire_up(config, Connections(config, transport=transport, http_client=http_client))

    def _wire_up(self, config: Config, connections: Connections) -> None:
        self._config = config
        self._connections = connections
        self._conversations = AsyncConversations(Transport(config, connections))

    @property
    def conversations(self) -> AsyncConversations:
        """The conversations of the project that the key belongs to."""
        return self._conversations

    def with_options(
        self,
        *,
        timeout: float | httpx.Timeout | NothingType | None = NOTHING,
        deadline: float | NothingType | None = NOTHING,
        max_retries: int | NothingType = NOTHING,
    ) -> AsyncClient:
        """Make a client with other settings that shares this one's connections.

        It need not be closed, and closing it closes no connection: they are closed with the client that made them.
        What is not given stays as it is.

        Args:
            timeout: Seconds for one attempt, or an `httpx.Timeout`, or None for no limit.
            deadline: Seconds for a whole call with its retries and pauses, or None for no limit.
            max_retries: How often a call that failed for a passing reason is tried again, from 0.

        Returns:
            The new client.

        Raises:
            ConfigurationError: A value is out of its range.
            TypeError: An argument is of another type.
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
        # Both copying and pickling ask for this. A copy would close the connections of the original.
        raise TypeError(NO_COPY)

    def __repr__(self) -> str:
        # A client whose making has failed is among the locals of its traceback, and those are printed by some.
        config = getattr(self, "_config", None)
        return f"<{type(self).__name__} {config.base_url if config else '(not made)'}>"


class _SandboxTransport(httpx.AsyncBaseTransport):
    """A sandbox that belongs to one client and closes with it: the core's one door to `agentphone.sandbox`."""

    def __init__(self, path: str) -> None:
        try:
            import sqlite3

            from agentphone.sandbox import Sandbox
        except ImportError as error:
            raise ConfigurationError(
                f"base_url='sandbox:' needs the extra packages of the sandbox ({error}): pip install '.[sandbox]'"
            ) from None
        if path.startswith("//"):  # written as URLs are, it would be a file in the root of the disk
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
