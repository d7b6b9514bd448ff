"""Compare this package with numbers that were recorded from the original MiniGPT-4 code.

    uv run tools/parity.py tests/golden

GOLDEN_DIR has a ``MANIFEST.json``, the original's files in small, and a folder per variant with the numbers of every
stage. Each variant is converted and loaded, then run stage by stage with both attention implementations; a table shows
the largest error or the number of exact matches of every stage. What a set has not recorded is left out; names, counts
and dimensions are the set's own. Exit code 1 if anything is out of tolerance.
"""

import argparse
import json
import re
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

from minigpt4_serve.errors import MiniGPT4Error, WeightsError
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor, Turn
from minigpt4_serve.model.conversation import IMAGE_PLACEHOLDER, neutralise, render
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.model.supervision import IGNORED, Exchange, encode_supervised, pad_supervised
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.files import open_tensors
from minigpt4_serve.weights.geometry import Untold, Variant
from minigpt4_serve.weights.load import load_model

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

    def images_of(self, texts: Sequence[str], recorded: dict[str, Any]) -> list[int]:
        """The pictures that recorded texts show: as recorded, else one after the other."""
        shown = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
        return list(recorded.get("images", range(shown)))

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


def kind(name: str, expected: dict[str, Any]) -> Variant:
    """Which member of the family a recorded variant is, told by its name or its conversation's."""
    told = f"{name} {expected['files'].get('conv', '')}".lower()
    if "vicuna" in told:
        return "vicuna"
    return "v2" if "v2" in told else "llama2"


def file_with(golden: Path, tensor: str) -> Path:
    """The ``.pth`` that holds a tensor, wherever it lies and whatever it is called.

    Raises:
        WeightsError: there is none.
    """
    for path in sorted(golden.rglob("*.pth")):
        if tensor in open_tensors(path):
            return path
    raise WeightsError(f"{golden} holds no .pth with a tensor {tensor}.", missing=[tensor])


def load_subject(golden: Path, variant: str, attention: str, folder: Path) -> Subject:
    """Convert a variant's files into ``folder`` (unless they are there already) and load it in float32 on the CPU."""
    manifest = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))
    expected = json.loads((golden / variant / "expected.json").read_text(encoding="utf-8"))
    if not folder.exists():
        member = kind(variant, expected)
        convert(
            variant=member,
            llm=golden / expected["files"]["llm"],
            vit=file_with(golden, "cls_token"),
            qformer=file_with(golden, "query_tokens") if member == "vicuna" else None,
            checkpoint=golden / expected["files"]["ckpt"],
            out=folder,
            dtype="float32",
            # What else no tensor tells is read from the set's MANIFEST.json.
            untold=Untold(image_size=expected["image_size"]),
        )
    settings = ModelSettings(path=folder, device="cpu", dtype="float32")
    model, processor = load_model(settings, attention=attention)
    images = [read_image(golden / "inputs" / name) for name in manifest["images"]]
    stages = {
        stage: load_file(path) if (path := golden / variant / f"{stage}.safetensors").is_file() else {}
        for stage in ("vision", "language")
    }
    return Subject(model, processor, images, expected, stages["vision"], stages["language"])


@torch.inference_mode()
def vision(subject: Subject) -> Iterator[Row]:
    """Pixels, resized positions and the output of every layer up to the projection."""
    model, recorded = subject.model, subject.vision
    pixels = subject.pixels(range(len(subject.images)))
    assert pixels is not None
    if "pixel_values" in recorded:
        yield Row("pixels", largest(pixels, recorded["pixel_values"]))
    digests = [sha256(picture.numpy().tobytes()).hexdigest() for picture in pixels]
    if "pixel_sha256" in subject.expected:
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
    tokenizer, expected = subject.processor.tokenizer, subject.expected
    rows = subject.model.config.text_config.vocab_size
    sizes = {"image_tokens": subject.processor.num_image_tokens, "llm_vocab": rows, "pad": tokenizer.pad_token_id}
    yield count("sizes", [(ours, expected[name]) for name, ours in sizes.items() if name in expected])
    table = expected.get("tokenizer_table", [])
    yield count("tokenizer table", [(tokenizer.encode_segment(row["text"]), row["ids"]) for row in table])
    whole = [(tokenizer(row["text"]).input_ids, row["ids_with_special"]) for row in table]
    yield count("tokenizer table, BOS in front", whole)
    table = expected.get("decode_table", [])
    yield count("decode table", [(tokenizer.decode_ids(row["ids"]), row["skip_special"]) for row in table])
    yield count("decode table, special kept", [(tokenizer.decode(row["ids"]), row["keep_special"]) for row in table])


def walk(subject: Subject) -> Iterator[tuple[dict[str, Any], list[int], str | None]]:
    """Every recorded turn: (turn, pictures so far, our prompt, or None where ours is another on purpose).

    That is where the history is the demo's ``</s>``, or where somebody typed a control string.
    """
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
                marked |= neutralise(argument[0]) != argument[0]
            elif step != "answer":
                marked = True  # stream_mark: v2's demo forgets its answers; ours keeps them
            else:
                turn = next(recorded)
                yield turn, list(pictures), None if marked else render(turns, subject.processor.format)
                turns.append(Turn("assistant", turn["messages_after"][-1][1]))


@torch.inference_mode()
def prompts(subject: Subject) -> Iterator[Row]:
    """Prompt texts, ids and segments, embedded prompts and logits of every recorded turn."""
    texts, ids, segments = [], [], []
    errors: dict[str, float] = {}
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
        stages = {"inputs_embeds": embeds[0], "logits": logits, "logits_last4": logits[-4:]}
        for stage, tensor in stages.items():
            theirs = subject.language.get(f"{turn['key']}.{stage}")
            if theirs is not None:
                errors[stage] = max(errors.get(stage, 0.0), largest(tensor, theirs))
    yield count("prompt texts", texts)
    yield count("prompt ids", ids)
    yield count("segments", segments)
    names = {"inputs_embeds": "prompt embeddings", "logits": "logits, every position", "logits_last4": "logits, last 4"}
    for stage, error in errors.items():
        yield Row(names[stage], error, VISION if stage == "inputs_embeds" else LOGITS)


PLAIN: dict[str, Any] = {"do_sample": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
NO_STOP = "no_stop_strings"


def rules_of(name: str, recorded: dict[str, Any], limit: int) -> GenerationConfig:
    """How a recorded answer was generated: as its ``kwargs`` say, over the demo's penalty of 1.05.

    Searches without stop strings have no ``kwargs``: their name tells the beams, nothing is penalised, and they were as
    long as the greedy answer (``limit``).
    """
    told = dict(recorded.get("kwargs", {"repetition_penalty": 1.0, "max_new_tokens": limit}))
    if beams := re.match(r"beam(\d+)", name):
        told.setdefault("num_beams", int(beams[1]))
    told.pop("max_length", None)  # the chat's limit, which cut the prompt; not the answer's
    if "min_length" in told:
        told["min_new_tokens"] = told.pop("min_length") - 1  # BOS counted there
    return GenerationConfig(**{**PLAIN, "repetition_penalty": 1.05, **told})


def until_stop(ids: list[int], subject: Subject) -> list[int]:
    """Up to the first id with which a stop string is there: the original looked for certain ids, ours for the text."""
    for end in range(1, len(ids) + 1):
        if any(string in subject.processor.tokenizer.decode_ids(ids[:end]) for string in subject.processor.format.stop):
            return ids[:end]
    return ids


def shown_otherwise(recorded: dict[str, Any], subject: Subject) -> bool:
    """Whether the original showed an answer in a way that isn't copied.

    Of one that says ``Assistant:`` it showed the rest only, and it cut v2's at ``###`` as well.
    """
    raw = recorded.get("raw", "")
    return "Assistant:" in raw or ("###" in raw and not subject.processor.format.stop)


@torch.inference_mode()
def generations(subject: Subject) -> Iterator[Row]:
    """Greedy and beam ids of every turn, and the text that a chat shows."""
    pairs: dict[str, list[tuple[Any, Any]]] = {}
    for turn, pictures, _ in walk(subject):
        embeds = subject.model.embed_prompt(torch.tensor([subject.slots(turn["flat_ids"])]), subject.pixels(pictures))
        embeds = embeds[:, turn["begin_idx"] :]
        limit = turn["result"]["greedy"]["kwargs"]["max_new_tokens"]
        for name, recorded in turn["result"].items():
            rules = rules_of(name, recorded, limit)
            stops, beams, theirs = not name.endswith(NO_STOP), rules.num_beams or 1, trimmed(recorded["ids"])
            if stops and beams > 1 and subject.processor.format.name == "vicuna":
                continue  # there the original searched on until every beam had ended; see MANIFEST's guide
            if stops and beams == 1:
                theirs = until_stop(theirs, subject)
            new = subject.model.generate(
                inputs_embeds=embeds, generation_config=rules, stopping_criteria=subject.stop if stops else None
            )
            ours = new[0].tolist()
            pairs.setdefault(f"{name} ids", []).append((trimmed(ours), theirs))
            if "stored_message" in recorded and not shown_otherwise(recorded, subject):
                pairs.setdefault("answer texts", []).append(
                    (subject.processor.decode_answer(ours), recorded["stored_message"])
                )
    for name, found in pairs.items():
        yield count(name, found)


@torch.inference_mode()
def batch(subject: Subject) -> Iterator[Row]:
    """Prompts of different lengths at once, padded on the left; the original's evaluation has no stop strings."""
    recorded = subject.expected.get("batch_generate")
    if recorded is None:
        return
    images = [subject.images[i] for i in subject.images_of(recorded["texts"], recorded)]
    inputs = subject.processor(images=images, text=recorded["texts"])
    rules = GenerationConfig(**PLAIN, max_new_tokens=recorded["max_new_tokens"])
    ids = subject.model.generate(**inputs, generation_config=rules).tolist()
    yield count("batch ids", [(trimmed(a), trimmed(b)) for a, b in zip(ids, recorded["sequences"], strict=True)])


@torch.inference_mode()
def sampling(subject: Subject) -> Iterator[Row]:
    """Scores along a recorded sampled answer, after penalty, temperature, top-k and top-p."""
    recorded = subject.expected.get("sample")
    if recorded is None:
        return
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
    batches = subject.expected.get("losses", {})
    for name, recorded in batches.items():
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
    if batches:
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
    end = recorded.get("end_sym", "###" if subject.processor.format.name == "vicuna" else "</s>")
    pictures = recorded.get("images", range(len(recorded["instructions"])))
    for number, candidates in enumerate(recorded["candidates"]):
        both = zip(recorded["instructions"], candidates, strict=True)
        rows = [encode_supervised(subject.processor, [Exchange(*e)], end=end, max_answer_tokens=10**6) for e in both]
        answers = [sum(label != IGNORED for label in labels) for _, labels in rows]
        width = max(len(ids) - n for (ids, _), n in zip(rows, answers, strict=True)) + max(answers)
        for row, (image, (ids, labels)) in enumerate(zip(pictures, rows, strict=True)):
            if number < recorded["num_cand"][row]:
                logits = subject.model(torch.tensor([ids]), pixel_values=subject.pixels([image])).logits[0, :-1]
                loss = cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum").item() / (width - 1)
                error = max(error, abs(loss - recorded["losses"][row][number]))
                ranked[row][number] = loss
    ours = [sorted(losses, key=losses.__getitem__) for losses in ranked]
    theirs = [[n for n in ranks if n in losses] for ranks, losses in zip(recorded["ranks"], ranked, strict=True)]
    yield Row("candidate losses", error, LOSSES)
    yield count("candidate ranks", list(zip(ours, theirs, strict=True)))


STAGES = (vision, tokens, prompts, generations, batch, sampling, losses, choices)


def compare(golden: Path, variant: str, attention: str, folder: Path) -> Iterator[Row]:
    """Every row of one variant with one attention implementation; ``folder`` takes the converted model.

    Raises:
        MiniGPT4Error: the files can't be converted.
    """
    subject = load_subject(golden, variant, attention, folder)
    for stage in STAGES:
        try:
            for row in stage(subject):
                if row.error is not None or row.total:  # what has nothing to compare proves nothing
                    yield replace(row, variant=variant, attention=attention)
        except Exception as error:
            told = f"{stage.__name__}: {type(error).__name__} {error}"
            yield Row(told, float("inf"), variant=variant, attention=attention)


def recorded_variants(golden: Path) -> list[str]:
    """Variants that a set has numbers of.

    Raises:
        ValueError: it is no such set.
    """
    try:
        named = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))["variants"]
    except (OSError, ValueError, KeyError, TypeError):
        named = []
    found = [str(name) for name in named if (golden / str(name) / "expected.json").is_file()]
    if not found:
        raise ValueError(f"{golden} holds no recorded numbers: no MANIFEST.json names variants that lie there.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path, metavar="GOLDEN_DIR")
    parser.add_argument("--variant", metavar="NAME", action="append", help="only this one (repeatable)")
    options = parser.parse_args(arguments)
    try:
        recorded = recorded_variants(options.golden)
    except ValueError as error:
        parser.error(str(error))
    if strangers := set(options.variant or ()) - set(recorded):
        parser.error(f"{options.golden} has no {', '.join(sorted(strangers))}; it has {', '.join(recorded)}")
    torch.set_num_threads(1)  # tensors this small are slower on more
    failed = total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for variant in options.variant or recorded:
            for attention in ATTENTIONS:
                try:
                    for row in compare(options.golden, variant, attention, Path(scratch) / variant):
                        print(row, flush=True)
                        total += 1
                        failed += not row.good
                except MiniGPT4Error as error:
                    print(f"{variant:<10} {attention:<6} can't be converted: {error}", flush=True)
                    total += 1
                    failed += 1
    print(f"{total - failed} of {total} comparisons hold" + (f"; {failed} FAILED" if failed else ""))
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
