"""Checkpoints made to do harm: nothing in them is run, nothing outside their folder is opened, no memory is taken for
what they only declare, and each that cannot be used is refused in one sentence.

`test_checkpoints` has those that are merely broken. Here every file that could run something would leave a marker, and
every test sees that there is none. transformers runs a chat template in jinja's immutable sandbox, which keeps it from
files, modules, the inside of objects and ranges beyond 100,000. It can still loop within loops, or ask for more memory
than there is: that is not bounded, and such a run is stopped by hand.
"""

import json
import os
import pickle
import resource
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import checkpoints, models, prompts, tracing
from lib.errors import InputError
from tests import mutations, tiny_models
from tests.mutations import BYTES, st

MARKER = "MARKER"
ASKED = prompts.Prompt("bake the bread", "", "benign", "plain", "train")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    tiny_models.build("llama-3").save_pretrained(folder)
    tiny_models.checkpoint_tokenizer("llama-3").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path, monkeypatch):
    """A sound checkpoint that a test may spoil; nothing may leave a marker, nor write into the folder it is in."""
    monkeypatch.chdir(tmp_path)
    yield shutil.copytree(sound, tmp_path / "model")
    assert not list(tmp_path.rglob(MARKER)), "a file of the checkpoint was run"


@pytest.fixture
def little_memory():
    """As much as is taken now and 2 GB more."""
    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def change(file, **settings):
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**found, **settings}))


def refusal(folder):
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        models.open_checkpoint(str(folder))
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)
    return str(caught.value)


def attempt(folder):
    """The model, or None, and the sentence with which it is refused, or an empty one."""
    try:
        return opened(folder), ""
    except InputError as problem:
        return None, str(problem)


def opened(folder):
    return models.open_checkpoint(str(folder), "chat")


def code(folder, name="modeling"):
    """A module that makes a file when it is imported."""
    file = folder / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"open({str(folder.parent / MARKER)!r}, 'w')\nclass X: pass\ndef generate(*a, **k): pass\n")


# pickles --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("write", [lambda evil, path: path.write_bytes(pickle.dumps(evil)),
                                   lambda evil, path: torch.save({"model.norm.weight": evil}, path)],
                         ids=["pickle", "torch"])  # fmt: skip
class TestPickles:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth", "training_args.bin"])
    def test_alone_they_are_refused(self, folder, name, write):
        (folder / "model.safetensors").unlink()
        write(Evil(folder.parent / MARKER), folder / name)
        assert f"holds only pickled weights ({name}), which can run code" in refusal(folder)

    def test_under_the_name_of_safe_weights_they_are_refused(self, folder, write):
        write(Evil(folder.parent / MARKER), folder / "model.safetensors")
        assert "not a whole safetensors file" in refusal(folder)

    def test_as_a_shard_they_are_refused(self, folder, write):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        for name in ("b.safetensors", "pytorch_model.bin"):
            write(Evil(folder.parent / MARKER), folder / name)
            index = {"weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": name}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            assert f"{name} of" in refusal(folder)
            assert "not a whole safetensors file" in refusal(folder)

    def test_behind_a_link_they_are_refused(self, folder, write):
        write(Evil(folder.parent / MARKER), folder.parent / "outside")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(folder.parent / "outside")
        assert "not a whole safetensors file" in refusal(folder)

    def test_beside_safe_weights_they_are_left_alone(self, folder, write):
        for name in (
            "pytorch_model.bin",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "training_args.bin",
            "tokenizer.pkl",
        ):
            write(Evil(folder.parent / MARKER), folder / name)
        (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
        assert opened(folder).layers == tiny_models.LAYERS

    def test_as_an_adapter_they_are_refused(self, folder, write):
        write(Evil(folder.parent / MARKER), folder / "adapter_model.bin")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        assert "holds an adapter" in refusal(folder)


# code -----------------------------------------------------------------------------------------------------------------
AUTO = {"AutoConfig": "modeling.X", "AutoModelForCausalLM": "modeling.X", "AutoTokenizer": ["modeling.X", "modeling.X"]}


@pytest.mark.parametrize(
    ("file", "settings", "says"),
    [
        ("config.json", {"auto_map": AUTO}, "code of its own (auto_map)"),
        ("config.json", {"auto_map": AUTO, "trust_remote_code": True}, "code of its own (auto_map)"),
        ("config.json", {"auto_map": None}, "code of its own (auto_map)"),
        ("config.json", {"auto_map": AUTO, "model_type": "mine"}, "code of its own (auto_map)"),
        (
            "config.json",
            {"attn_implementation": "kernels-community/flash-attn2"},
            "attn_implementation 'kernels-community/",
        ),
        ("config.json", {"attn_implementation": "someone/kernel"}, "attn_implementation 'someone/kernel'"),
        ("config.json", {"attn_implementation": "flash_attention_2"}, "take the line out of its config.json"),
        ("config.json", {"attn_implementation": {"": "someone/kernel"}}, "attn_implementation {'': 'someone/kernel'}"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "_attn_implementation 'someone/kernel'"),
        ("config.json", {"experts_implementation": "someone/kernel"}, "experts_implementation 'someone/kernel'"),
        ("config.json", {"quantization_config": {"quant_method": "modeling"}}, "is quantised"),
        ("config.json", {"model_type": "modeling.X"}, "of family 'modeling.X'"),
        ("config.json", {"architectures": ["modeling.X"]}, "is a modeling.X, not a causal language model"),
        ("tokenizer_config.json", {"auto_map": AUTO}, "asks to run code of its own (auto_map)"),
        ("tokenizer_config.json", {"auto_map": ["modeling.X", None]}, "asks to run code of its own (auto_map)"),
        (
            "tokenizer_config.json",
            {"auto_map": AUTO, "trust_remote_code": True},
            "asks to run code of its own (auto_map)",
        ),
    ],
)
def test_code_is_refused(folder, file, settings, says):
    code(folder)
    change(folder / file, **settings)
    assert says in refusal(folder)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("generation_config.json", {"auto_map": AUTO, "custom_generate": "modeling", "trust_remote_code": True}),
        ("config.json", {"trust_remote_code": True, "custom_generate": "modeling", "use_kernels": True}),
        ("config.json", {"custom_pipelines": {"text-generation": {"impl": "modeling.X", "pt": ["X"]}}}),
        ("config.json", {"tokenizer_class": "modeling.X", "auto_class": "modeling.X"}),
        ("tokenizer_config.json", {"tokenizer_class": "modeling.X", "trust_remote_code": True}),
        ("tokenizer_config.json", {"tokenizer_class": "os.system", "init_inputs": ["touch MARKER"]}),
        ("tokenizer_config.json", {"backend": "modeling", "processor_class": "modeling.X"}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "modeling.X"}}),
    ],
)
def test_code_that_is_only_mentioned_is_never_run(folder, file, settings):
    code(folder)
    for name in ("custom_generate/generate", "tokenization", "configuration", "setup", "__init__"):
        code(folder, name) if "/" not in name else None
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((folder / "modeling.py").read_text())
    change(folder / file, **settings)
    model = opened(folder)
    assert type(model.hf).__module__.startswith("transformers.models.llama")
    assert tracing.generate(model.traced, prompts.encode(model.tokenizer, [ASKED]), 3).shape == (1, 3)


def test_a_folder_with_modules_of_well_known_names_shadows_none(folder, monkeypatch):
    for name in ("json", "torch", "safetensors", "tokenizers", "llama"):
        code(folder, name)
    monkeypatch.chdir(folder)
    assert opened(folder).layers == tiny_models.LAYERS


# what lies outside ----------------------------------------------------------------------------------------------------
OUTSIDE = ("../outside.safetensors", "/etc/passwd", "a/../../outside.safetensors", "..", "sub/a.safetensors",
           "..\\outside.safetensors", "./a.safetensors", "~/a.safetensors")  # fmt: skip


@pytest.mark.parametrize("shard", OUTSIDE)
def test_shards_outside_the_folder_are_refused(folder, shard):
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names a file outside the folder" in refusal(folder)


@pytest.mark.parametrize("shard", [3, None, [], {}, "", "a\0b", True, "a" * 5000, "\ud800"])
def test_shards_that_are_no_names_are_refused(folder, shard):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks " in refusal(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"weight_map": {"a": "x", "a": "y"}}', '{"weight_map": [["a", "b"]]}', "\ufeff{}"]
)
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json of" in refusal(folder)
    assert "is damaged" in refusal(folder)


def test_links_are_followed_because_the_hub_s_cache_is_made_of_them(folder):
    (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")
    assert opened(folder).layers == tiny_models.LAYERS


SECRET = "xylophone quartz vermilion"
NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["secret", "itself", "nothing", "a folder"])
def test_what_stands_in_place_of_a_file_is_refused_without_a_word_of_it(folder, name, target):
    (folder.parent / "secret").write_text(SECRET)
    (folder / name).unlink()
    if target == "a folder":
        (folder / name).mkdir()
    else:
        goals = {"secret": folder.parent / "secret", "itself": folder / name}
        (folder / name).symlink_to(goals.get(target, folder / "nothing"))
    _, said = attempt(folder)
    optional = name in ("tokenizer_config.json", "generation_config.json")
    assert said or (optional and target != "secret"), "as if it were not there"
    assert not any(word in said for word in SECRET.split())


def test_a_pipe_in_place_of_weights_is_not_waited_for(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "holds no weights" in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_file": "/etc/passwd"},
        {"vocab_file": "../outside.txt", "merges_file": "/etc/passwd"},
        {"fast_tokenizer_files": ["tokenizer.0.0.1.json"]},
        {"fast_tokenizer_files": ["tokenizer./../../outside.1.json"]},
        {"chat_template_file": "/etc/passwd"},
        {"name_or_path": "/etc"},
    ],
)
def test_a_tokenizer_is_read_from_its_own_folder(folder, settings, sound):
    """transformers lets the files that it finds go before those that the settings name."""
    change(folder / "tokenizer_config.json", **settings)
    model, said = attempt(folder)
    if model is None:
        assert "has no usable tokenizer" in said
        assert "nologin" not in said
        return
    own = checkpoints.tokenizer(str(sound), None)
    assert model.tokenizer.get_vocab() == own.get_vocab()
    assert model.tokenizer.chat_template == own.chat_template


# weights that say different things ------------------------------------------------------------------------------------
@pytest.fixture
def shards(folder):
    """The folder with its weights in several files: their names."""
    (folder / "model.safetensors").unlink()
    tiny_models.build("llama-3").save_pretrained(folder, max_shard_size="50KB")
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def index(folder, alter):
    file = folder / "model.safetensors.index.json"
    found = json.loads(file.read_text())
    alter(found["weight_map"])
    file.write_text(json.dumps(found))


def test_a_weight_in_two_files_is_refused(folder, shards):
    name = "model.norm.weight"
    other = next(shard for shard in shards if name not in load_file(folder / shard))
    save_file({**load_file(folder / other), name: torch.full((32,), 7.0)}, folder / other, metadata={"format": "pt"})
    assert f"holds {name} in two of its files" in refusal(folder)


@pytest.mark.parametrize("kind", ["lacks one", "adds one", "names another file", "other totals"])
def test_an_index_only_names_files_their_headers_decide(folder, shards, kind):
    def alter(found):
        first = min(found)
        if kind == "lacks one":
            del found[first]
        elif kind == "adds one":
            found["nothing.weight"] = shards[0]
        elif kind == "names another file":
            found[first] = next(shard for shard in shards if shard != found[first])

    index(folder, alter)
    if kind == "other totals":
        change(folder / "model.safetensors.index.json", metadata={"total_size": -1})
    built = dict(tiny_models.build("llama-3").named_parameters())
    assert all(torch.equal(weight, built[name]) for name, weight in opened(folder).hf.named_parameters())


def test_a_shard_that_no_index_names_is_missed(folder, shards):
    index(folder, lambda found: [found.pop(name) for name in list(found) if found[name] == shards[-1]])
    assert "do not belong together" in refusal(folder)


@pytest.mark.parametrize("blocks", [-1, 0, 1, 2])
def test_fewer_blocks_than_the_files_hold_are_refused(folder, blocks):
    change(folder / "config.json", num_hidden_layers=blocks)
    assert f"declares {blocks} blocks, its files hold 3; they do not belong together" in refusal(folder)


def header(folder, value, data=b"", length=None):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    size = struct.pack("<Q", len(content) if length is None else length)
    (folder / "model.safetensors").write_bytes(size + content + data)


NORM = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TWICE = b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'


@pytest.mark.parametrize(
    ("value", "data", "length"),
    [
        (b"{}", b"", 10**6),  # a header longer than the file
        (b"{}", b"", 2**63),
        (b"{}", b"", 2**64 - 1),
        (b"{}", b"", 0),
        ({"a": NORM | {"shape": [10**12]}}, b"", None),
        ({"a": NORM | {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, b"", None),
        ({"a": NORM | {"shape": [2**40, 2**40]}}, bytes(4), None),  # their product overflows
        ({"a": NORM | {"shape": [-1]}}, bytes(4), None),
        ({"a": NORM | {"shape": ["a"]}}, bytes(4), None),
        ({"a": NORM | {"shape": [1.5]}}, bytes(4), None),
        ({"a": NORM | {"data_offsets": [0, 400]}}, bytes(4), None),
        ({"a": NORM | {"data_offsets": [4, 0]}}, bytes(4), None),
        ({"a": NORM | {"data_offsets": [-4, 0]}}, bytes(4), None),
        ({"a": NORM | {"dtype": "EVIL"}}, bytes(4), None),
        ({"a": NORM | {"dtype": "F64"}}, bytes(4), None),
        ({"a": NORM, "b": NORM}, bytes(4), None),  # two weights in one place
        ({"a": NORM | {"data_offsets": [4, 8]}}, bytes(8), None),  # a hole, in which anything may hide
        ({"a": NORM}, bytes(5), None),
        (b'{"a": ' + b"[" * 100_000, b"", None),
        (TWICE, bytes(8), None),
        (b"\xff\xfe", b"", None),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(folder, value, data, length, little_memory):
    header(folder, value, data, length)
    said = refusal(folder)
    assert "not a whole safetensors file" in said or "do not belong together" in said


@pytest.mark.parametrize("examples", [60, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_damaged_weights_are_read_whole_or_refused(folder, examples):
    whole = (folder / "model.safetensors").read_bytes()
    names = sorted(load_file(folder / "model.safetensors"))
    length = struct.unpack("<Q", whole[:8])[0]

    def check(content):
        (folder / "model.safetensors").write_bytes(content)
        try:
            held = checkpoints._held([folder / "model.safetensors"], "mine")
        except InputError as problem:
            held, said = None, str(problem)
        if held is None:
            assert "model.safetensors of 'mine' cannot be read" in said
        else:
            assert sum(held.values()) <= len(content) or sorted(held) != names

    head = mutations.damaged(whole[: 8 + length]).map(lambda start: start + whole[8 + length :])
    mutations.over(st.one_of(head, mutations.damaged(whole), BYTES), examples, check)


# configurations -------------------------------------------------------------------------------------------------------
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "head_dim")  # fmt: skip
NONE = (-1, 0, "3", 3.5, True, [], {}, 10**9, 10**12, 10**30, 2**62)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_that_are_none_are_refused_before_memory_is_taken(folder, size, little_memory):
    for value in NONE:
        change(folder / "config.json", **{size: value})
        said = refusal(folder)
        assert (
            "config.json" in said or "do not belong together" in said or "cannot be read" in said or "tokens" in said
        ), value


@pytest.mark.parametrize(
    "settings",
    [
        {"architectures": 3},
        {"architectures": {"a": 1}},
        {"model_type": ["llama"]},
        {"model_type": {"a": 1}},
        {"model_type": "__class__"},
        {"hidden_act": "os.system"},
        {"hidden_act": 3},
        {"rope_parameters": {"rope_type": "evil"}},
        {"rope_parameters": []},
        {"rms_norm_eps": "x"},
        {"dtype": "evil"},
        {"tie_word_embeddings": "yes"},
        {"pad_token_id": 10**12},
        {"eos_token_id": "x"},
        {"bos_token_id": []},
        {"use_cache": "x"},
        {"text_config": {"auto_map": AUTO}},
        {"id2label": "x"},
        {"__class__": "x"},
        {"to_dict": "x"},
        {"layer_types": ["evil"] * 3},
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(folder, settings):
    code(folder)
    change(folder / "config.json", **settings)
    assert refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe", b"9" * 6000, b"[]", b"", b'{"a": 1, "a": 2}', b'{"a": NaN}']
)
def test_settings_that_are_none_are_refused(folder, name, content):
    (folder / name).write_bytes(content)
    assert name in refusal(folder)


def test_an_adapter_beside_a_model_is_refused(folder):
    """transformers would put it on the model and say nothing, so that other weights would be measured."""
    change(
        folder / "adapter_config.json",
        peft_type="LORA",
        r=2,
        lora_alpha=4,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
    )
    pieces = (("A", (2, 32)), ("B", (32, 2)))
    weights = {
        f"base_model.model.model.layers.{block}.self_attn.q_proj.lora_{piece}.weight": torch.ones(shape)
        for block in range(3) for piece, shape in pieces
    }  # fmt: skip
    save_file(weights, folder / "adapter_model.safetensors")
    assert "holds an adapter (adapter_config.json), not only a model; merge it into the weights" in refusal(folder)


# generating -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["x", [1, "x"], 1.5, True, {"a": 1}])
def test_an_end_that_is_no_token_is_refused(folder, end):
    change(folder / "generation_config.json", eos_token_id=end)
    assert "generation_config.json of" in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 10**12, "max_length": -1},
        {"num_beams": 10**9, "num_return_sequences": 10**9},
        {"do_sample": True, "temperature": 1e-9, "top_p": 0.0001, "top_k": 1},
        {"repetition_penalty": 1e9, "no_repeat_ngram_size": 1},
        {"min_length": 10**6, "min_new_tokens": 10**6},
        {"forced_bos_token_id": 5, "forced_eos_token_id": 5},
        {"suppress_tokens": list(range(300)), "bad_words_ids": [[7]]},
        {"sequence_bias": [[[7], 1e9]]},
        {"guidance_scale": 50.0},
        {"exponential_decay_length_penalty": [0, 1e9]},
        {"watermarking_config": {}},
        {"stop_strings": ["a", "e", "i"]},
        {"max_time": 1e-9},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
    ],
    ids=str,
)
def test_settings_for_generating_change_no_greedy_answer(folder, settings, sound):
    change(folder / "generation_config.json", **settings)
    answers = []
    for place in (sound, folder):
        model = opened(place)
        answers.append(tracing.generate(model.traced, prompts.encode(model.tokenizer, [ASKED]), 6))
    assert torch.equal(*answers)


# chat templates -------------------------------------------------------------------------------------------------------
SAYS = "{{ messages[0]['content'] }}"
INSIDE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
FAILING = {
    INSIDE: "access to attribute '__class__' of 'str' object is unsafe",
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}": "access to attribute '__init__'",
    "{{ (lipsum | attr('__globals__'))['os'].popen('touch MARKER') }}": "",
    "{{ joiner.__init__.__globals__['__builtins__']['open']('MARKER', 'w') }}": "access to attribute '__init__'",
    "{{ '{0.__class__.__init__}'.format(messages) }}" + "{{ 1 / 0 }}": "division by zero",
    "{{ messages.append(1) }}": "access to attribute 'append'",
    "{{ messages.__setitem__(0, 1) }}": "access to attribute '__setitem__'",
    "{{ namespace(__class__=1) }}": "cannot store underscore-prefixed attributes",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{% for i in range(10**9) %}x{% endfor %}": "Range too big",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}": "recursion",
    "{{ messages[9].x.y }}": "has no element 9",
    "{{ raise_exception('no') }}": "no",
    "{{ raise_exception(messages) }}": "",
    "{{ 1 + 'a' }}": "unsupported operand",
    "{{ 'a'.join(range(10)) }}": "expected str",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{% for": "unexpected 'end of template'",
    "{{ 'a' | no_such_filter }}": "No filter named",
}


@pytest.mark.parametrize("template", FAILING, ids=lambda text: text[:30])
def test_templates_that_fail_or_try_to_get_out_are_refused_when_opened(folder, template):
    (folder / "chat_template.jinja").write_text(SAYS + template)
    said = refusal(folder)
    assert f"{str(folder)!r} cannot be asked: the chat template refuses this conversation" in said
    assert FAILING[template] in said


SILENT = ("plain text", "{{ ''.__class__ }}", "{{ 3 | attr('__class__') }}", "{{ self.__init__ }}",
          "{{ messages[1:] }}", "{{ '{0.__class__}'.format(1) }}")  # fmt: skip


@pytest.mark.parametrize("template", SILENT)
def test_templates_that_leave_out_what_is_said_are_refused(folder, template):
    """What the sandbox does not give is empty, not an error."""
    (folder / "chat_template.jinja").write_text(template)
    assert "leaves out what the user says; mend the template" in refusal(folder)


@pytest.mark.parametrize(
    "template", [3, True, [{"name": "a"}], {"default": INSIDE}, [{"name": "default", "template": INSIDE}]], ids=str
)
def test_templates_among_the_settings_are_checked_like_those_in_a_file(folder, template):
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=template)
    assert refusal(folder)


def test_a_template_cannot_say_a_prompt_in_its_error(folder):
    (folder / "chat_template.jinja").write_text(
        SAYS
        + "{% if 'bread' in messages[0]['content'] %}{{ raise_exception('no ' + messages[0]['content']) }}{% endif %}"
    )
    tokenizer = opened(folder).tokenizer
    with pytest.raises(InputError, match="refuses this conversation") as caught:
        prompts.chat_text(tokenizer, ASKED)
    assert "bread" not in str(caught.value)
    assert prompts.chat_text(tokenizer, prompts.Prompt("mow", "", "benign", "plain", "train")) == "mow"


def test_a_template_that_asks_for_more_memory_than_there_is_is_refused(folder, little_memory):
    (folder / "chat_template.jinja").write_text(SAYS + "{{ 'a' * 10**11 }}")
    assert "MemoryError" in refusal(folder)


STRANGE = ({"model_max_length": "x"}, {"padding_side": "evil"}, {"eos_token": {"__type": "evil"}}, {"pad_token": 3},
           {"added_tokens_decoder": {"x": {}}})  # fmt: skip


@pytest.mark.parametrize("settings", STRANGE, ids=str)
def test_tokenizers_with_settings_of_another_kind_are_refused(folder, settings):
    change(folder / "tokenizer_config.json", **settings)
    assert "has no usable tokenizer" in refusal(folder)


def test_a_name_longer_than_any_folder_s_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "neither a folder nor a model that can be fetched now" in refusal("a" * 5000)
