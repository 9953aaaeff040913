import pytest
import torch

from fedit.launch import run
from fedit.model.export import read_adapter


@pytest.mark.slow
def test_baselines_side_by_side_are_those_one_after_another(make_config, tmp_path, monkeypatch):
    """Processes change when an arm is trained, not what comes out."""
    wanted = {"compare": ["local", "centralised"], "compare_clients": 1, "max_new_tokens": 2, "num_threads": 1}
    heard = []
    together = run(make_config(**wanted, num_workers=2), tmp_path / "together", listener=heard.append)
    alone = run(make_config(**wanted, num_workers=1), tmp_path / "alone")
    assert together.summary["arms"] == alone.summary["arms"]
    for folder in sorted(path.parent for path in alone.folder.rglob("adapter_model.safetensors")):
        other = read_adapter(together.folder / folder.relative_to(alone.folder))
        assert all(torch.equal(other[name], tensor) for name, tensor in read_adapter(folder).items())
    steps = {event["arm"] for event in heard if event["event"] == "step"}
    assert {"local:client-0", "local_total:client-0", "centralised"} <= steps
    assert any(event["event"] == "arm_started" for event in heard)
