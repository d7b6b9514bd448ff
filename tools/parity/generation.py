"""Answers: greedy and beam ids of every recorded turn, a padded batch, and the scores of a sampled answer."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tools.parity.comparison import Comparison, exact_matches, largest_error
from tools.parity.subject import BOS, EOS, Subject, recorded_turns

__all__ = ["batched_answers", "chat_answers", "sampling_scores"]

SCORE_LIMIT = 2e-4

_GREEDY: dict[str, Any] = {"do_sample": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
_DEMO_PENALTY = 1.05
_NO_STOP = "no_stop_strings"  # how the names of searches without stop strings end


@torch.inference_mode()
def chat_answers(subject: Subject) -> Iterator[Comparison]:
    """Greedy and beam ids of every turn, and the text that a chat shows."""
    pairs: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for turn in recorded_turns(subject):
        ids = torch.tensor([subject.with_image_tokens(turn.recorded["flat_ids"])])
        embeds = subject.model.embed_prompt(ids, subject.pixels(turn.images))[:, turn.recorded["begin_idx"] :]
        greedy_length = turn.recorded["result"]["greedy"]["kwargs"]["max_new_tokens"]
        for name, recorded in turn.recorded["result"].items():
            config = _generation_config(name, recorded, greedy_length)
            stops = not name.endswith(_NO_STOP)
            searches = (config.num_beams or 1) > 1
            if stops and searches and subject.processor.variant.answer_end in subject.processor.format.stop:
                continue  # the original's search went on until every beam had a stop string; see MANIFEST's guide
            theirs = _without_special(recorded["ids"])
            if stops and not searches:
                theirs = _until_stop_string(theirs, subject)
            generated = subject.model.generate(
                inputs_embeds=embeds,
                generation_config=config,
                stopping_criteria=subject.stopping if stops else None,
            )
            ours = generated[0].tolist()
            pairs[f"{name} ids"].append((_without_special(ours), theirs))
            if "stored_message" in recorded and not _shown_differently(recorded, subject):
                pairs["answer texts"].append((subject.processor.decode_answer(ours), recorded["stored_message"]))
    for stage, found in pairs.items():
        yield exact_matches(stage, found)


@torch.inference_mode()
def batched_answers(subject: Subject) -> Iterator[Comparison]:
    """Prompts of different lengths at once, padded on the left; the original's evaluation has no stop strings."""
    recorded = subject.expected.get("batch_generate")
    if recorded is None:
        return
    images = [subject.images[i] for i in subject.image_indices(recorded["texts"], recorded)]
    inputs = subject.processor(images=images, text=recorded["texts"])
    config = GenerationConfig(**_GREEDY, max_new_tokens=recorded["max_new_tokens"])
    sequences = subject.model.generate(**inputs, generation_config=config)
    answers = sequences[:, inputs["input_ids"].shape[-1] :].tolist()
    pairs = zip(answers, recorded["sequences"], strict=True)
    yield exact_matches("batch ids", [(_without_special(ours), _without_special(theirs)) for ours, theirs in pairs])


@torch.inference_mode()
def sampling_scores(subject: Subject) -> Iterator[Comparison]:
    """Scores along a recorded sampled answer, after penalty, temperature, top-k and top-p."""
    recorded = subject.expected.get("sample")
    if recorded is None:
        return
    theirs = subject.language["sample.processed_scores"]
    prompt = subject.with_image_tokens(recorded["flat_ids"])
    ids = recorded["ids"][1 : len(theirs) + 1]
    embeds = subject.model.embed_prompt(torch.tensor([prompt]), subject.pixels([recorded["image"]]))
    answer = subject.model.get_input_embeddings()(torch.tensor([ids]))
    logits = subject.model(inputs_embeds=torch.cat([embeds, answer], dim=1)).logits[0, len(prompt) - 1 :]
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(recorded["repetition_penalty"]),
            TemperatureLogitsWarper(recorded["temperature"]),
            TopKLogitsWarper(recorded["top_k_default"]),
            TopPLogitsWarper(recorded["top_p"]),
        ]
    )
    # The penalty covers BOS and what has been generated, never the prompt.
    ours = [processors(torch.LongTensor([[BOS, *ids[:i]]]), logits[i : i + 1])[0] for i in range(len(theirs))]
    yield Comparison("sampling scores", largest_error(torch.stack(ours), theirs), SCORE_LIMIT)


def _generation_config(name: str, recorded: dict[str, Any], greedy_length: int) -> GenerationConfig:
    """How a recorded answer was generated: as its ``kwargs`` say, over the demo's repetition penalty.

    Searches without stop strings have no ``kwargs``: their name has the number of beams, there was no penalty, and they
    could be as long as the greedy answer.
    """
    options = dict(recorded.get("kwargs", {"repetition_penalty": 1.0, "max_new_tokens": greedy_length}))
    if beams := re.match(r"beam(\d+)", name):
        options.setdefault("num_beams", int(beams[1]))
    options.pop("max_length", None)  # the chat's limit, which cut the prompt; not the answer's
    if "min_length" in options:
        options["min_new_tokens"] = options.pop("min_length") - 1  # the original counted BOS
    return GenerationConfig(**{**_GREEDY, "repetition_penalty": _DEMO_PENALTY, **options})


def _without_special(ids: Sequence[int]) -> list[int]:
    """Without the BOS that the original's library starts with, and without EOS and the padding behind it."""
    body = list(ids)[1 if ids and ids[0] == BOS else 0 :]
    return body[: body.index(EOS)] if EOS in body else body


def _until_stop_string(ids: list[int], subject: Subject) -> list[int]:
    """Up to the id that completes a stop string: the original looked for certain ids, ours for the text."""
    decode = subject.processor.tokenizer.decode_ids
    stop = subject.processor.format.stop
    for end in range(1, len(ids) + 1):
        if any(string in decode(ids[:end]) for string in stop):
            return ids[:end]
    return ids


def _shown_differently(recorded: dict[str, Any], subject: Subject) -> bool:
    """Whether the original showed an answer in a way that isn't copied.

    Of an answer with ``Assistant:`` it showed only the rest, and it cut v2's at ``###`` as well.
    """
    raw = recorded.get("raw", "")
    return "Assistant:" in raw or ("###" in raw and not subject.processor.format.stop)
