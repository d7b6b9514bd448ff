"""Sampling against transformers' logits processors, and its independence of the batch."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from minigpt4_serve.engine.sampling import _apply_penalties, sample
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.protocol import SamplingParams

EOS = 2


@dataclass
class Row:
    sampling: SamplingParams
    seed: int = 0
    output_ids: list[int] = field(default_factory=list)

    @property
    def num_output(self) -> int:
        return len(self.output_ids)


def logits(rows: int = 1, vocabulary: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def draws(scores: torch.Tensor, rules: SamplingParams, count: int = 4000) -> torch.Tensor:
    """Share of draws of each token."""
    rows = [Row(rules, seed) for seed in range(count)]
    tokens = [sampled.token for sampled in sample(scores.expand(count, -1).clone(), rows, [EOS])]
    return torch.bincount(torch.tensor(tokens), minlength=scores.shape[1]) / count


@pytest.mark.parametrize("temperature", [0.0, 1e-9])
def test_greedy_sampling_takes_the_likeliest(temperature: float) -> None:
    scores = logits(5)
    rows = [Row(SamplingParams(temperature=temperature)) for _ in range(5)]
    assert [sampled.token for sampled in sample(scores.clone(), rows, [EOS])] == scores.argmax(-1).tolist()


def test_draws_follow_the_models_distribution() -> None:
    scores = logits()
    shares = draws(scores, SamplingParams(temperature=0.7))
    assert torch.allclose(shares, (scores[0] / 0.7).softmax(-1), atol=0.03)


@pytest.mark.parametrize(
    ("rules", "warper"),
    [
        (SamplingParams(temperature=1, top_k=3), TopKLogitsWarper(3)),
        (SamplingParams(temperature=1, top_k=1), TopKLogitsWarper(1)),
        (SamplingParams(temperature=1, top_k=10**6), None),
        (SamplingParams(temperature=1, top_p=0.6), TopPLogitsWarper(0.6)),
        (SamplingParams(temperature=1, top_p=1e-6), TopPLogitsWarper(1e-6)),
        (SamplingParams(temperature=1, min_p=0.2), MinPLogitsWarper(0.2)),
        (SamplingParams(temperature=1, min_p=1.0), MinPLogitsWarper(1.0)),
    ],
)
def test_filters_keep_exactly_what_transformers_keeps(rules: SamplingParams, warper: Any) -> None:
    scores = logits()
    kept = scores if warper is None else warper(None, scores.clone())
    shares = draws(scores, rules)
    assert torch.allclose(shares, kept[0].softmax(-1), atol=0.03)
    assert not shares[kept[0] == float("-inf")].any()


def test_filters_apply_in_sequence() -> None:
    scores = logits()
    rules = SamplingParams(temperature=1.5, top_k=12, top_p=0.7, min_p=0.3)
    kept = scores / 1.5
    for warper in (TopKLogitsWarper(12), TopPLogitsWarper(0.7), MinPLogitsWarper(0.3)):
        kept = warper(None, kept)
    assert set(draws(scores, rules).nonzero().flatten().tolist()) == set(
        kept[0].isfinite().nonzero().flatten().tolist()
    )


def test_a_seed_gives_the_same_token_in_any_batch() -> None:
    scores = logits(40)
    kinds = [
        SamplingParams(temperature=1.3),
        SamplingParams(temperature=0.8, top_k=5, repetition_penalty=1.2),
        SamplingParams(),
        SamplingParams(temperature=1, top_p=0.5, logprobs=True, top_logprobs=2),
    ]
    rows = [Row(kinds[i % 4], seed=i, output_ids=[i, 3, i][: i % 4]) for i in range(40)]
    together = sample(scores.clone(), rows, [EOS])
    single = [sample(scores[i : i + 1].clone(), [row], [EOS])[0] for i, row in enumerate(rows)]
    assert [sampled.token for sampled in together] == [sampled.token for sampled in single]


def test_each_position_draws_its_own_number() -> None:
    row = SamplingParams(temperature=1)
    rows = [Row(row, seed=1, output_ids=[0] * length) for length in range(50)]
    assert len({sampled.token for sampled in sample(torch.zeros(50, 1000), rows, [EOS])}) > 40


def test_repetition_penalty_covers_the_answer_only() -> None:
    scores = logits(3)
    outputs = [[4, 9, 4], [7], []]
    rules = SamplingParams(repetition_penalty=1.7, logprobs=True, top_logprobs=1)
    scores[:, 4] = 5  # the likeliest without the penalty
    expected = [
        RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([ids]), scores[i : i + 1].clone())
        if ids
        else scores[i : i + 1]
        for i, ids in enumerate(outputs)
    ]
    sampled = sample(scores.clone(), [Row(rules, output_ids=ids) for ids in outputs], [EOS])
    assert [each.token for each in sampled] == [int(row.argmax()) for row in expected]
    # The reported probability is the model's, without the penalty.
    assert sampled[0].logprob == pytest.approx(float(scores[0].log_softmax(-1)[sampled[0].token]), abs=1e-5)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"frequency_penalty": 0.5}, {4: 4.0, 9: -1.5}),
        ({"presence_penalty": 0.5}, {4: 4.5, 9: -1.5}),
        ({"frequency_penalty": -0.5, "presence_penalty": 2}, {4: 4.0, 9: -2.5}),
        ({"frequency_penalty": 1, "repetition_penalty": 2}, {4: 0.5, 9: -3.0}),
    ],
)
def test_penalties_subtract_from_generated_tokens(rules: dict[str, float], expected: dict[int, float]) -> None:
    """OpenAI's formula: count times the frequency penalty plus the presence penalty, after the repetition penalty."""
    scores = torch.zeros(3, 20)
    scores[:, 4] = 5
    scores[:, 9] = -1
    rows = [Row(SamplingParams(**rules), output_ids=[4, 9, 4]), Row(SamplingParams(**rules)), Row(SamplingParams())]
    result = _apply_penalties(scores.clone(), rows, [])
    wanted = scores.clone()
    for token, value in expected.items():
        wanted[0, token] = value
    assert torch.allclose(result, wanted)


def test_top_p_of_zero_is_greedy() -> None:
    scores = logits(1)
    rules = SamplingParams(temperature=2.0, top_p=0.0)
    tokens = {sample(scores.clone(), [Row(rules, seed=seed)], [EOS])[0].token for seed in range(20)}
    assert tokens == {int(scores.argmax())}


@pytest.mark.parametrize(
    ("rules", "output_ids", "may_end"),
    [
        (SamplingParams(), [], True),
        (SamplingParams(min_tokens=3), [5, 5], False),
        (SamplingParams(min_tokens=3), [5, 5, 5], True),
        (SamplingParams(ignore_eos=True), [5] * 9, False),
    ],
)
def test_min_tokens_and_ignore_eos_prevent_the_end(rules: SamplingParams, output_ids: list[int], may_end: bool) -> None:
    scores = logits()
    scores[0, EOS] = 99
    for temperature in (0.0, 1.0):
        row = Row(replace(rules, temperature=temperature), output_ids=output_ids)
        assert (sample(scores.clone(), [row], [EOS])[0].token == EOS) == may_end


def test_logprobs_are_the_models_and_best_first() -> None:
    scores = logits(2)
    plain = scores.log_softmax(-1)
    rules = SamplingParams(logprobs=True, top_logprobs=4)
    without, reported = sample(scores.clone(), [Row(SamplingParams()), Row(rules)], [EOS])
    assert without.logprob is None
    assert without.top == ()
    assert reported.logprob == pytest.approx(float(plain[1].max()), abs=1e-5)
    assert [token for token, _ in reported.top] == plain[1].topk(4).indices.tolist()
    assert [value for _, value in reported.top] == pytest.approx(plain[1].topk(4).values.tolist(), abs=1e-5)
    bare = sample(scores[:1].clone(), [Row(SamplingParams(logprobs=True))], [EOS])[0]
    assert bare.logprob is not None
    assert bare.top == ()


def test_half_precision_logits_do_not_overflow() -> None:
    scores = torch.full((1, 50), -1e4, dtype=torch.bfloat16)
    scores[0, 7] = 1e4
    assert sample(scores, [Row(SamplingParams(temperature=2.0))], [EOS])[0].token == 7


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"min_tokens": 9, "max_tokens": 8},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"presence_penalty": float("nan")},
        {"stop": ("",)},
        {"top_logprobs": 21},
        {"n": 0},
        {"n": 17},
        {"beams": 0},
        {"beams": 2, "n": 3},
    ],
)
def test_values_out_of_range_name_the_parameter(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**field)
    assert caught.value.param in field
