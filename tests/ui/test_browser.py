"""The page in a headless Chromium, on a desk and on a phone: chat, stop, a blind comparison and its vote."""

import json
import os
import shutil
import threading

import pytest

from fedit.evaluation.votes import read_votes

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
SIZES = {"desk": (1280, 800), "phone": (390, 844)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed (Debian: chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,800"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has no other way
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def unhurried(service, monkeypatch):
    """Let every token take a while, so that an answer can be watched."""
    real = service.speaker.resident.answer

    def answer(*arguments, on_token, **options):
        def token():
            on_token()
            threading.Event().wait(0.03)

        return real(*arguments, on_token=token, **options)

    monkeypatch.setattr(service.speaker.resident, "answer", answer)


class Page:
    """The page as somebody sees it."""

    def __init__(self, driver, server, size):
        self.driver, self.server = driver, server
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # those of earlier tests
        driver.get(server.guard.address)
        self.wait(lambda: self.all("html[data-ready]"))

    def wait(self, condition):
        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda driver: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def seen(self, selector):
        return [element for element in self.all(selector) if element.is_displayed()]

    def text(self, selector):
        return self.driver.execute_script("return arguments[0].textContent", self.one(selector))

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def set(self, name, value):
        if not self.seen(f"#{name}"):
            self.one("#settings-toggle").click()
        field = self.one(f"#{name}")
        field.clear()
        field.send_keys(str(value))
        if self.seen("#settings-toggle"):
            self.one("#settings-toggle").click()

    def say(self, text):
        self.one("#question").send_keys(text, Keys.ENTER)

    def answered(self, number):
        self.wait(lambda: len(self.all(".message")) == 2 * number and self.seen("#send"))
        return self.text(f".message:nth-child({2 * number + 1}) .text")  # the welcome is the first child

    def check(self):
        """Nothing went wrong that nobody saw, nothing was asked elsewhere, nothing sticks out at the side."""
        assert [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        own = f"http://127.0.0.1:{self.server.server_port}/"
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        assert urls
        assert [url for url in urls if not url.startswith(own)] == []
        width = self.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]


@pytest.fixture(params=SIZES)
def page(request, browser, server, unhurried):
    opened = Page(browser, server, request.param)
    yield opened
    opened.check()


def test_the_token_leaves_the_address_and_the_page_stays_open_to_a_reload(page):
    assert "token" not in page.driver.current_url
    page.driver.refresh()
    page.wait(lambda: page.all("html[data-ready]"))
    assert [option.text for option in Select(page.one("#arm")).options] == ["federated", "centralised", "base"]


def test_a_conversation_streams_goes_on_with_another_arm_and_can_be_repeated(page, client):
    page.set("max_tokens", 10)
    page.say("copy: red 1")
    first = page.answered(1)
    request = {"model": "federated", "messages": [{"role": "user", "content": "copy: red 1"}], "max_tokens": 10}
    assert first == client.ask("POST", "/v1/chat/completions", request)[1]["choices"][0]["message"]["content"]
    assert "tokens/s" in page.one(".message:last-child .meta").text
    Select(page.one("#arm")).select_by_value("base")
    page.say("upper: blue 2")
    second = page.answered(2)
    assert page.one(".message:last-child .who").text == "base"
    page.one(".again").click()
    assert page.answered(2) == second
    assert first.strip()[:5] in page.text("#live")
    page.one("#clear").click()
    assert page.all(".message") == []
    assert page.seen("#welcome")


def test_stop_keeps_what_was_said_and_the_conversation_goes_on(page, spoken):
    page.set("max_tokens", 400)
    page.say("count: one two three")
    page.wait(lambda: len(page.text(".message.assistant .text")) > 5)
    page.one("#stop").click()
    said = page.answered(1)
    assert "stopped" in page.one(".message:last-child .meta").text
    page.wait(lambda: spoken)
    assert spoken[0].reason == "cancelled"
    assert spoken[0].text.startswith(said)
    page.set("max_tokens", 5)
    page.say("again")
    page.answered(2)


def test_what_a_model_writes_is_text_and_nothing_else(page, service, monkeypatch):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script> & \n  <b>bold</b>"

    def answer(voice, prompt, write, sampling, **options):
        from fedit.resident import Answer

        write(evil)
        return Answer(evil, 1, True)

    monkeypatch.setattr(service.speaker.resident, "answer", answer)
    page.say(evil.replace("\n", " "))
    assert page.answered(1) == evil
    assert page.all("#log img, #log script, #log b, #live img, #live b") == []


def test_a_blind_comparison_by_keyboard_reveals_names_and_counts(page, service):
    page.set("max_tokens", 8)
    page.one("#tab-chat").send_keys(Keys.ARROW_RIGHT)
    assert page.seen("#compare")
    page.one("#draw").click()
    page.wait(lambda: page.one("#compared").get_property("value") == "copy: red 1")
    page.one("#compared").send_keys(Keys.ENTER)
    page.wait(lambda: page.seen("#ballot"))
    shown = page.text("#comparison")
    assert not any(name in shown for name in ("federated", "centralised", "base"))
    assert page.text("#asked") == "copy: red 1"
    page.press("2")
    page.wait(lambda: page.seen("#verdict"))
    [vote] = read_votes(service.ballot.path)
    assert vote.question_id == "q1"
    winner = {"first": vote.first, "second": vote.second}[vote.winner]
    assert vote.winner == "second"
    assert [name.text for name in page.all(".answer .name")] == [vote.first, vote.second]
    assert page.one("#verdict-text").text == f"You preferred {winner} to {vote.first}."
    assert page.one(".answer.best .name").text == winner
    assert f"{winner} won 1" in page.text("#pairs")
    page.press("n")  # the next question is drawn and asked
    page.wait(lambda: page.text("#asked") == "upper: blue 2" and page.seen("#ballot"))
    page.press("t")
    page.wait(lambda: page.seen("#verdict"))
    assert page.text("#verdict-text").startswith("A tie between")
    assert "2 blind votes" in page.text("#pairs")
    assert [vote.winner for vote in read_votes(service.ballot.path)] == ["second", "tie"]


def test_three_with_their_names_a_stop_and_another_start(page, service):
    page.one("#tab-compare").click()
    page.one("#arms label:nth-child(2)").click()
    page.one("#blind").click()
    page.set("max_tokens", 400)
    page.one("#compared").send_keys("Tell me a story.")
    page.one("#ask-all").click()
    page.wait(lambda: page.seen(".answer .writing"))
    assert [name.text for name in page.all(".answer .name")] == ["federated", "centralised", "base"]
    page.one("#stop-all").click()
    page.wait(lambda: not page.seen("#progress"))
    assert not page.seen("#ballot")
    assert page.one("#compared").get_property("value") == "Tell me a story."
    page.set("max_tokens", 5)
    page.one("#ask-all").click()
    page.wait(lambda: page.seen("#ballot"))
    page.one("#choices button:last-child").click()
    page.wait(lambda: page.seen("#verdict"))
    votes = read_votes(service.ballot.path)
    assert [(vote.winner, vote.blind) for vote in votes] == [("both_bad", False)] * 3
    assert "None yet" in page.text("#pairs")
    assert "not counted: 1" in page.text("#pairs")


def test_problems_are_said_where_they_can_be_seen(page, service, monkeypatch):
    monkeypatch.setattr(service.speaker.resident, "prompt", lambda *a: 1 / 0)
    page.say("hello")
    page.wait(lambda: page.seen("#problem"))
    assert "division by zero" in page.one("#problem").text
    assert page.one("#question").get_property("value") == "hello"  # nothing is lost
    assert page.all(".message") == []
    logged = [entry["message"] for entry in page.driver.get_log("browser")]
    assert all("500" in message for message in logged)  # Chromium notes every failed request


def test_colours_follow_the_system_and_the_choice(page):
    def ground():
        return page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")

    def system(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    system("light")
    light = ground()
    system("dark")
    dark = ground()
    assert light != dark
    page.one("#theme").click()
    assert ground() == light
    page.one("#theme").click()
    system("light")
    assert ground() == dark
    page.driver.refresh()
    page.wait(lambda: page.all("html[data-ready]"))
    assert ground() == dark
    page.one("#theme").click()
    assert ground() == light
