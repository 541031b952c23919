"""The page in a browser: Chromium of the system (GPTCLI_CHROMIUM names another), driven by playwright; axe-core where
AXE_CORE or a node_modules beside the tests has axe.min.js."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from serving import Running, serving
from table_models import table_model

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("GPTCLI_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("no chromium is installed", allow_module_level=True)

ANSWER = "Hi <b>you!"
HERE = Path(__file__).resolve().parent
AXE = next(
    (
        path
        for path in (
            Path(os.environ.get("AXE_CORE", "") or "none"),
            *(each / "node_modules/axe-core/axe.min.js" for each in HERE.parents),
        )
        if path.is_file()
    ),
    None,
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("chat")
    with serving(table_model(directory / "model", [ANSWER]), directory, "--temperature", "0") as running:
        yield running


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("endless")
    model = table_model(directory / "model", [["ab \n"]], context_length=8192)
    with serving(model, directory) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """A page in a browser that notes what it should not do."""

    def __init__(self, browser: Any, url: str, scheme: str = "light") -> None:
        self.context = browser.new_context(color_scheme=scheme, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.hosts: set[str | None] = set()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))
        self.page.goto(url)
        api.expect(self.page).not_to_have_title("gptcli", timeout=30_000)

    def say(self, text: str) -> None:
        self.page.fill("#box", text)
        self.page.press("#box", "Enter")

    def wait_for_status(self, text: str) -> None:
        # A locator, as everywhere here: the page's policy may forbid what wait_for_function evaluates.
        api.expect(self.page.locator("#status")).to_have_text(re.compile(f"^{re.escape(text)}"), timeout=30_000)

    def texts(self) -> list[str]:
        found: list[str] = self.page.locator("#log article .text").all_text_contents()
        return found

    def close(self, url: str) -> None:
        """End, once it is sure that nothing else was asked and no policy was broken."""
        assert self.complaints == []
        assert self.hosts <= {urlparse(url).netloc, ""}
        self.context.close()


def test_a_conversation(chat: Running, chromium: Any, tmp_path: Path) -> None:
    page = Page(chromium, chat.url)
    page.say("Hello <img src=x onerror=alert(1)>")
    page.wait_for_status("answer complete")
    assert page.texts() == ["Hello <img src=x onerror=alert(1)>", ANSWER]
    assert page.page.locator("#log b, #log img").count() == 0
    page.page.click("article.assistant >> text=Regenerate")
    page.wait_for_status("answer complete")
    assert page.texts()[1:] == [ANSWER]
    page.page.click("article.user >> text=Edit")
    assert page.page.input_value("#box").startswith("Hello <img")
    page.say("Good day")
    page.wait_for_status("answer complete")
    assert page.texts() == ["Good day", ANSWER]
    with page.page.expect_download() as download:
        page.page.click("#save")
    saved = tmp_path / "conversation.jsonl"
    download.value.save_as(saved)
    (row,) = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    page.page.reload()
    page.page.wait_for_selector("article.assistant")
    assert page.texts() == ["Good day", ANSWER]  # it survives a reload
    page.page.click("#clear")
    assert page.texts() == []
    page.page.set_input_files("#load", saved)
    page.page.wait_for_selector("article.assistant")
    assert page.texts() == ["Good day", ANSWER]
    page.close(chat.url)


def test_an_answer_that_was_cut_goes_on(chat: Running, chromium: Any) -> None:
    page = Page(chromium, chat.url)
    page.page.click("#options summary")
    page.page.fill("#max_tokens", "2")
    page.say("Hello")
    page.wait_for_status("answer complete, 2 tokens")
    assert page.texts()[-1] == ANSWER[:2]
    page.page.fill("#max_tokens", "")
    page.page.click("#continue")
    api.expect(page.page.locator("#log .text").nth(1)).to_have_text(ANSWER, timeout=30_000)
    page.close(chat.url)


def test_stop_ends_the_text_on_the_server(endless: Running, chromium: Any) -> None:
    for how in ("button", "Escape"):
        page = Page(chromium, endless.url)
        page.say("Hello")
        api.expect(page.page.locator("#log .text").nth(1)).to_have_text(re.compile(r"[\s\S]{21}"), timeout=30_000)
        if how == "button":
            page.page.click("#stop-writing")
        else:
            page.page.keyboard.press("Escape")
        page.wait_for_status("stopped")
        assert endless.is_free()
        assert len(page.texts()[-1]) < 8000
        page.close(endless.url)


def test_probabilities_of_tokens_and_another_way_from_one(chat: Running, chromium: Any) -> None:
    page = Page(chromium, chat.url)
    page.page.click("#options summary")
    page.page.check("#probabilities")
    page.say("Hello")
    page.wait_for_status("answer complete")
    tokens = page.page.locator("article.assistant .token")
    assert tokens.all_text_contents() == list(ANSWER)
    tokens.nth(1).click()
    assert page.page.locator(".likeliest button").count() == 10
    page.page.locator(".likeliest button").first.click()
    page.wait_for_status("answer complete")
    assert "".join(page.texts()[-1].split("\n")).startswith(ANSWER[:2])
    page.close(chat.url)


@pytest.mark.skipif(AXE is None, reason="axe-core is not there: npm install axe-core, or AXE_CORE=PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(chat: Running, chromium: Any, scheme: str) -> None:
    assert AXE is not None
    page = Page(chromium, chat.url, scheme)
    page.page.click("#options summary")
    page.page.check("#probabilities")
    page.say("Hello")
    page.wait_for_status("answer complete")
    page.page.locator("article.assistant .token").first.click()
    page.page.evaluate(AXE.read_text())
    found = page.page.evaluate("() => axe.run()")
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
    page.page.set_viewport_size({"width": 320, "height": 640})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 320
    page.close(chat.url)
