"""Scores of tokens and rows against direct formulas in float64, on and off the fast path."""

import zlib

import numpy as np
import pytest
import torch
from tiny import make_rows, random_adapter

from fedit.evaluation.tokenscores import TokenScores, token_scores
from fedit.privacy.audit.scores import lowest, membership_scores, standardised


def direct(model, adapter, row):
    """Return ln p, Σ p ln p and its deviation at every target, from the whole model's logits."""
    model.load(adapter)
    ids = torch.from_numpy(row.ids.astype(np.int64)).unsqueeze(0)
    with torch.no_grad():
        scores = model._model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    at = np.flatnonzero(row.supervised[1:])
    scores, targets = scores[at], ids[0, at + 1]
    p = scores.exp()
    mean = (p * scores).sum(-1)
    deviation = (p * (scores - mean[:, None]) ** 2).sum(-1).sqrt()
    return scores[torch.arange(len(at)), targets].numpy(), mean.numpy(), deviation.numpy()


@pytest.mark.parametrize("fast", [True, False])
def test_scores_are_those_of_the_formula(adapted, fast):
    model = adapted("llama", fast_path=fast)
    assert (model.fast is not None) == fast
    rows, adapter = make_rows([9, 30, 17, 4]), random_adapter(model, size=0.3)
    for row, found in zip(rows, token_scores(model, adapter, rows), strict=True):
        own, mean, deviation = direct(model, adapter, row)
        assert found.log_probability == pytest.approx(own, rel=1e-6, abs=1e-6)
        assert found.mean == pytest.approx(mean, rel=1e-6)
        assert found.deviation == pytest.approx(deviation, rel=1e-6)
        k = max(1, int(0.2 * len(own)))
        assert lowest(standardised(found)) == pytest.approx(np.sort((own - mean) / deviation)[:k].mean(), rel=1e-5)


def test_a_certain_token_has_no_deviation_and_is_not_divided_by_it():
    row = TokenScores(np.array([0.0, -1.0]), np.array([0.0, -2.0]), np.array([0.0, 0.5]))
    assert standardised(row).tolist() == [0.0, 2.0]


def test_higher_scores_mean_members():
    def row(*logs):
        return TokenScores(np.array(logs), np.full(len(logs), -1.0), np.ones(len(logs)))

    known, unknown, before = row(-0.1, -0.2), row(-2.0, -3.0), [row(-1.0, -1.0), row(-2.0, -3.0)]
    found = membership_scores([known, unknown], before, ["abcabc", "hello"])
    assert all(values[0] > values[1] for values in found.values())
    assert found["reference"].tolist() == pytest.approx([0.85, 0.0])
    assert found["zlib"][0] == pytest.approx(-0.15 / len(zlib.compress(b"abcabc")))
