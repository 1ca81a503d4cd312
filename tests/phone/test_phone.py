"""The phone in a real browser: what a developer does with it, and what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentphone.sandbox import Behavior, Sandbox
from agentphone.sandbox.server import running

from .agent import Agent
from .conftest import Pages

if TYPE_CHECKING:
    from playwright.async_api import Page

ADA, BEN, AGENT = "+15555550110", "+15555550111", "+15555550100"
MARKUP = "<img src=x onerror=alert(1)> <b>bold</b> &amp; </script>"
pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # a browser for each worker


def receive(sandbox: Sandbox, body: str, *, person: str = ADA, at: str | None = None) -> str:
    """Store a text from a person, and return the conversation's id."""
    message = sandbox.receive_sms(from_number=person, to_number=AGENT, body=body, at=at)
    return str(message["conversationId"])


def expect(target: Any) -> Any:
    from playwright.async_api import expect

    return expect(target)


def bubbles(page: Page, text: str | re.Pattern[str]) -> Any:
    return page.locator("article .body", has_text=text)


async def top_of(target: Any) -> float:
    """Return the distance of an element from the top of the window."""
    box = await target.bounding_box()
    return float(box["y"])


async def say(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Text as").fill(text)
    await page.keyboard.press("Enter")


async def test_text_is_answered_with_the_state_beside_it(sandbox: Sandbox, agent: Agent, pages: Pages) -> None:
    sandbox.send_sms(from_number=AGENT, to_number=ADA, body="Hello")
    async with pages.page() as page:
        await say(page, "Where is ORD-5?")
        answer = bubbles(page, "You said: Where is ORD-5?")
        await expect(answer).to_be_visible()
        await expect(page.locator("article.agent", has_text="You said: Where is ORD-5?")).to_have_count(1)
        await expect(page.locator("#state .changed", has_text="texts1")).to_have_count(1)
        await expect(page.locator("#state .changed", has_text="lastWhere is ORD-5?")).to_have_count(1)
        await expect(page.locator("#deliveries > li")).to_have_count(1)
        await expect(page.locator("#requests .target").first).to_have_text("/v1/messages")
        await expect(page.locator("#announcer")).to_have_text("Agent: You said: Where is ORD-5?")
        await expect(page.locator("#list a").first).to_contain_text("You said: Where is ORD-5?")


async def test_new_number_starts_a_conversation(agent: Agent, pages: Pages) -> None:
    async with pages.page() as page:
        await page.get_by_role("button", name="New text").first.click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("From").fill(BEN)
        await dialog.get_by_role("textbox", name="Text").fill("Hi there")
        await dialog.get_by_role("button", name="Send").click()
        await expect(bubbles(page, "You said: Hi there")).to_be_visible()
        await expect(page.locator("#participant")).to_have_text("+1 555 555 0111")
        assert "conversation=conv_" in page.url


async def test_reload_keeps_the_place(sandbox: Sandbox, pages: Pages) -> None:
    for number in range(300):
        receive(sandbox, f"Text {number}.", at=f"2026-01-01T10:{number // 60:02}:{number % 60:02}Z")
    receive(sandbox, "Another", person=BEN)
    async with pages.page() as page:
        await page.locator("#list a", has_text="0110").click()
        await page.get_by_role("textbox", name="Text as").fill("A draft")
        place = bubbles(page, "Text 120.")
        await expect(bubbles(page, "Text 299.")).to_be_visible()
        assert await page.evaluate(SCROLL_UP_TO, "Text 120.")
        await page.wait_for_timeout(200)
        before = await top_of(place)
        await page.reload()
        await expect(place).to_be_in_viewport()
        await expect(page.get_by_role("textbox", name="Text as")).to_have_value("A draft")
        assert abs(await top_of(place) - before) < 5


SCROLL_UP_TO = """async (text) => {
    const thread = document.getElementById("thread");
    for (let step = 0; step < 100; step += 1) {
        const found = [...thread.querySelectorAll("article")].find((row) => row.textContent.includes(text));
        if (found) return found.scrollIntoView({ block: "center" }) ?? true;
        thread.scrollTop -= 400;
        for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
    }
    return false;
}"""


async def test_pages_see_the_same_and_mark_what_is_unread(sandbox: Sandbox, pages: Pages) -> None:
    """More tabs than the six connections that a browser opens to a server."""
    ada, ben = receive(sandbox, "Hello"), receive(sandbox, "Hi", person=BEN)
    async with pages.context() as context:
        tabs = [await context.new_page() for _ in range(7)]
        for tab in tabs:
            await tab.goto(f"{pages.url}/?conversation={ben}")
            await expect(tab.locator("#connection")).to_have_text("Live")
        await say(tabs[0], "From the first tab")
        sandbox.send_sms(from_number=AGENT, to_number=ADA, body="To another")
        for tab in tabs:
            await expect(bubbles(tab, "From the first tab")).to_have_count(1)
            await expect(tab.locator("#list .unread")).to_contain_text("To another")
        await tabs[0].close()  # it held the stream
        receive(sandbox, "Later", person=BEN)
        for tab in tabs[1:]:
            await expect(bubbles(tab, "Later")).to_have_count(1)
        await tabs[1].locator("#list .unread").click()
        await expect(bubbles(tabs[1], "To another")).to_be_visible()
        await expect(tabs[1].locator("#list .unread")).to_have_count(0)
        assert tabs[1].url.endswith(ada)


async def test_change_by_another_process_appears(tmp_path: Path, pages: Pages) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as served, Sandbox(path) as other, running(served) as pages.url:
        receive(other, "Hello")
        async with pages.page() as page:
            await expect(bubbles(page, "Hello")).to_be_visible()
            receive(other, "From elsewhere")
            await expect(bubbles(page, "From elsewhere")).to_be_visible()


async def test_lost_server_comes_back(tmp_path: Path, pages: Pages) -> None:
    with Sandbox(tmp_path / "box.db") as sandbox:
        receive(sandbox, "Hello")
        with running(sandbox) as pages.url:
            port = int(pages.url.rpartition(":")[2])
            opened = pages.page()
            page = await opened.__aenter__()
            await expect(page.locator("#connection")).to_have_text("Live")
        try:
            await expect(page.locator("#lost")).to_be_visible()
            await say(page, "Not lost")
            await expect(page.locator("#toast")).to_have_text("The sandbox cannot be reached.")
            receive(sandbox, "Meanwhile")
            with running(sandbox, port=port):
                await expect(bubbles(page, "Meanwhile")).to_be_visible()
                await expect(page.locator("#lost")).to_be_hidden()
                await expect(page.get_by_role("textbox", name="Text as")).to_have_value("Not lost")
                await page.keyboard.press("Enter")
                await expect(bubbles(page, "Not lost")).to_have_count(1)
        finally:
            await opened.__aexit__(None, None, None)


async def test_restarted_sandbox_without_its_data_is_noticed(pages: Pages) -> None:
    with Sandbox() as first, running(first) as pages.url:
        port = int(pages.url.rpartition(":")[2])
        receive(first, "Hello")
        opened = pages.page()
        page = await opened.__aenter__()
        await expect(bubbles(page, "Hello")).to_be_visible()
    try:
        with Sandbox() as second, running(second, port=port):
            await expect(page.get_by_role("heading", name="Text with your agent")).to_be_visible()
            receive(second, "Hi", person=BEN)
            await expect(page.locator("#list a")).to_contain_text("Hi")
    finally:
        await opened.__aexit__(None, None, None)


async def test_polling_replaces_a_stream_that_does_not_get_through(sandbox: Sandbox, pages: Pages) -> None:
    receive(sandbox, "Hello")
    async with pages.context() as context:
        await context.route("**/sandbox/events", lambda route: route.abort())
        page = await context.new_page()
        await page.goto(pages.url)
        await expect(page.locator("#connection")).to_have_text("Live, by polling")
        receive(sandbox, "By polling")
        await expect(bubbles(page, "By polling")).to_be_visible()


async def test_markup_in_texts_is_shown_as_written(sandbox: Sandbox, url: str, pages: Pages) -> None:
    receive(sandbox, MARKUP, person=f"<i>{ADA}")
    async with pages.page() as page:
        await page.evaluate("() => { window.alert = () => { throw new Error('markup ran') } }")
        await expect(bubbles(page, MARKUP)).to_be_visible()
        await expect(page.locator("#list .preview")).to_have_text(MARKUP)
        await expect(page.locator("#participant")).to_have_text(f"<i>{ADA}")
        await page.request.patch(
            f"{url}/v1/conversations/{receive(sandbox, 'x', person=f'<i>{ADA}')}",
            headers={"Authorization": "Bearer x"},
            data={"metadata": {"<u>key": MARKUP}},
        )
        await expect(page.locator("#state .value")).to_have_text(MARKUP)
        await page.get_by_role("searchbox").fill("ONERROR")
        await expect(page.locator("#list mark")).to_have_text("onerror")
        assert await page.locator("article img, article b, #list img, #state u, i").count() == 0


async def test_long_thread_keeps_only_what_is_visible(sandbox: Sandbox, pages: Pages) -> None:
    fill(sandbox, 10_000)
    async with pages.page() as page:
        await expect(bubbles(page, "Text 9999.")).to_be_visible()
        assert await page.evaluate(MOST_ROWS_WHILE_LOADING) < 100
        await expect(bubbles(page, re.compile(r"^Text 0\."))).to_be_in_viewport()
        assert await page.evaluate(MOST_ROWS_WHILE_SCROLLING) < 100
        await page.get_by_role("button", name="Go to the newest message").click()
        await expect(bubbles(page, "Text 9999.")).to_be_in_viewport()


MOST_ROWS_WHILE_LOADING = """async () => {
    const thread = document.getElementById("thread");
    let most = 0;
    for (let isAtTop = false; !isAtTop; ) {
        isAtTop = document.querySelector(".thread-top").textContent.startsWith("Beginning");
        thread.scrollTop = -thread.scrollHeight;
        await new Promise(requestAnimationFrame);
        most = Math.max(most, thread.querySelectorAll("article").length);
    }
    return most;
}"""

MOST_ROWS_WHILE_SCROLLING = """async () => {
    const thread = document.getElementById("thread");
    let most = 0;
    for (let step = 0; step < 40; step += 1) {
        thread.scrollTop += 700;
        await new Promise(requestAnimationFrame);
        most = Math.max(most, thread.querySelectorAll("article").length);
    }
    return most;
}"""


def fill(sandbox: Sandbox, count: int) -> None:
    """Store a long conversation in one transaction."""
    from agentphone.sandbox._messages import MessageInput

    start = 1_767_225_600_000_000
    sandbox._store.fill(
        [
            MessageInput(
                "outbound" if n % 3 else "inbound",
                AGENT,
                ADA,
                f"Text {n}. " + "word " * (n % 40),
                start + n * 20_000_000,
            )
            for n in range(count)
        ],
        {},
    )


async def test_place_is_kept_while_texts_arrive_below(sandbox: Sandbox, pages: Pages) -> None:
    fill(sandbox, 120)
    async with pages.page() as page:
        await expect(bubbles(page, "Text 119.")).to_be_visible()
        await page.locator("#thread").hover()
        await page.mouse.wheel(0, -1500)
        await page.wait_for_timeout(200)
        place = page.locator("article").nth(10)
        before = await top_of(place)
        receive(sandbox, "News")
        await expect(page.get_by_text("New messages", exact=True)).to_be_visible()
        assert abs(await top_of(place) - before) < 2
        await page.get_by_role("button", name="Go to the newest message").click()
        await expect(bubbles(page, "News")).to_be_in_viewport()


async def test_found_message_is_shown_in_its_place(sandbox: Sandbox, pages: Pages) -> None:
    fill(sandbox, 700)
    ben = receive(sandbox, "Hi", person=BEN)
    async with pages.page(f"/?conversation={ben}") as page:
        await page.get_by_role("searchbox").fill("text 88.")
        await expect(page.locator("#list li")).to_have_count(1)
        await page.locator("#list a").click()
        await expect(page.locator("article.found")).to_contain_text("Text 88.")
        await expect(page.locator("article.found")).to_be_in_viewport()
        await page.go_back()
        await expect(bubbles(page, "Hi")).to_be_visible()


async def test_list_loads_more_while_it_is_scrolled(sandbox: Sandbox, pages: Pages) -> None:
    for number in range(130):
        receive(sandbox, f"Hi {number}", person=f"+1555556{number:04}")
    async with pages.page() as page:
        await expect(page.locator("#list li")).to_have_count(100)
        await page.locator("#list li").last.scroll_into_view_if_needed()
        await expect(page.locator("#list li")).to_have_count(130)
        receive(sandbox, "Again", person="+15555560000")
        await expect(page.locator("#list a").first).to_contain_text("Again")
        await expect(page.locator("#list li")).to_have_count(130)


async def test_member_of_a_group_and_whatsapp_are_texted_in_their_conversation(
    sandbox: Sandbox, url: str, pages: Pages
) -> None:
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="By WhatsApp", channel="whatsapp")
    receive(sandbox, "By SMS")
    async with pages.page() as page:
        sent = {"from_number": AGENT, "recipients": [ADA, BEN], "body": "Welcome"}
        await page.request.post(f"{url}/v1/messages", headers={"Authorization": "Bearer x"}, data=sent)
        await page.locator("#list a", has_text="Welcome").click()
        await page.get_by_label("The member of the group").select_option(BEN)
        await page.get_by_role("textbox", name="Text the group").fill("Hi all")
        await page.keyboard.press("Enter")
        await expect(page.locator("article.person", has_text="Hi all").locator(".sender")).to_have_text(BEN)
        await page.locator("#list a", has_text="By WhatsApp").click()
        await expect(page.get_by_label("The member of the group")).to_be_hidden()
        await say(page, "Still by WhatsApp")
        await expect(page.locator("#about-conversation")).to_contain_text("2 messages · WhatsApp")


async def test_message_that_the_history_shows_late_appears(sandbox: Sandbox, url: str, pages: Pages) -> None:
    receive(sandbox, "Hello")
    sandbox.behavior = Behavior(sent_message_delay=1.0)
    async with pages.page() as page:
        await expect(bubbles(page, "Hello")).to_be_visible()
        sent = {"from_number": AGENT, "to_number": ADA, "body": "Late"}
        await page.request.post(f"{url}/v1/messages", headers={"Authorization": "Bearer x"}, data=sent)
        await expect(bubbles(page, "Late")).to_be_visible()


async def test_everything_works_by_keyboard(sandbox: Sandbox, pages: Pages) -> None:
    receive(sandbox, "From Ada")
    receive(sandbox, "From Ben", person=BEN)
    async with pages.page() as page:
        await expect(bubbles(page, "From Ben")).to_be_visible()
        await page.get_by_role("searchbox").focus()
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        await expect(bubbles(page, "From Ada")).to_be_visible()
        await page.keyboard.type("Typed")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("in two lines")
        await page.keyboard.press("Enter")
        await expect(bubbles(page, "Typed\nin two lines")).to_have_count(1)
        for _ in range(3):  # back over the two buttons, to the thread
            await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("ArrowUp")
        await expect(page.locator("article:focus")).to_contain_text("From Ada")


async def test_key_is_asked_for_and_forgotten(pages: Pages) -> None:
    with Sandbox(api_key="sk-page-key") as sandbox, running(sandbox) as pages.url:
        receive(sandbox, "Secret")
        async with pages.page() as page:
            await page.get_by_role("textbox", name="Key").fill("wrong")
            await page.get_by_role("button", name="Continue").click()
            await expect(page.get_by_role("alert").filter(has_text="not this sandbox's key")).to_be_visible()
            assert "Secret" not in await page.content()
            await page.get_by_role("textbox", name="Key").fill("sk-page-key")
            await page.keyboard.press("Enter")
            await expect(bubbles(page, "Secret")).to_be_visible()
            await say(page, "With the key")
            await expect(bubbles(page, "With the key")).to_be_visible()
            stored = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
            assert "sk-page-key" not in stored + page.url
            await page.reload()
            await expect(page.get_by_role("textbox", name="Key")).to_be_visible()


async def test_faults_and_repetitions_are_a_click_away(sandbox: Sandbox, url: str, agent: Agent, pages: Pages) -> None:
    receive(sandbox, "Hello")
    async with pages.page() as page:
        await expect(bubbles(page, "You said: Hello")).to_be_visible()
        agent.statuses = [503]
        await page.get_by_role("textbox", name="Text as").fill("Twice")
        await page.get_by_role("button", name="Send twice").click()
        await expect(bubbles(page, re.compile("^Twice"))).to_have_count(2)
        await expect(bubbles(page, "You said: Twice")).to_have_count(2)
        await expect(page.locator("#deliveries", has_text="2 attempts")).to_be_visible()
        await page.get_by_role("button", name="Burst of ten").click()
        await expect(bubbles(page, re.compile(r"^Burst \(10 of 10\)"))).to_have_count(1)
        await expect(page.locator("#deliveries > li")).to_have_count(13)

        oldest = page.locator("#deliveries > li").last
        await oldest.locator("summary").click()
        await expect(oldest.locator("pre")).to_contain_text('"event": "agent.message"')
        await oldest.get_by_role("button", name="Deliver again").click()
        await expect(oldest.locator(".attempts li")).to_have_count(2)
        assert [event["data"]["message"] for event in agent.received].count("Hello") == 2

        await page.get_by_role("button", name="429").click()
        await expect(page.locator("#toast")).to_have_text("The next request gets a 429.")
        response = await page.request.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer agent"})
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        request = page.locator("#requests > li", has_text="429")
        await request.locator("summary").click()
        await expect(request.locator("pre").last).to_contain_text("authorization: ***")


@pytest.fixture
def shown(sandbox: Sandbox) -> Sandbox:
    """Everything that a bubble can show."""
    first = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="שלום, איפה ההזמנה שלי? 😀", channel="imessage")
    media = ["https://example.com/a%20photo.jpg"]
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", media_urls=media, channel="imessage")
    sandbox.receive_reaction(first["id"], "love")
    return sandbox


async def test_media_reactions_and_right_to_left_texts(shown: Sandbox, pages: Pages) -> None:
    async with pages.page() as page:
        body = bubbles(page, "שלום")
        await expect(body).to_be_visible()
        assert await body.evaluate("element => getComputedStyle(element).direction") == "rtl"
        media = page.get_by_role("link", name="a photo.jpg")
        assert await media.get_attribute("href") == "https://example.com/a%20photo.jpg"
        await expect(page.get_by_role("img", name="Reactions: love")).to_have_text("❤️")
