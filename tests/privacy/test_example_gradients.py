"""Gradients of single examples from one pass, against autograd through transformers and PEFT, one at a time."""

import pytest
import torch
from gradients import distance, float64_norms
from oracle import load
from tiny import make_rows, random_adapter
from torch import nn

from fedit.errors import ModelError
from fedit.objectives import SupervisedTuning

pytestmark = pytest.mark.usefixtures("float64_softmax")

LENGTHS = [40, 7, 21, 12]
SUPERVISED = SupervisedTuning()


def one_at_a_time(oracle, rows):
    """Return [{name: gradient of the row's own mean loss}], each row alone."""
    named = {}
    for name, parameter in oracle.named_parameters():
        if ".lora_" in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            named[f"{module}.{rest[0]}"] = parameter
    found = []
    for row in rows:
        ids = torch.from_numpy(row.ids).long()
        chosen = torch.from_numpy(row.supervised[1:]).nonzero().squeeze(1)
        logits = oracle(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, chosen]
        loss = nn.functional.cross_entropy(logits, ids[1:][chosen])
        grads = torch.autograd.grad(loss, list(named.values()))
        found.append(dict(zip(named, grads, strict=True)))
    return found


def from_one_pass(model, rows):
    model.parameters.train(list(model.parameters))
    model.train_mode(True)
    found = model.example_gradients(
        [row.rows for row in rows], lambda scores: SUPERVISED.losses(scores, rows).sum()
    )
    model.train_mode(False)
    assert not model.parameters.gradients.any(), "the sum of the gradients must not pass by the clipping"
    return found


def assert_each(found, expected, tolerance):
    for index, own in enumerate(expected):
        assert distance({name: stacked[index] for name, stacked in found.of.items()}, own) < tolerance
    norms = [sum(float(g.double().square().sum()) for g in own.values()) ** 0.5 for own in expected]
    assert found.norms().tolist() == pytest.approx(norms, rel=10 * tolerance)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"targets": "all-linear"}),  # grouped queries, square and oblong layers, packed rows
        ("llama", {"targets": "all-linear", "gradient_checkpointing": True}),
        ("llama", {"targets": "all-linear", "fast_path": False}),
        ("llama", {"targets": "all-linear", "fast_path": False, "gradient_checkpointing": True}),
        ("gpt2", {"targets": "all-linear"}),  # transposed weights
        ("bloom", {}),  # cannot be packed: padded rows
    ],
)
def test_they_are_those_of_autograd_one_example_at_a_time(adapted, model_folder, kind, options):
    rows = make_rows(LENGTHS)
    for dtype, precision, tolerance in (("fp64", torch.float64, 1e-9), ("fp32", torch.float32, 1e-5)):
        model = adapted(kind, dtype=dtype, **options)
        adapter = random_adapter(model, 1)
        model.load(adapter)
        oracle = load(model_folder(kind), adapter, alpha=8, dtype=precision)
        if precision == torch.float64 and model.fast is not None:
            float64_norms(oracle)
        assert_each(from_one_pass(model, rows), one_at_a_time(oracle, rows), tolerance)
