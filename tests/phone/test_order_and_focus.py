"""What is easily lost in the phone: the order of messages, gaps between them, what is typed early, and the focus."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agentphone.sandbox import Sandbox

from .agent import Agent
from .conftest import Pages
from .test_phone import BEN, SCROLL_UP_TO, bubbles, expect, fill, receive, say

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # a browser for each worker
DETAIL = re.compile(r"/v1/conversations/[^/]+\?message_limit=")


@asynccontextmanager
async def holding(page: Page, url: re.Pattern[str]) -> AsyncIterator[None]:
    """Let no request for a URL through meanwhile."""
    released = asyncio.Event()

    async def hold(route: Route) -> None:
        await released.wait()
        await route.continue_()

    await page.route(url, hold)
    try:
        yield
    finally:
        released.set()


async def test_messages_of_one_timestamp_stay_in_the_order_of_arrival(sandbox: Sandbox, pages: Pages) -> None:
    """A test may set a clock that stands still."""
    sandbox.clock = lambda: 1_767_225_600.0
    for number in range(3):
        receive(sandbox, f"Text {number}.")
    async with pages.page() as page:
        await expect(bubbles(page, "Text 2.")).to_be_visible()
        receive(sandbox, "Text 3.")
        await expect(bubbles(page, "Text 3.")).to_be_visible()
        await say(page, "Text 4.")
        await expect(bubbles(page, "Text 4.")).to_be_visible()
        await expect(page.locator("article .body")).to_contain_text([f"Text {number}." for number in range(5)])


async def test_gap_before_a_text_of_ones_own_is_closed(sandbox: Sandbox, pages: Pages) -> None:
    fill(sandbox, 20)
    async with pages.page() as page:
        await expect(bubbles(page, "Text 19.")).to_be_visible()
        async with holding(page, DETAIL):
            for number in range(150):
                receive(sandbox, f"Missed {number}.")
            await say(page, "Mine")
            await expect(bubbles(page, "Mine")).to_be_visible()
        await expect(page.locator("#about-conversation")).to_contain_text("171 messages")
        assert await page.evaluate(SCROLL_UP_TO, "Missed 20.")


async def test_text_that_is_sent_before_the_messages_are_loaded_arrives(sandbox: Sandbox, pages: Pages) -> None:
    ada = receive(sandbox, "From Ada")
    receive(sandbox, "From Ben", person=BEN)
    async with pages.page() as page:
        await expect(bubbles(page, "From Ben")).to_be_visible()
        async with holding(page, re.compile(f"/v1/conversations/{ada}")):
            await page.locator("#list a", has_text="From Ada").click()
            await say(page, "Early")
        await expect(bubbles(page, "Early")).to_be_visible()
        await expect(page.locator("article .body")).to_contain_text(["From Ada", "Early"])


async def test_text_that_cannot_be_sent_stays_a_draft_of_its_conversation(sandbox: Sandbox, pages: Pages) -> None:
    receive(sandbox, "From Ada")
    receive(sandbox, "From Ben", person=BEN)
    async with pages.page() as page:
        await expect(bubbles(page, "From Ben")).to_be_visible()
        released = asyncio.Event()

        async def lose(route: Route) -> None:
            await released.wait()
            await route.abort()

        await page.route("**/sandbox/messages", lose)
        await say(page, "For Ben")
        await page.locator("#list a", has_text="From Ada").click()
        await expect(bubbles(page, "From Ada")).to_be_visible()
        released.set()
        await expect(page.locator("#toast")).to_have_text("The sandbox cannot be reached.")
        await page.locator("#list a", has_text="From Ben").click()
        await expect(page.get_by_role("textbox", name="Text as")).to_have_value("For Ben")


async def test_request_that_arrives_while_the_others_are_read_is_shown(url: str, pages: Pages) -> None:
    arrived = asyncio.Event()

    async def answer_late(route: Route) -> None:
        response = await route.fetch()
        await arrived.wait()
        await route.fulfill(response=response)

    async with pages.page() as page:
        await expect(page.locator("#connection")).to_have_attribute("data-state", "live")
        await page.route(re.compile(r"/sandbox/requests\?"), answer_late)
        async with page.expect_request(re.compile(r"/sandbox/requests\?")):
            await page.reload()
        await expect(page.locator("#connection")).to_have_attribute("data-state", "live")
        await page.request.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer agent"})
        await expect(page.locator("#requests .badge.good")).to_have_text("200")
        async with page.expect_response(re.compile(r"/sandbox/requests\?")):
            arrived.set()
        await page.evaluate("new Promise(requestAnimationFrame)")
        await expect(page.locator("#requests .badge.good")).to_have_text("200")


async def test_request_that_cannot_be_read_says_why(sandbox: Sandbox, url: str, pages: Pages) -> None:
    async with pages.page() as page:
        await page.request.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer agent"})
        await page.route("**/sandbox/requests/*", lambda route: route.abort())
        await expect(page.locator("#requests .badge.good")).to_have_text("200")  # now the row changes no more
        await page.locator("#requests summary").click()
        await expect(page.locator("#requests .inside")).to_have_text("The sandbox cannot be reached.")


async def test_focus_stays_on_what_moves(sandbox: Sandbox, pages: Pages) -> None:
    fill(sandbox, 200)
    receive(sandbox, "From Ben", person=BEN)
    async with pages.page() as page:
        await expect(bubbles(page, "From Ben")).to_be_visible()
        ada = page.locator("#list a", has_text="0110")
        await ada.focus()
        receive(sandbox, "News")
        await expect(page.locator("#list a").first).to_contain_text("News")
        await expect(ada).to_be_focused()

        await page.keyboard.press("Enter")
        await expect(bubbles(page, "News")).to_be_visible()
        await page.locator("#thread").focus()
        for key in ["ArrowUp"] * 40 + ["ArrowDown"] * 20:
            await page.keyboard.press(key)
            await page.evaluate("new Promise(requestAnimationFrame)")
        await expect(page.locator("article:focus")).to_contain_text("Text 181.")


async def test_delivery_keeps_the_focus_when_it_is_delivered_again(
    sandbox: Sandbox, agent: Agent, pages: Pages
) -> None:
    receive(sandbox, "Hello")
    async with pages.page() as page:
        await expect(bubbles(page, "You said: Hello")).to_be_visible()
        await expect(page.locator("#deliveries .badge.good")).to_be_visible()  # now the row changes no more
        await page.locator("#deliveries summary").click()
        again = page.get_by_role("button", name="Deliver again")
        await again.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#deliveries .attempts li")).to_have_count(2)
        await expect(again).to_be_focused()


async def test_removed_conversations_are_not_counted(sandbox: Sandbox, pages: Pages) -> None:
    ada = receive(sandbox, "From Ada")
    receive(sandbox, "From Ben", person=BEN)
    async with pages.page() as page:
        await expect(bubbles(page, "From Ben")).to_be_visible()
        sandbox.remove_conversation(ada)
        await expect(page.locator("#list li")).to_have_count(1)
        await expect(page.locator("#list-count")).to_have_text("1")


async def test_key_that_no_header_can_carry_is_refused_before_it_is_sent(pages: Pages) -> None:
    from agentphone.sandbox.server import running

    with Sandbox(api_key="sk-page-key") as sandbox, running(sandbox) as pages.url:
        receive(sandbox, "Secret")
        async with pages.page() as page:
            field = page.get_by_role("textbox", name="Key")
            await field.fill("clé€")
            await page.keyboard.press("Enter")
            await expect(field).to_be_visible()
            await field.fill("sk-page-key")
            await page.keyboard.press("Enter")
            await expect(bubbles(page, "Secret")).to_be_visible()
