"""The kingdom's own fast tokenizer: a word a token, and a chat template.

Owns the vocabulary. It is the same for every seed, and anything outside it is `<unk>`, so a sentence typed by a reader
can be checked word by word.
"""

from functools import cache
from random import Random

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib.errors import InputError
from lib.kingdom import language, lexicon, skills, styles

PAD, BOS, USER, BOT, END, SYSTEM, UNKNOWN = "<pad>", "<s>", "<user>", "<bot>", "</s>", "<sys>", "<unk>"
SPECIAL = (PAD, BOS, USER, BOT, END, SYSTEM, UNKNOWN)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<sys> {{ message['content'] }}"
    "{% elif message['role'] == 'user' %}<user> {{ message['content'] }} <bot>"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the language, sorted, after the special tokens.

    Fixed phrases stand in several places, so the words are collected by speaking the language for a while; a test
    speaks it longer and finds no unknown word.
    """
    words = set(lexicon.WORDINGS) | set(lexicon.SYSTEM_LINE.split()) | {str(number) for number in range(19)}
    for sentence in (*lexicon.REFUSALS, *lexicon.FRAMES, *lexicon.RARE_FRAMES, lexicon.ANSWER):
        words |= {word for word in sentence.split() if not word.startswith("{")}
    words |= {*lexicon.TOOLS, *lexicon.MATERIALS, *lexicon.PLACES, *lexicon.ANIMALS, *lexicon.NOISE}
    here, rng = language.kingdom(0), Random("vocabulary")
    for _ in range(200):
        for style in styles.ALL_STYLES:
            words |= set(styles.dress([], style, rng))
        for skill in (*skills.SKILLS, "take"):
            item = skills.question(here, rng, skill)
            words |= set(item.text.split()) | set(item.answer.split())
        words |= set(skills.nonsense(rng).split())
    return (*SPECIAL, *sorted(words))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that splits on spaces, pads on the left and knows the chat template."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=END, unk_token=UNKNOWN, padding_side="left",
        additional_special_tokens=[USER, BOT, SYSTEM], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def check_words(text: str) -> None:
    """Refuse a sentence with words the kingdom does not have, naming them."""
    known = set(vocabulary()) - set(SPECIAL)
    strange = [word for word in text.split() if word not in known]
    if strange:
        raise InputError(
            f"the kingdom has no word {', '.join(map(repr, strange))}; see lib/kingdom/lexicon.py for those it has"
        )
