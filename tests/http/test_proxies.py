"""Real proxies and TLS: the environment's settings are used, the key stays inside, no connection is leaked."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from agentphone import APIConnectionError, APIStatusError, AsyncClient, Client, ConfigurationError
from tests.support.fault_server import serving
from tests.support.proxy import Proxy, proxying

KEY = "sk_canary_0123456789abcdef"
KINDS = ["asyncio", "trio", "blocking"]
each_client = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as found:
        yield found


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> Path:
    """Return a file with the certificate of the tests' authority."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


def get(kind: str, url: str, *, times: int = 1, **settings: Any) -> list[Any]:
    """Get a conversation `times` times with one client; return results and errors."""
    found: list[Any] = []
    settings = {"max_retries": 1, "max_connections": 1, "timeout": 30, **settings}
    if kind == "blocking":
        with Client(KEY, base_url=url, **settings) as client:
            for _ in range(times):
                try:
                    found.append(client.conversations.get("conv_1").id)
                except APIConnectionError as error:
                    found.append(error)
        return found

    async def main() -> None:
        async with AsyncClient(KEY, base_url=url, **settings) as client:
            for _ in range(times):
                try:
                    found.append((await client.conversations.get("conv_1")).id)
                except APIConnectionError as error:
                    found.append(error)

    anyio.run(main, backend=kind)
    return found


# ---- The environment


@each_client
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_http_request_uses_the_proxy_of_the_environment(
    kind: str, variable: str, scheme: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, scheme + proxy.url.removeprefix("http://"))
    with serving() as server:
        assert get(kind, server.url, times=2) == ["conv_1"] * 2
        assert proxy.lines == [f"GET {server.url}/v1/conversations/conv_1 HTTP/1.1"]  # the connection is kept


@each_client
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_uses_a_tunnel_that_sees_nothing(
    kind: str,
    variable: str,
    proxy: Proxy,
    tls: ssl.SSLContext,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    with serving(tls=tls) as server:
        assert get(kind, server.url, times=2) == ["conv_1"] * 2
        assert proxy.lines == [f"CONNECT {server.url.removeprefix('https://')} HTTP/1.1"]
    assert KEY.encode() not in b"".join(proxy.heads)


@each_client
@pytest.mark.parametrize("target", ["http", "https"])
def test_proxy_over_tls(
    kind: str,
    target: str,
    tls: ssl.SSLContext,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    with proxying(tls=tls) as proxy, serving(tls=tls if target == "https" else None) as server:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        assert get(kind, server.url) == ["conv_1"]
        assert len(proxy.lines) == 1


@pytest.mark.parametrize("exception", ["*", "127.0.0.1", "localhost,127.0.0.1", " 127.0.0.1 ", "127.0.0.1:{port}"])
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy_excludes_hosts(exception: str, name: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    with serving() as server:
        monkeypatch.setenv(name, exception.format(port=server.url.rpartition(":")[2]))
        assert get("asyncio", server.url) == ["conv_1"]
    assert proxy.lines == []


@pytest.mark.parametrize(("variable", "scheme"), [("HTTP_PROXY", "https"), ("HTTPS_PROXY", "http")])
def test_each_proxy_variable_applies_to_its_scheme(
    variable: str, scheme: str, proxy: Proxy, tls: ssl.SSLContext, trusting: ssl.SSLContext, monkeypatch: Any
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    with serving(tls=tls if scheme == "https" else None) as server:
        assert get("asyncio", server.url, ssl_context=trusting) == ["conv_1"]
    assert proxy.lines == []


@each_client
def test_key_is_not_sent_through_a_remote_http_proxy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    with pytest.raises(ConfigurationError, match=r"unencrypted.*NO_PROXY=127\.0\.0\.1"):
        get(kind, "http://127.0.0.1:8765")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        assert get(kind, server.url) == ["conv_1"]


@each_client
@pytest.mark.parametrize(
    "proxy_url", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1", "http://[::1", "http://a..b:3128", "http://x:port"]
)
def test_unusable_proxy_is_a_configuration_error(kind: str, proxy_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy_url.replace("//", "//user:hunter2@"))
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        get(kind, "https://localhost:1")
    assert "hunter2" not in str(caught.value)


# ---- Failures on the way


@each_client
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", "407"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "502"),
        (b"", "disconnected"),
        (b"no HTTP\r\n\r\n", "status line"),
    ],
    ids=["407", "502", "closed", "noise"],
)
def test_refused_tunnel_is_a_connection_error_and_leaks_no_connection(
    kind: str,
    answer: bytes,
    told: str,
    proxy: Proxy,
    tls: ssl.SSLContext,
    trusting: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    attempts = 1 if told == "407" else 2
    proxy.refusals = [answer] * (2 * attempts)
    with serving(tls=tls) as server:
        first, second, third = get(kind, server.url, times=3, ssl_context=trusting)
    for error in (first, second):
        assert type(error) is APIConnectionError
        assert told in str(error)
        assert len(error.attempts) == attempts
    assert third == "conv_1"


@each_client
@pytest.mark.parametrize(
    ("status", "is_permanent"), [(401, True), (403, True), (407, True), (408, False), (429, False), (503, False)]
)
def test_proxy_that_refuses_is_not_retried_and_the_error_says_what_to_set(
    kind: str, status: int, is_permanent: bool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    proxy.refusals = [f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode()] * 2
    (error,) = get(kind, "https://localhost:1")
    assert len(error.attempts) == (1 if is_permanent else 2)
    assert error.is_permanent is is_permanent
    assert ("user:password@" in str(error), "temporary: try" in str(error)) == (is_permanent, not is_permanent)


@each_client
def test_407_for_an_http_request_says_what_to_set(kind: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    proxy.refusals = [b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"] * 2
    with pytest.raises(APIStatusError, match="user:password@") as caught:
        get(kind, "http://localhost:1")
    assert len(caught.value.attempts) == 1


@each_client
@pytest.mark.parametrize("way", ["directly", "through a tunnel", "by TLS to the proxy"])
def test_untrusted_certificate_is_not_retried_and_leaks_no_connection(
    kind: str, way: str, proxy: Proxy, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tls=tls) as server, proxying(tls=tls) as tls_proxy:
        if way != "directly":
            monkeypatch.setenv("HTTPS_PROXY", proxy.url if way == "through a tunnel" else tls_proxy.url)
        for error in get(kind, server.url, times=3):
            assert type(error) is APIConnectionError
            assert "certificate verify failed" in str(error)
            assert "SSL_CERT_FILE" in str(error)
            assert "temporary: try" not in str(error)
            assert len(error.attempts) == 1
        assert server.requests == []
        assert server.wait_until_left()


@each_client
def test_certificate_of_another_host_is_not_retried(kind: str, tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with serving(tls=tls) as server:
        (error,) = get(kind, server.url.replace("localhost", "127.0.0.1"), ssl_context=trusting)
        assert "not valid for '127.0.0.1'" in str(error)
        assert server.requests == []


@each_client
def test_failure_behind_a_proxy_shows_no_key(kind: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    proxy.refusals = [b""] * 2
    (error,) = get(kind, "http://127.0.0.1:9")
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert KEY not in "".join(told.format())
    assert KEY.encode() in b"".join(proxy.heads)  # it was sent, as it must be


# ---- Certificates


@each_client
def test_own_certificate_authority_by_ssl_cert_file_or_ssl_context(
    kind: str, tls: ssl.SSLContext, trusting: ssl.SSLContext, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tls=tls) as server:
        assert isinstance(get(kind, server.url)[0], APIConnectionError)
        assert get(kind, server.url, ssl_context=trusting) == ["conv_1"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates))  # read again when it has changed
        assert get(kind, server.url) == ["conv_1"]
        monkeypatch.delenv("SSL_CERT_FILE")
        assert isinstance(get(kind, server.url)[0], APIConnectionError)


class WatchedContext(ssl.SSLContext):
    """An SSL context that notes each change of its ALPN protocols."""

    alpn_protocols: tuple[list[str], ...] = ()

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        self.alpn_protocols += (alpn_protocols,)
        super().set_alpn_protocols(alpn_protocols)


@each_client
@pytest.mark.parametrize("proxied", [False, True])
def test_ssl_context_is_changed_only_by_a_proxy(
    kind: str,
    proxied: bool,
    proxy: Proxy,
    tls: ssl.SSLContext,
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through a proxy, httpcore sets its ALPN protocols, as the documentation of `ssl_context` says."""
    context = WatchedContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if proxied:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    with serving(tls=tls) as server:
        assert get(kind, server.url, ssl_context=context) == ["conv_1"]
    assert context.alpn_protocols == ((["http/1.1"],) if proxied else ())


@each_client
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unreadable_certificate_file_is_a_configuration_error(
    kind: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        get(kind, "https://localhost:1")


def test_clients_share_one_default_ssl_context(tls: ssl.SSLContext, certificates: Path, monkeypatch: Any) -> None:
    made: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def note(**how: Any) -> ssl.SSLContext:
        made.append(make(**how))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", note)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    with serving(tls=tls) as server:
        for _ in range(3):
            assert get("asyncio", server.url) == ["conv_1"]
    assert len(made) == 1
