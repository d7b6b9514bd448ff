"""Compare this package with numbers that were recorded from the original MiniGPT-4 code.

    uv run tools/parity.py tests/golden

GOLDEN_DIR has a ``MANIFEST.json``, the original's files in small, and per variant the numbers of every stage. Each
variant is converted and loaded, then run stage by stage with both attention implementations; a table shows the largest
error or the number of exact matches of every stage. Exit code 1 if anything is out of tolerance.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, pad
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor, Turn
from minigpt4_serve.model.conversation import render
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.model.supervision import IGNORED, Exchange, encode_supervised, pad_supervised
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.geometry import Untold, Variant
from minigpt4_serve.weights.load import load_model

VARIANTS: dict[str, Variant] = {"v1_vicuna": "vicuna", "v1_llama2": "llama2", "v2": "v2"}
ATTENTIONS = ("eager", "sdpa")
VISION, LOGITS, SCORES, LOSSES = 1e-5, 2e-4, 2e-4, 1e-5
BOS, EOS = 1, 2


@dataclass(frozen=True)
class Row:
    """One line of the table: either the largest error of numbers or a count of exact matches."""

    stage: str
    error: float | None = None
    limit: float = 0.0
    matched: int = 0
    total: int = 0
    variant: str = ""
    attention: str = ""

    @property
    def good(self) -> bool:
        return self.matched == self.total if self.error is None else self.error <= self.limit

    def __str__(self) -> str:
        value = f"{self.matched}/{self.total}" if self.error is None else f"{self.error:.1e} ≤ {self.limit:.0e}"
        return f"{self.variant:<10} {self.attention:<6} {self.stage:<34} {value:>18}  {'ok' if self.good else 'FAILED'}"


@dataclass(frozen=True)
class Subject:
    """What is compared: a variant as this package runs it, and what the original gave."""

    model: MiniGPT4ForConditionalGeneration
    processor: MiniGPT4Processor
    images: list[Image.Image]
    expected: dict[str, Any]
    vision: dict[str, torch.Tensor]
    language: dict[str, torch.Tensor]

    @property
    def stop(self) -> StoppingCriteriaList:
        strings = self.processor.format.stop
        return StoppingCriteriaList([StopAtText(self.processor.tokenizer, strings)] if strings else [])

    def pixels(self, indices: Sequence[int]) -> torch.Tensor | None:
        if not indices:
            return None
        return torch.stack([self.processor.image_processor.to_tensor(self.images[i]) for i in indices])

    def slots(self, flat_ids: Sequence[int]) -> list[int]:
        """Recorded ids with -1 for a picture's rows, as ours."""
        return [self.processor.image_token_id if i < 0 else i for i in flat_ids]


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference; infinite if the shapes or the infinities differ."""
    if ours.shape != theirs.shape or not torch.equal(ours.isfinite(), theirs.isfinite()):
        return float("inf")
    return float((ours - theirs)[theirs.isfinite()].abs().max()) if theirs.numel() else 0.0


def count(stage: str, pairs: Sequence[tuple[Any, Any]]) -> Row:
    """Exact matches among pairs of (ours, the original's)."""
    return Row(stage, matched=sum(ours == theirs for ours, theirs in pairs), total=len(pairs))


def trimmed(ids: Sequence[int]) -> list[int]:
    """Without the BOS that the original's library starts with, and without end-of-sequence ids and their padding."""
    body = list(ids)[1 if ids and ids[0] == BOS else 0 :]
    return body[: body.index(EOS)] if EOS in body else body


def read_image(path: Path) -> Image.Image:
    """A picture with its file closed again."""
    with Image.open(path) as image:
        image.load()
        return image


def load_subject(golden: Path, variant: str, attention: str, folder: Path) -> Subject:
    """Convert a variant's files into ``folder`` (unless they are there already) and load it in float32 on the CPU."""
    manifest = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))
    expected = json.loads((golden / variant / "expected.json").read_text(encoding="utf-8"))
    if not folder.exists():
        told = manifest["config"]
        convert(
            variant=VARIANTS[variant],
            llm=golden / expected["files"]["llm"],
            vit=golden / "weights" / "eva_vit_g.pth",
            qformer=golden / "weights" / "blip2_pretrained_flant5xxl.pth" if variant == "v1_vicuna" else None,
            checkpoint=golden / expected["files"]["ckpt"],
            out=folder,
            dtype="float32",
            untold=Untold(
                vit_heads=told["vit_heads"],
                vit_depth=told["vit_depth"],
                image_size=expected["image_size"],
                qformer_heads=told["qf_heads"],
                lora_alpha=told["lora_alpha"],
            ),
        )
    settings = ModelSettings(path=folder, device="cpu", dtype="float32")
    model, processor = load_model(settings, attention=attention)
    images = [read_image(golden / "inputs" / name) for name in manifest["images"]]
    stages = {kind: load_file(golden / variant / f"{kind}.safetensors") for kind in ("vision", "language")}
    return Subject(model, processor, images, expected, stages["vision"], stages["language"])


@torch.inference_mode()
def vision(subject: Subject) -> Iterator[Row]:
    """Pixels, resized positions and the output of every layer up to the projection."""
    model, recorded = subject.model, subject.vision
    pixels = subject.pixels(range(len(subject.images)))
    assert pixels is not None
    yield Row("pixels", largest(pixels, recorded["pixel_values"]))
    digests = [sha256(picture.numpy().tobytes()).hexdigest() for picture in pixels]
    yield count("pixels, SHA-256", list(zip(digests, subject.expected["pixel_sha256"], strict=True)))
    if "pos_embed" in recorded:
        positions = model.vision_model.embeddings.position_embedding
        yield Row("resized positions", largest(positions, recorded["pos_embed"]))
    ours: dict[str, torch.Tensor] = {}
    tower = model.vision_model
    watched = {"vit_embeddings": tower.embeddings, "vit_ln": tower.post_layernorm}
    watched |= {f"vit_block_{i}": layer for i, layer in enumerate(tower.encoder.layers)}
    if model.qformer is not None:
        watched |= {"qformer_hidden_0": model.qformer.layernorm}
        watched |= {f"qformer_hidden_{i}": layer for i, layer in enumerate(model.qformer.encoder.layer, start=1)}
    hooks = [
        module.register_forward_hook(
            # The tower's last norm is applied a second time for a pooled output that nobody here reads.
            lambda _, __, out, name=name: ours.setdefault(name, out[0] if isinstance(out, tuple) else out)
        )
        for name, module in watched.items()
    ]
    ours["image_embeds"] = model.get_image_features(pixels)
    for hook in hooks:
        hook.remove()
    last = f"vit_block_{len(tower.encoder.layers) - 1}"
    ours["vit_out"] = ours[last]
    if model.qformer is not None:
        ours["qformer_out"] = ours[f"qformer_hidden_{len(model.qformer.encoder.layer)}"]
    else:
        merged = ours["vit_ln"].shape[-1] * model.config.patches_per_token
        ours["merged_patches"] = ours["vit_ln"][:, 1:].reshape(len(pixels), -1, merged)
    for name in recorded:
        if name not in ("pixel_values", "pos_embed"):
            yield Row(name, largest(ours[name], recorded[name]) if name in ours else float("inf"), VISION)


def tokens(subject: Subject) -> Iterator[Row]:
    """The recorded tables of the tokenizer and of decoding."""
    tokenizer = subject.processor.tokenizer
    table = subject.expected["tokenizer_table"]
    yield count("tokenizer table", [(tokenizer.encode_segment(row["text"]), row["ids"]) for row in table])
    whole = [(tokenizer(row["text"]).input_ids, row["ids_with_special"]) for row in table]
    yield count("tokenizer table, BOS in front", whole)
    table = subject.expected["decode_table"]
    yield count("decode table", [(tokenizer.decode_ids(row["ids"]), row["skip_special"]) for row in table])
    yield count("decode table, special kept", [(tokenizer.decode(row["ids"]), row["keep_special"]) for row in table])


def walk(subject: Subject) -> Iterator[tuple[dict[str, Any], list[int], str | None]]:
    """Every recorded turn: (turn, pictures so far, our prompt, or None where the history is the demo's ``</s>``)."""
    for case in subject.expected["cases"].values():
        turns: list[Turn] = []
        pictures: list[int] = []
        recorded = iter(case["turns"])
        marked = False
        for step, *argument in case["steps"]:
            if step == "image":
                pictures.append(argument[0])
                turns.append(Turn("user", images=1))
            elif step == "ask":
                turns.append(Turn("user", argument[0]))
            elif step == "stream_mark":
                marked = True  # v2's demo forgets its answers; ours keeps them, on purpose
            else:
                turn = next(recorded)
                yield turn, list(pictures), None if marked else render(turns, subject.processor.format)
                turns.append(Turn("assistant", turn["messages_after"][-1][1]))


@torch.inference_mode()
def prompts(subject: Subject) -> Iterator[Row]:
    """Prompt texts, ids and segments, embedded prompts and logits of every recorded turn."""
    texts, ids, segments = [], [], []
    whole = rows = last = 0.0
    for turn, pictures, prompt in walk(subject):
        if prompt is not None:
            texts.append((prompt, turn["prompt"]))
        ours = subject.processor.encode_prompt(turn["prompt"])
        ids.append((ours, subject.slots(turn["flat_ids"])))
        pieces = [piece for piece in turn["segments"] if "ids" in piece]
        encoded = [subject.processor.tokenizer.encode_segment(piece["text"]) for piece in pieces]
        segments += [
            (([BOS] if not i else []) + e, p["ids"]) for i, (e, p) in enumerate(zip(encoded, pieces, strict=True))
        ]
        embeds = subject.model.embed_prompt(torch.tensor([ours]), subject.pixels(pictures))
        logits = subject.model(inputs_embeds=embeds[:, turn["begin_idx"] :]).logits[0]
        key = turn["key"]
        if f"{key}.inputs_embeds" in subject.language:
            rows = max(rows, largest(embeds[0], subject.language[f"{key}.inputs_embeds"]))
            whole = max(whole, largest(logits, subject.language[f"{key}.logits"]))
        if f"{key}.logits_last4" in subject.language:
            last = max(last, largest(logits[-4:], subject.language[f"{key}.logits_last4"]))
    yield count("prompt texts", texts)
    yield count("prompt ids", ids)
    yield count("segments", segments)
    yield Row("prompt embeddings", rows, VISION)
    yield Row("logits, every position", whole, LOGITS)
    yield Row("logits, last 4", last, LOGITS)


PLAIN: dict[str, Any] = {"do_sample": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy_rp105": {"repetition_penalty": 1.05},
    "beam2_no_stop_strings": {"num_beams": 2},
    "beam2": {"num_beams": 2},
    "beam2_rp105_lp2": {"num_beams": 2, "repetition_penalty": 1.05, "length_penalty": 2.0},
}


@torch.inference_mode()
def generations(subject: Subject) -> Iterator[Row]:
    """Greedy and beam ids of every turn, and the text that a chat shows."""
    pairs: dict[str, list[tuple[Any, Any]]] = {}
    for turn, pictures, _ in walk(subject):
        embeds = subject.model.embed_prompt(torch.tensor([subject.slots(turn["flat_ids"])]), subject.pixels(pictures))
        embeds = embeds[:, turn["begin_idx"] :]
        for name, options in GENERATIONS.items():
            recorded = turn["result"][name]
            if "num_beams" in options and name != "beam2_no_stop_strings" and subject.processor.format.name == "vicuna":
                continue  # there the original searched on until every beam had ended; see MANIFEST's guide
            # The searches without stop strings were as long as the greedy ones.
            limit = recorded.get("kwargs", turn["result"]["greedy"]["kwargs"])["max_new_tokens"]
            rules = GenerationConfig(**{**PLAIN, "max_new_tokens": limit, **options})
            stop = None if name == "beam2_no_stop_strings" else subject.stop
            new = subject.model.generate(inputs_embeds=embeds, generation_config=rules, stopping_criteria=stop)
            ids = new[0].tolist()
            pairs.setdefault(f"{name} ids", []).append((trimmed(ids), trimmed(recorded["ids"])))
            if "stored_message" in recorded:
                text = subject.processor.decode_answer(ids)
                pairs.setdefault("answer texts", []).append((text, recorded["stored_message"]))
    for name, found in pairs.items():
        yield count(name, found)


@torch.inference_mode()
def batch(subject: Subject) -> Iterator[Row]:
    """Prompts of different lengths at once, padded on the left; the original's evaluation has no stop strings."""
    recorded = subject.expected["batch_generate"]
    inputs = subject.processor(images=subject.images, text=recorded["texts"])
    rules = GenerationConfig(**PLAIN, max_new_tokens=recorded["max_new_tokens"])
    ids = subject.model.generate(**inputs, generation_config=rules).tolist()
    yield count("batch ids", [(trimmed(a), trimmed(b)) for a, b in zip(ids, recorded["sequences"], strict=True)])


@torch.inference_mode()
def sampling(subject: Subject) -> Iterator[Row]:
    """Scores along a recorded sampled answer, after penalty, temperature, top-k and top-p."""
    recorded = subject.expected["sample"]
    prompt = subject.slots(recorded["flat_ids"])
    steps = len(subject.language["sample.processed_scores"])
    ids = recorded["ids"][1 : steps + 1]
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
    # The penalty looks back on BOS and what has been generated, never on the prompt.
    ours = [processors(torch.tensor([[BOS, *ids[:i]]]), logits[i : i + 1])[0] for i in range(steps)]
    yield Row("sampling scores", largest(torch.stack(ours), subject.language["sample.processed_scores"]), SCORES)


def losses(subject: Subject) -> Iterator[Row]:
    """Labels, masks, losses and the projection's gradients of training batches."""
    pairs: list[tuple[Any, Any]] = []
    error = gradient = 0.0
    projection = subject.model.language_projection
    for name, recorded in subject.expected["losses"].items():
        kind = {"end": recorded["end_sym"], "max_answer_tokens": recorded["max_txt_len"]}
        rows = [encode_supervised(subject.processor, row, **kind) for row in exchanges(subject, recorded)]
        inputs = pad_supervised(rows, pad_id=subject.processor.tokenizer.pad_token_id)
        stored = {key: subject.language[f"loss.{name}.{key}"] for key in ("labels", "attention_mask")}
        # The original pads to its longest prompt plus its longest answer, which may be wider than any row.
        gap = stored["labels"].shape[1] - inputs["labels"].shape[1]
        wide = {
            "labels": pad(inputs["labels"], (0, gap), value=IGNORED),
            "attention_mask": pad(inputs["attention_mask"], (0, gap)),
        }
        pairs += [(wide[key].tolist(), tensor.tolist()) for key, tensor in stored.items()]
        projection.requires_grad_(True)
        loss = subject.model(**inputs, pixel_values=subject.pixels(recorded["images"])).loss
        loss.backward()
        error = max(error, abs(loss.item() - recorded["loss"]))
        for part in ("weight", "bias"):
            theirs = subject.language[f"loss.{name}.grad.llama_proj.{part}"]
            gradient = max(gradient, largest(getattr(projection, part).grad, theirs))
        projection.zero_grad()
        projection.requires_grad_(False)
    yield count("labels and masks", pairs)
    yield Row("losses", error, LOSSES)
    yield Row("projection gradients", gradient, LOSSES)


def exchanges(subject: Subject, recorded: dict[str, Any]) -> list[list[Exchange]]:
    """A recorded training batch as questions and answers in the variant's training template."""
    samples = recorded["samples"]
    template = "[INST] {} [/INST]"
    if "conv_q" in samples:
        both = zip(samples["conv_q"], samples["conv_a"], samples["connect_sym"], strict=True)
        return [
            [Exchange(template.format(q), a) for q, a in zip(qs.split(sign), answers.split(sign), strict=True)]
            for qs, answers, sign in both
        ]
    if "instruction_input" in samples:
        both = zip(samples["instruction_input"], samples["answer"], strict=True)
        return [[Exchange(template.format(q), a)] for q, a in both]
    # The first stage shows the picture with no words around it.
    prompt = recorded["picked_instruction"] or "<ImageHere>"
    return [[Exchange(prompt, answer)] for answer in samples["answer"]]


@torch.inference_mode()
def choices(subject: Subject) -> Iterator[Row]:
    """Losses and ranks of answer candidates; the original averages over the whole padded length."""
    recorded = subject.expected.get("multi_select")
    if recorded is None:
        return
    error = 0.0
    ranked: list[dict[int, float]] = [{} for _ in recorded["instructions"]]
    for number, candidates in enumerate(recorded["candidates"]):
        both = zip(recorded["instructions"], candidates, strict=True)
        rows = [encode_supervised(subject.processor, [Exchange(*e)], end="</s>", max_answer_tokens=10**6) for e in both]
        answers = [sum(label != IGNORED for label in labels) for _, labels in rows]
        width = max(len(ids) - n for (ids, _), n in zip(rows, answers, strict=True)) + max(answers)
        for image, (ids, labels) in enumerate(rows):
            if number < recorded["num_cand"][image]:
                logits = subject.model(torch.tensor([ids]), pixel_values=subject.pixels([image])).logits[0, :-1]
                loss = cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum").item() / (width - 1)
                error = max(error, abs(loss - recorded["losses"][image][number]))
                ranked[image][number] = loss
    ours = [sorted(losses, key=losses.__getitem__) for losses in ranked]
    theirs = [[n for n in ranks if n in losses] for ranks, losses in zip(recorded["ranks"], ranked, strict=True)]
    yield Row("candidate losses", error, LOSSES)
    yield count("candidate ranks", list(zip(ours, theirs, strict=True)))


STAGES = (vision, tokens, prompts, generations, batch, sampling, losses, choices)


def compare(golden: Path, variant: str, attention: str, folder: Path) -> Iterator[Row]:
    """Every row of one variant with one attention implementation; ``folder`` takes the converted model."""
    subject = load_subject(golden, variant, attention, folder)
    for stage in STAGES:
        for row in stage(subject):
            yield replace(row, variant=variant, attention=attention)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path, metavar="GOLDEN_DIR")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="only this one (repeatable)")
    options = parser.parse_args(arguments)
    try:
        recorded = json.loads((options.golden / "MANIFEST.json").read_text(encoding="utf-8"))["variants"]
    except (OSError, ValueError, KeyError):
        parser.error(f"{options.golden} holds no recorded numbers: it has no MANIFEST.json that names variants")
    failed = total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for variant in options.variant or [name for name in VARIANTS if name in recorded]:
            for attention in ATTENTIONS:
                for row in compare(options.golden, variant, attention, Path(scratch) / variant):
                    print(row, flush=True)
                    total += 1
                    failed += not row.good
    print(f"{total - failed} of {total} comparisons hold" + (f"; {failed} FAILED" if failed else ""))
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
