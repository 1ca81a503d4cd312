"""A newcomer's notebook, run cell by cell in a real IPython kernel, and IPython outside a kernel.

Jupyter's packages run in a process of their own: what they warn of, and the sockets that they leave open, would fail
other tests.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agentphone.sandbox import Sandbox
from tests.support.processes import PYTHON, SECONDS, run

pytestmark = pytest.mark.slow

CELLS = {
    "connect": """\
import pandas as pd
from agentphone import Client

client = Client()
conversations = pd.DataFrame(c.to_dict() for c in client.conversations.list())
conversations[["participant", "messageCount"]].head()""",
    "dates": """\
conversations["lastMessageAt"] = pd.to_datetime(conversations["lastMessageAt"], format="ISO8601")
len(conversations), str(conversations["lastMessageAt"].dt.tz), int(conversations["messageCount"].sum())""",
    "export": """\
from agentphone.export import export

result = export(client, "backup", format="parquet")
result.messages""",
    "plot": """\
messages = pd.read_parquet("backup/messages.parquet")
per_day = messages.resample("D", on="receivedAt").size()
per_day.plot.bar(ylabel="messages");""",
    "cursor": """\
from pathlib import Path

conversation_id = conversations["id"][0]
newest = next(iter(client.conversations.messages(conversation_id)))
Path("cursor.txt").write_text(str(newest.cursor))""",
    "text": """\
from agentphone.sandbox import Sandbox

number, participant = conversations.loc[0, ["phoneNumber", "participant"]]
with Sandbox("box.db") as box:  # as if the person wrote while the notebook was closed
    for body in ("Are you there?", "Thanks!"):
        box.receive_sms(from_number=participant, to_number=number, body=body)""",
    "resume": """\
from agentphone import Cursor

after = Cursor.parse(Path("cursor.txt").read_text())
for message in client.conversations.follow(conversation_id, after=after):
    print(message.body)
    Path("cursor.txt").write_text(str(message.cursor))
    if message.body == "Thanks!":
        break""",
    "close": "client.close()",
    "await": """\
from agentphone import AsyncClient

async with AsyncClient() as asynchronous:
    page = await asynchronous.conversations.list()
page.total""",
}
"""What a newcomer types; the sandbox is in the place of the account."""


RUN = f"""
import sys

import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout={SECONDS}, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Run the notebook, and return the outputs of its cells.

    It takes six seconds, most of them for the kernel to start and to import pandas and matplotlib.
    """
    directory = tmp_path_factory.mktemp("notebook")
    with Sandbox(directory / "box.db") as box:
        box.load_demo_data()
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": name, "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        for name, source in CELLS.items()
    ]
    path = directory / "notebook.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    done = run(PYTHON[0], "-c", RUN, str(path), cwd=directory, AGENTPHONE_BASE_URL="sandbox:box.db", **user(directory))
    assert done.returncode == 0, done.stderr
    return {cell["id"]: cell["outputs"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


def user(directory: Path) -> dict[str, str]:
    """Return an environment without the profile, history and settings of this machine's user."""
    names = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
    return {name: str(directory / name) for name in names} | {"MPLBACKEND": ""}


def text(cell: list[dict[str, Any]]) -> str:
    [output] = cell
    return "".join(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])


def test_no_cell_warns(outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert [output for cell in outputs.values() for output in cell if output.get("name") == "stderr"] == []


def test_conversations_become_a_data_frame(outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert text(outputs["connect"]).splitlines()[1].split() == ["0", "+15555550110", "640"]
    assert text(outputs["dates"]) == "(36, 'UTC', 1817)"


def test_messages_per_day_become_a_picture(outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert text(outputs["export"]) == "1817"
    [output] = outputs["plot"]
    picture = base64.b64decode(output["data"]["image/png"])
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5_000


def test_follower_resumes_from_the_stored_cursor(outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert text(outputs["resume"]) == "Are you there?\nThanks!\n"


def test_async_client_is_awaited_in_a_cell(outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert text(outputs["await"]) == "36"


def test_blocking_call_on_the_loop_of_a_terminal_warns(tmp_path: Path) -> None:
    """IPython in a terminal runs a loop only for a cell that awaits something, which a blocking call stops."""
    program = """
from agentphone import Client
async def main():
    return Client().conversations.list().page().total
print(await main())
"""
    done = run(
        *PYTHON[:1], "-m", "IPython", "-c", program, cwd=tmp_path, AGENTPHONE_BASE_URL="sandbox:", **user(tmp_path)
    )
    assert done.stdout == "36\n"
    [warning] = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert "`client.conversations.list().page()` blocks the event loop that runs in this thread." in warning
