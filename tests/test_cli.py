"""The commands on conversations, against a sandbox over HTTP: what they print for programs, and how they refuse."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from agentphone import AgentPhoneError, APIStatusError, Client, ConfigurationError
from agentphone.__main__ import main
from agentphone._decoding import decode
from agentphone.cli._click import _in_our_words
from agentphone.cli._output import as_line, as_row
from agentphone.cli._tables import CONVERSATIONS, GAP, widths
from agentphone.cli.commands import agentphone
from agentphone.cli.conversations import conversations
from agentphone.models import Message, Page
from agentphone.sandbox import Sandbox
from tests.helpers import message
from tests.listener import listening
from tests.processes import AGENTPHONE, ENVIRONMENT, PYTHON, SECONDS, run, run_in_terminal, sandbox, widest

KEY = "sk-unlikely-text"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve the demonstration data in a process of its own; it accepts one key."""
    with sandbox("--demo", "--api-key", KEY) as (_, url):
        yield url


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[httpx.Client]:
    """Give the API without the SDK."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def listed(api: httpx.Client) -> list[dict[str, Any]]:
    """Give all conversations as the API lists them."""
    found: list[dict[str, Any]] = sent(api.get("/v1/conversations", params={"limit": 100}))["data"]
    return found


def sent(answer: httpx.Response) -> Any:
    """Give what the API sent, with its instants as they are printed here: without a fraction of zeros."""
    return json.loads(answer.text.replace(".000000Z", "Z"))


class Told:
    """What a command left behind."""

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.code = code
        self.output = output
        self.errors = errors

    @property
    def rows(self) -> list[Any]:
        """The lines of a success as JSON."""
        assert (self.code, self.errors) == (0, "")
        return [json.loads(line) for line in self.output.splitlines()]


Tell = Callable[..., Told]


@pytest.fixture
def tell(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Give a function that runs `agentphone conversations ...` here, with its settings in the environment."""
    monkeypatch.setenv("AGENTPHONE_API_KEY", KEY)
    monkeypatch.setenv("AGENTPHONE_BASE_URL", url)

    def tell(*arguments: str, stdin: bytes = b"") -> Told:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main(["conversations", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        assert KEY not in said.out + said.err
        return Told(code, said.out, said.err)

    return tell


# What they print


def test_list_prints_the_twenty_latest_as_the_api_gives_them(tell: Tell, listed: list[dict[str, Any]]) -> None:
    assert tell("list").rows == listed[:20]


def test_list_prints_as_many_as_asked_from_where_it_is_asked(tell: Tell, listed: list[dict[str, Any]]) -> None:
    assert tell("list", "--limit", "3", "--offset", "5").rows == listed[5:8]
    assert tell("list", "--offset", "36").output == ""


def test_list_prints_every_one_if_asked(tell: Tell, listed: list[dict[str, Any]]) -> None:
    assert len(listed) == 36
    assert tell("list", "--all").rows == listed


def test_get_prints_a_conversation_with_its_ten_latest_messages(
    tell: Tell, api: httpx.Client, listed: list[dict[str, Any]]
) -> None:
    path = f"/v1/conversations/{listed[0]['id']}"
    for options, limit in (([], 10), (["--messages", "100"], 100)):
        (row,) = tell("get", listed[0]["id"], *options).rows
        assert len(row["messages"]) == limit
        assert row == sent(api.get(path, params={"message_limit": limit})) | {"lastMessagePreview": None}


def test_messages_prints_the_whole_history_in_either_order(tell: Tell, listed: list[dict[str, Any]]) -> None:
    newest_first = tell("messages", listed[0]["id"]).rows
    assert len(newest_first) == listed[0]["messageCount"] == 640
    assert tell("messages", listed[0]["id"], "--order", "asc").rows == newest_first[::-1]
    assert tell("messages", listed[0]["id"], "--limit", "7").rows == newest_first[:7]
    instants = [message["receivedAt"] for message in newest_first]
    between = tell("messages", listed[0]["id"], "--before", instants[2], "--after", instants[9]).rows
    assert between == newest_first[3:9]


def test_update_merges_what_is_set_into_what_is_there(tell: Tell, listed: list[dict[str, Any]]) -> None:
    conversation_id = listed[7]["id"]
    tell("update", conversation_id, "--clear")
    (row,) = tell("update", conversation_id, "--set", "topic=order", "--set", "step=3").rows
    assert row["metadata"] == {"topic": "order", "step": 3}
    tell("update", conversation_id, "--set", "step=4", "--set", 'tags=["vip"]')
    assert tell("get", conversation_id).rows[0]["metadata"] == {"topic": "order", "step": 4, "tags": ["vip"]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ('{"a": [1]}', {"a": [1]}),
        ("plain words", "plain words"),
        ("", ""),
        ("a=b=c", "a=b=c"),
        ("007", "007"),
        ("+15555550110", "+15555550110"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("[1, NaN]", "[1, NaN]"),
        ("True", "True"),
        ("grün 👍", "grün 👍"),
    ],
)
def test_a_value_is_json_where_it_reads_as_json_and_else_a_text(
    tell: Tell, listed: list[dict[str, Any]], text: str, value: Any
) -> None:
    stored = tell("update", listed[8]["id"], "--set", f"key={text}").rows[0]["metadata"]["key"]
    assert (stored, type(stored)) == (value, type(value))


def test_update_replaces_the_whole_by_a_file(tell: Tell, listed: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_bytes('\ufeff{"from": "größe"}'.encode())
    assert tell("update", listed[9]["id"], "--set", "old=1").rows[0]["metadata"]["old"] == 1
    assert tell("update", listed[9]["id"], "--file", str(file)).rows[0]["metadata"] == {"from": "größe"}
    assert tell("update", listed[9]["id"], "--file", "-", stdin=b"{}").rows[0]["metadata"] == {}


def test_update_clears(tell: Tell, listed: list[dict[str, Any]]) -> None:
    tell("update", listed[9]["id"], "--set", "old=1")
    assert tell("update", listed[9]["id"], "--clear").rows[0]["metadata"] is None


INSTANTS = st.sampled_from(["2025-01-15T11:30:00Z", "2025-01-15T11:30:00.123Z", "2025-01-15T13:30:00.000001+02:00"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_any_value_is_one_printable_line_that_reads_back(value: Any) -> None:
    line = as_line(value)
    assert line.isprintable()
    assert json.loads(line.encode()) == value


@settings(deadline=None)
@given(body=st.none() | st.text(), instant=INSTANTS, extra=st.dictionaries(st.text(), JSON, max_size=3))
def test_a_message_is_printed_as_it_came(body: str | None, instant: str, extra: dict[str, Any]) -> None:
    sent = extra | message(body=body, receivedAt=instant)
    (read,) = decode(json.dumps({"data": [sent], "hasMore": False}).encode(), Page[Message]).data
    row = as_row(read)
    assert row.pop("receivedAt") == {"+": "2025-01-15T11:30:00.000001Z"}.get(instant[-6], instant).replace(
        ".123Z", ".123000Z"
    )
    del sent["receivedAt"]
    assert row == sent


# Settings


@pytest.mark.parametrize("level", [0, 1, 2])
def test_key_and_base_url_may_stand_at_each_level_and_win_over_the_environment(
    tell: Tell, url: str, level: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "another-key")
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "https://127.0.0.1:1")
    command = ["conversations", "list"]
    command[level:level] = ["--api-key", KEY, "--base-url", url]
    assert main([*command, "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_last_word_counts(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong, right = ["--api-key", "wrong"], ["--api-key", KEY]
    assert main(["--base-url", url, *wrong, "conversations", "list", *right]) == 0
    assert main(["--base-url", url, *right, "conversations", *wrong, "list"]) == 1
    assert "401" in capsys.readouterr().err


def test_a_base_url_of_the_sandbox_needs_neither_a_key_nor_a_network() -> None:
    done = run(*AGENTPHONE, "conversations", "list", "--all", "--base-url", "sandbox:")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 36


# How they refuse


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["list", "--limit", "0"], "a limit is a number from 1, not '0'"),
        (["list", "--limit", "ten"], "a limit is a number from 1, not 'ten'"),
        (["list", "--limit", "9" * 30], "a limit is a number from 1"),
        (["list", "--offset", "-1"], "an offset is a number from 0, not '-1'"),
        (["list", "--limit", "5", "--all"], "--limit and --all"),
        (["list", "surplus"], "surplus"),
        (["get"], "Missing argument 'ID'"),
        (["get", ""], "conversation_id is empty"),
        (["get", "a" * 5000], "conversation_id is longer than"),
        (["get", "conv_\udcff"], "conversation_id is not Unicode text"),
        (["get", "conv_1", "--messages", "101"], "from 1 to 100, not '101'"),
        (["messages", "conv_1", "--order", "up"], "'up' is not one of 'asc', 'desc'"),
        (["messages", "conv_1", "--before", "2025-01-15"], "before"),
        (["messages", "conv_1", "--before", "2025-01-15T12:00:00"], "before"),
        (["messages", "conv_1", "--after", "yesterday"], "after"),
        (["follow", "conv_1", "--after", "2025-01-15"], "after"),
        (["follow", ""], "conversation_id is empty"),
        (["watch", "--after", "now"], "after"),
        (["update", "conv_1"], "Give --set, --file or --clear"),
        (["update", "conv_1", "--clear", "--set", "a=1"], "only one of them"),
        (["update", "conv_1", "--set", "a"], "--set is KEY=VALUE, not 'a'"),
        (["update", "conv_1", "--set", "=a"], "--set is KEY=VALUE, not '=a'"),
        (["update", "conv_1", "--file", "/nowhere/state.json"], "No such file"),
        (["update", "conv_1", "--file", "/"], "Is a directory"),
        (["update", "conv_1", "--file", "-"], "--file -: the body is empty, not JSON"),
        (["update", "conv_1", "--fil", "-"], "No such option"),
        (["update", "conv_1", "--set"], "requires an argument"),
        (["update", "conv_1", "--file", "/no\nwhere"], "/no where: No such file"),
        (["lis"], "No such command 'lis'"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_line_and_exit_2(tell: Tell, arguments: list[str], reason: str) -> None:
    told = tell(*arguments)
    assert (told.code, told.output) == (2, "")
    assert told.errors.startswith("agentphone conversations")
    assert reason in told.errors
    assert told.errors.count("\n") == 1
    assert "(usage: agentphone conversations" in told.errors


@pytest.mark.parametrize("error", [ConfigurationError, *APIStatusError.__subclasses__()])
def test_an_error_of_the_sdk_is_told_without_a_word_of_python(error: type[AgentPhoneError]) -> None:
    told: AgentPhoneError
    if issubclass(error, APIStatusError):
        told = error("no", request="GET /", status_code=400)
    else:
        with pytest.raises(ConfigurationError) as caught:
            Client("a key")
        told = caught.value
    assert not re.search(r"[`(=]\w*=|`|\w\(\)|_\w+=", _in_our_words(told))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "metadata is a JSON object"),
        (b"null", "to remove it all, use --clear"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_file_that_is_no_object_is_refused(tell: Tell, content: bytes, reason: str) -> None:
    told = tell("update", "conv_1", "--file", "-", stdin=content)
    assert (told.code, told.output) == (2, "")
    assert reason in told.errors
    assert told.errors.count("\n") == 1


def test_a_number_that_json_cannot_carry_is_refused(tell: Tell, listed: list[dict[str, Any]]) -> None:
    told = tell("update", listed[9]["id"], "--set", "a=1e999")
    assert told.code == 2
    assert "metadata['a'] is inf, which JSON does not have" in told.errors


def test_what_the_api_refuses_is_one_line_and_exit_1(tell: Tell) -> None:
    for command in (["get"], ["update", "--set", "a=1"], ["update", "--clear"], ["messages"]):
        told = tell(*command, "conv_nobody")
        assert (told.code, told.output) == (1, "")
        assert told.errors.startswith(f"agentphone conversations {command[0]}: ")
        assert "/v1/conversations/conv_nobody" in told.errors
        assert ": 404 " in told.errors
        assert told.errors.count("\n") == 1


def test_a_wrong_key_is_exit_1_and_names_the_options_of_the_command_line(tell: Tell) -> None:
    told = tell("list", "--api-key", "sk-another-unlikely-text")
    assert (told.code, told.output) == (1, "")
    assert "Check the API key (--api-key or AGENTPHONE_API_KEY)" in told.errors
    assert "unlikely" not in told.errors


def test_a_base_url_with_the_version_in_it_is_among_what_a_404_may_mean(tell: Tell, url: str) -> None:
    told = tell("list", "--base-url", f"{url}/v1")
    assert (told.code, told.output) == (1, "")
    assert "the base URL leads elsewhere (it stops before /v1)" in told.errors


def test_no_key_is_exit_2_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversations", "list"]) == 2
    assert capsys.readouterr().err == (
        "agentphone conversations list: No API key. Pass --api-key KEY or set AGENTPHONE_API_KEY;"
        " --base-url sandbox: tries the SDK without one.\n"
    )


@pytest.mark.parametrize(
    "value", ["ftp://x", "nonsense", "http://api.example", "https://user:word@api.example", "sandbox:/nowhere/x.db"]
)
def test_a_base_url_that_cannot_be_used_is_exit_2(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversations", "list", "--api-key", "any", "--base-url", value]) == 2
    said = capsys.readouterr().err
    assert said.startswith("agentphone conversations list: ")
    assert "--base-url" in said
    assert "base_url" not in said
    assert "allow_http" not in said
    assert said.count("\n") == 1


def test_an_api_that_is_not_there_is_one_line_and_exit_1() -> None:
    done = run(*AGENTPHONE, "conversations", "list", "--api-key", "any", "--base-url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agentphone conversations list: GET /v1/conversations?limit=20&offset=0: ")
    assert done.stderr.count("\n") == 1
    assert "try again" in done.stderr


def test_ctrl_c_in_a_call_is_130_and_quiet() -> None:
    with (
        listening() as heard,
        subprocess.Popen(
            [*AGENTPHONE, "conversations", "get", "hold", "--api-key", "any", "--base-url", heard.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as process,
    ):
        try:
            assert heard.wait_for(lambda: bool(heard.requests))
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=SECONDS) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 130


def test_an_output_that_nobody_reads_ends_quietly(url: str, listed: list[dict[str, Any]]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    settings = {"AGENTPHONE_API_KEY": KEY, "AGENTPHONE_BASE_URL": url}
    command = [*AGENTPHONE, "conversations", "messages", listed[0]["id"]]
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT | settings, timeout=SECONDS, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(("target", "code"), [("/dev/full", 1), ("&-", 0), ("&- 2>&-", 0)])
def test_an_output_that_is_full_or_closed_is_no_traceback(target: str, code: int) -> None:
    command = [*AGENTPHONE, "conversations", "list", "--base-url", "sandbox:"]
    done = run("sh", "-c", f'exec "$@" >{target}', "sh", *command)
    assert (done.returncode, done.stderr) == (code, "agentphone: No space left on device\n" if code else "")


def test_a_stdin_that_is_closed_is_no_traceback() -> None:
    command = [*AGENTPHONE, "conversations", "update", "conv_1", "--file", "-", "--base-url", "sandbox:"]
    done = run("sh", "-c", 'exec "$@" <&-', "sh", *command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "command", ["conversations list", "conversations update conv_1 --clear", "conversations watch", "export backup"]
)
def test_without_rich_one_line_names_the_command_that_installs_it(command: str) -> None:
    code = (
        "import sys\nsys.modules['rich'] = None\nfrom agentphone.__main__ import main\n"
        f"sys.exit(main({command.split()!r}))\n"
    )
    done = run(*PYTHON, "-c", code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"agentphone {command.partition(' conv_1')[0].removesuffix(' backup')}: rich is not installed;"
        " in the project's folder: pip install '.[cli]'\n"
    )


# In a terminal


TEXTS = [
    "[red]not red[/red] [link=https://example.com]no link[/link] :smile:",
    "\x1b[31mred?\x1b[0m \x1b]0;title\x07 \x9b2J \x08\x7f",
    "\u202eturned round\u202c \u2066isolated\u2069 \ufeff",
    "first line\r\nsecond line\nthird\tline\rback",
    "日本語のとても長いテキストがここにあります。折り返しは二列幅の文字でも正しくなければなりません。",
    "👍 👩\u200d🚀 ❤️",
    "https://example.com/" + 100 * "x",
    "",
]
"""What strangers write."""


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Give the base URL of a sandbox with such texts, and the conversation that holds them all."""
    path = tmp_path_factory.mktemp("strange") / "box.db"
    with Sandbox(path) as box:
        for minute, text in enumerate(TEXTS):
            for number in ("+15555550110", f"+1555555012{minute}"):
                at = datetime(2025, 1, 15, 12, minute, tzinfo=UTC)
                held = box.receive_sms(from_number=number, to_number="+15555550100", body=text, at=at)
                if number == "+15555550110":
                    conversation_id = held["conversationId"]
    return f"sandbox:{path}", conversation_id


def in_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """Run `agentphone conversations ...` in a terminal, and give what it shows."""
    command = [*AGENTPHONE, "conversations", *arguments]
    code, shown = run_in_terminal(*command, columns=columns, cwd=None, **environment)
    assert code == 0, shown
    return shown.replace("\r\n", "\n")


def plain(shown: str) -> str:
    """Give what a terminal shows without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_a_terminal_gets_a_table_whose_ids_are_whole(url: str, listed: list[dict[str, Any]]) -> None:
    shown = plain(in_terminal("list", "--limit", "5", AGENTPHONE_API_KEY=KEY, AGENTPHONE_BASE_URL=url))
    titles, *rows, told = shown.splitlines()
    assert titles.split() == ["ID", "PARTICIPANT", "LATEST", "(UTC)", "MESSAGES", "PREVIEW"]
    assert told == "5 of 36 conversations. --all shows every one."
    for row, conversation in zip(rows, listed[:5], strict=True):
        instant = conversation["lastMessageAt"][:16].replace("T", " ")
        beginning = [
            conversation["id"],
            conversation["participant"],
            *instant.split(),
            str(conversation["messageCount"]),
        ]
        assert row.split()[:5] == beginning
        assert row.endswith("…") or conversation["lastMessagePreview"] in row


def test_a_terminal_gets_json_lines_if_asked(listed: list[dict[str, Any]]) -> None:
    shown = in_terminal("list", "--json", "--limit", "5", "--base-url", "sandbox:")
    assert [json.loads(line)["id"] for line in shown.splitlines()] == [row["id"] for row in listed[:5]]


def test_a_terminal_shows_a_conversation_with_its_metadata_and_messages() -> None:
    shown = plain(in_terminal("get", "conv_9e37b2288a186049", "--messages", "2", "--base-url", "sandbox:"))
    assert re.search(r"^Participant +\+15555550110 *$", shown, re.MULTILINE)
    assert '"customerName": "Ada",' in shown
    assert re.search(r"^channel +sms *$", shown, re.MULTILINE)
    assert len(re.findall(r"^2025-\d\d-\d\d \d\d:\d\d:\d\d  (?:in|out)bound ", shown, re.MULTILINE)) == 2


@pytest.mark.parametrize("columns", [25, 80])
@pytest.mark.parametrize("command", ["list", "get", "messages"])
def test_what_strangers_write_is_shown_and_obeyed_by_no_terminal(
    strange: tuple[str, str], command: str, columns: int
) -> None:
    base_url, conversation_id = strange
    arguments = [command] if command == "list" else [command, conversation_id]
    shown = in_terminal(*arguments, "--base-url", base_url, columns=columns)
    assert widest(shown.replace("\u200d🚀", "")) <= columns  # one figure of two columns, where a terminal knows that
    assert set(re.findall(r"\x1b.[0-9;]*.", shown)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[36m"}
    assert all(letter.isprintable() or letter in "\n\u200d" for letter in plain(shown))
    if command == "messages" and columns >= 80:
        for text in (
            "[red]not red[/red] [link=https://example.com]no",
            r"\x1b[31mred?\x1b[0m \x1b]0;title\x07 \x9b2J",
            r"\u202eturned round\u202c \u2066isolated",
            "third line\\rback",
        ):
            assert text in shown


def test_the_table_gives_up_columns_before_it_breaks_an_id(listed: list[dict[str, Any]]) -> None:
    for columns, titles in ((30, ["ID"]), (60, ["ID", "PARTICIPANT", "LATEST", "(UTC)"])):
        shown = plain(in_terminal("list", "--limit", "1", "--base-url", "sandbox:", columns=columns))
        assert shown.splitlines()[0].split() == titles
        assert shown.splitlines()[1].split()[0] == listed[0]["id"]


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_gets_plain_text(setting: dict[str, str]) -> None:
    for command in (["list"], ["get", "conv_9e37b2288a186049"]):
        assert "\x1b" not in in_terminal(*command, "--base-url", "sandbox:", columns=80, **setting)


def test_a_terminal_of_which_nobody_knows_the_width_gets_eighty_columns() -> None:
    command = ("list", "--base-url", "sandbox:")
    assert in_terminal(*command, COLUMNS="0") == in_terminal(*command, COLUMNS="80")


def test_a_terminal_that_cannot_show_an_emoji_is_no_traceback(strange: tuple[str, str]) -> None:
    base_url, conversation_id = strange
    assert "?" in in_terminal("messages", conversation_id, "--base-url", base_url, PYTHONIOENCODING="ascii")


def test_a_terminal_is_told_that_there_is_nothing(tmp_path: Path, strange: tuple[str, str]) -> None:
    assert plain(in_terminal("list", "--base-url", f"sandbox:{tmp_path / 'box.db'}")) == "No conversations.\n"
    before = ["--before", "2025-01-15T12:00:00Z"]
    assert plain(in_terminal("messages", strange[1], *before, "--base-url", strange[0])) == "No messages.\n"


CELLS = st.text(st.sampled_from("ab 日👍"), max_size=40).map(Text)


@settings(deadline=None)
@given(st.lists(st.tuples(*[CELLS] * len(CONVERSATIONS)), min_size=1, max_size=5), st.integers(1, 200))
def test_columns_never_take_more_than_the_terminal_has(rows: list[tuple[Text, ...]], available: int) -> None:
    decided = widths(CONVERSATIONS, rows, available)
    shown = [width for width in decided if width]
    assert sum(shown) + GAP * (len(shown) - 1) <= available
    assert decided[0] > 0
    assert min(decided) >= 0


# Help and completion


def commands(command: click.Command = agentphone, *path: str) -> Iterator[tuple[str, ...]]:
    """Give the names that lead to each command."""
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *path, name)


@pytest.mark.parametrize("path", [*commands()], ids=" ".join)
def test_each_help_fits_eighty_columns_and_its_examples_are_good(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*path, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: {' '.join(['agentphone', *path])} ")
    assert widest(told) <= 80
    for example in re.findall(r"^  agentphone ((?:[a-z].*?)?)(?: {3}| [|>]|$)", told, re.MULTILINE):
        read(shlex.split(example))


def read(arguments: list[str], command: click.Command = agentphone) -> None:
    """Read a command line to its end without running it; a wrong one is a `UsageError`."""
    if isinstance(command, click.Group) and arguments[0] != "COMMAND":
        read(arguments[1:], command.commands[arguments[0]])
    elif not isinstance(command, click.Group):
        command.make_context("agentphone", arguments)


def test_the_first_help_names_every_command() -> None:
    listed = {name for names in agentphone.headings.values() for name in names}
    assert listed == {" ".join(path) for path in commands() if path} - {"conversations"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install `agentphone` as pip would, and give the folder to search for it."""
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "agentphone"
    code = "import sys\nfrom agentphone.__main__ import main\nsys.exit(main())\n"
    file.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
    file.chmod(0o755)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_and_options_as_the_help_says(script: Path) -> None:
    (line,) = re.findall(r"^  bash  (.*)$", run(*AGENTPHONE, "--help").stdout, re.MULTILINE)
    asked = f"""\
{line}
for typed in 'agentphone conv' 'agentphone conversations ' 'agentphone conversations list --al'; do
    COMP_WORDS=($typed); [[ $typed == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
    _agentphone_completion agentphone
    echo "${{COMPREPLY[@]}}"
done
"""
    done = run("bash", "-c", asked, PATH=f"{script}{os.pathsep}{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["conversations", " ".join(sorted(conversations.commands)), "--all"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_ask_in_their_own_way(shell: str, script: Path) -> None:
    path = f"{script}{os.pathsep}{os.environ['PATH']}"
    source = run("agentphone", PATH=path, _AGENTPHONE_COMPLETE=f"{shell}_source")
    assert (source.returncode, source.stderr) == (0, "")
    assert f"_AGENTPHONE_COMPLETE={shell}_complete" in source.stdout
    words = {"COMP_WORDS": "agentphone conversations me", "COMP_CWORD": "me" if shell == "fish" else "2"}
    done = run("agentphone", PATH=path, _AGENTPHONE_COMPLETE=f"{shell}_complete", cwd=None, **words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "messages" in done.stdout
