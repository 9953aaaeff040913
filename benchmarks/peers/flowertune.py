"""FlowerTune's recipe: the client's SFTTrainer inside flwr's simulation, the base model loaded in every fit.

Its published settings: batches of 16, sequences up to 512, gradient checkpointing, constant learning rate within a
round and cosine over rounds, LoRA dropout 0.075, federated averaging of the adapter by flwr's own strategy. Its
4-bit base needs a GPU: fp32 here. One Ray actor runs the clients, so only one trains at a time. A round of 10
clients comes first and is not counted: it holds the start of the actor and its imports.
"""

import math
import os
import tempfile
import time
from pathlib import Path

# Before flwr and Ray are imported, here and in the actor: nothing is sent anywhere, nothing is kept.
SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
os.environ.update(SETTINGS)
# Ray's processes inherit this environment, and unpickle functions of the modules beside this file.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

import psutil  # noqa: E402
from common import (  # noqa: E402
    counted,
    load_model,
    print_result,
    read_request,
    read_rows,
    short_row,
    timed_train,
    versions,
    warm_up_rows,
)
from openfedllm import build_trainer  # noqa: E402

DEFAULTS = {
    "dtype": "fp32",
    "micro_batch": 16,
    "dropout": 0.075,
    "group_by_length": False,
    "checkpointing": True,
    "packing": False,
}
RATE_MAX, RATE_MIN = 5e-5, 1e-6
CLIENTS = "clients"


def fit(request: dict, options: dict, arrays: dict, job: dict) -> tuple[dict, dict[str, float]]:
    """Do one client's fit: load the model, put the adapter in, train, take the adapter out."""
    import peft
    import torch

    torch.set_num_threads(request["threads"])
    rows = read_rows(request)
    if job["tokens"]:
        rows = [short_row(rows, job["tokens"])]
    model, tokenizer = load_model(request, dropout=options["dropout"])
    if arrays:
        peft.set_peft_model_state_dict(model, arrays)
    rate = RATE_MIN + 0.5 * (RATE_MAX - RATE_MIN) * (1 + math.cos(math.pi * job["round"] / job["rounds"]))
    with tempfile.TemporaryDirectory() as folder:
        if job["warm"]:
            warm = build_trainer(
                model, tokenizer, warm_up_rows(rows), options, folder, steps=1, learning_rate=rate
            )
            warm.train()
        clock = timed_train(
            build_trainer(model, tokenizer, rows, options, folder, steps=job["steps"], learning_rate=rate)
        )
    metrics = {"num-examples": len(rows), "cpu_s": clock.cpu_s, "wall_s": clock.wall_s}
    return peft.get_peft_model_state_dict(model), metrics


def simulate(request: dict, options: dict, jobs: list[dict], clients: int) -> list[dict[str, float]]:
    """Run one round a job and return its seconds over all processes, and the last client's training seconds."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client_app, server_app = ClientApp(), ServerApp()
    measured: list[dict[str, float]] = []

    @client_app.train()
    def train(message, context):
        import torch  # noqa: F401  (flwr converts arrays only where it has been imported)

        arrays = message.content["arrays"].to_torch_state_dict()
        adapter, metrics = fit(request, options, arrays, dict(message.content["config"]))
        content = RecordDict({"arrays": ArrayRecord(adapter), "metrics": MetricRecord(metrics)})
        return Message(content=content, reply_to=message)

    @server_app.main()
    def main(grid, context):
        model, _ = load_model(request, dropout=0.0)
        import peft

        arrays = ArrayRecord(peft.get_peft_model_state_dict(model))
        for number, job in enumerate(jobs, 1):
            cpu, wall = tree_cpu(), time.perf_counter()
            result = FedAvg(
                fraction_train=1.0,
                fraction_evaluate=0.0,
                min_train_nodes=clients,
                min_available_nodes=clients,
            ).start(
                grid=grid,
                initial_arrays=arrays,
                train_config=ConfigRecord({**job, "round": number, "rounds": len(jobs)}),
                num_rounds=1,
            )
            if not result.train_metrics_clientapp:
                raise RuntimeError("no client of the simulation delivered; see its log above")
            arrays = result.arrays
            trained = result.train_metrics_clientapp[1]
            measured.append(
                {
                    "cpu_s": tree_cpu() - cpu,
                    "wall_s": time.perf_counter() - wall,
                    "train_cpu_s": trained["cpu_s"],
                    "train_wall_s": trained["wall_s"],
                }
            )

    run_simulation(
        server_app,
        client_app,
        clients,
        backend_config={
            "init_args": {
                "num_cpus": 1,
                "include_dashboard": False,
                "log_to_driver": False,
                "object_store_memory": 200 * 1024 * 1024,
            },
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return measured


def tree_cpu() -> float:
    """Return the CPU seconds of this process and of all below it that are alive, as Ray's are to the end."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def throughput(request: dict, options: dict) -> dict:
    """Train once; only the training inside the fit counts."""
    rows = read_rows(request)
    last = simulate(request, options, [{"tokens": 0, "steps": -1, "warm": True}], clients=1)[-1]
    return {**counted(rows), "cpu_s": last["train_cpu_s"], "wall_s": last["train_wall_s"]}


def rounds(request: dict, options: dict) -> dict:
    """Measure whole rounds: model load, adapter, optimizer, transport and aggregation are all in them."""
    clients = request[CLIENTS]
    jobs = [{"tokens": tokens, "steps": steps, "warm": False} for tokens, steps in request["sizes"]]
    seconds = simulate(request, options, [jobs[0], *jobs], clients)[1:]
    return {
        "sizes": [
            {"tokens": t, "steps": s, "cpu_s": x["cpu_s"] / clients, "wall_s": x["wall_s"] / clients}
            for (t, s), x in zip(request["sizes"], seconds, strict=True)
        ]
    }


def main() -> None:
    request = read_request()
    options = {**DEFAULTS, **request["options"]}
    with tempfile.TemporaryDirectory() as home:
        os.environ["FLWR_HOME"] = home
        task = {"throughput": throughput, "rounds": rounds}[request["task"]]
        print_result({**task(request, options), "versions": versions("trl", "flwr", "ray")})


if __name__ == "__main__":
    main()
