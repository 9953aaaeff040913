"""Rows from files, folders and the hub, and what is said when they cannot be read."""

import json
import sys
import types

import pytest

from fedit.data.sources import load_rows
from fedit.errors import ConfigError, DataError

ROWS = [
    {"instruction": f"q{n}", "context": "", "response": f"a{n}", "category": "xy"[n % 2], "user": n % 3}
    for n in range(12)
]


def load(path, **options):
    return load_rows(str(path), columns=options.pop("columns", {}), **options)


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(corpus):
    return [example.answer for example in corpus.examples]


ALL = [f"a{n}" for n in range(12)]


def test_json_lines_are_read_with_their_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "q", "response": "a"}\n\n{"instruction": "q\u2028r", "response": "b"}\r\n')
    corpus = load(path)
    assert answers(corpus) == ["a", "b"]
    assert [example.where for example in corpus.examples] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert corpus.examples[1].messages[0].content == "q\u2028r"


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows, "version": 1}])
def test_json_is_a_list_or_an_object_with_data(wrap, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(wrap(ROWS)))
    corpus = load(path)
    assert answers(corpus) == ALL
    assert corpus.examples[4].where == "rows.json, row 5"
    assert corpus.examples[1].category == "y"


def test_csv_is_read_with_quotes_and_long_fields(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('instruction,response\n"one, two","line\nline"\nlong,' + "x" * 200_000 + "\nnone,\n")
    corpus = load(path)
    assert answers(corpus) == ["line\nline", "x" * 200_000, ""]
    assert corpus.examples[1].where == "rows.csv:4"


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert answers(load(path)) == ALL
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="broken Parquet"):
        load(path)


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "rows.parquet"), ("datasets", "owner/name")])
def test_a_missing_package_is_named_with_the_command_to_get_it(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"pip install 'fedit\[(parquet|hub)\]'"):
        load(name)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_is_accepted(name, tmp_path):
    text = {"rows.jsonl": '{"instruction": "q", "response": "a"}\n', "rows.csv": "instruction,response\nq,a\n"}
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + text[name].encode())
    assert answers(load(path)) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b"", r"r\.jsonl is empty"),
        ("r.jsonl", b" \n\n", r"r\.jsonl is empty"),
        ("r.json", b"[]", "holds no rows"),
        ("r.csv", b"instruction,response\n", "holds no rows"),
        ("r.jsonl", b'{"a": 1}\n{"a": \n', r"r\.jsonl:2: broken JSON at column 7"),
        ("r.jsonl", b'[{"a":\n1}]', r"r\.jsonl:1: broken JSON .* is a \.json file"),
        ("r.jsonl", b"3\n", r"r\.jsonl:1: found int, expected an object"),
        ("r.json", b'{"a": 1}\n{"a": 2}', r"r\.json:2: broken JSON .* is a \.jsonl file"),
        ("r.json", b'{"rows": []}', r"found an object with rows, expected a list"),
        ("r.json", b"3", r"found one value, expected a list"),
        ("r.json", b'[\n{"a":}]', r"r\.json:2: broken JSON at column 6"),
        ("r.csv", b"instruction,response\nq,a,b\n", r"r\.csv:2: more fields than the 2 of the header"),
        ("r.csv", b'instruction,response\n"q"x,a\n', r"r\.csv:2: broken CSV"),
        ("r.csv", b'a,b\n1,2\n"q,a\nx,y\n', r"r\.csv:3: broken CSV"),
        ("r.jsonl", b'{"a": 1}\n{"a": "\xe9"}', r"r\.jsonl:2: byte 16 is not UTF-8; .*ISO-8859-1"),
        ("r.json", "[]".encode("utf-16"), r"byte 0 is not UTF-8; .*UTF-16"),
        ("r.txt", b"x", r"cannot read '\.txt' files; expected one of \.json, \.jsonl, \.csv, \.parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(path)


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path):
    write_jsonl(tmp_path / "dolly.jsonl")
    with pytest.raises(DataError, match=r"no file .*doly\.jsonl; did you mean 'dolly\.jsonl'"):
        load(tmp_path / "doly.jsonl")
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        load(tmp_path / "nowhere" / "dolly.jsonl")


def test_a_field_can_own_the_rows(tmp_path):
    corpus = load(write_jsonl(tmp_path / "r.jsonl"), partition_by="user")
    assert [example.owner for example in corpus.examples] == [str(n % 3) for n in range(12)]
    with pytest.raises(DataError, match="field 'city', which no row has; fields: instruction, context, response"):
        load(tmp_path / "r.jsonl", partition_by="city")


def test_rows_without_an_owner_are_counted_and_named(tmp_path):
    rows = [dict(row, user=None) if n in (3, 5) else row for n, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"2 of 12 rows .* \(r\.jsonl:4, r\.jsonl:6\)"):
        load(write_jsonl(tmp_path / "r.jsonl", rows), partition_by="user")


def test_a_sample_keeps_the_order_and_depends_on_the_seed(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl")
    some = answers(load(path, max_examples=5, seed=1))
    assert some == answers(load(path, max_examples=5, seed=1))
    assert some == [answer for answer in ALL if answer in some]
    assert len(some) == 5
    assert len({tuple(answers(load(path, max_examples=5, seed=seed))) for seed in range(5)}) > 1
    assert answers(load(path, max_examples=50)) == ALL
    with pytest.raises(ConfigError, match="max_examples is 0"):
        load(path, max_examples=0)


def shepherd(folder, clients=3, held_out=True):
    folder.mkdir(parents=True)
    for number in range(clients):
        rows = [{"instruction": f"q{number}{letter}", "response": f"a{number}{letter}"} for letter in "xy"]
        (folder / f"local_training_{number}.json").write_text(json.dumps(rows))
    if held_out:
        (folder / "global_test.json").write_text(json.dumps(ROWS[-2:]))
    return folder


def test_a_folder_of_client_files_gives_owners_in_the_order_of_their_numbers(tmp_path):
    corpus = load(shepherd(tmp_path / "data", clients=11))
    expected = [f"client_{number}" for number in range(11) for _ in "xy"]
    assert [example.owner for example in corpus.examples] == expected
    assert answers(corpus) == [f"a{number}{letter}" for number in range(11) for letter in "xy"]


def test_client_files_are_found_in_a_numbered_sub_folder(tmp_path):
    shepherd(tmp_path / "data" / "3", held_out=True)
    corpus = load(tmp_path / "data")
    assert len(corpus.examples) == 6
    assert [example.answer for example in corpus.held_out] == ALL[-2:]
    assert corpus.examples[2].where == "local_training_1.json, row 1"
    shepherd(tmp_path / "data" / "10", clients=4)
    with pytest.raises(DataError, match=r"several partitions \(10, 3\); name one"):
        load(tmp_path / "data")
    assert len(load(tmp_path / "data" / "10").examples) == 8


def test_client_files_do_without_held_out_rows(tmp_path):
    corpus = load(shepherd(tmp_path / "data", held_out=False))
    assert corpus.held_out == ()
    assert len(corpus.examples) == 6


def test_a_gap_between_client_files_is_an_error(tmp_path):
    folder = shepherd(tmp_path / "data")
    (folder / "local_training_1.json").unlink()
    with pytest.raises(DataError, match=r"2 client files up to number 2, but not local_training_1\.json"):
        load(folder)


def test_a_folder_without_client_files_says_what_it_holds(tmp_path):
    write_jsonl(tmp_path / "dolly.jsonl")
    with pytest.raises(DataError, match=r"no local_training_<n>\.json.*name it: dolly\.jsonl"):
        load(tmp_path)


def hub(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_data_set_is_read_by_name_and_split(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return types.SimpleNamespace(to_list=lambda: ROWS)

    hub(monkeypatch, load_dataset)
    corpus = load("owner/name", split="test")
    assert asked == [("owner/name", "test")]
    assert answers(corpus) == ALL
    assert corpus.examples[0].where == "owner/name (test), row 1"


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def load_dataset(name, split):
        raise ConnectionError("offline")

    hub(monkeypatch, load_dataset)
    with pytest.raises(
        DataError, match=r"no file or folder owner/name here.*ConnectionError: offline.*give the path"
    ):
        load("owner/name")
