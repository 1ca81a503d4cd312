"""The settings of a client: key, base URL, numbers, types; from arguments and from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from agentphone import (
    APIConnectionError,
    AsyncClient,
    Client,
    ConfigurationError,
)
from tests.support.fault_server import serving
from tests.support.helpers import BASE, KEY, Scripted, ok

pytestmark = pytest.mark.anyio

# ---- Key and base URL


async def sent_by(**settings: Any) -> httpx.Request:
    """Return the request that a client with these settings sends for its first page."""
    script = Scripted(ok())
    async with AsyncClient(transport=script, **settings) as client:
        await client.conversations.list()
    return script.requests[0]


async def test_key_and_base_url_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "from_env")
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "https://env.example/")
    request = await sent_by()
    assert request.headers["authorization"] == "Bearer from_env"
    assert str(request.url) == "https://env.example/v1/conversations?limit=100&offset=0"


async def test_arguments_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "from_env")
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "https://env.example")
    request = await sent_by(api_key=KEY, base_url=BASE)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.url.host == "api.agentphone.test"


async def test_default_base_url_is_agentphones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await sent_by(api_key=KEY)).url.host == "api.agentphone.to"
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "")
    assert (await sent_by(api_key=KEY)).url.host == "api.agentphone.to"


@pytest.mark.parametrize("argument", [None, ""])
@pytest.mark.parametrize("variable", [None, ""])
def test_missing_key_error_names_the_variable(
    argument: str | None, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("AGENTPHONE_API_KEY", variable)
    with pytest.raises(ConfigurationError, match="AGENTPHONE_API_KEY"):
        AsyncClient(argument)


@pytest.mark.parametrize(
    "form", ["{}\n", "\r\n{}", "{} ", " {}", "{}\t", "{}\0", "{}é", "{}\u2028", "{}\x7f", "Bearer {}"]
)
def test_invalid_key_is_rejected_and_not_shown(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, variable in ((form.format(KEY), ""), (None, form.format(KEY).replace("\0", "\n"))):
        monkeypatch.setenv("AGENTPHONE_API_KEY", variable)
        with pytest.raises(ConfigurationError) as caught:
            AsyncClient(key)
        assert KEY not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("key", [b"key", 5, ["key"]])
def test_key_of_another_type_is_rejected(key: Any) -> None:
    with pytest.raises(TypeError, match=f"api_key must be a string, got {type(key).__name__}"):
        AsyncClient(key)


@pytest.mark.parametrize(
    ("base_url", "begins"),
    [
        ("https://api.example", "https://api.example/v1/"),
        ("https://api.example/", "https://api.example/v1/"),
        ("https://api.example///", "https://api.example/v1/"),
        ("https://api.example/proxy/phone", "https://api.example/proxy/phone/v1/"),
        ("https://api.example/proxy/phone/", "https://api.example/proxy/phone/v1/"),
        ("https://api.example:8443", "https://api.example:8443/v1/"),
        ("HTTPS://API.example", "https://api.example/v1/"),
        (httpx.URL("https://api.example/x/"), "https://api.example/x/v1/"),
        ("http://localhost:8765", "http://localhost:8765/v1/"),
        ("http://127.0.0.1:8765/", "http://127.0.0.1:8765/v1/"),
        ("http://127.1.2.3", "http://127.1.2.3/v1/"),
        ("http://[::1]:80", "http://[::1]/v1/"),
        ("http://box.localhost", "http://box.localhost/v1/"),
    ],
    ids=str,
)
async def test_base_url_keeps_its_path_without_a_trailing_slash(base_url: Any, begins: str) -> None:
    assert str((await sent_by(api_key=KEY, base_url=base_url)).url) == f"{begins}conversations?limit=100&offset=0"


@pytest.mark.parametrize("end", ["/v1", "/v1/", "//v1//"])
@pytest.mark.parametrize("begin", ["https://api.example", "https://api.example/proxy", "HTTPS://api.example"])
async def test_base_url_may_end_in_v1(begin: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"{begin.replace('HTTPS', 'https')}/v1/conversations?limit=100&offset=0"
    assert str((await sent_by(api_key=KEY, base_url=begin + end)).url) == expected
    assert str((await sent_by(api_key=KEY, base_url=httpx.URL(begin + end))).url) == expected
    monkeypatch.setenv("AGENTPHONE_BASE_URL", begin + end)
    assert str((await sent_by(api_key=KEY)).url) == expected


def test_only_a_v1_segment_is_removed_from_base_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(AsyncClient(KEY, base_url="https://api.example/apiv1")) == "<AsyncClient https://api.example/apiv1>"
    assert repr(AsyncClient(KEY, base_url="https://v1")) == "<AsyncClient https://v1>"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    Client(base_url="sandbox:data/v1").close()
    assert (tmp_path / "data" / "v1").is_file()


@pytest.mark.parametrize(
    "base_url",
    [
        *(
            "http://api.example",
            "http://10.0.0.1",
            "http://0.0.0.0",
            "http://localhost.example",
            "http://127.0.0.1.example",
        ),
        *("https://user:secret@api.example", "https://user@api.example", "ftp://user:secret@api.example"),
        *("https://api.example?x=1", "https://api.example/?", "https://api.example?", "https://api.example#"),
        *("https://api.example#top", "https://api.example/v?x=1#top"),
        *("", "/", "api.example", "//api.example", "localhost:8765", "https://", "https:///v1", "ftp://api.example"),
        *("https://api.example:port", "https://api.example:99999", "https://api.example\n", "https://[::1", "sandbox"),
        *("https://api example", "https://\0", "unix:///run/x.sock", "file:///etc/passwd"),
    ],
    ids=repr,
)
def test_invalid_base_url_is_rejected(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url") as caught:
        AsyncClient(KEY, base_url=base_url)
    assert "secret" not in str(caught.value)


async def test_allow_http_permits_http_to_a_remote_host() -> None:
    request = await sent_by(api_key=KEY, base_url="http://10.0.0.1:80/x", allow_http=True)
    assert str(request.url).startswith("http://10.0.0.1/x/v1/")


@pytest.mark.parametrize("base_url", [5, b"https://api.example", ["https://api.example"]])
def test_base_url_of_another_type_is_rejected(base_url: Any) -> None:
    with pytest.raises(TypeError, match="base_url"):
        AsyncClient(KEY, base_url=base_url)


async def test_base_url_scheme_in_capitals_verifies_certificates(
    tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection trusts the default authorities, and only those."""
    with serving(tls=tls) as server:
        url = server.url.replace("https", "HTTPS")
        async with AsyncClient(KEY, base_url=url, max_retries=0) as client:
            with pytest.raises(APIConnectionError, match="certificate"):
                await client.conversations.get("conv_1")
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with AsyncClient(KEY, base_url=url, max_retries=0) as client:
            assert (await client.conversations.get("conv_1")).id == "conv_1"


async def test_ssl_context_is_used(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with serving(tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_retries=0) as client:
            assert (await client.conversations.get("conv_1")).id == "conv_1"
        async with AsyncClient(KEY, base_url=server.url, ssl_context=ssl.create_default_context()) as client:
            with pytest.raises(APIConnectionError, match="certificate"):
                await client.conversations.get("conv_1")


# ---- Numbers

NUMBERS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    # name: good, out of range, of another type
    "timeout": ([None, 1, 0.001, float("inf"), httpx.Timeout(5)], [0, -1, float("nan"), -0.0], ["5", True, [], b"1"]),
    "deadline": ([None, 1, 0.001, float("inf")], [0, -1, float("nan")], ["5", True, httpx.Timeout(5)]),
    "max_retries": ([0, 1, 100], [-1], [None, 1.0, "1", True]),
    "max_connections": ([1, 1000], [0, -1], [None, 1.0, "1", True]),
    "max_response_bytes": ([1, 2**40], [0, -1], [None, 1.0, "1", True]),
    "max_retry_after": ([0, 0.5, float("inf")], [-1, float("nan")], [None, "1", True]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_invalid_number_is_rejected_by_name(name: str) -> None:
    good, out_of_range, other_type = NUMBERS[name]
    parent = AsyncClient(KEY)
    makers: list[Any] = [lambda **setting: AsyncClient(KEY, **setting)]
    if name in ("timeout", "deadline", "max_retries"):
        makers.append(parent.with_options)
    for make in makers:
        for value in good:
            make(**{name: value})
        for value in out_of_range:
            with pytest.raises(ConfigurationError, match=name):
                make(**{name: value})
        for value in other_type:
            with pytest.raises(TypeError, match=name):
                make(**{name: value})


@pytest.mark.parametrize("name", ["", "missing/box.db", "text.db", "nul\0.db"])
@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_unusable_sandbox_file_is_a_configuration_error(
    client: type[AsyncClient] | type[Client], name: str, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("These are words, and no database at all.")
    with pytest.raises(ConfigurationError, match=r"^base_url='sandbox:.*: "):
        client(base_url=f"sandbox:{tmp_path / name if name else tmp_path}")


def test_sandbox_url_with_slashes_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="without //"):
        AsyncClient(base_url="sandbox://box.db")


async def asynchronous(_: object) -> None:
    """Serve as an async hook, which httpx's async client accepts but this SDK would never await."""


@pytest.mark.parametrize("client", [AsyncClient, Client])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", httpx.HTTPTransport()),  # httpx's sync transport, as a user of `Client` may try
        ("transport", "https://proxy.example"),
        ("http_client", httpx.Client()),  # it would block the event loop, then fail
        ("http_client", httpx.AsyncHTTPTransport()),
        ("ssl_context", True),
        ("ssl_context", "ca.pem"),
        ("allow_http", "no"),  # which is truthy
        ("allow_http", None),
        ("on_request", "print"),
        ("on_request", asynchronous),
        ("on_response", asynchronous),
        ("on_retry", asynchronous),
    ],
)
def test_setting_of_another_type_is_rejected_by_name(
    client: type[AsyncClient] | type[Client], name: str, value: Any
) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be "):
        client(KEY, **{name: value})


def test_settings_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        AsyncClient(KEY, BASE)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [30.0, httpx.Timeout(1, connect=2)])
async def test_only_an_httpx_timeout_is_passed_to_httpx(timeout: Any) -> None:  # noqa: ASYNC109
    extensions = (await sent_by(api_key=KEY, timeout=timeout)).extensions
    phases = (
        timeout.as_dict() if isinstance(timeout, httpx.Timeout) else dict.fromkeys(("connect", "read", "write", "pool"))
    )
    assert extensions["timeout"] == phases
