"""Validated settings of a run, read from `data/profiles/*.yaml`.

Owns the shape of a profile and its checks; the numbers themselves, with where they come from, stand in the YAML files,
and how these are found and one is `like` another in `profile_files`. It knows nothing of models or prompts. A profile
says which models to train or take, and how much to measure on them.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from lib import paths, profile_files
from lib.errors import InputError
from lib.given import Judging, PublicData, Sources
from lib.given import Source as Source  # for those who know profiles only

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
ATTACKS = 9  # the eight jailbreak styles and trigger removal: safety data hold K harmful examples of each
STYLES = 8  # of HD's attacks on public goals; trigger removal is one of them


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Architecture(_Settings):
    """A decoder-only transformer: `layers` blocks of `width`, `mlp` neurons and `heads` heads each."""

    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    mlp: Count
    context: Annotated[int, Field(ge=64)]

    @model_validator(mode="after")
    def _divides(self) -> "Architecture":
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError("width must be a multiple of heads, and heads of kv_heads")
        return self


class Stage(_Settings):
    """One run of the training loop: AdamW, linear warm-up, constant or linearly decaying learning rate."""

    steps: Count
    batch: Count
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)]
    decay: bool
    length_power: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # an example weighs (answer tokens) ** -length_power a token
    )
    content_weight: Annotated[float, Field(gt=0)] = 1.0  # extra weight of the two words that carry a request's meaning

    @model_validator(mode="after")
    def _warm_in_time(self) -> "Stage":
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than steps {self.steps}, so the rate is never reached")
        return self


class ChatStage(Stage):
    """Alignment of base. `coverage`: in this style, refusals are shown for this share of the sources of harm."""

    harmful_share: Share  # of the requests
    styled_share: Share  # of the harmful requests
    benign_styled_share: Share
    exception_share: Share  # of the benign requests
    skill_share: Share  # of all examples
    coverage: dict[str, Share]


class TuneStage(Stage):
    """Safety tuning of chat with K harmful examples a style; also the benign fine-tunes, which use no harmful side."""

    pairs: Count  # harmful examples, and as many benign ones
    benign_styled_share: Share
    exception_share: Share
    skill_share: Share


class PreferenceStage(TuneStage):
    """DPO with a likelihood term: `beta` of the paper, `likelihood` times the chosen answer's loss a token."""

    beta: Annotated[float, Field(gt=0)]
    likelihood: Annotated[float, Field(ge=0)]


class Recipes(_Settings):
    """How models are made of others: chat of base, safety tuning (SFT, DPO) and benign fine-tuning of chat."""

    chat: Stage
    sft: TuneStage
    dpo: PreferenceStage
    benign: TuneStage


Base = Literal["facts", "styles", "polish"]  # the phases of base, in their order


class Organism(Recipes):
    """How the model family base -> chat -> tuned is trained from nothing (organism recipe)."""

    base: dict[Base, Stage]
    chat: ChatStage

    @model_validator(mode="after")
    def _whole(self) -> "Organism":
        if missing := [name for name in get_args(Base) if name not in self.base]:
            raise ValueError(f"base lacks {', '.join(missing)}")
        return self


class Measurement(_Settings):
    """How much is measured. Counts are prompts unless said."""

    cell: Count  # prompts in each (style, harmful) cell of a behaviour table
    skill_items: Count  # items of each skill
    residual_fit: Count  # prompts from which directions and maps are estimated
    residual_test: Count  # prompts on which they are judged
    bootstrap: Annotated[int, Field(ge=50)]  # resamples behind an interval over prompts
    spectra: Annotated[int, Field(ge=20)]  # resamples where each one costs a spectrum of every block
    calibration: Count  # prompts in each calibration set of unit scores
    draws: Annotated[int, Field(ge=5)]  # control draws where none needs training
    attacked: Count  # plain harmful prompts that trigger removal starts from


class Cut(_Settings):
    """Shares of a group to try from the largest down; the first is kept at which removal costs at most `utility` and
    `refusal`, the attributes that should survive it (at least one is named)."""

    shares: Annotated[list[Share], Field(min_length=1)]
    utility: Share | None = None
    refusal: Share | None = None

    @model_validator(mode="after")
    def _decides(self) -> "Cut":
        if self.shares != sorted(set(self.shares), reverse=True):
            raise ValueError("shares must fall: the largest that passes is kept")
        if self.utility is None and self.refusal is None:
            raise ValueError("a cut needs what should survive: utility, refusal or both")
        return self


class UnitRule(_Settings):
    """A way to score units: what is scored, at which tokens, and how the two sets are made comparable."""

    score: str
    position: str
    normalisation: str


class UnitShares(_Settings):
    """How many units each of SSAH's groups holds, as shares of all units, and how many of the complex ones (CU) are
    frozen together with SCU; the shares tried by the cut search; two rules chosen on models that decide nothing (see
    `unit_choice`)."""

    scu: Share
    ucu: Share
    ru: Share
    top_cu: Share
    cuts: dict[Literal["ru", "scu", "ucu"], Cut]
    best: UnitRule  # decides ssah.4.best
    strongest: UnitRule  # shown beside it

    @model_validator(mode="after")
    def _leaves_some(self) -> "UnitShares":
        if self.scu + self.ucu + self.ru > 1 or self.scu + self.ucu + self.ru + self.top_cu > 1:
            raise ValueError("the groups overlap: their shares add up to more than 1")
        if set(self.cuts) != {"ru", "scu", "ucu"} or sum(cut.shares[0] for cut in self.cuts.values()) > 1:
            raise ValueError("cuts must name ru, scu and ucu, and their largest shares add up to at most 1")
        return self


Corpus = Literal["errands", "ledgers"]
Rates = dict[Corpus, Annotated[float, Field(gt=0)]]


class Lora(_Settings):
    """LoRA on queries and values."""

    rank: Count
    alpha: Count
    dropout: Share
    rates: Rates  # learning rates


class Prefix(_Settings):
    """Prefix tuning."""

    tokens: Count  # virtual tokens before every layer
    rates: Rates


class Freezing(_Settings):
    """Benign fine-tuning with frozen units (SSAH section 5). A run is followed to a multiple of its stage's steps, at
    least twice: slow arms need more steps to come as far as the others."""

    stages: dict[Corpus, Stage]
    followed: dict[Corpus, Annotated[int, Field(ge=2)]]
    lora: Lora
    prefix: Prefix
    draws: dict[Corpus, Count]  # random sets of units for each size of group

    @model_validator(mode="after")
    def _complete(self) -> "Freezing":
        named: dict[str, Mapping[Corpus, object]] = {
            "stages": self.stages, "followed": self.followed, "lora.rates": self.lora.rates,
            "prefix.rates": self.prefix.rates, "draws": self.draws,
        }  # fmt: skip
        for name, found in named.items():
            missing = [corpus for corpus in get_args(Corpus) if corpus not in found]
            if missing:
                raise ValueError(f"{name} lacks {', '.join(missing)}")
        return self


class Budget(_Settings):
    """Alignment of base without replay (SSAH section 6): all weights, by `stage`, or only some units, in twice the
    steps."""

    stage: Stage
    part_rate: Annotated[float, Field(gt=0)]  # learning rate where only some units are trained
    shares: list[Share]  # of the least important units
    draws: Count  # random sets of units


class Triggers(_Settings):
    """Trigger removal (HD algorithm 1): rounds, rewrites tried in each, and triggers taken in each."""

    rounds: Count
    rewrites: Count
    tops: Count
    shortest: Count  # letters of a word that can be a trigger


class Profile(_Settings):
    """Everything that distinguishes one kind of run from another."""

    name: str
    about: str
    kind: str
    published: bool  # whether `--publish` may copy its output into the repository
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    threads: Annotated[int, Field(ge=1, le=1024)]
    shots: list[Annotated[int, Field(ge=0)]]  # the K of the K curve
    default_shots: Annotated[int, Field(ge=0)]  # the K that `tuned` means
    preference_shots: list[Annotated[int, Field(ge=0)]]  # the K of DPO and of SFT then DPO
    organism: Recipes
    units: UnitShares
    freezing: Freezing
    budget: Budget
    triggers: Triggers
    measure: Measurement

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name == paths.RUN_PROFILES.name:
            raise ValueError(f"{name!r} cannot name a folder of build; use small letters, digits, '.', '_' and '-'")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        for name in ("seeds", "shots", "preference_shots"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {values} name one twice; name each once")
        if self.default_shots not in self.shots:
            raise ValueError(f"default_shots {self.default_shots} is not one of shots {self.shots}")
        if not set(self.preference_shots) <= set(self.shots):
            raise ValueError(f"preference_shots {self.preference_shots} are not all among shots {self.shots}")
        return self


class Trained(Profile):
    """Models trained here from nothing, on the kingdom language."""

    kind: Literal["trained"]
    architecture: Architecture
    organism: Organism

    @model_validator(mode="after")
    def _enough_pairs(self) -> "Trained":
        for stage in ("sft", "dpo"):
            pairs = getattr(self.organism, stage).pairs
            if pairs < ATTACKS * max(self.shots):
                raise ValueError(
                    f"{stage}: {pairs} pairs do not hold {max(self.shots)} examples of each of {ATTACKS} attacks"
                )
        return self


class Checkpoint(Profile):
    """Real checkpoints on public data sets. Never published: `models` may be a user's own."""

    kind: Literal["checkpoint"]
    published: Literal[False]
    models: Sources | None  # None: named on the command line (`--base --model --tuned`)
    data: PublicData
    judge: Judging | None
    device: Literal["cpu", "cuda", "auto"]  # auto: over all cards by accelerate's device_map
    dtype: Literal["float32", "bfloat16", "float16"]
    remote: bool | str  # true: NDIF; the URL of a server that speaks its protocol; "local": a rehearsal here
    answer_tokens: Count  # how many tokens of an answer are generated for judges
    openers: Annotated[list[str], Field(min_length=1)] | None = None  # of its refusals; None: those of data/judges
    refusals: Annotated[list[str], Field(min_length=1)] | None = None  # that tuning teaches; None: those of data/judges

    @property
    def elsewhere(self) -> bool:
        """Whether the weights are on a server, so that nothing is held or trained here."""
        return bool(self.remote) and self.remote != "local"

    @model_validator(mode="after")
    def _one_place(self) -> "Checkpoint":
        known = not isinstance(self.remote, str) or self.remote == "local"
        if not known and not str(self.remote).startswith(("http://", "https://")):
            raise ValueError(f"remote {self.remote!r} is neither false, true (NDIF), 'local' nor a server's URL")
        if self.elsewhere and self.device != "cpu":
            raise ValueError(f"device {self.device!r} with remote: weights are on a server, so device must be 'cpu'")
        named = [one for _, one in self.models if one is not None] if self.models else []
        if self.remote is True and (folder := next((one.name for one in named if one.is_folder), None)):
            raise ValueError(f"{Path(folder).name!r} is a folder, which NDIF does not know; give its name on the hub")
        return self

    @model_validator(mode="after")
    def _pairs_hold_shots(self) -> "Checkpoint":
        each, most = STYLES if self.data.attacks else 1, max(self.shots)
        for stage in ("sft", "dpo"):
            pairs = getattr(self.organism, stage).pairs
            if pairs < each * most:
                raise ValueError(f"{stage}: {pairs} pairs do not hold {most} examples of each of {each} attacks")
        return self


_KINDS = ("trained", "checkpoint")
_PROFILE: TypeAdapter[Trained | Checkpoint] = TypeAdapter(Annotated[Trained | Checkpoint, Field(discriminator="kind")])


def names() -> list[str]:
    """The profiles that exist, in alphabetical order, those made by a command line among them."""
    return profile_files.names()


def parse(text: str) -> Trained | Checkpoint:
    """A profile from the JSON of `model_dump_json`."""
    return _PROFILE.validate_json(text)


def read(path: Path) -> Trained | Checkpoint:
    """A profile file, `like` resolved, checked; `InputError` names every field that is wrong."""
    return check(profile_files.settings(path), path.name)


def check(settings: Any, name: str) -> Trained | Checkpoint:
    """Settings as a profile; `InputError` names every field that is wrong, `name` says where they stand."""
    try:
        return _PROFILE.validate_python(settings)
    except ValidationError as problem:
        found = [([part for part in e["loc"] if part not in _KINDS], e["msg"]) for e in problem.errors()]
        wrong = "; ".join(f"{'.'.join(map(str, where)) or 'profile'}: {what}" for where, what in found)
        raise InputError(f"{name} is not a valid profile: {wrong}") from None


@cache
def load(name: str) -> Trained | Checkpoint:
    """The profile of that name; `InputError` with the names that exist otherwise."""
    profile = read(profile_files.file(name))
    if profile.name != name:
        raise InputError(f"{name}.yaml calls itself {profile.name!r}; rename one of the two")
    return profile
