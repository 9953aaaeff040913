# %% [markdown]
# # Federated instruction tuning in a few minutes
#
# Four clients, each with two kinds of instruction that no one else has, tune one small language model together.
# Their rows stay apart; what they send is the change of a LoRA adapter. Everything runs on a CPU.
#
# This notebook is made from `examples/quickstart.py`. It needs fedit: `pip install fedit`.

# %%
import fedit

config = fedit.load_config("demo", num_rounds=2, local_steps=3, eval_every=1, exact_match=False)
print(f"{config.num_clients} clients, {config.clients_per_round} a round, model {config.model}")

# %% [markdown]
# `demo` is a recipe; keyword arguments win over it. Training writes everything into one folder, which must be new.

# %%
from pathlib import Path

out = Path("runs/quickstart")
result = fedit.run(config, out)

# %% [markdown]
# The loss on held-out instructions, whose words and phrasings no client trained on, before and after:

# %%
before = result.summary["held_out"]["before"]["loss"]
after = result.summary["held_out"]["after"]["loss"]
print(f"held-out loss {before:.2f} -> {after:.2f}; adapter in {result.adapter}")

# %% [markdown]
# Every round left an event:

# %%
import json

for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
    event = json.loads(line)
    if event["event"] == "evaluation":
        print(f"round {event['round']}: held-out loss {event['loss']:.2f}")

# %% [markdown]
# The page `runs/quickstart/report.html` opens offline, and `fedit chat runs/quickstart` talks to the result.
