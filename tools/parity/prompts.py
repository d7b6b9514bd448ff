"""From texts to logits: the tokenizer's tables, and the prompts of every recorded turn."""

from collections import defaultdict
from collections.abc import Iterator

import torch

from tools.parity.comparison import Comparison, exact_matches, largest_error
from tools.parity.subject import BOS, Subject, recorded_turns

__all__ = ["chat_prompts", "token_tables"]

# Recorded tensor → (stage, limit).
TENSORS = {
    "inputs_embeds": ("prompt embeddings", 1e-5),
    "logits": ("logits, every position", 2e-4),
    "logits_last4": ("logits, last 4", 2e-4),
}


def token_tables(subject: Subject) -> Iterator[Comparison]:
    """The recorded tables of the tokenizer and of decoding."""
    tokenizer = subject.processor.tokenizer
    expected = subject.expected
    vocabulary = subject.model.config.text_config.vocab_size
    sizes = {"image_tokens": subject.processor.num_image_tokens, "llm_vocab": vocabulary, "pad": tokenizer.pad_token_id}
    yield exact_matches("sizes", [(ours, expected[name]) for name, ours in sizes.items() if name in expected])
    table = expected.get("tokenizer_table", [])
    yield exact_matches("tokenizer table", [(tokenizer.encode_segment(row["text"]), row["ids"]) for row in table])
    with_bos = [(tokenizer(row["text"]).input_ids, row["ids_with_special"]) for row in table]
    yield exact_matches("tokenizer table, BOS in front", with_bos)
    table = expected.get("decode_table", [])
    yield exact_matches("decode table", [(tokenizer.decode_ids(row["ids"]), row["skip_special"]) for row in table])
    with_special = [(tokenizer.decode(row["ids"]), row["keep_special"]) for row in table]
    yield exact_matches("decode table, special kept", with_special)


@torch.inference_mode()
def chat_prompts(subject: Subject) -> Iterator[Comparison]:
    """Prompt texts, ids and segments, embedded prompts and logits of every recorded turn."""
    texts = []
    ids = []
    segments = []
    errors: dict[str, float] = defaultdict(float)
    for turn in recorded_turns(subject):
        recorded = turn.recorded
        if turn.prompt is not None:
            texts.append((turn.prompt, recorded["prompt"]))
        ours = subject.processor.encode_prompt(recorded["prompt"])
        ids.append((ours, subject.with_image_tokens(recorded["flat_ids"])))
        for i, segment in enumerate(part for part in recorded["segments"] if "ids" in part):
            encoded = subject.processor.tokenizer.encode_segment(segment["text"])
            segments.append(([BOS, *encoded] if i == 0 else encoded, segment["ids"]))
        embeds = subject.model.embed_prompt(torch.tensor([ours]), subject.pixels(turn.images))
        logits = subject.model(inputs_embeds=embeds[:, recorded["begin_idx"] :]).logits[0]
        tensors = {"inputs_embeds": embeds[0], "logits": logits, "logits_last4": logits[-4:]}
        for name, tensor in tensors.items():
            theirs = subject.language.get(f"{recorded['key']}.{name}")
            if theirs is not None:
                errors[name] = max(errors[name], largest_error(tensor, theirs))
    yield exact_matches("prompt texts", texts)
    yield exact_matches("prompt ids", ids)
    yield exact_matches("segments", segments)
    for name, error in errors.items():
        stage, limit = TENSORS[name]
        yield Comparison(stage, error, limit)
