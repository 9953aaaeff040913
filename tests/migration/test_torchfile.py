"""Files of torch.save are read as plain data: tensors to the bit, and nothing else is ever followed."""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from fedit.errors import ModelError
from fedit.migration.torchfile import read_torch_file


def test_tensors_come_back_to_the_bit(tmp_path):
    torch.manual_seed(1)
    base = torch.randn(6, 5)
    held = OrderedDict(
        a=base,
        half=torch.randn(3).half(),
        bf=torch.randn(2, 2).bfloat16(),
        double=torch.randn(2, 3, 4).double(),
        view=torch.randn(4, 6).T,
        part=torch.randn(9)[3:7],
        scalar=torch.tensor(2.5),
        none=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.randn(3)),
    )
    held._metadata = {"": {"version": 1}}  # as state_dict() of a module has it
    torch.save(held, tmp_path / "x.bin")
    found = read_torch_file(tmp_path / "x.bin")
    assert list(found) == list(held)
    for name, tensor in held.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def archive(path: Path, program: bytes, numbers: bytes = b"\0" * 16) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", program)
        file.writestr("x/data/0", numbers)
    return path


def test_a_program_in_the_file_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    torch.save({"a": torch.ones(2), "b": _Evil(marker)}, tmp_path / "evil.bin")
    with pytest.raises(ModelError, match="Nothing of it was loaded or run"):
        read_torch_file(tmp_path / "evil.bin")
    for protocol in range(6):
        evil = pickle.dumps({"a": _Evil(marker)}, protocol=protocol)
        with pytest.raises(ModelError):
            read_torch_file(archive(tmp_path / "evil2.bin", evil))
        (tmp_path / "plain.bin").write_bytes(evil)
        with pytest.raises(ModelError, match="ZIP"):
            read_torch_file(tmp_path / "plain.bin")
    assert not marker.exists()
    pickle.loads(evil)  # it would have been
    assert marker.exists()


def described(shape, strides, offset=0, count=4, kind="FloatStorage", call="torch._utils\n_rebuild_tensor_v2"):
    """The pickle of {"a": a tensor}, written by hand."""

    def number(n):
        return b"J" + n.to_bytes(4, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    def word(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    storage = (
        b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word("0") + word("cpu") + number(count) + b"tQ"
    )
    rebuilt = (
        f"c{call}\n".encode() + b"(" + storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89tR"
    )
    return b"\x80\x02}" + word("a") + rebuilt + b"s."


def test_shapes_that_go_beyond_their_numbers_are_refused(tmp_path):
    good = read_torch_file(archive(tmp_path / "good.bin", described([2, 2], [2, 1])))
    assert torch.equal(good["a"], torch.zeros(2, 2))
    bad = {
        "more": described([3, 2], [2, 1]),
        "beyond": described([2, 2], [2, 1], offset=1),
        "repeated": described([1 << 30, 1 << 30], [0, 0]),
        "negative": described([2, 2], [-2, 1]),
        "longer storage": described([2, 2], [2, 1], count=1 << 30),
        "whole numbers": described([2, 2], [2, 1], kind="LongStorage"),
        "another call": described([2, 2], [2, 1], call="os\nsystem"),
        "nothing": b"",
        "no end": described([2, 2], [2, 1])[:-1],
    }
    for name, program in bad.items():
        path = archive(tmp_path / f"{name}.bin", program)
        with pytest.raises(ModelError, match=re.escape(str(path))):
            read_torch_file(path)


def test_compressed_numbers_and_damaged_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", described([2, 2], [2, 1]))
        file.writestr("x/data/0", b"\0" * 16)
    with pytest.raises(ModelError, match="16 bytes"):
        read_torch_file(tmp_path / "z.bin")
    content = io.BytesIO()
    torch.save({"a": torch.arange(8.0)}, content)
    whole = content.getvalue()
    for cut in range(0, len(whole), 97):
        (tmp_path / "cut.bin").write_bytes(whole[:cut])
        with pytest.raises(ModelError):
            read_torch_file(tmp_path / "cut.bin")
