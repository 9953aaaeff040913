import json
import shutil

import pytest
import torch
from measuring import answer
from rich.console import Console

from fedit.chatting import Chat, Sampling, find_tuned
from fedit.cli.chat import converse, writer
from fedit.data.examples import Message
from fedit.data.templates import get_template
from fedit.data.tokens import encode_prompt, stop_ids
from fedit.errors import ConfigError, DataError, ModelError
from fedit.model.adapted import AdaptedModel
from fedit.model.export import read_adapter
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.resident import TextStream

SHORT = Sampling(max_new_tokens=12)


@pytest.fixture
def talk(tiny_run):
    return Chat(find_tuned(tiny_run))


@pytest.fixture
def screen(capsys):
    """A console, and what was shown on it."""
    return Console(width=100, highlight=False), lambda: capsys.readouterr().out


def lines(*texts):
    """Return a reader of these lines, which then ends as Ctrl-D does."""
    waiting = list(texts)

    def read(prompt):
        if not waiting:
            raise EOFError
        text = waiting.pop(0)
        if isinstance(text, BaseException):
            raise text
        return text

    return read


def ask(talk, question, sampling=SHORT):
    pieces = []
    text = talk.answer(question, pieces.append, sampling)
    assert "".join(pieces) == text
    return text


def expected(tiny, folder, question):
    """The answer that evaluation would generate."""
    model = AdaptedModel(load_base(resolve_model(str(tiny)), dtype="fp32"), rank=4, alpha=16)
    model.load(read_adapter(folder) if folder else model.initial(0))
    tokenizer = model.base.tokenizer
    template = get_template("alpaca_short", tokenizer)
    prompt = encode_prompt([Message("user", question)], "", tokenizer, template, max_length=512)
    stops = stop_ids(tokenizer, template)
    return answer(model, tokenizer, [prompt], stop=stops, max_new_tokens=SHORT.max_new_tokens)[0]


# --- finding ---


def test_a_run_gives_model_template_and_scale(tiny_run, tiny):
    tuned = find_tuned(tiny_run)
    assert (tuned.model, tuned.template, tuned.rank, tuned.alpha) == (str(tiny), "alpaca_short", 4, 16)
    assert tuned.note == ""


def test_an_arm_is_read_with_the_settings_of_its_run(tiny_run):
    arm = find_tuned(tiny_run / "arms" / "centralised")
    own = read_adapter(tiny_run / "arms" / "centralised" / "adapter")
    assert arm.template == "alpaca_short"
    assert all(torch.equal(arm.adapter[name], own[name]) for name in own)
    assert any(not torch.equal(arm.adapter[name], tensor) for name, tensor in find_tuned(tiny_run).adapter.items())


def test_an_unfinished_run_answers_from_its_last_round(tiny_run, tmp_path):
    folder = tmp_path / "unfinished"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "server" / "round-0002")
    tuned = find_tuned(folder)
    assert "after round 1 of 2" in tuned.note
    assert set(tuned.adapter) == set(find_tuned(tiny_run).adapter)


def test_looking_into_a_run_in_progress_leaves_its_unfinished_files(tiny_run, tmp_path):
    folder = tmp_path / "live"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / "adapter")
    half = folder / "server" / ".round-0003.abcd.tmp"
    half.mkdir()
    find_tuned(folder)
    assert half.is_dir()


def test_an_adapter_alone_needs_its_base_named_where_that_was_a_folder(tiny_run, tmp_path, tiny):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_run / "adapter", folder)
    tuned = find_tuned(folder, model=str(tiny))
    assert (tuned.model, tuned.template, tuned.rank, tuned.alpha) == (str(tiny), "alpaca_short", 4, 16)
    assert find_tuned(folder, template="vicuna").template == "vicuna"


def test_the_published_name_of_the_default_model_means_the_default_model(tiny_run, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_run / "adapter", folder)
    change(folder, base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct")
    tuned = find_tuned(folder)
    assert tuned.model == "smollm2-135m-instruct"
    assert "--model" in tuned.note


def test_an_adapter_without_a_card_takes_the_model_s_template(tiny_run, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_run / "adapter", folder)
    (folder / "README.md").unlink()
    assert find_tuned(folder).template == "auto"


@pytest.mark.parametrize("changed", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"bias": "all"}])
def test_other_kinds_of_adapters_are_refused(tiny_run, tmp_path, changed):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_run / "adapter", folder)
    change(folder, **changed)
    name = next(iter(changed))
    with pytest.raises(ModelError, match=f"plain LoRA.*{name}|{name}.*plain LoRA"):
        find_tuned(folder)


def test_a_folder_that_is_neither_is_refused_with_what_was_looked_for(fedit, tmp_path):
    outcome = fedit("chat", tmp_path, "--prompt", "hello")
    assert outcome.code == 2
    assert "adapter_config.json" in outcome.err
    assert "resolved.yaml" in outcome.err


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        find_tuned(tmp_path / "nowhere")


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- answering ---


def test_answers_are_those_of_evaluation(talk, tiny, tiny_run):
    said = ask(talk, "copy: red 1")
    assert said == expected(tiny, tiny_run / "adapter", "copy: red 1").lstrip()
    assert said


def test_the_base_answers_as_without_an_adapter(talk, tiny):
    tuned = ask(talk, "copy: red 1")
    talk.messages.clear()
    talk.use_base(True)
    assert ask(talk, "copy: red 1") == expected(tiny, None, "copy: red 1").lstrip() != tuned
    talk.messages.clear()
    talk.use_base(False)
    assert ask(talk, "copy: red 1") == tuned


def test_a_conversation_remembers(talk):
    first = ask(talk, "copy: red 1")
    ask(talk, "copy: blue 2")
    assert [message.role for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1].content == first
    assert talk.take_back() == "copy: blue 2"
    assert len(talk.messages) == 2


def test_the_system_prompt_comes_first(tiny_run):
    talk = Chat(find_tuned(tiny_run), system="Be brief.")
    text = talk.tokenizer.decode(talk._prompt("hi", 8))
    assert text.startswith("Be brief.\n\n### Instruction:\nhi")


def test_the_oldest_exchanges_go_when_the_model_cannot_read_them(talk):
    for number in range(20):
        talk.messages += [Message("user", f"question {number}"), Message("assistant", "answer")]
    text = talk.tokenizer.decode(talk._prompt("now", 100))
    assert "question 0" not in text
    assert text.startswith("### Instruction:\nquestion ")
    assert text.endswith("now\n\n### Response:\n")


def test_a_question_longer_than_the_model_reads_loses_its_beginning(talk):
    assert len(talk._prompt("x" * 2000, 100)) == 512 - 100


def test_an_answer_longer_than_the_model_reads_is_refused(talk):
    with pytest.raises(ConfigError, match="expected at most 496"):
        ask(talk, "hi", Sampling(max_new_tokens=500))
    assert talk.messages == []


def test_drawn_answers_repeat_with_a_seed(talk, keep_global_state):
    def draw(seed):
        talk.messages.clear()
        return ask(talk, "hi", Sampling(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=seed))

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_an_interrupted_answer_stays_as_far_as_it_got(talk):
    pieces = []

    def stop(text):
        pieces.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.answer("copy: red 1", stop, SHORT)
    assert talk.messages == [Message("user", "copy: red 1"), Message("assistant", pieces[0])]
    ask(talk, "copy: blue 2")


def test_a_stream_waits_for_whole_characters_and_hides_special_tokens(tokenizer):
    pieces = []
    stop = tokenizer.eos_token_id
    stream = TextStream(tokenizer, {stop}, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for token in [*tokenizer("aé€").input_ids, special, *tokenizer("!").input_ids, stop]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert pieces == ["a", "é", "€", "!"]
    assert stream.text == "aé€!"


def test_a_stream_shows_a_half_character_at_the_end_only(tokenizer):
    pieces = []
    stream = TextStream(tokenizer, set(), pieces.append)
    stream.put(torch.tensor([0]))
    for token in tokenizer("a€").input_ids[:-1]:
        stream.put(torch.tensor([token]))
    assert pieces == ["a"]
    stream.end()
    assert pieces == ["a", "\ufffd"]


# --- the command ---


def test_a_prompt_is_answered_once(fedit, tiny_run, tiny):
    outcome = fedit("chat", tiny_run, "--prompt", "copy: red 1", "--max_new_tokens", SHORT.max_new_tokens)
    assert outcome.code == 0
    wanted = expected(tiny, tiny_run / "adapter", "copy: red 1").lstrip()
    assert printable(outcome.out).strip() == printable(wanted).strip()


def test_standard_input_is_a_prompt_too(fedit, tiny_run):
    piped = fedit("chat", tiny_run, "--max_new_tokens", 12, stdin="copy: red 1\n")
    given = fedit("chat", tiny_run, "--max_new_tokens", 12, "--prompt", "copy: red 1")
    assert piped.code == 0
    assert piped.out == given.out


def test_an_adapter_whose_base_is_not_here_says_how_to_name_it(fedit, tiny_run, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_run / "adapter", folder)
    outcome = fedit("chat", folder, "--prompt", "hi")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "base model tiny-llama" in outcome.err
    assert "--model names another" in outcome.err


def test_nothing_to_answer_is_refused(fedit, tiny_run):
    outcome = fedit("chat", tiny_run)
    assert outcome.code == 2
    assert "--prompt" in outcome.err


def test_a_conversation_follows_commands(talk, screen):
    out, shown = screen
    read = lines("/again", "copy: red 1", "/base", "/again", "/help", "/nonsense", "/reset", "/quit", "never read")
    converse(talk, out, SHORT, read)
    text = shown()
    assert "nothing was asked yet" in text
    assert "now the base model answers" in text
    assert "there is no command /nonsense" in text
    assert "Ctrl-C stops an answer" in text
    assert talk.messages == []
    assert talk.base_answers


def test_the_end_of_input_ends_a_conversation(talk, screen):
    converse(talk, screen[0], SHORT, lines())


def test_an_interrupt_stops_an_answer_and_a_second_one_leaves(talk, screen, monkeypatch):
    def interrupted(question, write, sampling):
        write("Once upon")
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converse(talk, screen[0], SHORT, lines("tell me a story", KeyboardInterrupt()))
    assert "Once upon\n(stopped)" in screen[1]()


def test_a_refused_question_does_not_end_a_conversation(talk, monkeypatch, capsys):
    def refused(question, write, sampling):
        raise DataError("the template refuses this")

    monkeypatch.setattr(talk, "answer", refused)
    converse(talk, Console(), SHORT, lines("hi"))
    assert "the template refuses this" in capsys.readouterr().err


def test_what_a_model_writes_cannot_steer_the_terminal(screen):
    out, shown = screen
    writer(out)("a\x1b[2Jb\rc\n\td [bold]e[/]")
    assert shown() == "a[2Jbc\n\td [bold]e[/]"


def printable(text):
    return "".join(char for char in text if char.isprintable())


@pytest.mark.slow
def test_the_default_model_answers_a_question(tmp_path, capsys):
    from fedit import settings
    from fedit.launch import run

    config = settings.load(
        None,
        [
            "num_clients=2",
            "num_rounds=1",
            "local_steps=1",
            "batch_size=2",
            "max_examples=4",
            "held_out=1",
            "dtype=fp32",
        ],
    ).config
    folder = run(config, tmp_path / "run").folder
    talk = Chat(find_tuned(folder))
    text = talk.answer("What is the capital of France?", lambda piece: None, Sampling(max_new_tokens=24))
    assert "Paris" in text
    assert "<|" not in text
