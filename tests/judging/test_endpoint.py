import threading

import pytest
from judge_server import DROP, HANG, JudgeServer, Raw, failing, in_turn

from fedit.data.examples import Message
from fedit.errors import ConfigError
from fedit.judging import Endpoint, NoReply, Reply, Request

REQUEST = Request((Message("system", "Judge."), Message("user", "x" * 400)), ())
KEY = "sk-secret-0123456789"


def test_a_request_says_what_is_asked_and_how(server, endpoint):
    judge = endpoint(temperature=0.5, max_reply_tokens=64)
    assert judge.ask(REQUEST) == Reply("8 7\nBecause.", None, 100, 20)
    assert server.calls[0].body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": "x" * 400}],
        "max_tokens": 64,
        "temperature": 0.5,
    }
    assert judge.describe() == {
        "kind": "endpoint", "model": "m", "base_url": server.url, "temperature": 0.5, "max_tokens": 64,
    }  # fmt: skip


def test_the_temperature_can_be_left_to_the_endpoint(server, endpoint):
    endpoint(temperature=None).ask(REQUEST)
    assert "temperature" not in server.calls[0].body


# --- what may leave the machine ---


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "http://192.168.1.5:8000/v1",
        "http://127.0.0.1.example.com/v1",
        "http://[2001:db8::1]/v1",
    ],
)
def test_an_address_elsewhere_needs_a_word(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConfigError, match=r"clients' data can repeat that data.*--allow-remote"):
        Endpoint("m", url)
    with Endpoint("m", url, allow_remote=True) as judge:
        assert judge.describe()["base_url"] == url


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "http://127.0.0.1:1/v1", "http://127.8.0.1/v1", "http://[::1]:8000"]
)
def test_an_address_of_this_machine_does_not(url):
    with Endpoint("m", url) as judge:
        assert judge.describe()["base_url"] == url


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost/v1", "http://", "", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="expected an address like"):
        Endpoint("m", url)


@pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1/v1", "http://127.0.0.1/v1?key=secret"])
def test_an_address_holds_no_key(url):
    with pytest.raises(ConfigError, match="environment alone") as error:
        Endpoint("m", url)
    assert "secret" not in str(error.value)


def test_a_redirect_is_not_followed(endpoint, server):
    """A server here could otherwise hand answers on to anywhere."""
    with JudgeServer() as elsewhere:
        server.script = lambda call: Raw(307, headers={"Location": f"{elsewhere.url}/chat/completions"})
        with pytest.raises(ConfigError, match="HTTP 307"):
            endpoint().ask(REQUEST)
        assert elsewhere.calls == []


def test_a_server_here_is_not_reached_through_a_proxy(server, endpoint, monkeypatch):
    with JudgeServer(lambda call: failing(500)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert endpoint().ask(REQUEST).text
        assert proxy.calls == []


# --- the key ---


def test_the_key_comes_from_the_environment(server, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", "another-0123456789")
    endpoint().ask(REQUEST)
    endpoint(key_variable="OTHER_KEY").ask(REQUEST)
    sent = [call.headers["authorization"] for call in server.calls]
    assert sent == [f"Bearer {KEY}", "Bearer another-0123456789"]


def test_a_server_here_may_do_without_a_key(server, endpoint):
    endpoint().ask(REQUEST)
    assert server.calls[0].headers["authorization"] == "Bearer none"


def test_a_key_that_is_asked_for_must_be_there(endpoint, monkeypatch):
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        Endpoint("m", allow_remote=True)
    monkeypatch.setenv("EMPTY_KEY", "")
    with pytest.raises(ConfigError, match="EMPTY_KEY is not set"):
        endpoint(key_variable="EMPTY_KEY")


def test_an_endpoint_that_repeats_the_key_is_not_repeated(server, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = endpoint(retries=0)
    server.script = in_turn(
        f"8 7\nYour key is {KEY}.",
        failing(401, f"bad key {KEY}"),
        failing(400, f"bad {KEY}"),
        Raw(body=f"{KEY}".encode()),
    )
    assert judge.ask(REQUEST).text == "8 7\nYour key is [key removed]."
    for kind in (ConfigError, NoReply, NoReply):
        with pytest.raises(kind) as error:
            judge.ask(REQUEST)
        assert KEY not in str(error.value)
        assert error.value.__suppress_context__  # tracebacks do not show what the endpoint said
    assert KEY not in str(judge.describe())


# --- what goes wrong ---


def test_what_may_pass_is_tried_again(server, endpoint):
    server.script = in_turn(failing(429, retry_after_ms="1"), failing(500), failing(503), DROP, "8 7")
    assert endpoint(retries=4).ask(REQUEST).text == "8 7"
    assert len(server.calls) == 5


def test_retry_after_is_waited_for(server, endpoint, monkeypatch):
    slept = []
    monkeypatch.setattr("openai._base_client.time.sleep", slept.append)
    server.script = in_turn(failing(429, retry_after="7"), "8 7")
    assert endpoint(retries=1).ask(REQUEST).text == "8 7"
    assert slept == [7]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (failing(429, "slow\x1b[2J\ndown"), r"HTTP 429: slow \[2J down$"),
        (failing(500, "broken"), "HTTP 500: .*broken"),
        (failing(400, "too long" + "!" * 900), "HTTP 400: too long!{292}$"),
        (failing(400, "temperature is not supported"), "--temperature none"),
        (HANG, "no reply in time"),
        (DROP, "no connection"),
        (Raw(body=b"{"), "not a chat completion"),
        (Raw(body=b"[]"), "not a chat completion"),
        (Raw(body=b'{"choices": []}'), "has no message"),
        (Raw(body=b'{"choices": [{}]}'), "has no message"),
        (Raw(body=b"<html>", headers={"Content-Type": "text/html"}), "has no message"),
    ],
)
def test_a_request_without_a_reply_says_why(server, endpoint, told, reason):
    server.script = lambda call: told
    with pytest.raises(NoReply, match=reason):
        endpoint(retries=1, timeout=0.2).ask(REQUEST)
    again = told.after or told.status in (429, 500)
    assert len(server.calls) == (2 if again else 1)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_it(server, endpoint, status):
    server.script = lambda call: failing(status, "not for you")
    with pytest.raises(ConfigError, match=rf"refuses \(HTTP {status}\).*not for you"):
        endpoint().ask(REQUEST)
    assert len(server.calls) == 1


def test_an_empty_reply_is_a_reply(server, endpoint):
    server.script = lambda call: Raw(body=b'{"choices": [{"message": {"role": "assistant", "content": null}}]}')
    assert endpoint().ask(REQUEST).text == ""


def test_tokens_are_estimated_where_they_are_not_counted(server, endpoint):
    server.usage = None
    assert endpoint().ask(REQUEST) == Reply("8 7\nBecause.", None, 101, 3, estimated=True)


def test_the_other_name_of_the_limit_is_learnt(server, endpoint):
    def newer(call):
        return failing(400, "Use 'max_completion_tokens' instead.") if "max_tokens" in call.body else "8 7"

    server.script = newer
    judge = endpoint()
    assert judge.ask(REQUEST).text == "8 7"
    judge.ask(REQUEST)
    assert [sorted({"max_tokens", "max_completion_tokens"} & call.body.keys()) for call in server.calls] == [
        ["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"],
    ]  # fmt: skip


def test_without_the_client_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedit\[judge\]'"):
        Endpoint("m", "http://127.0.0.1:1/v1")


def test_several_threads_may_ask(server, endpoint):
    judge = endpoint(concurrency=3)
    barrier = threading.Barrier(3, timeout=10)

    def together(call):
        barrier.wait()
        return "8 7"

    server.script = together
    texts = []
    threads = [threading.Thread(target=lambda: texts.append(judge.ask(REQUEST).text)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["8 7"] * 3
