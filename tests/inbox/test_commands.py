"""The commands of the inbox: `dev`, `run` and `work` as processes, `inbox list` and `retry`, and what mistakes say."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import Client
from agentphone.__main__ import main
from agentphone.inbox import Inbox
from agentphone.inbox._inbox import open_database
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from agentphone.webhooks import MessageEvent
from tests.inbox import processes
from tests.inbox.account import Account
from tests.inbox.deliveries import delivery
from tests.inbox.world import AGENT, until, working
from tests.support.processes import AGENTPHONE, ENVIRONMENT, SECONDS, run, run_in_terminal
from tests.support.recipes import RECIPES, environment_of

PERSON = "+15555550999"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(RECIPES / "bot.py", tmp_path)
    return tmp_path


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Go to the folder, without settings in the environment, for commands that run in this process, which is quick."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in os.environ if name.startswith("AGENTPHONE_")]:
        monkeypatch.delenv(name)
    modules = {*sys.modules}
    yield folder
    for name in sys.modules.keys() - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Command:
    """A command that runs, and what it has written so far."""

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a text in the log."""
        until(lambda: re.search(pattern, self.log) or not self.process.is_alive())
        found = re.search(pattern, self.log)
        assert found, self.log
        return found


@contextmanager
def command(folder: Path, *arguments: str, environment: dict[str, str] = ENVIRONMENT) -> Iterator[Command]:
    """Run a command of the inbox until the block ends; then stop it in order, unless it was killed."""
    log = folder / f"{arguments[0]}.log"
    log.unlink(missing_ok=True)
    process = processes.start_command(*arguments, folder=folder, environment=environment, log=log)
    try:
        yield Command(process, log)
        if process.is_alive():
            process.terminate()
            process.join(SECONDS)
            assert process.exitcode == 0, log.read_text()
    finally:
        process.kill()


def test_dev_answers_and_forgets_nothing_when_it_is_killed(folder: Path) -> None:
    def send(url: str, body: str) -> str:
        message = {"direction": "inbound", "from": PERSON, "to": AGENT, "body": body}
        headers = {"Authorization": "Bearer dev"}
        answer = httpx.post(f"{url}/sandbox/messages", json=message, headers=headers, trust_env=False)
        return str(answer.json()["conversationId"])

    def replies(url: str, conversation_id: str) -> list[str | None]:
        with Client("dev", base_url=url) as client:
            messages = client.conversations.messages(conversation_id, order="asc")
            return [message.body for message in messages if message.direction == "outbound"]

    behind_proxy = ENVIRONMENT | {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "intranet.example"}
    with command(folder, "dev", "bot:inbox", "--port", "0", environment=behind_proxy) as dev:
        url = dev.wait_for(r"http://127\.0\.0\.1:\d+")[0]
        conversation_id = send(url, "It is ORD-5")
        until(lambda: replies(url, conversation_id) == ["ORD-5 is on its way."])
        dev.wait_for(rf"{conversation_id}: replied in")
        assert "ORD-5" not in dev.log
        dev.process.kill()
        dev.process.join(SECONDS)
    with command(folder, "dev", "bot:inbox", "--port", "0") as dev:
        url = dev.wait_for(r"http://127\.0\.0\.1:\d+")[0]
        assert send(url, "And now?") == conversation_id
        until(lambda: replies(url, conversation_id) == ["ORD-5 is on its way."] * 2)


def test_run_polls_or_serves_the_webhook(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = in_folder
    with Sandbox(retry_scale=0.05) as box, running(box) as api:
        environment = environment_of(folder, api)
        for name in ("API_KEY", "BASE_URL", "WEBHOOK_SECRET", "INBOX_DATABASE"):
            if value := environment.get(f"AGENTPHONE_{name}"):
                monkeypatch.setenv(f"AGENTPHONE_{name}", value)
        with command(folder, "run", "bot:inbox", "--poll-interval", "0.1", environment=environment) as polling:
            polling.wait_for("is running")
            database = open_database()
            until(lambda: database.get("start"))  # what was received before is not handled
            database.close()
            text = box.receive_sms(from_number=PERSON, to_number=AGENT, body="Hi")
            polling.wait_for(rf"{text['conversationId']}: replied in")
        with command(folder, "run", "bot:inbox", "--webhook", "127.0.0.1:0", environment=environment) as serving:
            url = serving.wait_for(r"http://127\.0\.0\.1:\d+")[0]
            box.set_webhook(f"{url}/any/path", environment["AGENTPHONE_WEBHOOK_SECRET"])
            box.receive_sms(from_number=PERSON, to_number=AGENT, body="ORD-1")
            serving.wait_for(rf"{text['conversationId']}: replied in")
            assert main(["run", "bot:inbox"]) == 2
            error = capsys.readouterr().err
            assert error.startswith("agentphone run: name='main': a worker of this name is running already.")
            assert len(error.splitlines()) == 1
    assert main(["inbox", "list"]) == 0
    listed = capsys.readouterr().out
    assert [(item["text"], item["reply"]) for item in map(json.loads, listed.splitlines())] == [
        ("ORD-1", "ORD-1 is on its way."),
        ("Hi", "Which order?"),
    ]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("bot", "'bot' must be MODULE:ATTRIBUTE, such as bot:inbox"),
        ("nothing:inbox", "There is no module nothing in "),
        ("bot:nothing", "The module bot has no nothing."),
        ("bot:OrderState", "bot:OrderState is not an Inbox, but type."),
        (
            "broken:inbox",
            "The module broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 2)",
        ),
        ("needing:inbox", "The module needing cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        ("unreadable:inbox", "The module unreadable cannot be imported: SyntaxError: "),
    ],
)
def test_mistakes_in_the_target(in_folder: Path, capsys: pytest.CaptureFixture[str], target: str, text: str) -> None:
    (in_folder / "broken.py").write_text("x = 1\ny = x / 0\n")
    (in_folder / "needing.py").write_text("import absent\n")
    (in_folder / "unreadable.py").write_text("def\n")
    with pytest.raises(SystemExit) as ended:
        main(["run", target])
    assert ended.value.code == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"agentphone run: {text}")
    assert len(written.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "No API key"),
        (["--webhook", "8000x"], "webhook must be HOST:PORT"),
        (["--api-key", "any-key", "--webhook", "127.0.0.1:0"], "No webhook secret"),
    ],
)
def test_mistakes_in_the_settings(
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    text: str,
) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "")  # so that what the command sets is taken back
    assert main(["run", "bot:inbox", *options]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["work"], ["run"], ["run", "--webhook", "127.0.0.1:0"]])
@pytest.mark.usefixtures("in_folder")
def test_database_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "any-key")
    monkeypatch.setenv("AGENTPHONE_WEBHOOK_SECRET", "whsec_any")
    monkeypatch.setenv("AGENTPHONE_INBOX_DATABASE", "postgresql://nobody:hidden@127.0.0.1:1/nothing")
    assert main([arguments[0], "bot:inbox", *arguments[1:]]) == 1
    written = capsys.readouterr().err
    assert written.startswith(f"agentphone {arguments[0]}: The inbox's database cannot be used: connection failed")
    assert len(written.splitlines()) == 1
    assert "hidden" not in written


def test_list_and_retry(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    account = Account(folder, max_attempts=1)
    broken = True

    @account.inbox.on_message
    def answer(text: MessageEvent) -> str:
        if text.text == "bad" and broken:
            raise RuntimeError("no \x1b[31m answer")
        return "ok"

    monkeypatch.setenv("AGENTPHONE_INBOX_DATABASE", account.inbox._database.url)

    def listed(*options: str) -> list[dict[str, Any]]:
        assert main(["inbox", "list", "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    with working(account.inbox):
        bad = account.text("bad")
        account.text("good")
        account.wait("done")
        account.wait("failed")
    assert [item["status"] for item in listed()] == ["done", "failed"]
    assert [item["text"] for item in listed("--failed")] == ["bad"]
    assert listed("--unconfirmed") == []
    assert [item["text"] for item in listed("--limit", "1")] == ["good"]
    code, shown = run_in_terminal(
        *AGENTPHONE, "inbox", "list", columns=100, AGENTPHONE_INBOX_DATABASE=account.inbox._database.url, NO_COLOR="1"
    )
    assert code == 0
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0][:2] == ["ID", "STATUS"]
    assert [line[1] for line in lines[1:3]] == ["done", "failed"]
    assert shown.splitlines()[3:] == ["With tracebacks: agentphone inbox list --failed --json | jq -r .error"]
    assert "\x1b[31m" not in shown
    broken = False
    assert main(["inbox", "retry", bad["id"]]) == 0
    assert capsys.readouterr().out == f"{bad['id']} will be handled again.\n"
    assert [item["text"] for item in listed("--pending")] == ["bad"]
    with working(account.inbox):
        account.wait("done", count=2)
    assert main(["inbox", "retry", bad["id"]]) == 1
    assert capsys.readouterr().err.startswith(f"agentphone inbox retry: {bad['id']} is done; only failed")
    account.inbox._database.close()


def test_no_database_is_created_by_looking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "inbox.db"
    assert main(["inbox", "list", "--database", f"sqlite:///{path}"]) == 1
    assert f"There is no database {path}." in capsys.readouterr().err
    assert not path.exists()
    path.write_bytes(b"no database" * 1000)
    assert main(["inbox", "list", "--database", f"sqlite:///{path}"]) == 1
    assert "cannot be used: file is not a database" in capsys.readouterr().err


def test_traceback_of_a_handler_is_printed_and_its_database_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "failing.py").write_text(
        "from agentphone.inbox import Inbox\n\ninbox = Inbox(max_attempts=1)\n\n\n@inbox.on_message\n"
        "def answer(text):\n    raise RuntimeError(f'no answer to {text.text}')\n"
    )
    with command(folder, "dev", "failing:inbox", "--port", "0") as dev:
        url = dev.wait_for(r"http://127\.0\.0\.1:\d+")[0]
        message = {"direction": "inbound", "from": PERSON, "to": AGENT, "body": "my secret"}
        httpx.post(f"{url}/sandbox/messages", json=message, headers={"Authorization": "Bearer dev"}, trust_env=False)
        with Client("dev", base_url=url) as client:
            assert len(list(client.conversations.list())) == 1, "no demo data"
        dev.wait_for(r"failed \(RuntimeError: no answer to \*\*\* \(failing\.py, line 8\)\) in")
        again = run(*AGENTPHONE, "dev", "failing:inbox", "--port", "0", cwd=folder)
        assert again.returncode == 2
        assert again.stderr.startswith("agentphone dev: It is running in this folder already.")
        assert "--name" not in again.stderr
    assert 'failing.py", line 8, in answer\n' in dev.log
    assert "my secret" not in dev.log
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("AGENTPHONE_")]:
        monkeypatch.delenv(name)
    assert main(["inbox", "list", "--failed"]) == 0
    written = capsys.readouterr()
    item = json.loads(written.out)
    assert item["error"].endswith("RuntimeError: no answer to my secret\n")
    assert written.err == "This is agentphone-dev-inbox.db, the inbox of agentphone dev.\n"
    assert main(["inbox", "retry", item["id"]]) == 0
    assert main(["inbox", "list", "--database", "sqlite:///agentphone-inbox.db"]) == 1
    assert "There is no database" in capsys.readouterr().err


def test_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "dbos.py").write_text("raise ModuleNotFoundError('No module named dbos', name='dbos')\n")
    code = "import agentphone.inbox"
    done = run(*AGENTPHONE[:-2], "-c", code, cwd=tmp_path)
    assert "agentphone.inbox needs dbos: in the project's folder, pip install '.[inbox]'" in done.stderr
    done = run(*AGENTPHONE, "inbox", "list", "--database", "sqlite:///x.db", cwd=tmp_path)
    assert "dbos is not installed; in the project's folder: pip install '.[inbox]'" in done.stderr


def test_texts_of_another_name_are_not_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    inbox = Inbox(webhook_secret="whsec_of_the_tests", database=url, name="other")
    inbox.receive(*delivery())
    inbox._database.close()
    assert main(["inbox", "list", "--database", url]) == 0
    assert capsys.readouterr().out == ""
    assert main(["inbox", "list", "--database", url, "--inbox", "other"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "msg_1"
