"""Settings: what a client was told, checked once. Values only; nothing here opens, sends or sleeps.

An argument wins over the environment (`AGENTPHONE_API_KEY`, `AGENTPHONE_BASE_URL`), which wins over the default.
"""

from __future__ import annotations

import ipaddress
import math
import os
import ssl
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

import httpx
from attrs import frozen

from agentphone._secret import Secret
from agentphone._version import __version__
from agentphone.errors import ConfigurationError

DEFAULT_BASE_URL = "https://api.agentphone.to"


USER_AGENT = f"agentphone-conversations-python/{__version__}"


def _seconds(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is not a number of seconds; `zero` says whether 0 is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds or None, not {value!r}")
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        raise ConfigurationError(f"{name} is a positive number of seconds, not {value!r}")


def _count(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an integer, not {value!r}")
    if value < least:
        raise ConfigurationError(f"{name} is at least {least}, not {value}")


def _check_callback(name: str, value: Any) -> None:
    """Refuse what cannot be called, and what httpx's own async client would await: here nobody does."""
    if value is None:
        return
    if not callable(value) or iscoroutinefunction(value):
        raise TypeError(f"{name} is a function that is called and not awaited, or None, not {value!r}")


@frozen(kw_only=True)
class Config:
    """The settings of one client. `AsyncClient` describes each; making one checks them all."""

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
        if not isinstance(self.allow_http, bool):  # "no" would be a yes, and the key unencrypted
            raise TypeError(f"allow_http is True or False, not {self.allow_http!r}")
        if not isinstance(self.ssl_context, ssl.SSLContext | None):
            raise TypeError(f"ssl_context is an ssl.SSLContext or None, not {type(self.ssl_context).__name__}")
        _check_base_url(self.base_url, allow_http=self.allow_http)
        if self.timeout is not None and not isinstance(self.timeout, httpx.Timeout):
            _seconds("timeout", self.timeout)
        if self.deadline is not None:
            _seconds("deadline", self.deadline)
        _seconds("max_retry_after", self.max_retry_after, zero=True)
        _count("max_retries", self.max_retries, least=0)
        _count("max_connections", self.max_connections, least=1)
        _count("max_response_bytes", self.max_response_bytes, least=1)
        for name in ("on_request", "on_response", "on_retry"):
            _check_callback(name, getattr(self, name))


def resolve_api_key(given: Secret, default: str | None = None) -> Secret:
    """Give the key of the argument, else of the environment, else `default`.

    Raises:
        ConfigurationError: None of them has one, or it cannot stand in a header; the text does not tell it.
        TypeError: It is not a string.
    """
    key = given if given.value is not None else Secret(os.environ.get("AGENTPHONE_API_KEY") or default)
    if not key.value:
        raise ConfigurationError(
            "No API key. Pass api_key=... or set AGENTPHONE_API_KEY; base_url='sandbox:' tries the SDK without one."
        )
    if not isinstance(key.value, str):
        raise TypeError(f"api_key is a string, not {type(key.value).__name__}")
    if not key.value.isascii() or not key.value.isprintable() or " " in key.value:
        raise ConfigurationError(
            "The API key holds a space, a line break or another character that no header can carry; was it cut out"
            " of a file with its line end? Try api_key.strip()."
        )
    return key


def resolve_base_url(base_url: str | httpx.URL | None) -> str:
    """Give the base URL of the argument, else of the environment, else AgentPhone's.

    Without a slash at its end, and without `/v1`: AgentPhone's docs show paths with it, so it is often copied along.
    """
    found = (os.environ.get("AGENTPHONE_BASE_URL") or DEFAULT_BASE_URL) if base_url is None else base_url
    if not isinstance(found, str | httpx.URL):
        raise TypeError(f"base_url is a string or an httpx.URL, not {type(found).__name__}")
    url = str(found).rstrip("/")
    return url.removesuffix("/v1").rstrip("/") if "://" in url else url  # `sandbox:data/v1` is a file


def _check_base_url(base_url: str, *, allow_http: bool) -> None:
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # or the first call fails, under trio with a bare UnicodeError
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigurationError(f"base_url is not a URL: {error}") from None
    if url.userinfo:
        raise ConfigurationError("base_url holds a user name or password; the API key goes into api_key=...")
    if url.scheme not in ("https", "http") or not url.host:
        raise ConfigurationError(f"base_url begins with https:// and a host, or is sandbox:, not {base_url!r}")
    if set(base_url) & set("?#\\ "):  # also an empty query, behind which every path would land
        raise ConfigurationError(f"base_url has no query, no fragment, no space and no backslash, unlike {base_url!r}")
    if url.port is not None and url.port > 65535:
        raise ConfigurationError(f"base_url has a port from 0 to 65535, unlike {base_url!r}")
    if url.scheme == "http" and not allow_http and not is_loopback(url.host):
        raise ConfigurationError(
            f"base_url {base_url!r} would send the API key unencrypted. Use https://, or allow_http=True if meant."
        )


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
