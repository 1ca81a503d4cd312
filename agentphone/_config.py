"""The settings of a client, checked once. Values only: nothing here opens, sends or sleeps.

An argument takes precedence over the environment (`AGENTPHONE_API_KEY`, `AGENTPHONE_BASE_URL`), and that over the
default.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable

import httpx
from attrs import frozen

from agentphone._checks import check_callback, check_integer, check_seconds
from agentphone._secret import Secret
from agentphone._version import __version__
from agentphone.errors import ConfigurationError

DEFAULT_BASE_URL = "https://api.agentphone.to"

USER_AGENT = f"agentphone-conversations-python/{__version__}"


@frozen(kw_only=True)
class Config:
    """The settings of one client, which `AsyncClient` documents. Creating one checks all of them."""

    api_key: Secret
    base_url: str
    timeout: float | httpx.Timeout | None
    deadline: float | None
    max_retries: int
    max_connections: int
    allow_http: bool
    ssl_context: ssl.SSLContext | None
    max_response_bytes: int
    max_retry_after: float
    on_request: Callable[[httpx.Request], object] | None
    on_response: Callable[[httpx.Response], object] | None
    on_retry: Callable[[Exception, float], object] | None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.allow_http, bool):  # "no" is truthy, and would send the key unencrypted
            raise TypeError(f"allow_http must be True or False, got {self.allow_http!r}")
        if not isinstance(self.ssl_context, ssl.SSLContext | None):
            raise TypeError(f"ssl_context must be an ssl.SSLContext or None, got {type(self.ssl_context).__name__}")
        _check_base_url(self.base_url, allow_http=self.allow_http)
        error = ConfigurationError
        if not isinstance(self.timeout, httpx.Timeout):
            check_seconds("timeout", self.timeout, optional=True, error=error)
        check_seconds("deadline", self.deadline, optional=True, error=error)
        check_seconds("max_retry_after", self.max_retry_after, allow_zero=True, error=error)
        check_integer("max_retries", self.max_retries, minimum=0, error=error)
        check_integer("max_connections", self.max_connections, minimum=1, error=error)
        check_integer("max_response_bytes", self.max_response_bytes, minimum=1, error=error)
        for name in ("on_request", "on_response", "on_retry"):
            check_callback(name, getattr(self, name))


def resolve_api_key(given: Secret, default: str | None = None) -> Secret:
    """Return the key of the argument, else of the environment, else `default`.

    Raises:
        ConfigurationError: None of them has a key, or a header cannot contain it; the text does not show it.
        TypeError: The key is not a string.
    """
    key = given if given.value is not None else Secret(os.environ.get("AGENTPHONE_API_KEY") or default)
    if not key.value:
        raise ConfigurationError(
            "No API key. Pass api_key=... or set AGENTPHONE_API_KEY; base_url='sandbox:' tries the SDK without one."
        )
    if not isinstance(key.value, str):
        raise TypeError(f"api_key must be a string, got {type(key.value).__name__}")
    if not key.value.isascii() or not key.value.isprintable() or " " in key.value:
        raise ConfigurationError(
            "api_key must contain only characters that a header can carry, got a space, a line break or another; was it"
            " read from a file with its line end? Strip it."
        )
    return key


def resolve_base_url(base_url: str | httpx.URL | None) -> str:
    """Return the base URL of the argument, else of the environment, else AgentPhone's.

    A trailing slash is removed, and so is `/v1`: AgentPhone's docs show paths with it, so it is often copied, too.

    Raises:
        TypeError: The argument is neither a string nor an `httpx.URL`.
    """
    found = (os.environ.get("AGENTPHONE_BASE_URL") or DEFAULT_BASE_URL) if base_url is None else base_url
    if not isinstance(found, str | httpx.URL):
        raise TypeError(f"base_url must be a string or an httpx.URL, got {type(found).__name__}")
    url = str(found).rstrip("/")
    scheme, separator, rest = url.partition("://")
    if separator and rest.endswith("/v1"):  # not the host of http://v1, nor the file of sandbox:data/v1
        return f"{scheme}://{rest.removesuffix('/v1').rstrip('/')}"
    return url


def _check_base_url(base_url: str, *, allow_http: bool) -> None:
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # otherwise the first call fails, under trio with a bare UnicodeError
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigurationError(f"base_url must be a URL: {error}") from None
    if url.userinfo:
        raise ConfigurationError(
            "base_url must not contain a user name or password; the API key is a separate setting."
        )
    if url.scheme not in ("https", "http") or not url.host:
        raise ConfigurationError(f"base_url must be https:// with a host, or sandbox:, got {base_url!r}")
    if set(base_url) & set("?#\\ "):  # also an empty query: every path would become part of it
        raise ConfigurationError(
            f"base_url must not contain a query, a fragment, a space or a backslash, got {base_url!r}"
        )
    if url.port is not None and url.port > 65535:
        raise ConfigurationError(f"base_url must have a port from 0 to 65535, got {base_url!r}")
    if url.scheme == "http" and not allow_http and not is_loopback(url.host):
        raise ConfigurationError(
            f"base_url must not send the API key unencrypted, got {base_url!r}. Use https://; in code, allow_http=True"
            " permits it."
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
