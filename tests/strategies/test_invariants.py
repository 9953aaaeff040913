"""What algorithms promise, over random shapes, ranks, scales, cohorts and number types; slips that others made.

The oracle is always the clients' models as dense float64 matrices. `docs/invariants.md` says where the others are.
"""

import peft
import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from fedit import lora
from fedit.errors import UnknownName
from fedit.strategies import STRATEGIES, build_strategy
from fedit.types import ClientUpdate, with_ledger
from fedit.updates import Updates

EXACT = {
    "fedex_lora": {},
    "flora": {},
    "fedmomentum": {"energy": 1.0},
    "fedsvd": {},
    "ffa_lora": {},
    "rolora": {},
}
ARRIVES = {
    **EXACT,
    "fedavg": {}, "fedit": {}, "fedprox": {}, "fedbuff": {}, "fedasync": {"mixing": 1.0}, "fedavgm": {},
    "flexlora": {}, "hetlora": {}, "lora_fair": {"regularisation": 0.0}, "ditto": {}, "feddpa": {},
    "geometric_median": {}, "norm_clipping": {}, "centred_clipping": {},
}  # fmt: skip
"""Where one client alone is followed all the way; others scale, mix or outvote."""


@st.composite
def federations(draw):
    """Shapes of a few layers, square ones and narrow ones among them, a rank that fits them, and a cohort."""
    rank = draw(st.integers(1, 8))
    sides = st.integers(max(3, rank), 64)
    shapes = {f"m{k}": (draw(sides), draw(sides)) for k in range(draw(st.integers(1, 3)))}
    side = draw(sides)
    shapes["square"] = (side, side)
    sizes = draw(st.lists(st.integers(1, 900), min_size=1, max_size=6))
    return shapes, rank, sizes, draw(st.sampled_from([0.25, 1.0, 2.0, 8.0])), draw(st.integers(0, 999))


@pytest.mark.parametrize("name", sorted(EXACT))
@given(federations())
@settings(max_examples=20, deadline=None)
def test_exact_algorithms_give_the_mean_of_the_clients_models_whatever_the_shapes(name, federation):
    shapes, rank, sizes, scale, seed = federation
    strategy = build_strategy(name, EXACT[name])
    server = products.start(strategy, seed, rank, scale, shapes=shapes)
    played = products.play(strategy, server, products.clients(*sizes), seed=seed)
    assert products.distance(played.mean, played.after) < 1e-5


@given(federations())
@settings(max_examples=30, deadline=None)
def test_flexlora_is_the_nearest_of_its_rank_whatever_the_shapes(federation):
    """Eckart and Young: what is lost is the tail of the singular values, nothing where ranks add up to less."""
    shapes, rank, sizes, scale, seed = federation
    strategy = build_strategy("flexlora", {})
    server = products.start(strategy, seed, rank, scale, shapes=shapes)
    played = products.play(strategy, server, products.clients(*sizes), seed=seed)
    for module, mean in played.mean.items():
        values = torch.linalg.svdvals(mean)
        lost = (played.after[module] - mean).norm()
        torch.testing.assert_close(lost, values[rank:].norm(), rtol=1e-3, atol=1e-5 * float(values.norm()))


@pytest.mark.parametrize("name", ["fedit", *sorted(EXACT)])
@given(federations())
@settings(max_examples=10, deadline=None)
def test_updates_in_bfloat16_are_summed_in_float32(name, federation):
    """What is sent may be coarse; the sum of what arrived is not, and the adapter stays float32."""
    shapes, rank, sizes, scale, seed = federation
    strategy = build_strategy(name, EXACT.get(name, {}))
    server = products.start(strategy, seed, rank, scale, shapes=shapes)
    coarse, fine = _sent(strategy, server, sizes, seed)
    one, two = _step(strategy, server, coarse), _step(strategy, server, fine)
    assert all(t.dtype == torch.float32 for t in [*one.adapter.values(), *one.ledger.values()])
    assert products.distance(products.weights(two), products.weights(one)) < 1e-5


def _sent(strategy, server, sizes, seed):
    """Return updates in bfloat16, and the same numbers in float32."""
    found = ([], [])
    for index, size in enumerate(sizes):
        moved = products.adapter(1000 * seed + index, _rank(server), 0.3, _shapes(server))
        coarse = {n: t.to(torch.bfloat16) for n, t in moved.items() if strategy.uploads(n, server.round + 1)}
        for kind, delta in zip(found, (coarse, {n: t.float() for n, t in coarse.items()}), strict=True):
            kind.append(ClientUpdate(f"c{index}", 4, size, float(size), delta, scale=server.scale))
    return found


def _step(strategy, server, sent):
    uploads = {name for update in sent for name in update.delta}
    return strategy.aggregate(server, Updates(sent, server.adapter, uploads=lambda name: name in uploads))


def _rank(server):
    return next(len(t) for n, t in server.adapter.items() if n.endswith(".A"))


def _shapes(server):
    names = {n[:-2] for n in server.adapter}
    return {m: (len(server.adapter[f"{m}.B"]), server.adapter[f"{m}.A"].shape[1]) for m in names}


@pytest.mark.parametrize("name", sorted(ARRIVES))
@given(federations())
@settings(max_examples=8, deadline=None)
def test_one_client_alone_is_followed_all_the_way(name, federation):
    shapes, rank, _, scale, seed = federation
    strategy = build_strategy(name, ARRIVES[name])
    server = products.start(strategy, seed, rank, scale, shapes=shapes)
    played = products.play(strategy, server, products.clients(7), seed=seed)
    assert products.distance(played.mean, played.after) < 1e-5


@pytest.mark.parametrize("name", ["fedit", "flexlora", *sorted(EXACT)])
@given(federations(), st.booleans())
@settings(max_examples=6, deadline=None)
def test_layers_of_either_kind_compute_with_peft_what_was_aggregated(name, federation, transposed):
    """``Linear`` keeps weights (out, in), ``Conv1D`` (in, out): outputs and merged weights are one model's."""
    shapes, rank, sizes, scale, seed = federation
    strategy = build_strategy(name, EXACT.get(name, {}))
    server = products.start(strategy, seed, rank, scale, shapes=shapes)
    played = products.play(strategy, server, products.clients(*sizes), seed=seed)
    wanted = played.mean if name in EXACT else played.after
    model = dict(with_ledger(strategy.factors(played.server.adapter), played.server.ledger))
    plain = lora.joined({n: t.double() for n, t in model.items()}, scale)
    made = {module: _layer(out, width, transposed) for module, (out, width) in shapes.items()}
    layers = torch.nn.ModuleDict(made).double()
    bases = {m: layer.weight.detach().clone() for m, layer in layers.items()}
    config = peft.LoraConfig(
        r=lora.rank_of(plain),
        lora_alpha=scale * lora.rank_of(plain),
        target_modules=list(shapes),
        fan_in_fan_out=transposed,
    )
    adapted = peft.get_peft_model(torch.nn.Sequential(layers), config).base_model.model[0]
    for module, base in bases.items():
        with torch.no_grad():
            adapted[module].lora_A["default"].weight.copy_(plain[f"{module}.A"])
            adapted[module].lora_B["default"].weight.copy_(plain[f"{module}.B"])
        weight = (base.T if transposed else base) + wanted[module]
        rows = torch.randn(2, shapes[module][1], generator=torch.Generator().manual_seed(seed)).double()
        found, expected = adapted[module](rows), rows @ weight.T + adapted[module].bias
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
        adapted[module].merge()
        merged = adapted[module].weight.T if transposed else adapted[module].weight
        torch.testing.assert_close(merged, weight, rtol=1e-4, atol=1e-4 * float(weight.abs().max()))


def _layer(out, width, transposed):
    return Conv1D(out, width) if transposed else torch.nn.Linear(width, out)


# --- slips of other implementations ---


def test_the_baseline_hears_every_client_and_not_the_first_alone():
    """FLoRA's published code sums FedIT's baseline into a misspelt variable: it is client 0's by its weight."""
    strategy = build_strategy("fedit", {})
    server = products.start(strategy)
    sizes = (3, 5, 8)
    _, fine = _sent(strategy, server, sizes, 1)
    after = _step(strategy, server, fine).adapter
    for name, tensor in server.adapter.items():
        mean = sum(n / 16 * u.delta[name].double() for n, u in zip(sizes, fine, strict=True))
        torch.testing.assert_close(after[name].double(), tensor.double() + mean, rtol=0, atol=1e-6)
        assert not torch.allclose(after[name], tensor + 3 / 16 * fine[0].delta[name], atol=1e-2)


@pytest.mark.parametrize("name", ["fedex_lora", "flora", "fedmomentum"])
def test_what_is_added_to_a_square_layer_is_not_its_transpose(name):
    """fedex-lora adds the residual transposed, right where layers store (in, out); a square one takes either."""
    options = {"energy": 1.0} if name == "fedmomentum" else {}
    strategy = build_strategy(name, options)
    server = products.start(strategy, shapes={"x.q": (12, 12)})
    played = products.play(strategy, server, products.clients(3, 5), size=1.0)
    ledger = products.products(played.server.ledger)["x.q"]
    turned = {"x.q": played.after["x.q"] - ledger + ledger.T}
    assert products.distance(played.mean, played.after) < 1e-5
    assert products.distance(played.mean, turned) > 0.1


@pytest.mark.parametrize("name", ["fedex_lora", "flora", "flexlora", "fedmomentum", "fedsvd"])
def test_no_sum_forgets_alpha_over_rank(name):
    """FedLLM-Factory and NVFlare's example add B A as it is; at s = 4 that is another model."""
    strategy = build_strategy(name, EXACT.get(name, {}))
    server = products.start(strategy, scale=4.0, rank=12, shapes={"x.q": (12, 12), "x.k": (14, 12)})
    played = products.play(strategy, server, products.clients(3, 5), size=1.0)
    forgotten = {module: matrix / 4 for module, matrix in played.mean.items()}
    assert products.distance(played.mean, played.after) < 1e-5
    assert products.distance(forgotten, played.after) > 1


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_misspelt_strategy_is_never_another_one(name):
    """OpenFedLLM's clients and server spell FedAdagrad differently: one of them quietly averages."""
    for wrong in (name.replace(name[1], "", 1), name + "x"):
        if wrong not in STRATEGIES:
            with pytest.raises(UnknownName, match="unknown strategy"):
                build_strategy(wrong, {})
