"""What axe-core finds in the phone, in light and in dark, wide and narrow; and that nothing overflows at 360 pixels.

`AGENTPHONE_AXE` is the path of axe-core's `axe.min.js`, which `npm install axe-core` brings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentphone.sandbox import Sandbox

from .agent import Agent
from .conftest import ColorScheme, Pages, skip
from .test_phone import AGENT, bubbles, expect

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # a browser for each worker


@pytest.fixture(scope="module")
def axe() -> str:
    path = os.environ.get("AGENTPHONE_AXE")
    if not path:
        skip("axe-core is missing: npm install axe-core, and AGENTPHONE_AXE=node_modules/axe-core/axe.min.js")
    return Path(path).read_text(encoding="utf-8")


async def problems(page: Page) -> list[str]:
    """Return what axe-core finds serious, a line for each kind of problem."""
    found: list[dict[str, Any]] = (await page.evaluate("axe.run({ resultTypes: ['violations'] })"))["violations"]
    return [
        f"{problem['id']}: {problem['help']}: {problem['nodes'][0]['html'][:200]}"
        for problem in found
        if problem["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_serious_problem(
    axe: str, sandbox: Sandbox, agent: Agent, pages: Pages, scheme: ColorScheme
) -> None:
    for number in range(4):
        sandbox.send_sms(from_number=AGENT, to_number=f"+1555555012{number}", body="Hello, 😀")
    agent.statuses = [503]
    sandbox.receive_sms(from_number="+15555550110", to_number=AGENT, body="Hello")
    async with pages.page(color_scheme=scheme) as page:
        await expect(bubbles(page, "You said: Hello")).to_be_visible()
        await page.evaluate(axe)
        sandbox.receive_sms(from_number="+15555550122", to_number=AGENT, body="Unread")
        await expect(page.locator("#list .unread")).to_be_visible()
        await page.locator("#deliveries summary").click()
        await page.locator("#requests summary").first.click()
        await expect(page.locator("#requests pre").last).to_be_visible()
        assert await problems(page) == []
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await problems(page) == []
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        await page.get_by_role("button", name="State, webhooks and requests").click()
        assert await problems(page) == []
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Back to the conversations").click()
        await page.get_by_role("searchbox").fill("hello")
        await expect(page.locator("#list mark").first).to_be_visible()
        await page.get_by_role("button", name="New text").first.click()
        assert await problems(page) == []
