"""What fedit import makes of other tools' files, value by value; fixtures are written in each tool's format."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import write_rows

from fedit import settings
from fedit.data.sources import load_rows
from fedit.data.templates import get_template
from fedit.errors import ConfigError, DataError, ModelError, UserError
from fedit.migration.tools import TOOLS, import_from
from fedit.strategies import build_strategy
from fedit.types import LocalTraining

SHEPHERD = """# after a README
num=2
python main.py --global_model 'chavinlo/alpaca-native'\\
      --data_path  "./data" \\
      --output_dir  './lora-shepherd-7b/'\\
      --num_communication_rounds 12 \\
      --num_clients  $num \\
      --client_selection_frac 0.7 \\
      --local_num_epochs  2 \\
      --local_batch_size  20 \\
      --local_micro_batch_size 8 \\
      --local_learning_rate 0.0002 \\
      --cutoff_len=256 --lora_r 8 --lora_alpha 32 \\
      --lora_target_modules='[q_proj,k_proj,v_proj,o_proj]' \\
      --notrain_on_inputs --local_val_set_size 5 \\
      --group_by_length --my_own 3
"""
OPENFEDLLM = """max_steps=10
num_rounds=200
lr=5e-5 # a comment
dataset_name="vicgalle/alpaca-gpt4"
gpu=2
fed_alg="fedprox"
CUDA_VISIBLE_DEVICES=$gpu python main_sft.py \\
 --learning_rate $lr \\
 --model_name_or_path "meta-llama/Llama-2-7b-hf" \\
 --dataset_name $dataset_name --dataset_sample 20000 \\
 --fed_alg ${fed_alg} --prox_mu 0.02 \\
 --num_clients 20 --sample_clients 2 \\
 --max_steps $max_steps --num_rounds $num_rounds \\
 --batch_size 8 --gradient_accumulation_steps 2 \\
 --seq_length 1024 --peft_lora_r 32 --peft_lora_alpha 64 \\
 --use_peft --load_in_8bit --output_dir ./output \\
 --template "alpaca" \\"""
FLOWERTUNE = """
[project]
name = "flowertune-llm"
[tool.flwr.app.config]
model.name = "mistralai/Mistral-7B-v0.3"
model.quantization = 4
model.gradient-checkpointing = true
model.lora.peft-lora-r = 32
model.lora.peft-lora-alpha = 64
train.save-every-round = 5
train.learning-rate-max = 5e-5
train.learning-rate-min = 1e-6
train.seq-length = 512
train.training-arguments.output-dir = ""
train.training-arguments.learning-rate = ""
train.training-arguments.per-device-train-batch-size = 16
train.training-arguments.gradient-accumulation-steps = 2
train.training-arguments.logging-steps = 10
train.training-arguments.num-train-epochs = 3
train.training-arguments.max-steps = 10
train.training-arguments.save-steps = 1000
train.training-arguments.save-total-limit = 10
train.training-arguments.gradient-checkpointing = true
train.training-arguments.lr-scheduler-type = "constant"
strategy.fraction-fit = 0.15
strategy.fraction-evaluate = 0.0
my.own = 1
num-server-rounds = 200
[tool.flwr.app.config.static]
dataset.name = "flwrlabs/code-alpaca-20k"
[tool.flwr.federations]
default = "local-simulation"
[tool.flwr.federations.local-simulation]
options.num-supernodes = 50
options.backend.client-resources.num-cpus = 6
"""
BENCH = """local_data_dir="data/split.json"
CUDA_VISIBLE_DEVICES=0 python main_sft.py --learning_rate 2e-5 --model_name_or_path "m/m" --dataset_name x \\
 --dataset_sample 15406 --fed_alg fedavgm --num_clients 2 --sample_clients 3 --max_steps 10 --num_rounds 100 \\
 --batch_size 4 --gradient_accumulation_steps 4 --seq_length 2048 --peft_lora_r 16 --peft_lora_alpha 32 \\
 --use_peft --load_in_8bit --output_dir o --template "alpaca" --local_data_dir $local_data_dir \\
 --checkpoint_step 50 --multi_turn_task
"""
CONFIG = {
    "base_model_name_or_path": "chavinlo/alpaca-native",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}
"""As PEFT wrote it in 2023."""


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def data_folder(folder: Path, clients: int = 2) -> Path:
    """A folder as client_data_allocation.py writes it."""

    def row(client, n, held=""):
        return {"instruction": f"{held}q{client}.{n}", "context": "", "response": f"a{n}", "category": "open_qa"}

    for client in range(clients):
        text(folder / f"local_training_{client}.json", json.dumps([row(client, n) for n in range(6)]))
    text(folder / "global_test.json", json.dumps([row(9, n, "held ") for n in range(2)]))
    text(folder / "global_training.json", "[]")
    return folder


def factors(rank=4, layers=2):
    torch.manual_seed(0)
    return {
        f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{factor}.weight": torch.randn(shape)
        for n in range(layers)
        for factor, shape in (("A", (rank, 8)), ("B", (6, rank)))
    }


def job_of(tool: str, paths: list[Path], out: Path) -> tuple[dict, dict]:
    """Import, and return the job file's content and the report; the job has to load, its strategy to be made."""
    done = import_from(tool, paths, out)
    loaded = settings.load(out / "job.yaml").config
    strategy = build_strategy(loaded.strategy, loaded.strategy_options)
    strategy.check(
        LocalTraining(learning_rate=loaded.learning_rate, num_rounds=2, steps=1, optimizer=loaded.optimizer)
    )
    job = yaml.safe_load((out / "job.yaml").read_text())
    for name, value in job.items():
        if name != "columns":
            assert getattr(loaded, name) == value, name
    return job, done.as_dict()


def test_shepherds_arguments_data_and_template_become_a_job(tmp_path):
    data = data_folder(tmp_path / "data" / "2")
    own = {
        "description": "d",
        "prompt_input": "I {instruction} C {input} R:",
        "prompt_no_input": "I {instruction} R:",
    }
    template = text(tmp_path / "templates" / "own.json", json.dumps(own | {"response_split": "R:"}))
    script = text(tmp_path / "run.sh", SHEPHERD)
    job, report = job_of("shepherd", [data, template, script], tmp_path / "out")
    assert job == {
        "dataset": data.as_posix(),
        "partitioner": "natural",
        "clients_per_round": 1,  # int(0.7 * 2)
        "prompt_template": (tmp_path / "out" / "template.json").as_posix(),
        "model": "chavinlo/alpaca-native",
        "load_in_8bit": True,
        "num_rounds": 12,
        "strategy": "fedit",
        "local_epochs": 2,
        "batch_size": 16,  # 20 // 8 micro-batches of 8
        "micro_batch_size": 8,
        "learning_rate": 2e-4,
        "lr_schedule": "linear",
        "max_length": 256,
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "train_on_inputs": False,
    }
    assert {"my_own", "local_val_set_size", "group_by_length"} <= set(report["no_equivalent"])
    assert json.loads((tmp_path / "out" / "template.json").read_text())["prompt_no_input"] == "I {instruction} R:"
    notes = (tmp_path / "out" / "NOTES.md").read_text()
    assert "| local_batch_size | 20 | batch_size | 16 |" in notes
    corpus = load_rows(job["dataset"], columns={})
    assert len(corpus.examples) == 12
    assert len(corpus.held_out) == 2


def test_shepherds_data_alone_has_the_defaults_of_main_py(tmp_path):
    job, report = job_of("shepherd", [data_folder(tmp_path / "d", clients=25)], tmp_path / "out")
    expected = {
        "clients_per_round": 2, "num_rounds": 50, "local_epochs": 10, "batch_size": 64, "micro_batch_size": 8,
        "learning_rate": 3e-4, "max_length": 512, "lora_r": 16, "lora_alpha": 16, "train_on_inputs": True,
        "lora_target_modules": ["q_proj"], "prompt_template": "alpaca",
    }  # fmt: skip
    assert {name: job[name] for name in expected} == expected
    assert "model" not in job
    assert any("base model" in line for line in report["open"])


def test_a_shepherd_adapter_is_read_without_unpickling_and_opens_as_a_plain_folder(tmp_path):
    """As main.py leaves it: weights in a folder a round, the config one level up; the newest round is taken."""
    held = factors()
    for number in (0, 9, 10):
        place = tmp_path / "lora" / "2" / str(number)
        place.mkdir(parents=True)
        torch.save({name: tensor * (number + 1) for name, tensor in held.items()}, place / "adapter_model.bin")
    text(tmp_path / "lora" / "2" / "adapter_config.json", json.dumps(CONFIG))
    job, report = job_of("shepherd", [data_folder(tmp_path / "d"), tmp_path / "lora" / "2"], tmp_path / "out")
    assert (job["lora_r"], job["lora_alpha"], job["model"]) == (4, 16, "chavinlo/alpaca-native")
    from fedit.tuned import find_tuned

    tuned = find_tuned(tmp_path / "out" / "adapter")
    assert (tuned.rank, tuned.scale) == (4, 4.0)
    for name, tensor in tuned.adapter.items():
        module, _, factor = name.rpartition(".")
        assert torch.equal(tensor, held[f"base_model.model.{module}.lora_{factor}.weight"] * 11)
    assert len(tuned.adapter) == 4
    assert any("pickle" in line for line in report["differs"])
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert not {"enable_lora", "merge_weights"} & set(config)


def test_a_clients_weights_find_their_config_two_levels_up(tmp_path):
    place = tmp_path / "lora" / "3" / "local_output_1"
    place.mkdir(parents=True)
    torch.save(factors(), place / "pytorch_model.bin")
    text(tmp_path / "lora" / "adapter_config.json", json.dumps(CONFIG))
    job_of("shepherd", [data_folder(tmp_path / "d"), place], tmp_path / "out")


def test_openfedllms_script_becomes_a_job(tmp_path):
    job, report = job_of("openfedllm", [text(tmp_path / "run_sft.sh", OPENFEDLLM)], tmp_path / "out")
    template = (tmp_path / "out" / "template.json").as_posix()
    assert job == {
        "dataset": "vicgalle/alpaca-gpt4",
        "max_examples": 20000,
        "partitioner": "iid",
        "num_clients": 20,
        "prompt_template": template,
        "model": "meta-llama/Llama-2-7b-hf",
        "num_rounds": 200,
        "clients_per_round": 2,
        "strategy": "fedprox",
        "strategy_options": {"mu": 0.02},
        "batch_size": 16,
        "micro_batch_size": 8,
        "local_steps": 10,
        "learning_rate": 5e-5,
        "lr_schedule": "cosine",
        "min_lr_ratio": pytest.approx(1e-6 / 5e-5),
        "max_length": 1024,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],
        "load_in_8bit": True,
        "load_in_4bit": False,
        "gradient_checkpointing": True,
        "seed": 2023,
    }
    assert report["no_equivalent"]["num_train_epochs"] == "max_steps decides"


@pytest.mark.parametrize(
    ("algorithm", "options", "more"),
    [
        ("fedavg", None, {}),
        ("fedavgm", {"beta": 0.8, "server_lr": pytest.approx(0.2)}, {}),
        ("fedadagrad", {"server_lr": 1e-3, "tau": 1e-3}, {"weighting": "uniform"}),
        ("fedyogi", {"server_lr": 1e-3, "tau": 1e-3, "beta1": 0.8, "beta2": 0.99}, {"weighting": "uniform"}),
        ("fedadam", {"server_lr": 1e-3, "tau": 1e-3, "beta1": 0.8, "beta2": 0.99}, {"weighting": "uniform"}),
        ("scaffold", None, {"optimizer": "sgd"}),
    ],
)
def test_openfedllms_algorithms_and_saved_arguments(tmp_path, algorithm, options, more):
    """args.json is what it writes into its output folder."""
    script = {"dataset_name": "Anthropic/hh-rlhf", "template": "vicuna_v1.1", "use_peft": True, "dpo_beta": 0.2}
    federated = {"fed_alg": algorithm, "fedopt_beta1": 0.8, "num_clients": 5, "sample_clients": 9, "prox_mu": 0.01}
    text(tmp_path / "o" / "args.json", json.dumps({"script_args": script, "fed_args": federated}))
    job, _ = job_of("openfedllm", [tmp_path / "o"], tmp_path / "out")
    assert job["strategy"] == algorithm
    assert job.get("strategy_options") == options
    assert {name: job[name] for name in more} == more
    assert job["clients_per_round"] == 5
    assert (job["objective"], job["dpo_beta"], job["prompt_template"]) == ("dpo", 0.2, "vicuna")
    assert job["min_lr_ratio"] == pytest.approx(1e-5 / 2e-5)


def test_openfedllms_prompts_are_the_same_to_the_letter(tmp_path):
    job, _ = job_of("openfedllm", [text(tmp_path / "run.sh", OPENFEDLLM)], tmp_path / "out")
    from tiny import make_tokenizer

    from fedit.data.examples import Example, Message

    template = get_template(job["prompt_template"], make_tokenizer())
    example = Example((Message("user", "Add."), Message("assistant", "3")), context="1 2", where="x")
    asked = "Add. 1 2"  # it glues the input to the instruction
    expected = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{asked} \n\n### Response: 3<|im_end|>"
    )
    assert template.render(example).text == expected


def test_a_split_of_fedllm_bench_keeps_rows_and_clients(tmp_path):
    def turns(n):
        return {
            "conversations": [{"from": "human", "value": f"h{n}"}, {"from": "gpt", "value": f"g{n}"}],
            "lang": "en",
        }

    split = {"u1": [turns(1), turns(2)], "u2": [turns(2), turns(3)], "u3": [turns(4)]}
    paths = [text(tmp_path / "split.json", json.dumps(split)), text(tmp_path / "all.sh", BENCH)]
    job, report = job_of("fedllm-bench", paths, tmp_path / "out")
    expected = {
        "dataset": (tmp_path / "out" / "rows.jsonl").as_posix(),
        "data_format": "sharegpt", "partitioner": "natural", "partition_by": "client", "prompt_template": "vicuna",
        "model": "m/m", "strategy": "fedavgm", "strategy_options": {"beta": 0.5, "server_lr": 0.5},
        "clients_per_round": 2, "batch_size": 16, "local_steps": 10, "max_length": 2048,
    }  # fmt: skip
    assert {name: job[name] for name in expected} == expected
    assert "num_clients" not in job
    corpus = load_rows(job["dataset"], columns={}, partition_by="client")
    held = [(example.owner, example.messages[0].content) for example in corpus.examples]
    assert held == [("u1", "h1"), ("u1", "h2"), ("u2", "h2"), ("u2", "h3")]  # the script's first two clients
    assert any(line.startswith("1 rows repeat") for line in report["differs"])


def test_a_preference_split_alone_is_learnt_by_dpo(tmp_path):
    split = {
        "a": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
        "b": [{"prompt": "q", "chosen": "c", "rejected": "r"}],
    }
    job, report = job_of("fedllm-bench", [text(tmp_path / "s.json", json.dumps(split))], tmp_path / "out")
    assert (job["objective"], job["data_format"]) == ("dpo", "preference")
    assert any("no training script" in line for line in report["open"])


def test_flowertunes_settings_become_a_job(tmp_path):
    text(tmp_path / "app" / "pyproject.toml", FLOWERTUNE)
    job, report = job_of("flowertune", [tmp_path / "app"], tmp_path / "out")
    assert job == {
        "model": "mistralai/Mistral-7B-v0.3",
        "load_in_4bit": True,
        "gradient_checkpointing": True,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.075,
        "lora_target_modules": ["q_proj", "v_proj"],
        "dataset": "flwrlabs/code-alpaca-20k",
        "prompt_template": (tmp_path / "out" / "template.json").as_posix(),
        "num_rounds": 200,
        "num_clients": 50,
        "clients_per_round": 7,  # int(0.15 * 50)
        "partitioner": "iid",
        "strategy": "fedavg",
        "learning_rate": 5e-5,
        "lr_schedule": "cosine",
        "min_lr_ratio": pytest.approx(0.02),
        "max_length": 512,
        "batch_size": 32,
        "micro_batch_size": 16,
        "local_steps": 10,
    }
    assert "my.own" in report["no_equivalent"]
    assert "train.save-every-round" in report["no_equivalent"]


def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "lora").mkdir()
    torch.save(factors(rank=3), tmp_path / "lora" / "adapter_model.bin")
    text(tmp_path / "lora" / "adapter_config.json", json.dumps(CONFIG))
    cases = [
        ("shepherd", text(tmp_path / "a.sh", "python main.py --lora_r ten"), ConfigError, "--lora_r is 'ten'"),
        ("shepherd", text(tmp_path / "b.sh", "echo hello"), DataError, "no call of main.py"),
        ("shepherd", text(tmp_path / "c.sh", "python main.py --lora_r $r"), ConfigError, r"\$r is not set"),
        (
            "shepherd",
            text(tmp_path / "d.sh", "python main.py --prompt_template_name vigogne"),
            ConfigError,
            "vigogne",
        ),
        ("shepherd", tmp_path / "lora", ModelError, "expected both, of rank 4"),
        ("openfedllm", text(tmp_path / "e.sh", "python main_sft.py --fed_alg fedsgd"), ConfigError, "fedsgd"),
        ("openfedllm", text(tmp_path / "f.json", "{}"), DataError, "lacks script_args"),
        ("fedllm-bench", text(tmp_path / "g.json", "[1]"), DataError, "rows of one client"),
        (
            "flowertune",
            text(tmp_path / "h.toml", "[project]\nname='x'"),
            DataError,
            r"no \[tool.flwr.app.config\]",
        ),
        (
            "flowertune",
            text(tmp_path / "i.toml", FLOWERTUNE.replace("= 512", "= 'x'")),
            ConfigError,
            "train.seq-length",
        ),
        ("nobody", tmp_path / "lora", UserError, "unknown tool"),
    ]
    for tool, path, error, message in cases:
        with pytest.raises(error, match=message):
            import_from(tool, [path], tmp_path / "out")
        assert not (tmp_path / "out").exists(), path
    (tmp_path / "full").mkdir()
    text(tmp_path / "full" / "x", "")
    with pytest.raises(ConfigError, match="not empty"):
        import_from("shepherd", [tmp_path / "lora"], tmp_path / "full")
    assert set(TOOLS) == {"shepherd", "openfedllm", "fedllm-bench", "flowertune"}


def test_an_imported_job_runs(tmp_path, tiny, cache, no_pictures):
    """Shepherd's folder, with a tiny model in place of the 7B one."""
    from fedit.launch import run

    for client in range(2):
        write_rows(tmp_path / "rows.jsonl", 12, seed=client)
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        own = [
            {"instruction": f"{client} {r['instruction']}", "context": "", "response": r["output"]} for r in rows
        ]
        text(tmp_path / "d" / f"local_training_{client}.json", json.dumps(own))
    import_from("shepherd", [tmp_path / "d"], tmp_path / "out")
    changes = {"model": str(tiny), "num_rounds": 1, "local_epochs": 1, "load_in_8bit": False, "num_workers": 1}
    result = run(settings.load_config(tmp_path / "out" / "job.yaml", **changes), tmp_path / "run")
    assert result.summary["clients"] == 2
