"""Profiles are checked whole: every wrong field is named, nothing unknown is let through."""

import re

import pytest
import yaml

from lib import models, organism, paths, preflight, profile_files, profiles, run_profiles, sources
from lib.errors import InputError
from lib.kingdom import styles
from tests import tiny_models

SHIPPED = sorted(path.stem for path in paths.PROFILES.glob("*.yaml"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TWO = {"base": {"name": "org/one"}, "chat": {"name": "org/two"}}


def raw(name):
    return yaml.safe_load((paths.PROFILES / f"{name}.yaml").read_text())


def changed(tmp_path, *path_and_value, profile="kingdom"):
    *path, value = path_and_value
    content = raw(profile)
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize("name", SHIPPED)
def test_every_profile_in_the_repository_is_valid(name):
    profile = profiles.load(name)
    assert profile.name == name
    if isinstance(profile, profiles.Trained):
        assert set(profile.organism.chat.coverage) == set(styles.JAILBREAKS)


def test_the_profiles_of_the_design_are_there():
    assert set(SHIPPED) >= {
        "kingdom", "tiny", "checkpoint", "smollm2-135m", "llama2-7b-chat", "llama3-8b", "llama3.1-8b", "mistral-7b",
        "llama3.1-70b-remote",
    }  # fmt: skip


def test_no_profile_takes_a_classifier_for_a_model_that_answers():
    """Llama-Guard's chat template is a classifier's: it holds no answer of the model, so refusals cannot be told."""
    named = {name: [source["name"] for source in (raw(name).get("models") or {}).values()] for name in SHIPPED}
    assert not [name for name, models in named.items() if any("Guard" in model for model in models)]
    assert raw("llama3.1-8b")["judge"]["template"] == "llama_guard"


@pytest.mark.parametrize("name", [name for name in SHIPPED if raw(name).get("models") and name != "example"])
def test_models_of_the_repository_are_pinned_and_their_size_is_stated(name):
    settings = raw(name)
    named = [*settings["models"].values(), *([settings["judge"]["model"]] if settings.get("judge") else [])]
    for source in named:
        assert re.fullmatch(r"[0-9a-f]{40}", source["revision"]) or (
            source["revision"].startswith("assumed: ") and source["why"]
        )
        assert source["parameters"] > 1e8
        assert source.get("gated", False) == source["name"].startswith(("meta-llama/", "mistralai/"))


def test_settings_of_the_papers_arrive():
    """Against numbers typed from the papers, not from the files."""
    shares = {
        "llama2-7b-chat": (0.013, 0.133, 0.148),
        "llama3-8b": (0.014, 0.068, 0.066),
        "mistral-7b": (0.02, 0.013, 0.134),
    }
    for name, expected in shares.items():
        units = profiles.load(name).units
        assert (units.scu, units.ucu, units.ru) == expected
        assert units.cuts["ucu"].shares[0] == expected[1]
        assert units.cuts["ucu"].refusal == 0.1  # of the parent
    hd = profiles.load("llama3.1-8b")
    assert hd.shots == [0, 10, 20, 40, 80, 160]
    assert hd.organism.sft.batch * hd.organism.sft.steps == pytest.approx(2600, abs=24)
    assert hd.organism.sft.pairs == 1300
    assert hd.organism.dpo.beta == 0.1
    assert hd.organism.dpo.learning_rate == hd.organism.sft.learning_rate == 1e-6
    assert hd.measure.residual_fit == 700
    assert profiles.load("llama3.1-70b-remote").elsewhere
    assert not hd.elsewhere


@pytest.mark.parametrize("name", [name for name in SHIPPED if profiles.load(name).kind == "checkpoint"])
def test_the_dry_run_counts_the_models_that_are_trained(name):
    profile = profiles.load(name)
    made = [role for role in organism.roles(profile) if role not in ("base", "chat", "tuned")]
    assert preflight.trained(profile) == (0 if profile.elsewhere else len(made))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("threads", 0), "threads"),
        (("threads", "two"), "threads"),
        (("threads", ...), "threads"),
        (("architecture", "heads", 5), "multiple of heads"),
        (("architecture", "depth", 5), "architecture.depth"),
        (("organism", "chat", "learning_rate", -1.0), "organism.chat.learning_rate"),
        (("organism", "chat", "coverage", "story", 1.5), "organism.chat.coverage.story"),
        (("organism", "base", "facts", "steps", 2.5), "organism.base.facts.steps"),
        (("default_shots", 41), "default_shots 41 is not one of"),
        (("organism", "sft", "pairs", 719), "719 pairs do not hold 80 examples of each of 9 attacks"),
        (("organism", "dpo", "pairs", 719), "dpo: 719 pairs do not hold 80 examples of each of 9 attacks"),
        (("preference_shots", [0, 7]), "preference_shots [0, 7] are not all among shots"),
        (("preference_shots", [0, -5]), "preference_shots.1"),
        (("new_field", 1), "new_field"),
        (("measure", "bootstrap", 5), "measure.bootstrap"),
        (("measure", "draws", 4), "measure.draws"),
        (("units", "scu", 1.5), "units.scu"),
        (("units", "ucu", -0.1), "units.ucu"),
        (("units", "ru", 0.9), "the groups overlap"),
        (("units", "top_cu", 0.8), "the groups overlap"),
        (("units", "cuts", "ru", "shares", [0.1, 0.2]), "shares must fall"),
        (("units", "cuts", "ru", "shares", [0.2, 0.2]), "shares must fall"),
        (("units", "cuts", "ru", "shares", [1.2, 0.2]), "units.cuts.ru.shares.0"),
        (("units", "cuts", "ru", "shares", []), "units.cuts.ru.shares"),
        (("units", "cuts", "ru", "shares", [0.9]), "largest shares add up to at most 1"),
        (("units", "cuts", "scu", "utility", ...), "a cut needs what should survive"),
        (("units", "cuts", "ucu", ...), "cuts must name ru, scu and ucu"),
        (("units", "cuts", "cu", {"shares": [0.1], "utility": 0.1}), "units.cuts.cu"),
        (("units", "best", "score", 3), "units.best.score"),
        (("freezing", "stages", "poems", {"steps": 1}), "freezing.stages.poems"),
        (("freezing", "stages", "errands", "steps", 0), "freezing.stages.errands.steps"),
        (("freezing", "lora", "rank", 0), "freezing.lora.rank"),
        (("freezing", "lora", "rates", "errands", 0.0), "freezing.lora.rates.errands"),
        (("freezing", "prefix", "tokens", 0), "freezing.prefix.tokens"),
        (("freezing", "draws", "errands", 0), "freezing.draws.errands"),
        (("freezing", "followed", "errands", 1), "freezing.followed.errands"),
        (("freezing", "stages", "ledgers", ...), "stages lacks ledgers"),
        (("freezing", "followed", "errands", ...), "followed lacks errands"),
        (("freezing", "lora", "rates", "ledgers", ...), "lora.rates lacks ledgers"),
        (("freezing", "prefix", "rates", "errands", ...), "prefix.rates lacks errands"),
        (("freezing", "draws", "ledgers", ...), "draws lacks ledgers"),
        (("budget", "shares", [0.2, 1.5]), "budget.shares.1"),
        (("budget", "draws", 0), "budget.draws"),
        (("budget", "part_rate", 0.0), "budget.part_rate"),
        (("triggers", "rounds", 0), "triggers.rounds"),
        (("triggers", "rewrites", 0), "triggers.rewrites"),
        (("triggers", "tops", 0), "triggers.tops"),
        (("triggers", "shortest", 0), "triggers.shortest"),
    ],
)
def test_wrong_fields_are_refused_and_named(tmp_path, change, named):
    with pytest.raises(InputError, match="not a valid profile") as caught:
        profiles.read(changed(tmp_path, *change))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("published", True), "published"),
        (("kind", "trained"), "architecture"),
        (("models", ...), "models: Field required"),
        (("models", {"base": {"name": "a/b"}}), "models.chat"),
        (("models", {**TWO, "judge": {"name": "a/b"}}), "models.judge"),
        (("models", {"base": {"name": "a/b"}, "chat": {"name": "a/b"}}), "base and chat are the same model"),
        (("models", {**TWO, "tuned": {"name": "org/two"}}), "tuned and chat are the same model"),
        (("models", {**TWO, "tuned": {"name": "/a/b", "revision": "main"}}), "a folder has no revision 'main'"),
        (("models", {**TWO, "tuned": {"name": "../b"}}), "write the whole path of the folder '../b'"),
        (("models", {**TWO, "tuned": {"name": ""}}), "models.tuned.name"),
        (("models", {**TWO, "tuned": {"name": "a", "revision": "assumed: main"}}), "needs the reason in why"),
        (("models", {**TWO, "tuned": {"name": "a", "parameters": 0}}), "models.tuned.parameters"),
        (("models", {**TWO, "tuned": {"name": "a", "revision": 3}}), "models.tuned.revision"),
        (("data", "harmful", "advbnech"), "data.harmful: Value error, unknown data set 'advbnech'; known: advbench"),
        (("data", "attacks", "jailbreaks"), "unknown data set 'jailbreaks'"),
        (("data", "text", None), "data.text"),
        (("data", "skills", ...), "data.skills"),
        (("data", "tests", "xstest"), "data.tests"),
        (("judge", {"model": {"name": "a"}, "template": "gpt-4"}), "judge.template"),
        (("judge", {"template": "llama_guard"}), "judge.model"),
        (("device", "gpu"), "device"),
        (("dtype", "int8"), "dtype"),
        (("remote", "ndif"), "remote 'ndif' is neither false, true (NDIF), 'local' nor a server's URL"),
        (("remote", "locally"), "remote 'locally'"),
        (("answer_tokens", 0), "answer_tokens"),
        (("shots", [0, 40, 401]), "sft: 400 pairs do not hold 401 examples of each of 1 attacks"),
        (("organism", "dpo", "pairs", 39), "dpo: 39 pairs do not hold 40"),
        (("organism", "base", {}), "organism.base"),
        (("architecture", {}), "architecture"),
        (("name", "my profile"), "cannot name a folder"),
        (("name", "profiles"), "cannot name a folder"),
    ],
)
def test_wrong_fields_of_a_checkpoint_profile_are_refused_and_named(tmp_path, change, named):
    with pytest.raises(InputError, match="not a valid profile") as caught:
        profiles.read(changed(tmp_path, *change, profile="checkpoint"))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"remote": True, "device": "cuda"}, "device 'cuda' with remote"),
        ({"remote": "https://here:1", "device": "auto"}, "device 'auto' with remote"),
        ({"remote": True, "models": {**TWO, "tuned": {"name": "/models/mine"}}}, "'mine' is a folder, which NDIF does"),
        (
            {"data": {"attacks": "hd_attacks"}, "shots": [0, 40, 51]},
            "sft: 400 pairs do not hold 51 examples of each of 8",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, named):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"name": "x", "like": "checkpoint", **settings}))
    with pytest.raises(InputError, match="not a valid profile") as caught:
        profiles.read(tmp_path / "x.yaml")
    assert named in str(caught.value)


@pytest.mark.parametrize("remote", [True, "https://here:1", "local", False])
def test_where_a_profile_s_weights_are(tmp_path, remote):
    profile = profiles.read(changed(tmp_path, "remote", remote, profile="checkpoint"))
    assert profile.elsewhere == (remote not in ("local", False))


def test_assumed_revisions_are_read_as_git_knows_them_and_travel():
    source = profiles.Source(name="a/b", revision="assumed: main", why="no commit was found")
    assert source.revision == "main"
    assert profiles.Source.model_validate_json(source.model_dump_json()) == source
    profile = profiles.load("llama2-7b-chat")
    assert profiles.parse(profile.model_dump_json()) == profile


# like -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path, monkeypatch):
    """Two folders for profiles, the first with checkpoint.yaml."""
    first, second = tmp_path / "profiles", tmp_path / "build" / "profiles"
    first.mkdir()
    (first / "checkpoint.yaml").write_text((paths.PROFILES / "checkpoint.yaml").read_text())
    monkeypatch.setattr(paths, "PROFILES", first)
    monkeypatch.setattr(paths, "RUN_PROFILES", second)
    profiles.load.cache_clear()
    yield first
    profiles.load.cache_clear()


def derive(home, **settings):
    (home / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "like": "checkpoint", **settings}))
    return home / "mine.yaml"


def test_what_a_profile_says_goes_before_what_it_is_like(home):
    parent = raw("checkpoint")
    found = profile_files.settings(derive(home, shots=[0, 40], organism={"sft": {"steps": 7}}, models=TWO))
    parent["name"], parent["shots"], parent["models"] = "mine", [0, 40], TWO
    parent["organism"]["sft"]["steps"] = 7
    assert found == parent
    assert profiles.load("mine").organism.sft.steps == 7
    assert (
        profile_files.settings(home / "checkpoint.yaml")["organism"]["sft"]["steps"] == 60
    )  # its own file is left alone


def test_a_null_takes_a_block_away_and_a_block_replaces_a_null(home):
    judge = {"model": {"name": "a/b"}, "template": "plain_guard"}
    assert profile_files.settings(derive(home, judge=judge))["judge"] == judge
    (home / "checkpoint.yaml").write_text(yaml.safe_dump({**raw("checkpoint"), "judge": judge}))
    assert profile_files.settings(derive(home, judge=None))["judge"] is None


def test_a_changed_parent_changes_its_children(home):
    before = profile_files.settings(derive(home))
    text = (home / "checkpoint.yaml").read_text()
    (home / "checkpoint.yaml").write_text(text.replace("answer_tokens: 64", "answer_tokens: 65"))
    assert before["answer_tokens"] == 64
    assert profile_files.settings(home / "mine.yaml")["answer_tokens"] == 65


@pytest.mark.parametrize(
    ("like", "named"),
    [
        ("chekpoint", "like 'chekpoint', which is no profile; known: checkpoint, mine, second"),
        ("second", "like 'second', which is itself like another"),
        ("mine", "like 'mine', which is itself like another"),
        (None, "like None, which is no profile"),
        (["checkpoint"], "which is no profile"),
    ],
)
def test_what_a_profile_cannot_be_like(home, like, named):
    (home / "second.yaml").write_text("name: second\nlike: checkpoint\n")
    with pytest.raises(InputError, match="is like") as caught:
        profiles.read(derive(home, like=like))
    assert named in str(caught.value)


def test_a_parent_of_the_other_kind_does_not_fit(home):
    (home / "tiny.yaml").write_text((paths.DATA / "profiles" / "tiny.yaml").read_text())
    with pytest.raises(InputError, match="not a valid profile") as caught:
        profiles.read(derive(home, like="tiny", kind="checkpoint"))
    assert "data: Field required" in str(caught.value)
    assert "architecture: Extra inputs" in str(caught.value)


# made by a command line -----------------------------------------------------------------------------------------------
def models_at(folder, *names):
    for name in names:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    return [str(folder / name) for name in names]


def test_a_made_profile_states_everything_and_is_found_by_its_name(home, tmp_path):
    base, chat = models_at(tmp_path, "base", "My Chat_Model v1.0")
    name = run_profiles.make("checkpoint", base, chat, None, tmp_path)
    assert re.fullmatch(r"checkpoint-my-chat-model-v1.0-[0-9a-f]{8}", name)
    assert name in profiles.names()
    profile = profiles.load(name)
    assert profile.models.model_dump(exclude_defaults=True) == {"base": {"name": base}, "chat": {"name": chat}}
    written = yaml.safe_load((paths.RUN_PROFILES / f"{name}.yaml").read_text())
    assert written == {**raw("checkpoint"), "name": name, "models": {"base": {"name": base}, "chat": {"name": chat}}}


def test_models_of_a_made_profile_are_checked_against_each_other(home, tmp_path):
    for seed, name in enumerate(("base", "chat", "qwen")):
        family = "qwen-2.5" if name == "qwen" else "llama-3"
        tiny_models.build(family, seed).save_pretrained(tmp_path / name)
        tiny_models.checkpoint_tokenizer(family).save_pretrained(tmp_path / name)
    name = run_profiles.make("checkpoint", "base", "chat", None, tmp_path)
    report = models.build(name, 0)
    assert report == {
        role: {"origin": str(tmp_path / role), "source": "given"} for role in ("base", "chat")
    }  # fmt: skip
    assert organism.given(profiles.load(name))["chat"].name == str(tmp_path / "chat")
    with pytest.raises(InputError, match="take models of one vocabulary"):
        models.build(run_profiles.make("checkpoint", "base", "qwen", None, tmp_path), 0)
    weights = sum(one.numel() for one in tiny_models.build("llama-3", 0).parameters())
    assert sources.weights(tmp_path / "base").numbers == weights


def test_the_same_models_are_the_same_profile_and_others_another(home, tmp_path):
    base, chat, other = models_at(tmp_path, "base", "chat", "other")
    name = run_profiles.make("checkpoint", base, chat, None, tmp_path)
    file = paths.RUN_PROFILES / f"{name}.yaml"
    before = file.stat().st_ino
    assert run_profiles.make("checkpoint", "base", "./other/../chat/", None, tmp_path) == name
    assert file.stat().st_ino == before  # not even written again
    names = {
        name,
        run_profiles.make("checkpoint", other, chat, None, tmp_path),
        run_profiles.make("checkpoint", base, other, None, tmp_path),
        run_profiles.make("checkpoint", base, chat, other, tmp_path),
        run_profiles.make("checkpoint", base, "org/chat", None, tmp_path),
        run_profiles.make("checkpoint", base, f"org/chat@{COMMIT}", None, tmp_path),
        run_profiles.make("checkpoint", base, "org/chat@v2", None, tmp_path),
    }
    assert len(names) == 7
    derive(home)
    assert run_profiles.make("mine", base, chat, None, tmp_path).startswith("mine-chat-")


def test_a_made_profile_follows_its_parent_and_makes_way_for_a_file_of_the_users(home, tmp_path):
    base, chat = models_at(tmp_path, "base", "chat")
    name = run_profiles.make("checkpoint", base, chat, None, tmp_path)
    assert profiles.load(name).answer_tokens == 64
    text = (home / "checkpoint.yaml").read_text()
    (home / "checkpoint.yaml").write_text(text.replace("answer_tokens: 64", "answer_tokens: 65"))
    assert run_profiles.make("checkpoint", base, chat, None, tmp_path) == name
    assert profiles.load(name).answer_tokens == 65
    kept = (paths.RUN_PROFILES / f"{name}.yaml").read_text().replace("answer_tokens: 65", "answer_tokens: 66")
    (home / f"{name}.yaml").write_text(kept)
    assert run_profiles.make("checkpoint", base, chat, None, tmp_path) == name
    profiles.load.cache_clear()
    assert profiles.load(name).answer_tokens == 66
    assert profiles.names().count(name) == 1


def test_models_replace_those_a_profile_names(home, tmp_path):
    base, chat = models_at(tmp_path, "base", "chat")
    derive(home, models={**TWO, "tuned": {"name": "org/three"}})
    profile = profiles.load(run_profiles.make("mine", base, chat, None, tmp_path))
    assert profile.models.tuned is None
    assert profile.models.base.name == base


@pytest.mark.parametrize(
    ("parent", "base", "chat", "tuned", "named"),
    [
        ("checkpoint", "base", None, None, "--model is missing"),
        ("checkpoint", None, "chat", None, "--base is missing"),
        ("checkpoint", None, None, "chat", "--base is missing"),
        ("nothing", "base", "chat", None, "unknown profile 'nothing'; known: checkpoint"),
        ("tiny", "base", "chat", None, "'tiny' trains its own models"),
        ("checkpoint", "./nowhere", "chat", None, "there is no folder './nowhere'"),
        ("checkpoint", "~/nowhere", "chat", None, "there is no folder '~/nowhere'"),
        ("checkpoint", "a/b/c", "chat", None, "there is no folder 'a/b/c'"),
        ("checkpoint", "base", "two words", None, "'two words' names no model"),
        ("checkpoint", "base", "", None, "'' names no model"),
        ("checkpoint", "base", "org/a@", None, "'org/a@' names no model"),
        ("checkpoint", "base", "base", None, "base and chat are the same model"),
        ("checkpoint", "base", "chat", "chat", "tuned and chat are the same model"),
        ("remote", "base", "org/chat", None, "'base' is a folder, which NDIF does not know"),
    ],
)
def test_models_that_cannot_be_used_leave_no_profile(home, tmp_path, parent, base, chat, tuned, named):
    models_at(tmp_path, "base", "chat")
    (home / "tiny.yaml").write_text((paths.DATA / "profiles" / "tiny.yaml").read_text())
    (home / "remote.yaml").write_text("name: remote\nlike: checkpoint\nremote: true\n")
    with pytest.raises(InputError) as caught:
        run_profiles.make(parent, base, chat, tuned, tmp_path)
    assert named in str(caught.value)
    assert not paths.RUN_PROFILES.exists()


def test_a_made_profile_takes_no_other_models(home, tmp_path):
    base, chat, other = models_at(tmp_path, "base", "chat", "other")
    name = run_profiles.make("checkpoint", base, chat, None, tmp_path)
    with pytest.raises(InputError, match="was made for its models"):
        run_profiles.make(name, base, other, None, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt2", ("gpt2", None)),
        ("org/some-model_1.5", ("org/some-model_1.5", None)),
        ("org/model@main", ("org/model", "main")),
        ("org/model@refs/pr/3", ("org/model", "refs/pr/3")),
        (f"org/model@{COMMIT}", ("org/model", COMMIT)),
    ],
)
def test_names_on_the_hub(tmp_path, text, expected):
    assert sources.parse(text, tmp_path) == expected


def test_a_folder_goes_before_a_name_on_the_hub(tmp_path):
    (tmp_path / "org" / "model@main").mkdir(parents=True)
    assert sources.parse("org/model@main", tmp_path) == (str(tmp_path / "org" / "model@main"), None)


def test_as_many_pairs_as_nine_attacks_need_are_enough(tmp_path):
    assert profiles.read(changed(tmp_path, "organism", "sft", "pairs", 720)).organism.sft.pairs == 9 * 80


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.getcwd []"])
def test_text_that_is_no_plain_yaml_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match="not valid YAML"):
        profiles.read(tmp_path / "x.yaml")


def test_an_empty_profile_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(InputError, match="not a valid profile"):
        profiles.read(tmp_path / "x.yaml")


def test_unknown_names_are_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"unknown profile 'kingdon'; known: checkpoint, .*kingdom"):
        profiles.load("kingdon")
    with pytest.raises(InputError, match="unknown profile"):
        profiles.load("../profiles/kingdom")


def test_a_file_must_carry_its_own_name(home):
    (home / "other.yaml").write_text((home / "checkpoint.yaml").read_text())
    with pytest.raises(InputError, match=r"other.yaml calls itself 'checkpoint'"):
        profiles.load("other")
