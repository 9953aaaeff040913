"""Aggregating adapters on disk: the numbers of a run, and refusals that name the folder."""

import json

import pytest
import safetensors.torch
import torch

from fedit.aggregation import Contribution, aggregate
from fedit.errors import ConfigError
from fedit.model.export import read_adapter, read_adapter_config, write_adapter_files
from fedit.rehearsal import effective, fresh
from fedit.strategies import build_strategy
from fedit.types import with_ledger

SHAPES = {"layers.0.q_proj": (12, 8), "layers.0.v_proj": (12, 20)}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": False,
}


def adapter(seed, rank=4, b=1.0):
    found = dict(fresh(SHAPES, rank, seed))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in found.items():
        if name.endswith(".B"):
            found[name] = b * torch.randn(tensor.shape, generator=generator)
    return found


def write(folder, tensors, scale=2.0, **changes):
    folder.mkdir(parents=True)
    write_adapter_files(folder, tensors, {**CONFIG, **changes}, scale)
    return folder


def weight_of(state):
    config = read_adapter_config(state / "adapter")
    ledger = safetensors.torch.load_file(state / "ledger.safetensors")
    return effective(with_ledger(read_adapter(state / "adapter"), ledger), config["lora_alpha"] / config["r"])


def part_of(whole):
    return {name: tensor for name, tensor in whole.items() if "q_" in name}


@pytest.fixture
def state(tmp_path):
    write(tmp_path / "state" / "adapter", adapter(0, b=0.0))
    return tmp_path / "state"


def test_the_mean_of_factors_is_written_and_can_be_gone_on_from(fedit, state, tmp_path):
    a, b = write(tmp_path / "a", adapter(1)), write(tmp_path / "b", adapter(2))
    out = tmp_path / "one"
    outcome = fedit(
        "aggregate", "--strategy", "fedit", "--state", state, f"{a}:1", f"{b}:3", "--out", out, "--json"
    )
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert (told["round"], told["clients"], told["rank"], told["scale"], told["ledger_rank"]) == (1, 2, 4, 2.0, 0)
    found = read_adapter(out / "adapter")
    for name, tensor in found.items():
        expected = (adapter(1)[name].double() + 3 * adapter(2)[name].double()) / 4
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
    again = fedit(
        "aggregate", "--strategy", "fedit", "--state", out, f"{a}:1", "--out", tmp_path / "two", "--json"
    )
    assert json.loads(again.out)["round"] == 2
    product = effective(adapter(1), 2.0)
    for module, matrix in weight_of(tmp_path / "two").items():
        torch.testing.assert_close(matrix, product[module], rtol=0, atol=1e-5)


def test_options_of_the_strategy_are_read(fedit, state, tmp_path):
    a = write(tmp_path / "a", adapter(1))
    run = ("aggregate", "--strategy", "fedit", "--state", state, f"{a}:1")
    assert fedit(*run, "--out", tmp_path / "half", "--option", "server_lr=0.5").code == 0
    found = read_adapter(tmp_path / "half" / "adapter")
    name = "layers.0.q_proj.B"
    torch.testing.assert_close(found[name], adapter(1)[name] / 2)
    outcome = fedit(*run, "--out", tmp_path / "x", "--option", "server_rate=0.5")
    assert outcome.code == 2
    assert "did you mean 'server_lr'?" in outcome.err


def test_an_adapter_that_is_not_finite_is_left_out_and_named(fedit, state, tmp_path):
    bad = adapter(1)
    bad["layers.0.q_proj.A"][0, 0] = float("nan")
    a, b = write(tmp_path / "bad", bad), write(tmp_path / "b", adapter(2))
    outcome = fedit(
        "aggregate", "--strategy", "fedit", "--state", state, f"{a}:1", f"{b}:3", "--out", tmp_path / "o", "--json"
    )
    told = json.loads(outcome.out)
    assert told["clients"] == 1
    assert "0:bad" in told["rejected"][0]["client"]
    assert "not finite" in told["rejected"][0]["reason"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: f"{write(p / 'c', adapter(1, rank=2), 4.0)}:5", "rank 2 an adapter of rank 4"),
        (lambda p: f"{write(p / 'c', adapter(1), 4.0)}:5", "has scale 4 (alpha over rank)"),
        (
            lambda p: f"{write(p / 'c', part_of(adapter(1)))}:5",
            "lacks layers.0.v_proj",
        ),
        (lambda p: f"{write(p / 'c', adapter(1))}", "expected PEFT_DIR:num_examples"),
        (lambda p: f"{write(p / 'c', adapter(1))}:0", "expected PEFT_DIR:num_examples"),
        (lambda p: f"{p / 'nowhere'}:3", "is no adapter"),
        *(
            (lambda p, how=how: f"{write(p / 'c', adapter(1), **how)}:5", f"sets {next(iter(how))} to")
            for how in ({"alpha_pattern": {"q_proj": 64}}, {"rank_pattern": {"q_proj": 2}}, {"lora_bias": True})
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(fedit, state, tmp_path, make, said):
    out = tmp_path / "out"
    outcome = fedit("aggregate", "--strategy", "fedit", "--state", state, make(tmp_path), "--out", out)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not out.exists()


def test_a_state_of_another_strategy_and_a_taken_folder_are_refused(fedit, state, tmp_path):
    a = write(tmp_path / "a", adapter(1))
    out = tmp_path / "one"
    run = ("aggregate", "--strategy", "fedit", "--state", state, f"{a}:1", "--out", out)
    assert fedit(*run).code == 0
    taken = fedit(*run)
    assert taken.code == 2
    assert "already exists" in taken.err
    (out / "state.safetensors").write_bytes(b"nothing")
    damaged = fedit("aggregate", "--strategy", "fedit", "--state", out, f"{a}:1", "--out", tmp_path / "two")
    assert damaged.code == 2
    assert "cannot be read" in damaged.err


# --- algorithms against dense oracles, over two rounds ---

SAME = [(8, 16)] * 3
MIXED = [(4, 8), (8, 16), (2, 16)]
"""Rank and alpha of each client: scales 2, 2 and 8."""
COUNTS = [10, 20, 50]


def dense(pairs):
    """Return the weighted mean of scale B A, float64, by the definition."""
    total = sum(count for _, _, count in pairs)
    mean = {}
    for factors, scale, count in pairs:
        for module in SHAPES:
            product = scale * factors[f"{module}.B"].double().numpy() @ factors[f"{module}.A"].double().numpy()
            mean[module] = mean.get(module, 0.0) + count / total * product
    return {module: torch.from_numpy(matrix) for module, matrix in mean.items()}


def ledger_of(state):
    path = state / "ledger.safetensors"
    held = safetensors.torch.load_file(path) if path.is_file() else {}
    zero = {module: torch.zeros(out, width, dtype=torch.float64) for module, (width, out) in SHAPES.items()}
    return {m: held[f"{m}.B"].double() @ held[f"{m}.A"].double() if f"{m}.A" in held else zero[m] for m in zero}


def trained_from(state, clients, folder, seed, trains=lambda name: True):
    """Write what clients of these ranks and alphas might have made of a state's adapter; return all factors."""
    adapter, config = read_adapter(state / "adapter"), read_adapter_config(state / "adapter")
    written = []
    for index, ((rank, alpha), count) in enumerate(zip(clients, COUNTS, strict=True)):
        scale, generator = alpha / rank, torch.Generator().manual_seed(seed + index)
        own = {}
        for name, tensor in adapter.items():
            cut = tensor[:rank] if name.endswith(".A") else tensor[:, :rank]
            cut = cut * (config["lora_alpha"] / config["r"] / scale if name.endswith(".B") else 1.0)
            own[name] = cut + 0.3 * torch.randn(cut.shape, generator=generator) * trains(name)
        write(folder / f"c{index}", own, scale, r=rank, lora_alpha=alpha)
        written.append((own, scale, count))
    return written


def aggregated(fedit, strategy, state, folder, out, *options):
    clients = [f"{folder / f'c{index}'}:{count}" for index, count in enumerate(COUNTS)]
    return fedit("aggregate", "--strategy", strategy, "--state", state, *clients, "--out", out, *options)


@pytest.fixture
def wide(tmp_path):
    """A state of rank 8 before its first round."""
    write(tmp_path / "wide" / "adapter", adapter(0, rank=8, b=0.0), r=8, lora_alpha=16)
    return tmp_path / "wide"


@pytest.mark.parametrize(
    ("strategy", "clients"),
    [("fedex_lora", SAME), ("flora", SAME), ("flora", MIXED), ("fedmomentum", SAME), ("fedmomentum", MIXED)],
)
def test_exact_algorithms_give_the_mean_of_the_clients_models_in_every_round(
    fedit, wide, tmp_path, strategy, clients
):
    state = wide
    for number in (1, 2):
        folder, out = tmp_path / f"round-{number}", tmp_path / f"state-{number}"
        expected = dense(trained_from(state, clients, folder, seed=10 * number))
        before = ledger_of(state)
        outcome = aggregated(
            fedit, strategy, state, folder, out, *(["--option", "energy=1.0"] * (strategy == "fedmomentum"))
        )
        assert outcome.code == 0, outcome.err
        for module, matrix in weight_of(out).items():
            torch.testing.assert_close(matrix, before[module] + expected[module], rtol=0, atol=2e-6)
        state = out
    assert any(matrix.any() for matrix in ledger_of(state).values())


@pytest.mark.parametrize("clients", [SAME, MIXED])
def test_flexlora_gives_the_best_approximation_of_the_mean(fedit, wide, tmp_path, clients):
    state = wide
    for number in (1, 2):
        folder, out = tmp_path / f"round-{number}", tmp_path / f"state-{number}"
        expected = dense(trained_from(state, clients, folder, seed=10 * number))
        assert aggregated(fedit, "flexlora", state, folder, out).code == 0
        for module, matrix in weight_of(out).items():
            u, s, v = torch.linalg.svd(expected[module])
            best = u[:, :8] * s[:8] @ v[:8]
            torch.testing.assert_close(matrix, best, rtol=0, atol=2e-5)
        assert not any(matrix.any() for matrix in ledger_of(out).values())
        state = out


def test_fedit_moves_by_the_mean_of_the_factors_and_is_not_exact(fedit, wide, tmp_path):
    trained = trained_from(wide, SAME, tmp_path / "round", seed=1)
    assert aggregated(fedit, "fedit", wide, tmp_path / "round", tmp_path / "out").code == 0
    for name, tensor in read_adapter(tmp_path / "out" / "adapter").items():
        mean = sum(count * factors[name].double() for factors, _, count in trained) / sum(COUNTS)
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-6)
    expected = dense(trained)
    assert all(
        (matrix - expected[m]).norm() > 0.1 * expected[m].norm()
        for m, matrix in weight_of(tmp_path / "out").items()
    )


@pytest.mark.parametrize("strategy", ["ffa_lora", "fedsvd", "rolora"])
def test_a_factor_that_stays_frozen_makes_the_mean_exact_and_must_have_stayed(fedit, wide, tmp_path, strategy):
    """What somebody trained beside it would be thrown away without a word."""
    frozen = trained_from(wide, SAME, tmp_path / "frozen", seed=1, trains=lambda name: name.endswith(".B"))
    out = tmp_path / "out"
    assert aggregated(fedit, strategy, wide, tmp_path / "frozen", out).code == 0
    expected = dense(frozen)
    for module, matrix in weight_of(out).items():
        torch.testing.assert_close(matrix, expected[module], rtol=0, atol=5e-6)
    trained_from(wide, SAME, tmp_path / "both", seed=1)
    outcome = aggregated(fedit, strategy, wide, tmp_path / "both", tmp_path / "refused")
    assert outcome.code == 2
    assert "does not train it in round 1" in outcome.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        ("fed_sb", [], "something else than the factors A and B"),
        ("ravan", [], "something else than the factors A and B"),
        ("scaffold", [], "send more than an adapter"),
        ("fednova", [], "send more than an adapter"),
        ("krum", [], "needs at least 5 clients a round"),
        ("fltrust", [], "'root', which is no client"),
        ("fedavgm", ["--option", "momentum=1.5"], "option 'momentum'"),
        ("flora", ["--option", "tolerance=-1.0"], "option 'tolerance'"),
    ],
)
def test_algorithms_that_cannot_be_applied_are_refused(fedit, wide, tmp_path, strategy, options, said):
    trained_from(wide, SAME, tmp_path / "round", seed=1)
    outcome = aggregated(fedit, strategy, wide, tmp_path / "round", tmp_path / "out", *options)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_a_root_client_can_be_named_by_its_place_and_folder(fedit, wide, tmp_path):
    trained_from(wide, SAME, tmp_path / "round", seed=1)
    done = aggregated(fedit, "fltrust", wide, tmp_path / "round", tmp_path / "out", "--option", "root_client=0:c0")
    assert done.code == 0, done.err


def test_clusters_of_their_own_are_refused_once_there_are_some(wide, tmp_path):
    """The state's adapter is the mean over clusters: no client trained on from it."""
    strategy = build_strategy("clustered", {"coherence": 1.0, "separation": 0.0, "warmup_rounds": 0})

    def go_on(state, number):
        folder, base = tmp_path / f"round-{number}", read_adapter(state / "adapter")
        for index, sign in enumerate((1, 1, -1, -1)):
            moved = {name: tensor + sign * adapter(9, rank=8)[name] for name, tensor in base.items()}
            write(folder / f"c{index}", moved, r=8, lora_alpha=16)
        clients = [Contribution(folder / f"c{index}", 10) for index in range(4)]
        aggregate(strategy, state, clients, tmp_path / f"state-{number}")
        return tmp_path / f"state-{number}"

    split = go_on(wide, 1)
    with pytest.raises(ConfigError, match="sends clients adapters of their own"):
        go_on(split, 2)
