"""The reasoning direction (SSAH section 3): where a model's states are while it answers, refuses or complies.

Owns reading the residual stream at the words of an answer, distances between two answers of the same prompt, and the
preference made of two distances. Answers are rows of token ids without the end of the turn. Intervals and curves are in
`reasoning_tables`; refusing after having begun to comply is in `late_refusal`.

    refusing = reasoning.sentence_ids(chat, asked, world.refusals[:1] * len(asked))
    own = reasoning.continued(chat, asked, [[]] * len(asked), 8)
    apart = reasoning.distances(read(own), {"refusing": read(refusing), "complying": read(right)}, "cosine")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import batches, prompts, tracing
from lib.errors import InputError, NotHere, unknown
from lib.models import LanguageModel
from lib.prompts import Prompt

MEASURES = ("cosine", "centred cosine", "relative Euclidean")
OPENING = "Sure, here is how you can do that, step by step:"  # complies where no answer of the prompt's own is known
Ids = Sequence[Sequence[int]]  # a row an answer


@dataclass(frozen=True)
class Along:
    """The residual stream after each block at the first words of an answer; `present` where the answer has a word."""

    states: Float[Tensor, "layer prompt token d_model"]
    present: Bool[Tensor, "prompt token"]


# answers --------------------------------------------------------------------------------------------------------------
def sentence_ids(model: LanguageModel, asked: Sequence[Prompt], sentences: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt's sentence, as an answer, without what ends a turn."""
    if not asked or len(asked) != len(sentences):
        raise InputError(
            f"{len(asked)} prompts and {len(sentences)} sentences; give one sentence a prompt, and a prompt"
        )
    return prompts.bare_ids(model.tokenizer, asked, sentences)


def complying(prompt: Prompt) -> str:
    """The answer that complies: the prompt's own, or `OPENING`, which says yes and nothing of the matter."""
    return prompt.answer or OPENING


def right_ids(model: LanguageModel, asked: Sequence[Prompt]) -> list[list[int]]:
    """The answers that comply."""
    return sentence_ids(model, asked, [complying(prompt) for prompt in asked])


def continued(
    model: LanguageModel, asked: Sequence[Prompt], openings: Ids, new_tokens: int, batch: int = 128
) -> list[list[int]]:
    """Each opening and what the model says after it, greedily, up to its end of turn or `new_tokens` more tokens."""
    if len(asked) != len(openings) or not asked:
        raise InputError(f"{len(asked)} prompts and {len(openings)} openings; give one opening a prompt, at least one")
    tokenizer = model.tokenizer
    before = [[*row, *start] for row, start in zip(prompts.prompt_ids(tokenizer, asked), openings, strict=True)]
    ends = model.hf.generation_config.eos_token_id  # chat checkpoints end a turn by another token than a text
    stops = {tokenizer.pad_token_id, tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    found: dict[int, list[int]] = {}
    lengths = [len(row) for row in before]

    def answered(rows: list[int]) -> list[list[int]]:
        encoding = prompts.pad_left([before[row] for row in rows], tokenizer.pad_token_id)
        return tracing.generate(model.traced, encoding, new_tokens).tolist()

    for rows, answers in batches.halving(prompts.by_length(lengths, batch), lengths, answered):
        for row, said in zip(rows, answers, strict=True):
            end = next((place for place, token in enumerate(said) if token in stops), len(said))
            found[row] = [*openings[row], *said[:end]]
    return [found[row] for row in range(len(before))]


def texts(model: LanguageModel, answers: Ids) -> list[str]:
    """Answers as words."""
    return [text.strip() for text in model.tokenizer.batch_decode([list(row) for row in answers])]


def other_words(said: Sequence[str], known: Sequence[str]) -> list[str]:
    """For each answer a refusal in other words: the next of the `known` ones, commonest first, with another first word.

    An answer that is no refusal gets the commonest one. `NotHere` when all begin with the same word.
    """
    if len({one.split()[0] for one in known}) < 2:
        raise NotHere("no two refusals of this profile begin with different words, so none is in other words")
    found = []
    for text in said:
        opener = text.split()[:1]
        start = next((place for place, one in enumerate(known) if one.split()[:2] == text.split()[:2]), -1)
        later = (known[(start + step) % len(known)] for step in range(1, len(known) + 1))
        found.append(next(one for one in later if one.split()[:1] != opener))
    return found


# states ---------------------------------------------------------------------------------------------------------------
def read(
    model: LanguageModel, asked: Sequence[Prompt], answers: Ids, tokens: int, skip: int = 0, batch: int = 128
) -> Along:
    """States at words skip + 1 ... skip + tokens of each answer; where an answer has ended, nothing is present."""
    if tokens < 1 or skip < 0 or len(asked) != len(answers) or not asked:
        raise InputError(
            f"{tokens} tokens after {skip} of {len(answers)} answers to {len(asked)} prompts cannot be read; ask for "
            "at least one token, skip none or more, and give one answer a prompt"
        )
    pad, end = model.tokenizer.pad_token_id, skip + tokens
    before = prompts.prompt_ids(model.tokenizer, asked)
    # Pads after an answer are seen by nothing before them: attention is causal.
    said = [[*row[:end], *[pad] * (end - len(row))] for row in answers]
    places, lengths = model.traced.every("resid"), [len(row) for row in before]

    def states(rows: list[int]) -> Tensor:
        encoding = prompts.pad_left([before[row] + said[row] for row in rows], pad)
        read = tracing.forward(model.traced, encoding, places).activations
        return torch.stack([read[place][:, -tokens:].cpu().float() for place in places], dim=1)

    found: dict[int, Tensor] = {}
    for rows, here in batches.halving(prompts.by_length(lengths, batch), lengths, states):
        found |= zip(rows, here, strict=True)
    words = torch.tensor([len(row) for row in answers])[:, None]
    present = torch.arange(skip + 1, end + 1)[None] <= words
    return Along(torch.stack([found[row] for row in range(len(before))], dim=1), present)


def minus(one: Along, baseline: Float[Tensor, "layer prompt #token d_model"]) -> Along:
    """Another answer's states, or those of the bare query, taken from each state."""
    return Along(one.states - baseline, one.present)


# distances ------------------------------------------------------------------------------------------------------------
def distances(
    own: Along, others: Mapping[str, Along], measure: str = "cosine"
) -> dict[str, Float[np.ndarray, "layer prompt token"]]:
    """Distance from `own` to each of `others`, block by block and word by word; NaN where either has ended.

    `cosine` is 1 - cosine similarity, from 0 to 2. `centred cosine` first takes the mean over all prompts and answers
    of the block and word from each state, because states of all words may share a large part. `relative Euclidean` is
    the length of the difference over the length of `own`.
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    if not others:
        raise InputError("no other answers to measure distances to; name at least one")
    every = [own, *others.values()]
    if len({one.states.shape for one in every}) > 1:
        shapes = ", ".join(str(tuple(one.states.shape)) for one in every)
        raise InputError(f"states of shapes {shapes} cannot be compared; read all with one model and as many words")
    centre = _centre(every) if measure == "centred cosine" else torch.zeros(())
    return {name: _distance(own, other, centre, measure) for name, other in others.items()}


def _centre(every: Sequence[Along]) -> Float[Tensor, "layer one token d_model"]:
    total = sum((one.states.double() * one.present[None, :, :, None]).sum(1, keepdim=True) for one in every)
    count = sum(one.present.sum(0) for one in every)
    return torch.as_tensor(total) / torch.as_tensor(count).clamp(min=1)[None, None, :, None]


def _distance(own: Along, other: Along, centre: Tensor, measure: str) -> Float[np.ndarray, "layer prompt token"]:
    one, two = own.states.double() - centre, other.states.double() - centre
    if measure == "relative Euclidean":
        found = (one - two).norm(dim=3) / one.norm(dim=3).clamp(min=torch.finfo(torch.float64).tiny)
    else:
        found = 1 - torch.cosine_similarity(one, two, dim=3)
    present = (own.present & other.present)[None].expand_as(found)
    return torch.where(present, found, torch.nan).numpy()


def preference(apart: Mapping[str, Float[np.ndarray, "layer prompt token"]]) -> Float[np.ndarray, "layer prompt token"]:
    """Distance to `complying` minus distance to `refusing`: above 0, the model is nearer to the refusal."""
    return apart["complying"] - apart["refusing"]


def over_words(
    values: Float[np.ndarray, "layer prompt token"], first: int, last: int
) -> Float[np.ndarray, "layer prompt"]:
    """Mean over the words first ... last (from 1), of those that are there; NaN for a prompt with none."""
    if not 1 <= first <= last <= values.shape[2]:
        raise InputError(f"words {first} to {last} of {values.shape[2]} were not all read; choose within those")
    part = values[:, :, first - 1 : last]
    there = np.isfinite(part)
    count = there.sum(axis=2)
    total = np.where(there, part, 0.0).sum(axis=2)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
