"""The recipes of the inbox, as the README shows them: real servers that receive, and one worker beside them all."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from agentphone import Client
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.inbox.deliveries import of_message
from tests.inbox.world import create_sqlite, until, working
from tests.support.guides import SHOWN
from tests.support.processes import SECONDS
from tests.support.recipes import GUNICORN, RECIPES, SECRET, UVICORN, environment_of, serving_recipe

AGENT = "+15555550100"

SERVED_BY_UVICORN = """
from bot import inbox
from django.core.asgi import get_asgi_application
from fastapi_inbox import app as fastapi
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette_inbox import app as starlette

applications = {"starlette": starlette, "fastapi": fastapi, "django": get_asgi_application(), "alone": inbox.asgi}
application = Starlette(routes=[Mount(f"/{name}", app) for name, app in applications.items()])
"""
SERVED_BY_GUNICORN = """
from wsgiref.util import shift_path_info

from bot import inbox
from django.core.wsgi import get_wsgi_application

applications = {"django": get_wsgi_application(), "alone": inbox.wsgi}


def application(environ, start_response):
    return applications[shift_path_info(environ)](environ, start_response)
"""


@frozen
class Site:
    folder: Path
    box: Sandbox
    api: str

    @contextmanager
    def serving(self, served: str, command: tuple[str, ...]) -> Iterator[str]:
        """Serve the recipes by one server, and yield its URL."""
        (self.folder / "served.py").write_text(served)
        with serving_recipe("bot", self.folder, self.api, command) as url:
            yield url.removesuffix("/agentphone")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a sandbox, and the worker of the recipes."""
    folder = shutil.copytree(RECIPES, tmp_path_factory.mktemp("site"), dirs_exist_ok=True)
    create_sqlite(folder)
    with Sandbox(retry_scale=0.05) as box, running(box) as api:
        command = [sys.executable, "-W", "error", "-m", "agentphone", "work", "bot:inbox", "--name", "worker-1"]
        with subprocess.Popen(
            command, cwd=folder, env=environment_of(folder, api), stderr=subprocess.PIPE, text=True
        ) as worker:
            yield Site(folder, box, api)
            texts = len(box.deliveries())  # of the tests that this process has run
            worker.terminate()
            _, log = worker.communicate(timeout=SECONDS)
    assert worker.returncode == 0, log
    assert "Traceback" not in log
    assert log.count("replied in") == texts > 0


@pytest.fixture(scope="module")
def uvicorn(site: Site) -> Iterator[str]:
    with site.serving(SERVED_BY_UVICORN, UVICORN) as url:
        yield url


@pytest.fixture(scope="module")
def gunicorn(site: Site) -> Iterator[str]:
    with site.serving(SERVED_BY_GUNICORN, (*GUNICORN, "--preload")) as url:
        yield url


@pytest.mark.slow  # two servers, and the worker beside them
@pytest.mark.parametrize(
    ("server", "application"),
    [
        ("uvicorn", "starlette"),
        ("uvicorn", "fastapi"),
        ("uvicorn", "django"),
        ("uvicorn", "alone"),
        ("gunicorn", "django"),
        ("gunicorn", "alone"),
    ],
)
def test_each_server_receives(site: Site, server: str, application: str, request: pytest.FixtureRequest) -> None:
    url = f"{request.getfixturevalue(server)}/{application}/agentphone"
    person = f"+1555555{len(site.box.deliveries()):04}"
    with Client("any-key", base_url=site.api) as client:
        site.box.set_webhook(url, "whsec_not_known_yet")
        text = site.box.receive_sms(from_number=person, to_number=AGENT, body="Where is ORD-5 ?")
        until(lambda: len(site.box.deliveries()[0]["attempts"]) >= 2)
        assert {attempt["status"] for attempt in site.box.deliveries()[0]["attempts"]} == {503}
        site.box.set_webhook(url, SECRET)  # a rotation: the delivery is sent again under the secret that is known

        def replies() -> list[str | None]:
            messages = client.conversations.get(text["conversationId"]).messages
            return [message.body for message in messages if message.direction == "outbound"]

        until(lambda: replies() == ["ORD-5 is on its way."])
        site.box.receive_sms(from_number=person, to_number=AGENT, body="And now?")
        until(lambda: replies() == ["ORD-5 is on its way."] * 2)
        assert client.conversations.get(text["conversationId"]).metadata == {"orderId": "ORD-5"}


def scripted_model() -> Any:
    """Return a model of the OpenAI Agents SDK without a network: it calls the tool, and then answers."""
    from agents import Model, ModelResponse, Usage
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    class Scripted(Model):
        async def get_response(self, system_instructions: Any, input: Any, *arguments: Any, **options: Any) -> Any:
            output: Any
            if isinstance(input, list) and any(item.get("type") == "function_call_output" for item in input):
                content = ResponseOutputText(annotations=[], text="It is on its way.", type="output_text")
                output = ResponseOutputMessage(
                    id="1", content=[content], role="assistant", status="completed", type="message"
                )
            else:
                output = ResponseFunctionToolCall(
                    arguments='{"order_id": "ORD-5"}', call_id="1", name="remember_order", type="function_call"
                )
            return ModelResponse(output=[output], usage=Usage(), response_id=None)

        def stream_response(self, *arguments: Any, **options: Any) -> Any:
            raise NotImplementedError

    return Scripted()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "reply", "state"),
    [
        ("pydantic_ai_inbox", '{"remember_order":"remembered"}', {"orderId": "a"}),
        ("openai_agents_inbox", "It is on its way.", {"orderId": "ORD-5"}),
    ],
)
def test_agents_answer(
    recipe: str, reply: str, state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setenv("AGENTPHONE_API_KEY", "any-key")
    monkeypatch.setenv("AGENTPHONE_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("AGENTPHONE_INBOX_DATABASE", f"sqlite:///{tmp_path / 'inbox.db'}")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    with Sandbox() as box, running(box) as api:
        monkeypatch.setenv("AGENTPHONE_BASE_URL", api)
        module = importlib.import_module(recipe)
        if recipe == "openai_agents_inbox":
            module.agent.model = scripted_model()
        with working(module.inbox), Client("any-key", base_url=api) as client:
            text = box.receive_sms(from_number="+15555550110", to_number=AGENT, body="Where is ORD-5?")
            module.inbox.receive(*of_message(text))
            until(lambda: client.conversations.get(text["conversationId"]).message_count == 2)
            conversation = client.conversations.get(text["conversationId"])
    assert [message.body for message in conversation.messages if message.direction == "outbound"] == [reply]
    assert conversation.metadata == state
    del sys.modules[recipe]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_guides_show_each_recipe(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.stem == "__init__" or path.stem.endswith(("_mcp", "_tools")):
        return  # the last are named only; tests/mcp runs them
    assert text.startswith(f"# {path.name}\n")
    assert f"```python\n{text}```\n" in SHOWN
    if path.stem.endswith(("_inbox", "_webhook")) or path.stem == "bot":
        assert len(text.splitlines()) <= 35
