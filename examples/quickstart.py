"""Federate the embedded model on the embedded data, three rounds, and look at the result."""

import sys

import fedit


def main(out: str) -> None:
    """Train into the folder ``out`` and print what was learnt."""
    config = fedit.load_config("demo", num_rounds=3, eval_every=1, exact_match=False)
    result = fedit.run(config, out)
    before = result.summary["held_out"]["before"]["loss"]
    after = result.summary["held_out"]["after"]["loss"]
    print(f"held-out loss {before:.2f} -> {after:.2f}; adapter in {result.adapter}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
