"""The picture of the phone in the README: `python -m tests.phone.picture` writes benchmarks/phone.png.

It needs the extras `browser` and `bench`. People, numbers and times are made up, and the same each time.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Page, async_playwright, expect

from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running

from .agent import Answer, answering
from .conftest import FLAGS, find_browser

PICTURE = Path(__file__).parents[2] / "benchmarks" / "phone.png"
NOW = datetime(2026, 3, 12, 10, 41, tzinfo=UTC)
AGENT, ADA = "+15555550100", "+15555550110"
SIZE = {"width": 1280, "height": 780}
SCALE = 1.5
COLORS = 200
OTHERS = (
    ("+15555550134", 25, "¡Muchas gracias!", "inbound"),
    ("+15555550121", 66, "Booked: Friday at 15:30. I will send a reminder.", "outbound"),
    ("+447700900123", 190, "Do you ship to the UK?", "inbound"),
    ("+15555550147", 1500, "One size up if you have it", "inbound"),
    ("+15555550118", 1630, "Three to five working days.", "outbound"),
    ("+15555550152", 2900, "👍", "inbound"),
    ("+4915550000042", 4400, "Ja, bis 18 Uhr.", "outbound"),
    ("+15555550129", 7300, "Behind the building, free for two hours.", "outbound"),
    ("+15555550163", 8800, "Glad to hear it!", "outbound"),
)
BEFORE = (
    ("inbound", 1508, "Hi! Are you open on Saturday?"),
    ("outbound", 1507, "Yes, from 9:00 until 17:00. Anything I can help you with before?"),
    ("inbound", 1505, "No, that's all 😊"),
)
STATE = {"customer": "Ada", "orderId": None, "topic": "opening_hours", "step": 1}


def compose(event: dict[str, Any]) -> Answer:
    """Answer as an agent of a shop would."""
    state = event["conversationState"]
    if state["orderId"] is None:
        changed = {"orderId": "ORD-5", "topic": "order_tracking", "step": 2}
        return "Let me look. ORD-5 left our warehouse this morning and arrives today before 18:00.", state | changed
    changed = {"step": 3, "delivery": {"leaveWith": "neighbour", "notified": True}}
    return "Done, I added a note for the driver. You get a text once it is there.", state | changed


async def take(url: str, sandbox: Sandbox) -> None:
    """Text with the agent, and take the picture."""
    with answering(url, compose) as agent:
        sandbox.set_webhook(agent.url, "whsec_picture")
        agent.statuses = [503]
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
            context = await browser.new_context(
                viewport={"width": SIZE["width"], "height": SIZE["height"]},
                device_scale_factor=SCALE,
                reduced_motion="reduce",
                locale="en-GB",
                timezone_id="UTC",
            )
            page = await context.new_page()
            await page.clock.set_fixed_time(NOW)
            await page.goto(url)
            await page.locator("#list a", has_text="0110").click()
            await say(page, "Where is my order ORD-5?", "Let me look.")
            await say(page, "Can they leave it with a neighbour?", "Done, I added")
            await expect(page.locator("#state .changed", has_text="step")).to_contain_text("3")
            await expect(page.locator("#requests > li")).to_have_count(4)
            await page.locator("#deliveries summary").last.click()
            await page.locator("#deliveries summary").last.click()
            agent.statuses = [204]
            sandbox.receive_sms(from_number="+15555550134", to_number=AGENT, body="¿Y el domingo?")
            await expect(page.locator("#list .unread")).to_be_visible()
            await page.evaluate("document.activeElement.blur()")
            await page.mouse.move(640, 20)
            await page.wait_for_timeout(300)
            await page.screenshot(path=PICTURE)
            await browser.close()


async def say(page: Page, text: str, answer: str) -> None:
    """Send a text and wait for its answer."""
    await page.get_by_role("textbox", name="Text as").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.locator("article .body", has_text=answer)).to_be_visible()


def fill(sandbox: Sandbox) -> None:
    """Store what was texted before."""
    for number, minutes, body, direction in OTHERS:
        at = NOW - timedelta(minutes=minutes)
        if direction == "inbound":
            sandbox.receive_sms(from_number=number, to_number=AGENT, body=body, at=at)
        else:
            sandbox.send_sms(from_number=AGENT, to_number=number, body=body, at=at)
    for direction, minutes, body in BEFORE:
        at = NOW - timedelta(minutes=minutes)
        if direction == "inbound":
            message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body=body, at=at, channel="imessage")
        else:
            message = sandbox.send_sms(from_number=AGENT, to_number=ADA, body=body, at=at)
            sandbox.receive_reaction(message["id"], "like")
    sandbox._store.set_metadata(message["conversationId"], STATE, message_limit=1)


def main() -> None:
    """Write the picture."""
    started_at = time.time()
    with Sandbox(retry_scale=0.1) as sandbox, running(sandbox) as url:
        sandbox.clock = lambda: NOW.timestamp() + time.time() - started_at
        fill(sandbox)
        asyncio.run(take(url, sandbox))
    Image.open(PICTURE).convert("RGB").quantize(COLORS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
