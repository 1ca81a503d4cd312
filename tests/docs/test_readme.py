"""The README keeps its word: every example in it runs, as it stands there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import attrs
import httpx
import pytest

import agentphone
from agentphone import errors
from agentphone.cli.commands import agentphone as agentphone_command
from agentphone.cli.sandbox import sandbox as sandbox_command
from agentphone.models import Model, json_keys, optional_keys
from tests.support.processes import ENVIRONMENT, PYTHON, SECONDS, run, run_in_terminal, sandbox

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Give the fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def file_name(block: str) -> str | None:
    """Give the name in a block's first line (`# views.py`), for a block that is one file of several."""
    name = re.match(r"# (\w+\.py)\n", block)
    return name[1] if name else None


PROGRAMS = [block for block in blocks("python") if file_name(block) is None]
FILES = {name: block for block in blocks("python") if (name := file_name(block))}


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_each_example_is_a_whole_program_that_runs_without_a_key(program: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(program, encoding="utf-8")
    done = run(*PYTHON, str(path), cwd=tmp_path, AGENTPHONE_BASE_URL="sandbox:")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(promised(program)) <= set(done.stdout.splitlines())


def promised(program: str) -> list[str]:
    """Return what the comments of a program say that it prints."""
    return re.findall(r"print\(.*\)  # (.*)", program)


def test_comments_in_the_examples_tell_what_they_print() -> None:
    # The test of each example compares them with its output.
    assert any(map(promised, PROGRAMS))


SETTINGS = """\
SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
"""
GATES = {
    f"{gate}.py": f"from django.core.{gate} import get_{gate}_application\n\napplication = get_{gate}_application()\n"
    for gate in ("asgi", "wsgi")
}
UVICORN = ["--port", "0", "--lifespan", "off"]
SERVERS = {
    "uvicorn": ["uvicorn", "asgi:application", *UVICORN],
    "gunicorn": ["gunicorn", "wsgi:application", "--bind", "127.0.0.1:0", "--preload", "--workers", "2"],
}


@contextmanager
def served(project: Path, agentphone_url: str, server: list[str], **more: str) -> Iterator[str]:
    """Serve the README's files as a project, with more modules, and give its URL."""
    modules = {f"{name}.py": text for name, text in more.items()}
    for name, text in ({"settings.py": SETTINGS} | GATES | FILES | modules).items():
        (project / name).write_text(text, encoding="utf-8")
    environment = ENVIRONMENT | {
        "DJANGO_SETTINGS_MODULE": "settings",
        "AGENTPHONE_BASE_URL": agentphone_url,
        "AGENTPHONE_API_KEY": "any-key",
    }
    command = [sys.executable, "-m", *server]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=project) as process:
        try:
            said: list[str] = []
            for line in cast("IO[str]", process.stderr):
                said.append(line)
                if url := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield url[0]
                    break
            else:
                pytest.fail("".join(said))
        finally:
            process.terminate()


@pytest.mark.parametrize("server", SERVERS)
def test_the_django_views_answer_real_requests(tmp_path: Path, server: str) -> None:
    with (
        sandbox("--demo") as (_, agentphone_url),
        served(tmp_path, agentphone_url, SERVERS[server]) as url,
        httpx.Client(base_url=url, timeout=SECONDS) as browser,
    ):
        inbox = browser.get("/inbox").json()
        assert (len(inbox["conversations"]), inbox["total"]) == (20, 36)
        latest = inbox["conversations"][0]["id"]
        resolved = browser.post(f"/conversations/{latest}/resolve").json()
        assert resolved["id"] == latest
        assert resolved["state"]["resolved"] is True
        assert browser.post("/conversations/conv_nobody/resolve").status_code == 404
        assert browser.get(f"/conversations/{latest}/resolve").status_code == 405


def test_fastapi_and_django_answer_with_models_as_json(tmp_path: Path) -> None:
    urls = "import django_json\nfrom django.urls import path\n\n"
    urls += 'urlpatterns = [path("<str:conversation_id>", django_json.history)]\n'
    with sandbox("--demo") as (_, agentphone_url), httpx.Client(timeout=SECONDS) as browser:
        headers = {"Authorization": "Bearer any-key"}
        api = httpx.get(f"{agentphone_url}/v1/conversations?limit=20", headers=headers).json()
        with served(tmp_path, agentphone_url, ["uvicorn", "fastapi_app:app", *UVICORN]) as url:
            page = browser.get(f"{url}/conversations").json()
        assert {key: page[key] for key in ("hasMore", "total")} == {"hasMore": True, "total": 36}
        assert [item["id"] for item in page["data"]] == [item["id"] for item in api["data"]]
        with served(tmp_path, agentphone_url, SERVERS["uvicorn"], urls=urls) as url:
            page = browser.get(f"{url}/{api['data'][0]['id']}").json()
        assert (len(page["data"]), page["hasMore"], page["total"]) == (50, True, None)
        assert {"id", "body", "fromNumber", "toNumber", "direction", "receivedAt"} <= page["data"][0].keys()


def table_of_fields() -> str:
    """Return the table of the models' fields, from the classes."""
    rows = ["| model | field | in the API | type |", "|---|---|---|---|"]
    public = [getattr(agentphone, name) for name in agentphone.__all__]
    models: list[Any] = [cls for cls in public if isinstance(cls, type) and issubclass(cls, Model)]
    for model in models:
        title, inherited = f"`{model.__name__}`", set[Any]()
        for base in filter(attrs.has, model.__bases__):
            title, inherited = f"{title}, a `{base.__name__}` with", {each.name for each in attrs.fields(base)}
        optional = dict(optional_keys(model))
        for name, key in (dict(json_keys(model)) | optional).items():
            if name not in inherited:
                kind, *null = model.__annotations__[name].split(" | ")
                mark = "°" if name in optional else ""
                rows.append(f"| {title} | `{name}`{mark} | `{key}` | `{kind}`{' or None' if null else ''} |")
                title = ""
    return "\n".join(rows)


def test_the_table_of_fields_is_that_of_the_classes() -> None:
    table = table_of_fields()
    assert len(table.splitlines()) > 40
    shown = README.partition("### Fields of the models")[2].partition("\n|")[2].partition("\n\n")[0]
    assert f"|{shown}" == table


def test_the_two_commands_are_what_continuous_integration_runs() -> None:
    assert blocks("sh") == [
        "pip install '.[sandbox]' && python -m agentphone demo\n",
        "pip install '.[test]' && pytest\n",
    ]
    checks = ROOT / ".ci" / "run"
    if not checks.exists():
        pytest.skip("an unpacked source distribution has no .ci")
    # It takes them from here, so that they cannot differ.
    assert "awk '/^```sh$/ {inside = 1; next} /^```$/ {inside = 0} inside' README.md" in checks.read_text()


def commands_of(block: str) -> list[tuple[str, str]]:
    """Give the commands of a block of a terminal, each with the output that stands below it."""
    return [(command, output) for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]


def test_the_sandbox_is_started_with_options_that_exist() -> None:
    commands = [command for block in blocks("console") for command, _ in commands_of(block)]
    started = [command for command in commands if command.startswith("python -m agentphone sandbox")]
    assert started
    for command in started:
        sandbox_command.make_context("sandbox", shlex.split(command)[4:])


def test_a_terminal_shows_what_the_examples_show(tmp_path: Path) -> None:
    environment: dict[str, str] = {"NO_COLOR": "1"}
    shown = []
    for command, promised in (pair for block in blocks("console") for pair in commands_of(block)):
        if command.startswith("export "):
            name, _, environment[name] = command.removeprefix("export ").partition("=")
        if not command.startswith("agentphone "):
            continue
        told = run_in_terminal(*PYTHON, "-m", *shlex.split(command), columns=100, cwd=tmp_path, **environment)
        shown.append(command)
        lines = [line.rstrip() for line in told[1].splitlines()]
        assert (told[0], "".join(line + "\n" for line in lines)) == (0, promised), command
    assert len(shown) >= 2


def test_the_table_of_commands_is_that_of_the_help() -> None:
    commands = [name for names in agentphone_command.headings.values() for name in names]
    assert re.findall(r"^\| `agentphone ([a-z ]+?)(?: [A-Z]+)*` \|", README, re.MULTILINE) == commands


def test_every_error_that_the_table_could_name_is_there() -> None:
    told = {
        error.__name__
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.AgentPhoneError) and not error.__name__.startswith("_")
    }
    told -= {"AgentPhoneError"}  # which stands above the table
    assert set(re.findall(r"^\| [↳ ]*`(\w+)`", README, re.MULTILINE)) >= told


def test_the_reader_is_warned_of_the_other_package_of_this_name() -> None:
    assert "Do not `pip install agentphone`" in README.partition("## ")[0]


def test_whoever_comes_from_the_vendors_sdk_is_sent_to_methods_that_exist() -> None:
    table = README.partition("## Coming from the vendor's SDK")[2].partition("\n## ")[0]
    methods = set(re.findall(r"client\.conversations\.(\w+)\(", table))
    public = {name for name in vars(agentphone.Conversations) if not name.startswith("_")}
    assert methods == public
    for row in re.findall(r"^\|[^|]*\|([^|]*)\|", table, re.MULTILINE)[2:]:
        for code in re.findall(r"`(.*?)`", row):
            ast.parse(code + " pass" if code.endswith(":") else code)
