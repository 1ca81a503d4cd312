"""A real browser, a sandbox behind a real socket, and an agent that answers its webhooks.

Without Playwright or Chromium the tests are skipped. `AGENTPHONE_REQUIRE_BROWSER=1` makes that a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running

from .agent import Agent, answering

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, ViewportSize

HOW_TO = "the tests of the phone need a browser: pip install '.[browser]' && apt-get install chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
ColorScheme = Literal["light", "dark"]
VIEWPORT: ViewportSize = {"width": 1280, "height": 800}
WAIT = 20_000
"""Milliseconds after which an expectation fails: a limit that turns a hang into a failure, not a measure."""


def skip(reason: str) -> NoReturn:
    """Skip a test that needs what is not installed, or fail it where that is required."""
    if os.environ.get("AGENTPHONE_REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("AGENTPHONE_BROWSER") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="package")
def anyio_backend() -> str:
    """Playwright runs on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="package")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    path = find_browser()
    try:
        from playwright.async_api import async_playwright, expect
    except ModuleNotFoundError:
        skip(HOW_TO)
    if path is None:
        skip(HOW_TO)
    expect.set_options(timeout=WAIT)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(retry_scale=0.01) as sandbox:
        yield sandbox


@pytest.fixture
def url(sandbox: Sandbox) -> Iterator[str]:
    with running(sandbox) as url:
        yield url


@pytest.fixture
def agent(sandbox: Sandbox, url: str) -> Iterator[Agent]:
    """An agent that answers each text, and counts them in the conversation's metadata."""
    with answering(url) as agent:
        sandbox.set_webhook(agent.url, "whsec_phone")
        yield agent


class Pages:
    """Open pages, which must not log an error, nor request anything from elsewhere.

    Attributes:
        url: The URL of the test's sandbox.
        errors: What a page did wrong.
    """

    def __init__(self, browser: Browser) -> None:
        self.url: str = ""
        self.errors: list[str] = []
        self._browser = browser
        self._tab: Page | None = None

    @asynccontextmanager
    async def context(self, **settings: Any) -> AsyncIterator[BrowserContext]:
        """Open a browser window of its own: pages in it share storage and streams."""
        context = await self._browser.new_context(**{"viewport": VIEWPORT, "reduced_motion": "reduce", **settings})
        context.set_default_timeout(WAIT)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("console", self._check_message)
        context.on("request", self._check_request)
        try:
            yield context
        finally:
            await context.close()

    def _check_message(self, message: ConsoleMessage) -> None:
        # The browser itself reports requests to a server that is gone.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _check_request(self, request: Request) -> None:
        if not request.url.startswith(self.url):
            self.errors.append(f"request for {request.url}")

    @asynccontextmanager
    async def page(self, path: str = "/", *, color_scheme: ColorScheme = "light") -> AsyncIterator[Page]:
        """Open a page in the tab that the tests share: a tab of its own takes longer than most tests."""
        if self._tab is None:
            self._tab = await self._browser.contexts[0].new_page()
        page = self._tab
        await page.emulate_media(color_scheme=color_scheme)
        await page.goto(f"{self.url}{path}")
        try:
            yield page
        finally:
            await page.unroute_all(behavior="ignoreErrors")
            await page.evaluate("sessionStorage.clear()")
            await page.goto("about:blank")
            await page.set_viewport_size(VIEWPORT)


@pytest.fixture(scope="package")
async def window(browser: Browser) -> AsyncIterator[Pages]:
    """One window for all tests that do not need their own."""
    pages = Pages(browser)
    async with pages.context():
        yield pages


@pytest.fixture
def pages(window: Pages, url: str) -> Iterator[Pages]:
    window.url = url
    window.errors.clear()
    yield window
    assert window.errors == []
