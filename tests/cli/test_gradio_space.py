"""The example of a hosted Space, with Gradio where that is installed."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "gradio_space.py"
USE = """
import json, sys
from pathlib import Path
import gradio_space as space
from fedit.resident import Sampling
speaker = space.load(Path(sys.argv[1]))
said = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "hello"}]
both = (space.TUNED, space.BASE)
answers = {who: list(space.answer(speaker, who, "copy: 1", said, Sampling(8))) for who in both}
speaker.close()
print(json.dumps({"answers": answers, "app": type(space.build(speaker)).__name__}))
"""


def test_the_example_sends_nothing_and_shares_nothing():
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    lines = [ast.unparse(node) for node in tree.body]
    off = next(i for i, line in enumerate(lines) if "GRADIO_ANALYTICS_ENABLED" in line and "False" in line)
    assert off < lines.index("import gradio as gr")
    launches = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and "launch" in ast.unparse(node.func)
    ]
    assert len(launches) == 1
    assert launches[0].keywords == []  # share=True would open a tunnel


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed; it is no dependency of fedit"
)
def test_the_example_answers_with_the_adapter_and_with_its_base(tiny_run):
    # In a process of its own: Gradio leaves event loops and sockets behind.
    paths = [str(EXAMPLE.parent), str(EXAMPLE.parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tiny_run)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    tuned, base = shown["answers"]["tuned"], shown["answers"]["base"]
    assert tuned[-1] != base[-1]
    assert all(later.startswith(earlier) for texts in (tuned, base) for earlier, later in pairwise(texts))
    assert shown["app"] == "ChatInterface"
