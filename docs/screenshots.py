"""Makes the pictures that show fedit at work, out of a finished run: ``make pictures`` takes the demo's.

Those of the run itself are copied; the page of ``fedit ui`` is looked at in Chromium, which has to be installed
with its driver, as for the tests.
"""

import base64
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PICTURES = Path(__file__).parent / "pictures"
QUESTION = "Classify each as an animal or a plant: oak, salmon, fern, otter."
SECONDS = 180


def main(run: Path) -> None:
    """Write all pictures of a run that is finished."""
    for name in ("partition.png", "curves.png"):
        shutil.copy(run / name, PICTURES / name)
    with tempfile.TemporaryDirectory() as room, page_of(run, Path(room, "votes.jsonl")) as address:
        with chromium(1280, 760) as browser:
            compare(browser, address)
            save(browser, "compare.png")


@contextmanager
def chromium(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Yield a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{switch}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        yield browser
    finally:
        browser.quit()


@contextmanager
def page_of(run: Path, votes: Path) -> Iterator[str]:
    """Yield the address of ``fedit ui`` on a run."""
    fedit = Path(sysconfig.get_path("scripts"), "fedit")
    command = [str(fedit), "ui", str(run), "--port", "0", "--seed", "1", "--votes", str(votes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield next(line.strip() for line in server.stdout if line.startswith("http://127.0.0.1"))
        finally:
            server.terminate()


def compare(browser: webdriver.Chrome, address: str) -> None:
    """Ask two arms a question and vote for the first answer, so that their names are shown."""
    wait = WebDriverWait(browser, SECONDS)
    browser.get(address)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "html[data-ready]"))
    browser.find_element(By.ID, "tab-compare").click()
    for name, value in (("max_tokens", "48"), ("compared", QUESTION)):
        field = browser.find_element(By.ID, name)
        field.clear()
        field.send_keys(value)
    browser.find_element(By.ID, "compared").send_keys(Keys.ENTER)
    wait.until(lambda page: page.find_element(By.ID, "ballot").is_displayed())
    ActionChains(browser).send_keys("1").perform()
    wait.until(lambda page: page.find_element(By.ID, "verdict").is_displayed())
    browser.execute_script("document.getElementById('asked').scrollIntoView()")


def save(browser: webdriver.Chrome, name: str) -> None:
    """Write what the browser shows to a file among the pictures."""
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    (PICTURES / name).write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
