"""The page's server over real HTTP: who is answered, what is streamed, what is refused."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from fedit.data.examples import Message
from fedit.errors import ConfigError
from fedit.resident import Sampling
from fedit.ui.guard import Guard, is_loopback
from fedit.ui.server import MOST_BYTES, Server
from fedit.ui.speaker import MOST_WAITING, Busy

ASKED = {"model": "federated", "messages": [{"role": "user", "content": "copy: red 1"}], "max_tokens": 12}
TWO = {"arms": ["federated", "base"], "question": "copy: red 1", "max_tokens": 6}


def expected(resident, voice="federated", question="copy: red 1", tokens=12):
    """The answer without any server."""
    prompt = resident.prompt(voice, [Message("user", question)], tokens)
    return resident.answer(voice, prompt, lambda text: None, Sampling(tokens)).text


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- who is answered ---

FILES = ["/", "/style.css", "/app.js", "/chat.js", "/compare.js", "/shared.js", "/icon.svg"]


@pytest.mark.parametrize("path", [*FILES, "/api/state", "/api/results", "/api/question", "/v1/models", "/nowhere"])
def test_nothing_is_answered_without_the_token(client, path):
    for wrong in ("", "Bearer", "Bearer wrong", "Bearer t\u00f6ken"):
        status, content = client.ask("GET", path, Authorization=wrong)
        assert status == 403
        assert "fedit ui printed" in content["error"]["message"]
    assert client.ask("GET", f"{path}?token=wrong", Authorization="")[0] == 403
    assert client.ask("GET", path, Authorization="", Cookie="fedit-1=x; y")[0] == 403
    assert client.ask("GET", path)[0] == (404 if path == "/nowhere" else 200)


def test_the_printed_address_gives_the_browser_its_cookie(client, server):
    address = server.guard.address
    assert address == f"http://127.0.0.1:{server.server_port}/?token={server.guard.token}"
    first = client.open("GET", address.partition(client.host)[2], Authorization="")
    page = first.read().decode()
    cookie = first.headers["Set-Cookie"]
    assert (first.status, "<title>fedit</title>" in page) == (200, True)
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    given = cookie.partition(";")[0]
    status, state = client.ask("GET", "/api/state", Authorization="", Cookie=f"other=1; {given}")
    assert status == 200
    assert [arm["name"] for arm in state["arms"]] == ["federated", "centralised", "base"]
    assert "Set-Cookie" not in client.open("GET", "/api/state").headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1", "a:b"]
)
def test_another_host_is_refused(client, host):
    """DNS rebinding: the name of another site leads here, and its page asks for that name."""
    status, content = client.ask("GET", "/api/state", Host=host.format(port=client.server.server_port))
    assert status == 403
    assert "does not answer for host" in content["error"]["message"]


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "LOCALHOST:{port}"])
def test_names_of_this_machine_are_hosts(client, host):
    assert client.ask("GET", "/api/state", Host=host.format(port=client.server.server_port))[0] == 200


def test_posts_need_the_page_s_own_origin(client, server):
    cookie = {"Authorization": "", "Cookie": f"{server.guard.cookie}={server.guard.token}"}
    other_port = f"http://127.0.0.1:{server.server_port + 1}"
    for origin in ("", "null", "http://evil.example", other_port, f"https://{client.host}"):
        for path in ("/v1/chat/completions", "/api/compare", "/api/vote"):
            status, content = client.ask("POST", path, ASKED, Origin=origin, **cookie)
            assert status == 403
            assert "are not answered" in content["error"]["message"]
    assert client.ask("POST", "/v1/chat/completions", ASKED, Origin=f"http://{client.host}", **cookie)[0] == 200
    assert client.ask("POST", "/v1/chat/completions", ASKED, Origin="http://evil.example")[0] == 403  # by token


def test_a_server_for_others_answers_to_its_addresses_but_not_to_foreign_names():
    guard = Guard("0.0.0.0", 80, "secret")
    assert not guard.local
    for host, answered in {"192.168.0.7": True, socket.gethostname(): True, "evil.example": False}.items():
        if answered:
            guard.check("GET", "/?token=secret", {"host": host})
        else:
            with pytest.raises(Exception, match="does not answer for host"):
                guard.check("GET", "/?token=secret", {"host": host})


def test_loopback_is_known_by_name_and_number():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.0.1", "example.org", "")] == [False] * 4


def test_every_answer_forbids_foreign_content(client):
    for path in ("/", "/app.js", "/api/state", "/nowhere"):
        headers = client.open("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path", ["/../server.py", "/..%2fserver.py", "//etc/passwd", "/page/index.html", "/style.css/../../server.py"]
)
def test_only_the_files_of_the_page_are_served(client, path):
    status, content = client.ask("GET", path)
    assert status == 404
    assert set(content) == {"error"}


# --- answers ---


def test_an_answer_in_one_piece(client, resident):
    status, content = client.ask("POST", "/v1/chat/completions", ASKED)
    assert status == 200
    [choice] = content["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected(resident)}
    usage = content["usage"]
    assert usage["completion_tokens"] == content["timings"]["tokens"] <= 12
    assert choice["finish_reason"] == ("length" if usage["completion_tokens"] == 12 else "stop")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert content["model"] == "federated"


def test_an_answer_as_a_stream(client, resident):
    events = client.stream(
        "/v1/chat/completions", {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, end, usage = events
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(pieces) > 2
    assert "".join(pieces) == expected(resident)
    assert end["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == end["timings"]["tokens"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_arms_take_turns_and_the_base_stays_the_base(client, resident):
    """A base that silently was the tuned model would make every comparison worthless."""
    names = ["federated", "base", "centralised", "base", "federated"]
    said = [
        client.ask("POST", "/v1/chat/completions", {**ASKED, "model": name})[1]["choices"][0]["message"]["content"]
        for name in names
    ]
    assert said == [expected(resident, name) for name in names]
    assert len(set(said)) == 3


def test_a_conversation_with_parts_a_system_turn_and_a_seed(client, resident):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "copy: "}, {"type": "text", "text": "red 1"}]},
        {"role": "assistant", "content": "red 1"},
        {"role": "user", "content": "again"},
    ]
    body = {
        "model": "base",
        "messages": turns,
        "temperature": 1.5,
        "top_p": 0.9,
        "seed": 3,
        "max_completion_tokens": 8,
    }
    said = client.ask("POST", "/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    messages = [
        Message("system", "Be brief."), Message("user", "copy: red 1"), Message("assistant", "red 1"),
        Message("user", "again"),
    ]  # fmt: skip
    prompt = resident.prompt("base", messages, 8)
    assert said == resident.answer("base", prompt, lambda text: None, Sampling(8, 1.5, 0.9, 3), turn=2).text


def test_the_models_are_the_arms(client):
    status, content = client.ask("GET", "/v1/models")
    assert status == 200
    assert [model["id"] for model in content["data"]] == ["federated", "centralised", "base"]


def test_questions_come_one_by_one_and_from_the_start_again(client):
    ids = [client.ask("GET", f"/api/question?number={n}")[1]["id"] for n in range(4)]
    assert ids == ["q1", "q2", "q3", "q1"]
    assert client.ask("GET", "/api/question?number=-1")[0] == 400


def test_several_ask_at_once_and_all_are_answered_in_turn(client, resident, service, monkeypatch):
    served = []
    real = service.speaker._answer
    monkeypatch.setattr(service.speaker, "_answer", lambda request: served.append(request.voice) or real(request))
    names = ["federated", "base", "centralised"] * 3
    with ThreadPoolExecutor(9) as pool:
        answers = list(
            pool.map(lambda name: client.ask("POST", "/v1/chat/completions", {**ASKED, "model": name}), names)
        )
    said = [content["choices"][0]["message"]["content"] for _, content in answers]
    assert said == [expected(resident, name) for name in names]
    assert sorted(served) == sorted(names)


# --- stopping ---


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_reader_leaves(client, endless, spoken, stream):
    body = {**ASKED, "stream": stream}
    if stream:
        answer = client.open("POST", "/v1/chat/completions", body)
        assert b"chat.completion.chunk" in answer.readline()
        answer.close()
    else:
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", client.server.server_port)) as raw:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {client.host}\r\nContent-Type: application/json\r\n"
            )
            head += f"Authorization: Bearer {client.server.guard.token}\r\nContent-Length: {len(data)}\r\n\r\n"
            raw.sendall(head.encode() + data)
    wait_for(lambda: spoken)
    assert spoken[0].reason == "cancelled"


def test_who_waits_in_line_and_leaves_is_never_answered(client, endless, spoken):
    first = client.open("POST", "/v1/chat/completions", {**ASKED, "stream": True})
    first.readline()
    second = http.client.HTTPConnection("127.0.0.1", client.server.server_port)
    head = {"Authorization": f"Bearer {client.server.guard.token}", "Content-Type": "application/json"}
    second.request("POST", "/v1/chat/completions", json.dumps({**ASKED, "stream": True}), head)
    wait_for(lambda: client.server.service.speaker._waiting.qsize() == 1)
    second.close()
    first.close()
    wait_for(lambda: len(spoken) == 2)
    assert [answer.reason for answer in spoken] == ["cancelled"] * 2


def test_closing_the_speaker_ends_answers(client, endless, service, spoken):
    answer = client.open("POST", "/v1/chat/completions", {**ASKED, "stream": True})
    answer.readline()
    service.speaker.close()
    assert spoken[0].reason == "cancelled"
    assert answer.read().endswith(b"data: [DONE]\n\n")
    status, content = client.ask("POST", "/v1/chat/completions", ASKED)
    assert (status, content["error"]["type"]) == (503, "Busy")


def test_too_many_requests_are_turned_away(service, endless):
    ask = partial(service.speaker.ask, "base", [Message("user", "x")], Sampling(4))
    with pytest.raises(Busy, match="requests wait already"):
        [ask() for _ in range(MOST_WAITING + 2)]  # the first may have begun


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "federatd"}, 404, "unknown model 'federatd'; did you mean 'federated'?"),
        ({"temprature": 1}, 400, "temprature is not supported here; did you mean 'temperature'?"),
        ({"tools": []}, 400, "tools is not supported here. Supported: "),
        ({"n": 2}, 400, "n is 2"),
        ({"max_tokens": 0}, 400, "max_tokens is 0: input should be greater than or equal to 1"),
        ({"max_tokens": "12"}, 400, "max_tokens is '12'"),
        ({"max_tokens": 510}, 400, "expected at most 496"),
        ({"temperature": -1}, 400, "temperature is -1"),
        ({"top_p": 0}, 400, "top_p is 0"),
        ({"seed": -1}, 400, "seed is -1"),
        ({"messages": []}, 400, "messages is []"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role is 'robot'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "have the roles assistant; expected"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, 400, "roles user, user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_explained_before_anything_is_sent(client, change, status, message, stream):
    got, content = client.ask("POST", "/v1/chat/completions", {**ASKED, "stream": stream, **change})
    assert got == status
    assert message in content["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(client, body):
    for path in ("/v1/chat/completions", "/api/compare", "/api/vote"):
        status, content = client.ask("POST", path, body)
        assert status == 400
        assert content["error"]["message"]


def test_bodies_have_a_size_a_type_and_an_end(client):
    status, content = client.ask("POST", "/v1/chat/completions", b"x" * (MOST_BYTES + 1))
    assert status == 413
    assert str(MOST_BYTES) in content["error"]["message"]
    assert client.ask("POST", "/v1/chat/completions", ASKED, Content_Type="text/plain")[0] == 415
    assert client.ask("POST", "/v1/chat/completions", b"{}", Content_Length="-1")[0] == 411
    assert client.ask("POST", "/v1/chat/completions", b"{}", Content_Length="huge")[0] == 411


def test_the_rest_of_a_refused_body_is_not_taken_for_a_request(client):
    connection = http.client.HTTPConnection("127.0.0.1", client.server.server_port)
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    head = {"Authorization": f"Bearer {client.server.guard.token}", "Content-Type": "text/plain"}
    connection.request("POST", "/v1/chat/completions", smuggled, head)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (415, "close")
    connection.close()


@pytest.mark.parametrize("path", ["/", "/api/state", "/v1/models"])
def test_what_is_read_cannot_be_posted_to(client, path):
    assert client.ask("POST", path, {})[0] == 404


def test_a_failure_of_the_model_is_told_and_the_next_request_is_answered(client, service, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(service.speaker.resident, "prompt", lambda *args: 1 / 0)
        status, content = client.ask("POST", "/v1/chat/completions", ASKED)
        assert (status, content["error"]["message"]) == (500, "ZeroDivisionError: division by zero")
    assert client.ask("POST", "/v1/chat/completions", ASKED)[0] == 200


def test_a_failure_in_the_middle_of_a_stream_is_an_event_of_it(client, service, monkeypatch):
    def answer(voice, prompt, write, sampling, **options):
        write("so far")
        raise RuntimeError("no memory")

    monkeypatch.setattr(service.speaker.resident, "answer", answer)
    text = client.ask("POST", "/v1/chat/completions", {**ASKED, "stream": True})[1]
    assert "so far" in text
    assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["message"].endswith(
        "no memory"
    )


def test_a_port_in_use_is_refused_with_what_to_do(server):
    with pytest.raises(ConfigError, match=f"port {server.server_port}.*choose another --port"):
        Server("127.0.0.1", server.server_port)


# --- comparing over HTTP ---


def test_a_blind_comparison_tells_no_names_until_the_vote(client, resident):
    events = client.stream("/api/compare", TWO)
    text = json.dumps(events)
    assert not any(name in text for name in ("federated", "base", "centralised"))
    head, *rest = events
    assert (head["labels"], head["names"]) == (["A", "B"], None)
    said = {label: "".join(e.get("text", "") for e in rest if e.get("label") == label) for label in "AB"}
    status, content = client.ask("POST", "/api/vote", {"comparison": head["comparison"], "choice": "B"})
    assert status == 200
    names = content["names"]
    assert sorted(names.values()) == ["base", "federated"]
    assert said == {label: expected(resident, name, tokens=6) for label, name in names.items()}
    [pair] = content["results"]["pairs"]
    assert (pair["one"], pair["other"], pair["count"], pair["wins"]) == (names["B"], names["A"], 1, 1)
    assert client.ask("GET", "/api/results")[1] == content["results"]


def test_an_open_comparison_names_its_arms_and_is_not_counted(client):
    events = client.stream("/api/compare", {**TWO, "blind": False})
    assert events[0]["names"] == {"A": "federated", "B": "base"}
    vote = {"comparison": events[0]["comparison"], "choice": "A"}
    assert client.ask("POST", "/api/vote", vote)[1]["results"] == {
        "votes": 0, "pairs": [], "first_shown": 0, "decided": 0, "not_blind": 1,
    }  # fmt: skip


def test_a_stopped_comparison_has_no_vote(client, endless, service):
    answer = client.open("POST", "/api/compare", TWO)
    head = json.loads(answer.readline().removeprefix(b"data: "))
    answer.close()
    status, content = client.ask("POST", "/api/vote", {"comparison": head["comparison"], "choice": "A"})
    assert (status, "not all of its answers" in content["error"]["message"]) == (400, True)
    assert not service.ballot.path.exists()


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"arms": ["federated"]}, 400, "expected 2 to 4"),
        ({"arms": ["base", "base"]}, 400, "expected 2 to 4 different"),
        ({"arms": ["base", "cetralised"]}, 404, "did you mean 'centralised'?"),
        ({"question": ""}, 400, "question is ''"),
        ({"question": 3}, 400, "question is 3"),
    ],
)
def test_comparisons_that_cannot_be_are_refused(client, change, status, message):
    got, content = client.ask("POST", "/api/compare", {**TWO, **change})
    assert got == status
    assert message in content["error"]["message"]


def test_openai_s_client_reads_answers_and_streams(client, resident):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with openai.OpenAI(
        base_url=f"http://{client.host}/v1", api_key=client.server.guard.token, max_retries=0
    ) as api:
        assert [model.id for model in api.models.list()] == ["federated", "centralised", "base"]
        whole = api.chat.completions.create(**ASKED)
        assert whole.choices[0].message.content == expected(resident)
        with api.chat.completions.create(**ASKED, stream=True) as pieces:
            assert "".join(p.choices[0].delta.content or "" for p in pieces) == expected(resident)
        with pytest.raises(openai.NotFoundError, match="did you mean 'federated'"):
            api.chat.completions.create(**{**ASKED, "model": "federatd"})
