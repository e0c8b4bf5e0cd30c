"""The chat page in headless Chromium, against a real server with a tiny model and an adapter."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlesft.data.reading import read_conversations
from tests.inference.adapters import write_adapter
from tests.serving.broken_servers import Cable
from tests.serving.running import RunningServer, running

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="needs a browser: apt-get install chromium chromium-driver fonts-noto-cjk; pip install selenium",
)

RETRY, UNDO, DISLIKE, LIKE = range(4)  # icons below a reply


class Visitor:
    """Somebody at the page."""

    def __init__(self, url: str, downloads: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
            options.add_argument(argument)
        wishes = {"intl.accept_languages": "zh-CN,zh", "download.default_directory": str(downloads)}
        options.add_experimental_option("prefs", wishes)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.url, self.downloads = url, downloads

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def script(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def wait(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Return what a condition gives as soon as that is something."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(WebDriverException, IndexError):  # elements that are drawn anew, or not yet
                if found := condition():
                    return found
            time.sleep(0.05)
        self.driver.save_screenshot(str(self.downloads / "failed.png"))
        raise AssertionError(f"waited in vain; the window is in {self.downloads}/failed.png:\n{self.text()}")

    def text(self) -> str:
        return self.script("return document.body.innerText")

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            found = [element for element in self.all(selector) if element.is_displayed()]
            if found:
                found[0].click()
            return bool(found)

        self.wait(clicked)

    def open(self) -> None:
        """Begin a new visit, and wait for the models."""
        self.driver.get(self.url)
        self.wait(lambda: self.all("#chat-model-0 input")[0].get_attribute("value"))

    def say(self, text: str, tab: str = "chat") -> None:
        box = self.wait(lambda: [box for box in self.all(f"#{tab}-box textarea") if box.is_displayed()])[0]
        box.send_keys(text + "\n")

    def replies(self, place: str = "chat-0") -> str:
        return "\n".join(element.text for element in self.all(f"#{place} [data-testid=bot]"))

    def figures(self, place: str = "chat-0") -> list[str]:
        return [element.text for element in self.all(f"#{place} .reply-figures")]

    def icon(self, number: int, side: str = "left") -> None:
        """Press one of the icons below the last message; what they are called depends on the browser's language."""
        panel = f"#chat-0 .message-buttons-{side}"
        self.wait(lambda: self.all(panel)[-1].find_elements("tag name", "button")[number].click() or True)

    def shorten(self, tokens: int) -> None:
        """Set the length of replies."""
        self.click("#open-settings")
        field = self.wait(lambda: [e for e in self.all("#max_tokens input[type=number]") if e.is_displayed()])[0]
        field.clear()
        field.send_keys(f"{tokens}\t")
        self.click("#close-settings")
        time.sleep(0.5)

    def downloaded(self, name: str) -> Path:
        path = self.downloads / name
        self.wait(lambda: path.exists() and path.stat().st_size)
        return path


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    adapter = write_adapter(tmp_path_factory.mktemp("adapter") / "lora", tiny_llama, "lora")
    with running(tiny_llama, lora_paths=[f"tuned={adapter}"]) as server:
        yield server


@pytest.fixture(scope="module")
def cable(server: RunningServer) -> Iterator[Cable]:
    cable = Cable(server.url)
    cable.plug_in()
    yield cable
    cable.pull_out()


@pytest.fixture(scope="module")
def visitor(cable: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    command = [sys.executable, "-m", "paddlesft", "chat-page", "--url", cable.url, "--port", "0"]
    page = subprocess.Popen(
        [*command, "--end_with_input", "true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    visitor = None
    try:
        said = page.stdout.readline()
        assert said.startswith("Page:   http://127.0.0.1:")
        visitor = Visitor(said.split()[-1], tmp_path_factory.mktemp("downloads"))
        yield visitor
    finally:
        if visitor is not None:
            visitor.driver.quit()
        page.stdin.close()  # which ends it
        try:
            assert page.wait(timeout=15) in (0, -15)
        finally:
            page.kill()


def test_chinese_streams_and_stop_reaches_the_engine(visitor: Visitor, server: RunningServer) -> None:
    visitor.open()
    assert visitor.wait(lambda: "想聊点什么?" in visitor.text())
    visitor.shorten(400)
    visitor.say("你好,<img src=x onerror=alert(1)> 请介绍一下你自己")
    lengths = set()
    visitor.wait(lambda: lengths.add(len(visitor.replies())) or len(lengths) > 4)
    assert server.engine.stats().active == 1 and not visitor.figures()
    visitor.click("#chat-box .stop-button")
    assert visitor.wait(visitor.figures)[0].startswith("已停止 · ≈ ")
    server.wait_until_idle(3)
    assert "<img src=x onerror=alert(1)>" in visitor.all("#chat-0 [data-testid=user]")[0].text
    assert not visitor.all("#chat-0 .message img")
    requested = [json.loads(entry["message"])["message"] for entry in visitor.driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in requested if m["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 20 and {url for url in urls if not url.startswith((visitor.url, "data:", "blob:"))} == set()

    visitor.say("再来一次")  # and who closes the page wants no reply any more
    visitor.wait(lambda: server.engine.stats().active == 1)
    visitor.driver.get("about:blank")
    server.wait_until_idle(10)


def test_retry_undo_edit_and_votes(visitor: Visitor, server: RunningServer) -> None:
    visitor.open()
    visitor.click("#language")
    assert visitor.wait(lambda: "What would you like to know?" in visitor.text())
    visitor.shorten(12)
    visitor.say("first")
    told = visitor.wait(visitor.figures)[0]
    assert "12 tokens · " in told and " tokens/s · first after " in told and " · prompt " in told
    visitor.icon(DISLIKE)
    time.sleep(0.5)
    visitor.icon(RETRY)
    visitor.wait(lambda: "reply 2 of 2" in visitor.figures()[0])
    visitor.icon(LIKE)
    visitor.wait(lambda: "Noted: 1 preference pairs." in visitor.text())
    visitor.click("#other-reply")
    visitor.wait(lambda: "reply 1 of 2" in visitor.figures()[0])

    visitor.say("second")
    visitor.wait(lambda: len(visitor.figures()) == 2)
    visitor.click("#open-settings")
    visitor.click("#export")
    (saved,) = read_conversations([visitor.downloaded("conversation.jsonl")]).usable()
    assert [m.role for m in saved.messages] == ["user", "assistant"] * 2 and saved.messages[2].content == "second"
    visitor.click("#pairs")
    (pair,) = map(json.loads, visitor.downloaded("preferences.jsonl").read_text(encoding="utf-8").splitlines())
    assert pair["messages"] == [{"role": "user", "content": "first"}]
    assert pair["rejected_response"] == [{"role": "assistant", "content": saved.messages[1].content}]
    visitor.click("#close-settings")

    visitor.icon(UNDO)
    visitor.wait(lambda: visitor.all("#chat-box textarea")[0].get_attribute("value") == "second")
    assert len(visitor.figures()) == 1
    visitor.icon(0, "right")
    field = visitor.wait(lambda: visitor.all("#chat-0 textarea"))[0]
    field.send_keys(" & <b>")
    visitor.icon(0, "right")
    visitor.wait(lambda: visitor.figures() and " of 2" not in visitor.figures()[0])
    assert [e.text for e in visitor.all("#chat-0 [data-testid=user]")] == ["first & <b>"]


def test_two_models_write_at_the_same_time(visitor: Visitor, server: RunningServer) -> None:
    visitor.open()
    visitor.shorten(120)
    visitor.wait(lambda: [tab for tab in visitor.all("[role=tab]") if tab.is_displayed()])[1].click()
    chosen = [visitor.all(f"#compare-model-{side} input")[0].get_attribute("value") for side in (0, 1)]
    assert chosen == ["tiny", "tuned"]
    visitor.say("same question", "compare")
    visitor.wait(lambda: server.engine.stats().active == 2)
    visitor.wait(lambda: visitor.figures("compare-0") and visitor.figures("compare-1"))
    visitor.click("#right-better")
    assert visitor.wait(lambda: "✓ 已选择" in visitor.figures("compare-1")[0])
    assert "对话从另一侧的回复继续" in visitor.figures("compare-0")[0]

    visitor.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        time.sleep(0.5)
        assert visitor.script("return document.documentElement.scrollWidth") == 390
        box = visitor.all("#compare-box textarea")[0].rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_goes_and_comes_back(visitor: Visitor, cable: Cable, server: RunningServer) -> None:
    visitor.open()
    visitor.shorten(8)
    cable.pull_out()
    visitor.say("你好")
    visitor.wait(
        lambda: f"无法连接服务器 {cable.url},它在运行吗?" in visitor.replies() or "连接中断" in visitor.replies()
    )
    assert "Traceback" not in visitor.text()
    visitor.driver.get(visitor.url)  # a page that opens while the server is away
    visitor.wait(lambda: "正在等待服务器……" in visitor.all("#chat-model-0 input")[0].get_attribute("value"))
    visitor.say("你好")
    visitor.wait(lambda: "无法连接服务器" in visitor.replies())
    cable.plug_in()
    visitor.wait(lambda: visitor.all("#chat-model-0 input")[0].get_attribute("value") == "tuned")
    visitor.icon(RETRY)
    visitor.wait(lambda: visitor.figures())
    assert "无法连接" not in visitor.replies()
