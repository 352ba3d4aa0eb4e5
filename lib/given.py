"""What a checkpoint profile names: models, public data sets and a judge.

Owns the shape of these blocks of a profile and what can be said against them before anything is looked for. Where a
model is and what it takes is for `sources` and `preflight`, what a data set looks like for `lib.public`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lib import paths, sources


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(_Strict):
    """A checkpoint: a local folder, or an id on the hub with its `revision` (branch, tag or commit).

    Profiles of the repository name a whole commit, or `assumed: BRANCH` with the reason in `why`; either is read as git
    knows it. `parameters` and `gated` (terms must be accepted) tell what a download takes before the hub is asked.
    """

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    why: str = ""  # there is no commit
    parameters: Annotated[int, Field(ge=1)] | None = None
    gated: bool = False

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, found: Any) -> Any:
        """A folder of the checkout by its whole path, so that it is the same for whoever reads it."""
        name = found.get("name") if isinstance(found, dict) else None
        if (
            not isinstance(name, str)
            or not name
            or name.startswith((".", "~"))
            or not sources.is_folder(sources.folder_of(name))
        ):
            return found
        return {**found, "name": str(sources.folder_of(name))}

    @model_validator(mode="before")
    @classmethod
    def _as_git(cls, found: Any) -> Any:
        given = found.get("revision") if isinstance(found, dict) else None
        if not isinstance(given, str) or (revision := sources.git(given)) == given:
            return found
        if not found.get("why"):
            raise ValueError("an assumed revision needs the reason in why")
        return {**found, "revision": revision}

    @property
    def is_folder(self) -> bool:
        return sources.is_path(self.name)

    @model_validator(mode="after")
    def _whole_path(self) -> "Source":
        if self.is_folder and self.revision is not None:
            raise ValueError(f"a folder has no revision {self.revision!r}")
        if self.name.startswith((".", "~")):  # others are of the checkout, these would depend on who reads them
            raise ValueError(f"write the whole path of the folder {self.name!r}, from the root on")
        return self


class Sources(_Strict):
    """The models of a checkpoint profile; `tuned` may be left out, then it is chat tuned here."""

    base: Source
    chat: Source
    tuned: Source | None = None

    @model_validator(mode="after")
    def _differ(self) -> "Sources":
        named = {role: (one.name, one.revision) for role, one in self if one is not None}
        for role in ("base", "tuned"):
            if named.get(role) == named["chat"]:
                raise ValueError(f"{role} and chat are the same model, so nothing lies between them; name two")
        return self


class PublicData(_Strict):
    """Which data set of `data/datasets` stands for what. `attacks` (harmful requests in jailbreak styles) may be left
    out; then whatever needs styles is not testable."""

    harmful: str
    benign: str
    exceptions: str
    attacks: str | None
    errands: str
    ledgers: str
    skills: str
    text: str

    @field_validator("*")
    @classmethod
    def _described(cls, name: str | None) -> str | None:
        known = sorted(path.stem for path in paths.DATASETS.glob("*.yaml"))
        if name is not None and name not in known:
            raise ValueError(f"unknown data set {name!r}; known: {', '.join(known)}")
        return name


class Judging(_Strict):
    """A model that judges answers, and the template of `data/judges` it is asked with; None: first tokens and keyword
    lists only."""

    model: Source
    template: Literal["llama_guard", "plain_guard", "strongreject_rubric"]
