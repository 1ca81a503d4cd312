"""Every example in the README and in the guides of the public modules runs, and their tables are complete."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

import attrs
import httpx
import pytest

import agentphone
from agentphone import errors, models
from agentphone.cli.commands import agentphone as agentphone_command
from agentphone.cli.docs import MODULES
from agentphone.cli.sandbox import sandbox as sandbox_command
from agentphone.models import Model, json_keys, optional_keys
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from agentphone.webhooks import Webhook
from tests.support.guides import FILES, GUIDES, README, ROOT, blocks, file_name
from tests.support.processes import ENVIRONMENT, PYTHON, SECONDS, run, run_in_terminal
from tests.support.recipes import SECRET, wait_until_delivered


def section(title: str) -> str:
    """Return the text of a section of the README."""
    found = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


PROGRAMS = {
    f"{guide}-{number}": block
    for guide, text in GUIDES.items()
    for number, block in enumerate(blocks("python", text))
    if file_name(block) is None
}


RUN_ALL = """
import contextlib, pathlib, runpy
for path in pathlib.Path.cwd().glob("*/example.py"):
    with contextlib.chdir(path.parent), open("stdout", "w") as stdout, contextlib.redirect_stdout(stdout):
        runpy.run_path(path, run_name="__main__")
"""
"""Runs all examples in one process. Most of the time that one takes is spent on imports."""


@pytest.mark.parametrize("pandas", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_examples_run_without_a_key_and_print_what_they_say(pandas: bool, tmp_path: Path) -> None:
    programs = {name: program for name, program in PROGRAMS.items() if ("import pandas" in program) == pandas}
    assert len(programs) > 1
    for name, program in programs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "example.py").write_text(program, encoding="utf-8")
    done = run(*PYTHON, "-c", RUN_ALL, cwd=tmp_path, AGENTPHONE_BASE_URL="sandbox:")
    assert (done.returncode, done.stderr) == (0, "")
    for name, program in programs.items():
        printed = (tmp_path / name / "stdout").read_text(encoding="utf-8").splitlines()
        for line in re.findall(r"print\(.*\)  # (.*)", program):
            assert line in printed, name


def test_some_examples_say_what_they_print() -> None:
    assert sum(len(re.findall(r"print\(.*\)  # ", program)) for program in PROGRAMS.values()) >= 4


def test_a_file_that_is_shown_twice_is_the_same() -> None:
    shown = [block for block in blocks("python") if file_name(block)]
    assert set(shown) == set(FILES.values())


def test_readme_is_short_enough_to_read() -> None:
    assert README.count("\n") <= 500


SETTINGS = """\
SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
"""
URLS = """\
import views
from django.urls import path

urlpatterns = [
    path("conversations", views.conversations),
    path("conversations/<str:conversation_id>/resolve", views.resolve),
]
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
def served(project: Path, agentphone_url: str, server: list[str]) -> Iterator[str]:
    """Serve the files of the examples as a project, and yield its URL."""
    for name, text in ({"settings.py": SETTINGS, "urls.py": URLS} | GATES | FILES).items():
        (project / name).write_text(text, encoding="utf-8")
    environment = ENVIRONMENT | {
        "DJANGO_SETTINGS_MODULE": "settings",
        "AGENTPHONE_BASE_URL": agentphone_url,
        "AGENTPHONE_API_KEY": "any-key",
        "AGENTPHONE_WEBHOOK_SECRET": SECRET,
    }
    command = [sys.executable, "-m", *server]
    with (
        (project / "stdout").open("w") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment, cwd=project
        ) as process,
    ):
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
        Sandbox() as box,
        running(box) as agentphone_url,
        served(tmp_path, agentphone_url, SERVERS[server]) as url,
        httpx.Client(base_url=url, timeout=SECONDS) as browser,
    ):
        box.load_demo_data()
        page = browser.get("/conversations").json()
        assert (len(page["data"]), page["hasMore"], page["total"]) == (20, True, 36)
        latest = page["data"][0]["id"]
        assert browser.post(f"/conversations/{latest}/resolve").json()["resolved"] is True
        found = browser.get("/conversations").json()["data"]
        assert next(each for each in found if each["id"] == latest)["metadata"]["resolved"] is True
        assert browser.post("/conversations/conv_nobody/resolve").status_code == 404
        assert browser.get(f"/conversations/{latest}/resolve").status_code == 405


def test_the_fastapi_route_receives_webhooks(tmp_path: Path) -> None:
    with (
        Sandbox(retry_scale=0.01) as box,
        running(box) as agentphone_url,
        served(tmp_path, agentphone_url, ["uvicorn", "fastapi_app:app", *UVICORN]) as url,
    ):
        box.set_webhook(f"{url}/agentphone", SECRET)
        box.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Where is my order?")
        [delivery] = wait_until_delivered(box)
        assert [attempt["status"] for attempt in delivery["attempts"]] == [202]
        assert "+15555550110 Where is my order?" in (tmp_path / "stdout").read_text()
        assert httpx.post(f"{url}/agentphone", content=b"{}").status_code == 400
        wrong = Webhook("whsec_of_another").sign(b"{}")
        assert httpx.post(f"{url}/agentphone", content=b"{}", headers=wrong).status_code == 503


def test_the_live_example_prints_texts_as_they_arrive(tmp_path: Path) -> None:
    (tmp_path / "live.py").write_text(FILES["live.py"], encoding="utf-8")
    with Sandbox() as box, running(box) as url:
        environment = ENVIRONMENT | {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": "any-key"}
        box.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Before")
        with subprocess.Popen(
            [*PYTHON, "live.py"], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        ) as process:
            try:
                deadline_at = time.monotonic() + SECONDS
                while len(box.requests) < 2:  # the first poll shows what is old
                    assert time.monotonic() < deadline_at
                    time.sleep(0.05)
                box.receive_sms(from_number="+15555550120", to_number="+15555550100", body="Hello?")
                assert cast("IO[str]", process.stdout).readline() == "+15555550120 Hello?\n"
            finally:
                process.kill()


def test_the_mcp_example_is_an_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "sandbox:")
    names: dict[str, Any] = {}
    exec(FILES["mcp_app.py"], names)
    assert [route.path for route in names["app"].routes] == ["/mcp"]


@pytest.mark.slow
def test_the_examples_of_tests_pass(tmp_path: Path) -> None:
    for name in ("bot.py", "test_bot.py", "test_inbox.py", "test_orders.py"):
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    # Without the other plugins that are installed here, which take longer to import than the tests to run.
    plugins = ("-p", "agentphone.pytest_plugin", "-p", "anyio.pytest_plugin", "-p", "no:cacheprovider")
    done = run(*PYTHON, "-m", "pytest", "-q", *plugins, cwd=tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "7 passed" in done.stdout, done.stdout + done.stderr  # one of the six runs on both event loops


def test_every_field_of_a_model_is_documented() -> None:
    """The docstring of a field names the API's field where that is not the same."""
    tree = ast.parse(inspect.getsource(models))
    documented = {
        node.name: {
            cast("ast.Name", field.target).id: cast("Any", text).value.value
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    public = [getattr(agentphone, name) for name in agentphone.__all__]
    found: list[Any] = [cls for cls in public if isinstance(cls, type) and issubclass(cls, Model)]
    assert len(found) > 8
    for model in found:
        inherited = {each.name for base in filter(attrs.has, model.__bases__) for each in attrs.fields(base)}
        for name, key in (*json_keys(model), *optional_keys(model)):
            if name not in inherited:
                text = documented[model.__name__][name]
                assert name == key or f"`{key}`" in text, (model, name)


def test_the_guarantees_name_tests_that_exist() -> None:
    guaranteed = section("What is guaranteed")
    named = re.findall(r"^- \*\*\w+\*\* \(`(tests/\w+/test_\w+\.py)`\)", guaranteed, re.MULTILINE)
    assert len(named) == guaranteed.count("- **") == 6
    for path in named:
        assert (ROOT / path).is_file(), path


def test_the_table_of_settings_is_that_of_the_clients() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", section("Configuration"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(inspect.signature(agentphone.AsyncClient).parameters)


def test_the_two_commands_are_what_continuous_integration_runs() -> None:
    assert blocks("sh", README) == [
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
    assert shown


def test_the_table_of_commands_is_that_of_the_help() -> None:
    rows = re.findall(r"^\| (`agentphone .*?`) \|", section("Command line and export"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(?:agentphone )?([a-z ]+?)(?: [A-Z]+)*`", row)]
    assert sorted(named) == sorted(name for names in agentphone_command.headings.values() for name in names)


def test_the_table_of_errors_has_every_error() -> None:
    public = {
        error.__name__
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.AgentPhoneError) and not error.__name__.startswith("_")
    }
    public -= {"AgentPhoneError"}  # which is named above the table
    rows = re.findall(r"^\| (?:↳ )*(`.*?) \|", section("Errors, retries, deadlines"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+Error)`", row)} == public


def test_the_reader_is_warned_of_the_other_package_of_this_name() -> None:
    assert "Do not `pip install agentphone`" in README.partition("## ")[0]


def test_whoever_comes_from_the_vendors_sdk_is_sent_to_methods_that_exist() -> None:
    table = section("Coming from the vendor's SDK")
    methods = set(re.findall(r"client\.conversations\.(\w+)\(", table))
    public = {name for name in vars(agentphone.Conversations) if not name.startswith("_")}
    assert methods == public
    for row in re.findall(r"^\|[^|]*\|([^|]*)\|", table, re.MULTILINE)[2:]:
        for code in re.findall(r"`(.*?)`", row):
            ast.parse(code + " pass" if code.endswith(":") else code)


@pytest.mark.slow
def test_the_reference_is_rendered_without_warnings(tmp_path: Path) -> None:
    done = run(*PYTHON, "-m", "agentphone", "docs", "--out", str(tmp_path / "reference"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "reference" / "index.html") in done.stdout
    for name in MODULES:
        page = (tmp_path / "reference" / name.replace(".", "/")).with_suffix(".html").read_text(encoding="utf-8")
        assert f"<title>{name} API documentation</title>" in page
        assert str(ROOT) not in page
    models_page = (tmp_path / "reference" / "agentphone" / "models.html").read_text(encoding="utf-8")
    assert "lastMessagePreview" in models_page
    assert "optional_field" not in models_page


def test_modules_of_the_reference_are_the_public_ones() -> None:
    package = Path(agentphone.__file__).parent
    public = {path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in public}
    assert {name for name in names if not re.search(r"\._|\.cli\b", name)} == set(MODULES)
