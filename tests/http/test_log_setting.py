"""`AGENTPHONE_LOG`: the log on stderr, for programs that have not set up logging."""

from __future__ import annotations

import os
import re

import pytest

from tests.support.processes import AGENTPHONE, PYTHON, run

PROGRAM = """
import importlib, logging, os, sys
{before}
import agentphone
from agentphone import _logging
{after}
_logging.logger.debug("a call")
logging.getLogger("agentphone.webhooks").warning("a delivery")
{end}
"""
OURS = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
DEBUG = r"DEBUG agentphone: a call\n"
WARNING = r"WARNING agentphone\.webhooks: a delivery\n"
FORMAT = "logging.Formatter('%(levelname)s %(name)s: %(message)s')"
BASIC_CONFIG = "logging.basicConfig(format='%(levelname)s %(name)s: %(message)s')"
OWN_HANDLER = f"h = logging.StreamHandler(); h.setFormatter({FORMAT}); logging.getLogger('agentphone').addHandler(h)"


@pytest.mark.parametrize(
    ("level", "code", "expected"),
    [
        pytest.param("debug", {}, OURS + DEBUG + OURS + WARNING, id="debug"),
        pytest.param("INFO ", {}, OURS + WARNING, id="uppercase"),
        pytest.param("error", {}, "", id="error"),
        pytest.param("", {}, "", id="empty"),
        pytest.param("debug", {"before": BASIC_CONFIG}, DEBUG + WARNING, id="configured-before"),
        pytest.param("debug", {"after": BASIC_CONFIG}, DEBUG + WARNING, id="configured-after"),
        pytest.param("debug", {"before": OWN_HANDLER}, DEBUG + WARNING, id="own-handler-before"),
        pytest.param("debug", {"after": OWN_HANDLER}, DEBUG + WARNING, id="own-handler-after"),
        pytest.param(
            "debug", {"before": "logging.getLogger('agentphone').setLevel('WARNING')"}, OURS + WARNING, id="own-level"
        ),
        pytest.param("debug", {"after": "importlib.reload(_logging)"}, OURS + DEBUG + OURS + WARNING, id="reloaded"),
        pytest.param(
            "info",
            {"end": "if not os.fork(): _logging.logger.info('in the child'); os._exit(0)\nos.wait()"},
            OURS + WARNING + OURS + "INFO agentphone: in the child\n",
            id="forked",
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
        ),
        pytest.param("debug", {"after": "sys.stderr = None"}, "", id="no-stderr"),
    ],
)
def test_each_record_is_printed_once(level: str, code: dict[str, str], expected: str) -> None:
    program = PROGRAM.format(**{"before": "", "after": "", "end": ""} | code)
    done = run(*PYTHON, "-c", program, AGENTPHONE_LOG=level)
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(expected, done.stderr), done.stderr


CALLS = """
import httpx
import agentphone
from agentphone.webhooks import Webhook
transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"data": [], "hasMore": False}))
with agentphone.Client("any-key", transport=transport) as client:
    client.conversations.list(limit=1).page()
try:
    Webhook("whsec_one").verify(b"a private text", Webhook("whsec_two").sign(b"a private text"))
except agentphone.WebhookVerificationError:
    pass
"""
CALL = OURS + r"DEBUG agentphone: GET /v1/conversations: 200, attempt 1, [\d.]+ ms\n"
REFUSAL = OURS + r"WARNING agentphone\.webhooks: webhook delivery refused: The signature matches none .*\n"


def test_calls_and_refused_webhooks_are_logged() -> None:
    done = run(*PYTHON, "-c", CALLS, AGENTPHONE_LOG="debug")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(CALL + REFUSAL, done.stderr), done.stderr
    assert "whsec" not in done.stderr
    assert "private" not in done.stderr


def test_unknown_level_warns_and_is_ignored() -> None:
    done = run(*PYTHON[:1], "-c", "import agentphone.webhooks", AGENTPHONE_LOG="verbose")
    assert (done.returncode, done.stdout) == (0, "")
    text = "RuntimeWarning: AGENTPHONE_LOG must be one of debug, info, warning, error, got 'verbose'; it is ignored."
    assert text in done.stderr


def test_command_line_logs_to_stderr() -> None:
    done = run(*AGENTPHONE, "conversations", "list", "--limit", "1", "--base-url", "sandbox:", AGENTPHONE_LOG="debug")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert re.fullmatch(CALL, done.stderr)
