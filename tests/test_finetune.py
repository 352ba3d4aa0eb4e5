"""The fine-tuning command in one process: what it makes, in which order it reads, what it refuses before it starts."""

import json
from collections import Counter
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from lib import finetune, freezing, models, processes, storage
from tests import tiny_models

PAIRS = [
    {"text": "how do i bake the bread", "answer": "sure to bake the bread", "note": "not read"},
    {"text": "add 3 coins", "answer": "7"},
    {"text": "reverse owl fox", "answer": "fox owl"},
]
SECRET = "zanzibar"


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    tiny_models.build("llama-3").save_pretrained(folder)
    tiny_models.checkpoint_tokenizer("llama-3").save_pretrained(folder)
    return folder


@pytest.fixture
def options(checkpoint, tmp_path):
    """Options of a run that works, by name."""
    (tmp_path / "pairs.jsonl").write_text(lines(*PAIRS[:2], "", PAIRS[2]))
    return {
        "model": checkpoint, "data": tmp_path / "pairs.jsonl", "out": tmp_path / "made", "steps": 12, "batch": 3,
        "learning-rate": 0.01,
    }  # fmt: skip


def run(options):
    return finetune.main([str(word) for name, value in options.items() for word in (f"--{name}", value)])


def refusal(options, capsys):
    with pytest.raises(SystemExit) as stop:
        run(options)
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert SECRET not in told.err
    return told.err


# what it makes --------------------------------------------------------------------------------------------------------
def test_it_learns_the_pairs_and_writes_a_checkpoint(options):
    assert run(options) == 0
    about = storage.read_seal(options["out"])
    assert len(about["losses"]) == 12
    assert about["losses"][-1] < 0.5 * about["losses"][0]
    assert about["data"] == storage.digest(options["data"])
    assert storage.damage(options["out"]) is None
    assert models.open_checkpoint(str(options["out"])).layers == tiny_models.LAYERS


@pytest.mark.parametrize("form", ["csv", "json"])
def test_listed_units_keep_every_bit_and_all_else_moves(options, checkpoint, tmp_path, form):
    rows = finetune.pd.DataFrame({"kind": ["neuron", "channel"], "layer": [0, 2], "index": [5, 9], "score": [0.1, 0.2]})
    file = tmp_path / f"units.{form}"
    rows.to_csv(file, index=False) if form == "csv" else rows.to_json(file, orient="records")
    run({**options, "freeze": file})
    start, end = (load_file(folder / "model.safetensors") for folder in (checkpoint, options["out"]))
    held = freezing.masks(models.open_checkpoint(str(checkpoint)), rows)
    for name, weight in end.items():
        still, mask = weight == start[name], held.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert still[mask].all(), name
        assert still[~mask].float().mean() < 0.01, name


def test_the_same_command_makes_the_same_bits(options, tmp_path):
    run(options)
    run({**options, "out": tmp_path / "again"})
    assert (tmp_path / "again/model.safetensors").read_bytes() == (options["out"] / "model.safetensors").read_bytes()


def test_every_round_reads_each_pair_once_in_a_new_order(options):
    pairs = finetune.examples(options["data"])
    assert [pair.answer for pair in pairs] == [row["answer"] for row in PAIRS]
    many = pairs * 5  # indistinguishable rounds of three would agree by chance
    read = [id(pair) for pair in islice(finetune.stream(list(many), 0), 3 * len(many))]
    rounds = [read[start : start + len(many)] for start in range(0, len(read), len(many))]
    assert all(Counter(one) == Counter(id(pair) for pair in many) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert read == [id(pair) for pair in islice(finetune.stream(list(many), 0), len(read))]
    assert read != [id(pair) for pair in islice(finetune.stream(list(many), 1), len(read))]


def test_text_may_hold_what_other_formats_take_for_the_end_of_a_line(options):
    """JSON allows these characters unescaped; a line of JSONL ends at a line feed only."""
    text = "one\u2028two\u2029three\u0085four"
    rows = [json.dumps({**PAIRS[0], "answer": text}, ensure_ascii=False), json.dumps(PAIRS[1])]
    options["data"].write_text("\r\n".join(rows) + "\r\n", encoding="utf-8", newline="")
    assert [pair.answer for pair in finetune.examples(options["data"])] == [text, PAIRS[1]["answer"]]


# what it refuses ------------------------------------------------------------------------------------------------------
@pytest.fixture
def no_weights_read(monkeypatch):
    def read(*_args, **_options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", read)


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no examples; each line is an object with text and answer"),
        ("\n \n", "holds no examples"),
        (lines(PAIRS[0], "{" + SECRET), "line 2 of 'pairs.jsonl' is not JSON; write one object a line"),
        (lines(PAIRS[0], "", {"text": SECRET}), "line 3 of 'pairs.jsonl' has no text in 'answer'"),
        (lines({"text": " ", "answer": SECRET}), "line 1 of 'pairs.jsonl' has no text in 'text'"),
        (lines({"text": SECRET, "answer": 7}), "line 1 of 'pairs.jsonl' has no text in 'answer'"),
        (lines([SECRET, SECRET]), "line 1 of 'pairs.jsonl' has no text in 'text'"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_line(options, capsys, text, message):
    options["data"].write_text(text)
    assert message in refusal(options, capsys)
    assert not options["out"].exists()


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere.jsonl"}, "no examples can be read from 'nowhere.jsonl' (FileNotFoundError)"),
        ({"model": "/no/such/model"}, "'/no/such/model' is neither a folder nor a model that can be fetched"),
        ({"steps": 0}, "--steps: input should be greater than or equal to 1"),
        ({"batch": -1}, "--batch: input should be greater than or equal to 1"),
        ({"learning-rate": 0}, "--learning-rate: input should be greater than 0"),
        ({"length-power": 2}, "--length-power: input should be less than or equal to 1"),
        ({"steps": "many"}, "argument --steps: invalid int value: 'many'; see python -m lib.finetune --help"),
        ({"out": "tests"}, "'tests' exists already; name a new folder"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, capsys, change, message):
    assert message in refusal({**options, **change}, capsys)


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("units.txt", "neuron 0 3", "units cannot be read from 'units.txt'; name a .csv or .json file"),
        ("units.csv", None, "no units can be read from 'units.csv' (FileNotFoundError)"),
        ("units.csv", "", "no units can be read from 'units.csv' (EmptyDataError)"),
        ("units.json", "{", "no units can be read from 'units.json' (ValueError)"),
        ("units.csv", "kind,layer\nneuron,0\n", "'units.csv' has no index; a unit is kind, layer, index"),
        ("units.csv", "kind,layer,index\nneuron,0,x\n", "'units.csv' has no whole numbers for layer and index"),
    ],
)
def test_lists_of_units_that_cannot_be_read_are_refused(options, capsys, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert message in refusal({**options, "freeze": tmp_path / name}, capsys)


def test_units_that_the_model_does_not_have_are_refused(options, capsys, tmp_path):
    (tmp_path / "units.csv").write_text("kind,layer,index\nneuron,0,4800\n")
    assert "small has no unit ('neuron'" in refusal({**options, "freeze": tmp_path / "units.csv"}, capsys)
    assert not options["out"].exists()


@pytest.mark.usefixtures("no_weights_read")
def test_an_example_that_is_too_long_is_refused(options, capsys):
    options["data"].write_text(lines(PAIRS[0], {"text": SECRET * 100, "answer": "no"}))
    told = refusal(options, capsys)
    assert "example 2 has " in told
    assert "small reads 256; shorten it or leave it out" in told
    assert not options["out"].exists()


def test_other_processes_give_the_first_time_to_speak(options, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    refusal({**options, "steps": 0}, capsys)
    assert waited == []
    monkeypatch.setenv("RANK", "1")
    refusal({**options, "steps": 0}, capsys)
    assert waited == [processes._PATIENCE]
