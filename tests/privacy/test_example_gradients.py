"""Gradients of single examples from one pass, against autograd through transformers and PEFT, one at a time."""

import pytest
import torch
from gradients import distance, float64_norms
from oracle import load
from tiny import make_rows, random_adapter
from torch import nn

from fedit.errors import ModelError
from fedit.model.adapted import AdaptedModel
from fedit.model.examples import Examples
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
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


def test_products_of_padded_batches_are_those_of_slices():
    """A GPU multiplies all examples at once; here on the CPU, with an example that has nothing."""
    generator = torch.Generator().manual_seed(0)
    lengths, counts = [3, 0, 5, 1], [3, 1]
    one, other = (torch.randn(9, width, generator=generator, dtype=torch.float64) for width in (2, 4))
    results = [
        Examples(lengths, counts, torch.device("cpu"), padded=padded).outer(one, other) for padded in (False, True)
    ]
    assert [len(own) for own in results[0]] == counts
    for slices, padded in zip(*results, strict=True):
        torch.testing.assert_close(slices, padded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"fast_path": False}])
def test_with_dropout_and_a_ledger_they_add_up_to_the_gradient(adapted, options):
    """Of the same rows, which drop the same inputs."""
    model = adapted("llama", targets="all-linear", dropout=0.3, **options)
    model.load(random_adapter(model, 1), ledger=random_adapter(model, 2))
    rows = make_rows(LENGTHS)
    torch.manual_seed(5)
    found = from_one_pass(model, rows)
    model.parameters.train(list(model.parameters))
    model.train_mode(True)
    torch.manual_seed(5)
    SUPERVISED.losses(model.log_probabilities(model.collate(rows)), rows).sum().backward()
    model.train_mode(False)
    expected = {name: parameter.grad for name, parameter in model.parameters.items()}
    assert distance({name: own.sum(0) for name, own in found.of.items()}, expected) < 1e-10


@pytest.mark.parametrize("bits", [4, 8])
def test_over_a_quantised_base_they_add_up_to_the_gradient(model_folder, bits):
    pytest.importorskip("bitsandbytes")
    base = load_base(resolve_model(str(model_folder("llama"))), device="cpu", dtype="fp32", bits=bits)
    model = AdaptedModel(base, rank=4, alpha=8, targets="all-linear")
    assert (model.fast is not None) == (bits == 4)
    model.load(random_adapter(model, 1))
    rows = make_rows(LENGTHS)
    found = from_one_pass(model, rows)
    model.parameters.train(list(model.parameters))
    model.train_mode(True)
    SUPERVISED.losses(model.log_probabilities(model.collate(rows)), rows).sum().backward()
    model.train_mode(False)
    expected = {name: parameter.grad for name, parameter in model.parameters.items()}
    assert distance({name: own.sum(0) for name, own in found.of.items()}, expected) < 1e-5
    # With 8 bits rows of a pass count in each other's products, so that every example needs a pass of its own.
    assert len(model.passes(rows, None, apart=True)) == (len(rows) if bits == 8 else 1)


def test_a_layer_that_does_not_see_every_token_once_is_refused(adapted):
    """As experts do, to which only some tokens are sent."""
    model = adapted("gpt2")
    model.load(random_adapter(model, 1))
    rows = make_rows(LENGTHS)
    model.example_gradients([row.rows for row in rows], lambda scores: scores.sum())
    block = model.base.model.transformer.h[0]
    block.register_forward_pre_hook(lambda module, args: (torch.cat([args[0], args[0][:, :1]], dim=1), *args[1:]))
    with pytest.raises(ModelError, match="does not see every token once"):
        model.example_gradients([row.rows for row in rows], lambda scores: scores.sum())
