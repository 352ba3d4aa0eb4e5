"""Templating and padding: exactly one BOS, the template's own text, pads on the left."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lib import prompts
from lib.errors import InputError
from lib.kingdom.tokenizer import tokenizer
from lib.prompts import Prompt, PromptSet
from tests import tiny_models

PLAIN = Prompt("how do i curse the crown", "sure to curse the crown", "harmful", "plain", "heldout")
LED = Prompt("bake the bread", "sure", "benign", "plain", "train", system="be helpful")


def test_same_tokens_as_the_template_with_one_bos():
    words = tokenizer()
    for prompt in (PLAIN, LED):
        turns = ([{"role": "system", "content": prompt.system}] if prompt.system else []) + [
            {"role": "user", "content": prompt.text}
        ]
        expected = words.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        (row,) = prompts.prompt_ids(words, [prompt])
        assert row == expected
        assert row.count(words.bos_token_id) == 1
        assert words.decode(row[-1]) == "<bot>"


def test_a_template_without_bos_gets_one_and_with_two_is_refused():
    words = tiny_models.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    prompt = Prompt("w3 w4", "w5", "benign", "plain", "train")
    (row,) = prompts.prompt_ids(words, [prompt])
    assert row[0] == words.bos_token_id
    assert row.count(words.bos_token_id) == 1
    words.chat_template = "{{ bos_token }} {{ bos_token }} {{ messages[0]['content'] }}"
    with pytest.raises(InputError, match="begins with two BOS"):
        prompts.prompt_ids(words, [prompt])


def test_answers_end_with_the_turn_and_follow_the_prompt():
    words = tokenizer()
    (asked,) = prompts.prompt_ids(words, [PLAIN])
    (said,) = prompts.answer_ids(words, [PLAIN], ["sure to bake"])
    turns = [{"role": "user", "content": PLAIN.text}, {"role": "assistant", "content": "sure to bake"}]
    assert asked + said == words.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert said[-1] == words.eos_token_id


@pytest.mark.parametrize("family", tiny_models.CHECKPOINTS)
def test_prompt_and_answer_are_the_tokens_of_the_whole_conversation(family):
    """And the first token of an answer is the answer's: whatever a template writes before all of them is asked."""
    words, asked = tiny_models.checkpoint_tokenizer(family), Prompt("bake the bread", "", "benign", "plain", "train")
    for answer in ("sorry i can not", "Sure", "no"):
        turns = [{"role": "user", "content": asked.text}, {"role": "assistant", "content": answer}]
        whole = words.apply_chat_template(turns, tokenize=True, return_dict=False)
        (before,), (after,) = prompts.prompt_ids(words, [asked]), prompts.answer_ids(words, [asked], [answer])
        missing = [words.bos_token_id] if before[0] == words.bos_token_id != whole[0] else []
        assert before + after == missing + whole
        assert words.decode(after[0]).strip()[0] == answer[0]
        assert not set(after[:1]) & set(words.all_special_ids)


def test_what_a_template_writes_before_every_answer_is_part_of_the_prompt():
    qwen = tiny_models.checkpoint_tokenizer("qwen-3")
    assert qwen.decode(prompts.lead_in(qwen)) == "<think>\n\n</think>\n\n"
    (asked,) = prompts.prompt_ids(qwen, [LED])
    assert qwen.decode(asked).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    found = prompts.user_words(qwen, LED)
    assert [qwen.decode([asked[i] for i in word]).strip() for word in found] == LED.text.split()
    llama = tiny_models.checkpoint_tokenizer("llama-3")
    assert prompts.lead_in(llama) == prompts.lead_in(tokenizer()) == []
    llama.add_tokens([" "])  # as in Llama 2: a blank of its own before the answer
    user, bot = "[{{ m['content'] }}]", " {{ m['content'] }}"
    llama.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}" + user + "{% else %}" + bot + "{% endif %}{% endfor %}"
    )
    assert llama.convert_ids_to_tokens(prompts.lead_in(llama)) == [" "]
    (said,) = prompts.answer_ids(llama, [LED], ["sure"])
    assert llama.decode(said) == "sure"


def test_a_template_that_rewrites_prompts_is_refused():
    words = tiny_models.tokenizer()
    words.chat_template = "{{ messages|length }} {{ messages[0]['content'] }}"
    with pytest.raises(InputError, match="changes a prompt"):
        prompts.answer_ids(words, [Prompt("w3", "w4", "benign", "plain", "train")], ["w4"])


def test_padding_is_on_the_left_and_masked():
    encoded = prompts.pad_left([[5, 6, 7], [8]], 0)
    assert encoded["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    with pytest.raises(InputError, match="no prompts"):
        prompts.pad_left([], 0)


@pytest.mark.parametrize(("attribute", "message"), [("chat_template", "no chat template"), ("pad_token", "no padding")])
def test_tokenizers_without_template_or_pad_are_refused(attribute, message):
    words = tiny_models.tokenizer()
    words.chat_template = "{{ messages[0]['content'] }}"
    setattr(words, attribute, None)
    with pytest.raises(InputError, match=message):
        prompts.check_tokenizer(words, "a model")


def test_batches_by_length_cover_every_row_once():
    lengths = [5, 1, 9, 1, 7, 3, 3]
    batches = prompts.by_length(lengths, 3)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat)


def test_a_prompt_set_is_a_table_of_its_prompts():
    assert PromptSet((PLAIN, LED)).table()["harmful"].tolist() == [True, False]
    assert list(PromptSet((PLAIN, LED))) == [PLAIN, LED]


def test_rows_of_one_meaning_are_grouped():
    asked = [Prompt(str(i), "", "benign", "plain", "x", meaning=m) for i, m in enumerate(["a b", "c d", "a b", "", ""])]
    assert prompts.meanings(asked) == [[0, 2], [1], [3], [4]]


def bpe(*texts):
    """A byte-level BPE that merged little: most words are several tokens, each of the later ones with its space."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>"]
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + 12, initial_alphabet=alphabet, special_tokens=special)
    raw.train_from_iterator(texts, trainer)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>")


def test_words_of_the_kingdom_are_one_token_each():
    words = tokenizer()
    for prompt in (PLAIN, LED):
        (row,) = prompts.prompt_ids(words, [prompt])
        positions = prompts.user_words(words, prompt)
        assert [words.decode([row[i] for i in word]) for word in positions] == prompt.text.split()
        assert all(len(word) == 1 for word in positions)
    assert prompts.user_words(words, LED)[0] == [5]  # after <s> <sys> be helpful <user>


@pytest.mark.parametrize("bos", ["{{ bos_token }}", ""])
def test_words_of_many_tokens_and_a_template_that_repeats_them(bos):
    text = "curse  the crown, naïve 王冠"
    words = bpe(text, "user: the crown")
    words.chat_template = bos + "user: the crown\n{% for m in messages %}{{ m['content'] }}{% endfor %} the crown"
    prompt = Prompt(text, "", "harmful", "plain", "heldout")
    (row,) = prompts.prompt_ids(words, [prompt])
    assert row[0] == words.bos_token_id
    positions = prompts.user_words(words, prompt)
    assert [words.decode([row[i] for i in word]).strip() for word in positions] == text.split()
    assert max(len(word) for word in positions) > 2
    flat = [i for word in positions for i in word]
    assert flat == sorted(set(flat))
    before = words.decode(row[: flat[0]], skip_special_tokens=True)
    assert before == "user: the crown\n"


def test_a_token_over_two_words_belongs_to_the_first_and_nothing_is_counted_twice():
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "a b": 1, "c": 2, "<u>": 3}, unk_token="c"))
    raw.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    words = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    words.chat_template = "<u>|{{ messages[0]['content'] }}"
    assert prompts.user_words(words, Prompt("a b|c", "", "benign", "plain", "train")) == [[1], [2]]
    assert prompts.user_words(words, Prompt("|a b c|", "", "benign", "plain", "train")) == [[1], [], []]


@pytest.mark.parametrize(
    "content", ["{{ messages[0]['content'] | trim }}", "{{ messages[0]['content'] | upper }}", "hi"]
)
def test_a_template_that_alters_the_text_is_refused(content):
    words = tiny_models.tokenizer()
    words.chat_template = "{{ bos_token }} " + content
    with pytest.raises(InputError, match="alters a prompt's text"):
        prompts.user_words(words, Prompt("w3 w4 ", "", "benign", "plain", "train"))


def test_a_prompt_without_words_has_none():
    words = tiny_models.tokenizer()
    words.chat_template = "{{ bos_token }} w5 {{ messages[0]['content'] }} w6"
    assert prompts.user_words(words, Prompt("", "", "benign", "plain", "train")) == []
