"""Write the pictures of docs/chat-page.md from a running page: python tools/write_chat_page_pictures.py URL

The page's server has to serve a base and an adapter; those in the docs are SmolLM2-135M-Instruct and the adapter of
``paddlesft demo``. Needs chromium, chromium-driver and selenium.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SECONDS = 180  # for a reply


def browser(language: str, width: int, height: int) -> webdriver.Chrome:
    """Return a browser with a window of a size."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # else selenium looks for one in the network
    driver = webdriver.Chrome(options=options, service=service)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def ask(driver: webdriver.Chrome, tab: str, text: str, replies: int) -> None:
    """Send a message and wait until that many replies have their figures."""
    box = driver.find_element(By.CSS_SELECTOR, f"#{tab}-box textarea")
    box.send_keys(text)
    box.send_keys(Keys.ENTER)
    done = f"[id^={tab}-] .reply-figures"
    WebDriverWait(driver, SECONDS).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, done)) >= replies)
    time.sleep(1)


def save(driver: webdriver.Chrome, name: str) -> None:
    """Write what the window shows, in few colours: a small file."""
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(128).save(PICTURES / name, optimize=True)
    print(f"{PICTURES / name}: {(PICTURES / name).stat().st_size // 1024} KB")


def main(url: str) -> None:
    """Write both pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, language, size in (("compare", "en", (1100, 620)), ("phone", "zh-CN", (390, 760))):
        driver = browser(language, *size)
        try:
            driver.get(url)
            WebDriverWait(driver, 60).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#chat-box textarea"))
            time.sleep(3)
            if name == "compare":
                tabs = [tab for tab in driver.find_elements(By.CSS_SELECTOR, "[role=tab]") if tab.is_displayed()]
                tabs[1].click()
                time.sleep(1)
                ask(driver, "compare", "Who are you?", 2)
            else:
                ask(driver, "chat", "你是谁?", 1)
            save(driver, f"chat-page-{name}.png")
        finally:
            driver.quit()


if __name__ == "__main__":
    main(sys.argv[1])
