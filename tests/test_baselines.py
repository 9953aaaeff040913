"""The centralised arm, a federation of one client and a plain loop over the same rows end with one adapter."""

import json

import pytest
import torch
from gradients import distance, float64_norms, gradients_of_rows
from oracle import factors, load, read
from tiny import write_rows

from fedit import arms, seeds
from fedit.compute import Here
from fedit.data.tokens import TokenRow
from fedit.events import EventLog
from fedit.federation import train
from fedit.prepare import prepare
from fedit.training import batches

ROUNDS, STEPS = 3, 2
EVERYONE = "everyone"


@pytest.fixture(params=["constant", "linear"])
def job(make_config, tmp_path, request):
    """A job whose only client has the name, and so the order of rows, of the centralised arm's."""
    path = tmp_path / "owned.jsonl"
    write_rows(path, 40)
    rows = [{**json.loads(line), "owner": EVERYONE} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(
        make_config(
            dataset=str(path),
            partitioner="natural",
            partition_by="owner",
            num_clients=None,
            held_out=0.1,
            dtype="fp64",
            num_rounds=ROUNDS,
            local_steps=STEPS,
            client_optimizer="keep",
            lr_schedule=request.param,
            weight_decay=0.1,
        )
    )


def trained(job, arm, folder):
    log = EventLog(folder)
    result = train(job, Here(job), arm, folder, log)
    return result.adapter, arms.tokens_by_round(result.events)


def plain(job, model_path, tokens, *, rate_by_tokens=False):
    """Train with transformers, PEFT and torch.optim.AdamW on the arm's rows until its tokens are spent.

    rate_by_tokens: a falling rate follows the tokens that were seen, else the steps.
    """
    config = job.config
    start = job.model.initial(config.seed)
    model = float64_norms(load(model_path, start, alpha=config.lora_alpha))
    model.enable_adapter_layers()
    own = factors(model)
    optimizer = torch.optim.AdamW(
        own.values(), lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), weight_decay=0.1
    )
    rows = [row for row in job.tokens(job.clients[EVERYONE]) if row.supervised.any()]
    order = batches(len(rows), config.batch_size, seeds.derive(config.seed, "data", EVERYONE), 0)
    step = 0
    for number in range(1, ROUNDS + 1):
        seen = 0
        while seen < tokens[number]:
            chosen: list[TokenRow] = [rows[i] for i in next(order)]
            _, gradients = gradients_of_rows(model, start, chosen)
            count = sum(int(row.supervised[1:].sum()) for row in chosen)
            for name, parameter in own.items():
                parameter.grad = gradients[name] / count
            torch.nn.utils.clip_grad_norm_(own.values(), config.max_grad_norm)
            gone = (number - 1 + seen / tokens[number]) if rate_by_tokens else step / STEPS
            left = 1 - gone / ROUNDS if config.lr_schedule == "linear" else 1.0
            optimizer.param_groups[0]["lr"] = config.learning_rate * left
            optimizer.step()
            seen += sum(len(row.ids) for row in chosen)
            step += 1
    return read(model)


@pytest.mark.usefixtures("float64_softmax")
def test_one_client_the_centralised_arm_and_a_plain_loop_are_the_same(job, tiny, tmp_path):
    alone, tokens = trained(job, arms.federated(job), tmp_path / "federated")
    central, spent = trained(job, arms.named(job, "centralised", tokens), tmp_path / "centralised")
    expected = plain(job, tiny, tokens)
    assert spent == tokens
    assert len(tokens) == ROUNDS
    assert distance(alone, expected) < 1e-7
    assert distance(job.model.initial(job.config.seed), expected) > 0.1
    if job.config.lr_schedule == "constant":
        assert all(torch.equal(central[name], alone[name]) for name in alone)
    else:
        # Its rate falls with the tokens that it is given, not with steps: almost the same line.
        by_tokens = plain(job, tiny, tokens, rate_by_tokens=True)
        assert distance(central, by_tokens) < 1e-7 < distance(by_tokens, expected) < 0.01


def test_a_client_alone_is_found_by_its_whole_name(make_config):
    """OpenFedLLM's local mode takes the last digit of the client's number: client 10 trains on the rows of 0."""
    job = prepare(make_config(num_clients=11, compare=["local"], compare_clients=11, max_new_tokens=2))
    assert set(arms.baseline_names(job)) == {f"{k}:{c}" for k in ("local", "local_total") for c in job.clients}
    for client in ("client-00", "client-10"):
        assert list(arms.named(job, f"local:{client}", {1: 10}).clients.values()) == [[client]]
