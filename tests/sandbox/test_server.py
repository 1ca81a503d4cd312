"""The sandbox server as a process and from a thread: its output, errors, shutdown and latency."""

import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.support.forked import PIPE, Forked
from tests.support.processes import PYTHON, SECONDS, run

from .helpers import ADA, AGENT

CODE = "import sys; from agentphone.sandbox.server import serve; sys.exit(serve(**{}))"
KEY = "sk-secret-1234"


@contextmanager
def server(**options: object) -> Iterator[Forked]:
    with Forked(CODE.format({"port": 0, **options}), stdout=PIPE, stderr=PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def url_of(process: Forked) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("AgentPhone sandbox at http://")
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_stops_cleanly_on_a_signal(number: signal.Signals) -> None:
    with server(demo=True, api_key=KEY) as process, httpx.Client(base_url=url_of(process)) as client:
        assert client.get("/v1/conversations", headers={"Authorization": "Bearer wrong"}).status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.get("/v1/conversations").json()["total"] >= 24
        process.send_signal(number)  # while a connection is kept alive
        assert process.communicate(timeout=SECONDS) == ("", "")
        assert process.returncode == 0


def test_server_stops_during_an_unfinished_request() -> None:
    with server() as process:
        host, port = url_of(process).removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall(b"PATCH /v1/conversations/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            process.terminate()
            assert process.communicate(timeout=SECONDS) == ("", "")
            assert process.returncode == 0


def test_key_is_never_printed(tmp_path: Path) -> None:
    with server(api_key=KEY, db=str(tmp_path / "box.db")) as process:
        base_url = url_of(process)
        with httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            connection = sqlite3.connect(tmp_path / "box.db")
            connection.execute("DROP TABLE messages")
            connection.close()
            body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "Hi"}
            assert client.post("/sandbox/messages", json=body).status_code == 500
        process.terminate()
        output = "".join(process.communicate(timeout=SECONDS))
    assert "no such table" in output
    assert KEY not in output


def test_port_in_use_is_one_line_and_exit_code_1() -> None:
    with server() as first:
        port = int(url_of(first).rsplit(":", 1)[1])
        with server(port=port, api_key=KEY) as second:
            output, error = second.communicate(timeout=SECONDS)
    assert (output, second.returncode) == ("", 1)
    assert error == f"agentphone sandbox: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize("options", [{"port": 70_000}, {"host": "host.invalid"}, {"db": "missing/box.db"}])
def test_startup_failure_is_one_line_and_exit_code_1(options: dict[str, object], tmp_path: Path) -> None:
    if "db" in options:
        options = {"db": str(tmp_path / str(options["db"]))}
    with server(**options) as process:
        output, error = process.communicate(timeout=SECONDS)
    assert (output, process.returncode, error.count("\n")) == ("", 1, 1)
    assert error.startswith("agentphone sandbox: cannot ")


def test_kept_alive_connection_uses_tcp_nodelay() -> None:
    # Without TCP_NODELAY every call takes 40 ms. The fastest of many counts, so that load does not matter.
    with (
        server() as process,
        httpx.Client(base_url=url_of(process), headers={"Authorization": "Bearer any"}) as client,
    ):
        client.get("/v1/conversations")
        elapsed: list[float] = []
        for _ in range(50):
            started = time.perf_counter()
            client.get("/v1/conversations")
            elapsed.append(time.perf_counter() - started)
    assert min(elapsed) < 0.02


def test_sandbox_is_usable_while_it_is_served() -> None:
    with Sandbox(api_key=KEY) as sandbox:
        for _ in range(2):
            with running(sandbox) as url, httpx.Client(base_url=url, trust_env=False) as client:
                assert client.get("/v1/conversations").status_code == 401
                client.headers["Authorization"] = f"Bearer {KEY}"
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
                assert client.get("/v1/conversations").json()["total"] == 1
            assert not [thread for thread in threading.enumerate() if thread.name == "agentphone sandbox"]
            with pytest.raises(httpx.ConnectError):
                httpx.get(url, trust_env=False)
        assert sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Still there")


def test_exit_does_not_wait_for_a_served_sandbox() -> None:
    code = """
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
serving = running(Sandbox())
print(serving.__enter__())
"""
    done = run(*PYTHON, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
