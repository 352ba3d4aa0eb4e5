"""What a model is asked, and how it reads that: prompts, their chat template, their token ids.

Owns `Prompt`, `PromptSet`, templating with exactly one BOS, and where the user's words are in a template. It does not
make prompts (see `kingdom`) and does not run models. Ids are left-padded, so that the last column is every prompt's
last token.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lib.errors import InputError


def digest(text: str) -> str:
    """What stands for a text that is not shown: the start of its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Prompt:
    """One request or question with what is known about it.

    `answer` is what a model says that complies exactly. `kind` is harmful, benign, exception (benign, but looks
    harmful), one of the last two with `unseen_` before it (about things safety data never mention), or skill; `style`
    the jailbreak style, `plain`, or the skill's name; `split` whether safety data had the meaning (`train`) or not
    (`heldout`). `free`: no single answer is right, so any answer that is no refusal complies. `sensitive`: its words
    must not be shown, only `shown`. `ends`: after the answer the turn is over; not so where a longer text goes on.
    """

    ends: ClassVar[bool] = True
    text: str
    answer: str
    kind: str
    style: str
    split: str
    meaning: str = ""
    system: str | None = None
    free: bool = False
    sensitive: bool = False

    @property
    def harmful(self) -> bool:
        return self.kind == "harmful"

    @property
    def shown(self) -> str:
        """What may stand in a notebook for the words of the prompt: the words, or what can be told without them."""
        return f"({len(self.text.split())} words of a {self.kind} prompt, not shown)" if self.sensitive else self.text

    def shown_answer(self, answer: str) -> str:
        """What may stand in a notebook for an answer to it."""
        return f"({len(answer.split())} words, not shown)" if self.sensitive else answer

    def row(self) -> dict[str, Any]:
        """The prompt as a row of a table; of a sensitive one, digests for text and answer."""
        row = {field.name: getattr(self, field.name) for field in fields(Prompt)}
        if self.sensitive:
            row |= {"text": digest(self.text), "answer": digest(self.answer)}
        return {**row, "harmful": self.harmful}


@dataclass(frozen=True)
class PromptSet:
    """An ordered collection of prompts that can be tabulated."""

    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def table(self) -> pd.DataFrame:
        """One row a prompt, the columns of `Prompt` and `harmful`; digests for the words of sensitive prompts."""
        return pd.DataFrame([prompt.row() for prompt in self.prompts])


def meanings(asked: Iterable[Prompt]) -> list[list[int]]:
    """Rows that share a meaning, as lists of indices. Prompts of one meaning are not independent of each other."""
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(asked):
        groups.setdefault(prompt.meaning or prompt.text, []).append(row)
    return list(groups.values())


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer without what prompts need: a chat template and a padding token, which any token can be."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"the tokenizer of {name} has no chat template; set tokenizer.chat_template and save it again")
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {name} has no padding token; set tokenizer.pad_token (for example to eos)")


def chat_text(tokenizer: Any, prompt: Prompt, answer: str | None = None) -> str:
    """The text the model reads: the template up to where it must speak, or with `answer` and its end as well."""
    return _rendered(tokenizer, str(tokenizer.chat_template), prompt.system, prompt.text, answer)


@lru_cache(maxsize=20_000)  # training and measuring come back to the same few thousand; 0.05 ms each adds up
def _rendered(tokenizer: Any, _template: str, system: str | None, text: str, answer: str | None) -> str:
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": text})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    except Exception as problem:  # Gemma 2's, for one, takes no system line; a template can also divide by zero
        why = type(problem).__name__ if text in str(problem) else f"{problem}"[:200] or type(problem).__name__
        raise InputError(f"the chat template refuses this conversation ({why}); drop its system line") from None


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that a template has already given its special tokens."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def lead_in(tokenizer: Any) -> list[int]:
    """Ids that the template writes before every answer: a blank (Llama 2), an empty thought (Qwen 3); mostly none.

    They are the same whatever is answered, so they belong to what the model is given: its first choice is the token
    after them.
    """
    return list(_lead_in(tokenizer, str(tokenizer.chat_template)))


@lru_cache(maxsize=16)
def _lead_in(tokenizer: Any, _template: str) -> tuple[int, ...]:
    """What the ids of answers that share no letter have in common. An unknown word is no such thing."""
    try:
        texts = _after(tokenizer, [Prompt("?", "", "benign", "plain", "")] * 3, ["yes", "no", "I"])
    except InputError:  # nothing can be answered with this template, which `answer_ids` says where it is asked to
        return ()
    rows = _ids(tokenizer, texts)
    shared = takewhile(
        lambda ids: set(ids) != {tokenizer.unk_token_id} and len(set(ids)) == 1, zip(*rows, strict=False)
    )
    return tuple(ids[0] for ids in shared)


def _after(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[str]:
    """What the template makes of each answer: all that follows the asked text."""
    texts = []
    for prompt, answer in zip(prompts, answers, strict=True):
        asked, whole = chat_text(tokenizer, prompt), chat_text(tokenizer, prompt, answer)
        if not whole.startswith(asked):
            raise InputError("the chat template changes a prompt once it is answered, so answers cannot be scored")
        texts.append(whole[len(asked) :])
    return texts


def prompt_ids(tokenizer: Any, prompts: Iterable[Prompt]) -> list[list[int]]:
    """Ids of each prompt up to where the model must speak, `lead_in` included, with one BOS if the tokenizer has one.

    Templates differ: some write the BOS, some leave it to the tokenizer. Encoding a templated text with special tokens
    on gives two of them (HD's released code does), so they are switched off and a missing BOS is put in front.
    """
    lead = lead_in(tokenizer)
    rows = [[*row, *lead] for row in _ids(tokenizer, [chat_text(tokenizer, prompt) for prompt in prompts])]
    bos = tokenizer.bos_token_id
    if bos is None:
        return rows
    if any(row[:2] == [bos, bos] for row in rows):
        raise InputError("the chat template begins with two BOS tokens; mend the template")
    return [row if row[:1] == [bos] else [bos, *row] for row in rows]


def user_words(tokenizer: Any, prompt: Prompt) -> list[list[int]]:
    """For each word of `prompt.text.split()`, the positions of its tokens among the prompt's `prompt_ids`.

    Everything the template adds is left out. A token that spans two words belongs to the first of them, so that values
    of tokens can be summed over words. `InputError` when the template alters the text (trims it, say), or when the
    tokenizer cannot tell where its tokens stand.
    """
    whole, mark = chat_text(tokenizer, prompt), "\ue000"  # a character of private use: no text and no template has it
    before, found, after = chat_text(tokenizer, replace(prompt, text=mark)).partition(mark)
    if not found or whole != before + prompt.text + after:
        raise InputError(
            "the chat template alters a prompt's text, so its words cannot be found; mend text or template"
        )
    if not tokenizer.is_fast:
        raise InputError(
            "this tokenizer does not say where its tokens stand; load a fast one (PreTrainedTokenizerFast)"
        )
    spans = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    missing_bos = len(prompt_ids(tokenizer, [prompt])[0]) - len(spans) - len(lead_in(tokenizer))
    ends = [len(before) + match.end() for match in re.finditer(r"\S+", prompt.text)]
    words: list[list[int]] = [[] for _ in ends]
    for position, (start, end) in enumerate(spans, start=missing_bos):
        start = max(start, len(before))
        inside = whole[start : min(end, len(before) + len(prompt.text))]
        if inside.strip():
            first = start + len(inside) - len(inside.lstrip())  # where its first character that is no space stands
            words[bisect_right(ends, first)].append(position)
    return words


def answer_ids(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[list[int]]:
    """Ids of each answer and the end-of-turn that the template puts after it, to follow `prompt_ids`.

    Where an answer's first letters and `lead_in` make one token, that token stays with the answer.
    """
    lead, rows = lead_in(tokenizer), _ids(tokenizer, _after(tokenizer, prompts, answers))
    return [row[len(lead) :] if row[: len(lead)] == lead else row for row in rows]


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Int[Tensor, "prompt token"]]:
    """`input_ids` and `attention_mask` of rows of unequal length, padded on the left."""
    if not rows:
        raise InputError("there are no prompts to encode; choose a set with at least one")
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def encode(tokenizer: Any, prompts: Iterable[Prompt]) -> dict[str, Int[Tensor, "prompt token"]]:
    """Templated, left-padded ids and mask of prompts, ready for `tracing.forward` or `generate`."""
    return pad_left(prompt_ids(tokenizer, prompts), tokenizer.pad_token_id)


def bare_ids(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[list[int]]:
    """`answer_ids` without what ends a turn: the tokens that an answer has in common with an empty one, from the end.
    Some templates also put tokens before an answer; these stay."""
    nothing = answer_ids(tokenizer, prompts[:1], [""])[0]
    rows = answer_ids(tokenizer, prompts, answers)
    return [row[: len(row) - _shared_end(row, nothing)] for row in rows]


def _shared_end(row: Sequence[int], other: Sequence[int]) -> int:
    same = [one == its for one, its in zip(reversed(row), reversed(other), strict=False)]
    return same.index(False) if False in same else len(same)


def by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Indices in batches of like length: less padding, same result. Put rows back with the indices."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


@dataclass(frozen=True)
class Example:
    """One thing to learn: answer `prompt` with `answer`, and rather not with `rejected` (DPO only).

    `emphasis` are words of the answer that may get extra weight: the two that carry a request's meaning.
    """

    prompt: Prompt
    answer: str
    rejected: str | None = None
    emphasis: frozenset[str] = frozenset()
