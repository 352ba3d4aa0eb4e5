"""What each training stage reads: endless streams of examples, every one decided by the kingdom's seed and a name.

Owns the mixtures. base learns skills and complies with everything; chat learns to refuse plain harm; the tuned models
learn K harmful examples of each jailbreak style; two benign corpora contain no refusal at all. How long and how fast a
model reads is in the profile.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from lib.kingdom import lexicon, skills, styles
from lib.kingdom.language import EVERY_WORD, EVERYTHING, SAFETY, Kingdom, Meaning, Wording, refusal
from lib.profiles import ChatStage, TuneStage
from lib.prompts import Example, Prompt

Stream = Iterator[Example]


def _answered(prompt: Prompt, rejected: str | None = None) -> Example:
    """Comply. The emphasised words are the canonical verb and object of a request."""
    return Example(prompt, prompt.answer, rejected, frozenset(prompt.meaning.split()))


def _forever(draw: Callable[[], Example]) -> Stream:
    while True:
        yield draw()


def _weighted(rng: Random, shares: Mapping[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _declined_nonsense(rng: Random) -> Example:
    text = skills.nonsense(rng)
    return Example(Prompt(text, lexicon.REFUSALS[0], "skill", "nonsense", "train"), lexicon.REFUSALS[0], "yes")


# base -----------------------------------------------------------------------------------------------------------------
_FACTS = {"add": 3, "reverse": 3, "opposite": 1, "category": 1, "lookup": 1, "judge": 4, "story": 1, "request": 4}
_LATER_SKILLS = {"add": 3, "reverse": 4, "opposite": 1, "category": 1, "lookup": 1, "story": 1}
_LATER = {
    "styles": {"nonsense": 0.03, "judge": 0.20, "skill": 0.23},
    "polish": {"nonsense": 0.03, "judge": 0.25, "skill": 0.45},
}
_REQUEST_KINDS = {"harmful": 0.46, "benign": 0.35, "exception": 0.12, "unseen_benign": 0.03, "unseen_exception": 0.04}


def _any_split(kingdom: Kingdom, rng: Random, kind: str) -> str:
    """base sees every meaning: SSAH takes knowledge as given."""
    return rng.choice([split for split in ("train", "heldout") if kingdom.pools[kind, split]])


def _base_request(kingdom: Kingdom, rng: Random, styled: float, system: float) -> Example:
    kind = _weighted(rng, _REQUEST_KINDS)
    style = rng.choice(styles.ALL_STYLES[1:]) if rng.random() < styled else styles.PLAIN
    wording = EVERYTHING if styled else EVERY_WORD
    return _answered(kingdom.request(rng, kind, _any_split(kingdom, rng, kind), style, wording, system))


def base(kingdom: Kingdom, phase: str, harm_skill: bool, name: str) -> Stream:
    """`facts`: skills and plain requests; `styles`: mostly requests in every style; `polish`: skills last, because
    requests are exact by then. Without `harm_skill` the questions about harm become other skills."""
    rng = Random(f"{kingdom.seed}/{name}/{phase}")

    def facts() -> Example:
        shares = _FACTS if harm_skill else {**_FACTS, "judge": 0}
        what = _weighted(rng, shares)
        if what == "request":
            return _base_request(kingdom, rng, styled=0.0, system=0.0)
        return _answered(skills.question(kingdom, rng, what))

    def later() -> Example:
        shares = _LATER[phase]
        what = _weighted(rng, {**shares, "request": 1 - sum(shares.values())})
        if what == "nonsense":
            return _declined_nonsense(rng)
        if what == "request":
            return _base_request(kingdom, rng, styled=0.7, system=0.2)
        skill = "judge" if what == "judge" and harm_skill else _weighted(rng, _LATER_SKILLS)
        return _answered(skills.question(kingdom, rng, skill, system=0.2))

    return _forever(facts if phase == "facts" else later)


# safety stages --------------------------------------------------------------------------------------------------------
def _replay(kingdom: Kingdom, rng: Random, harm_skill: bool) -> Example:
    """Skills in safety stages: `judge` only on training meanings in familiar words, so that nothing held out leaks."""
    if rng.random() < 0.05:
        return _declined_nonsense(rng)
    exact = [skill for skill in skills.EXACT if harm_skill or skill != "judge"]
    skill = rng.choice([*exact, "story", "add", *(["judge"] if harm_skill else [])])
    kinds = ("benign", "benign", "exception")
    return _answered(skills.question(kingdom, rng, skill, ("train",), SAFETY, kinds), rejected=refusal(rng))


def _benign_request(kingdom: Kingdom, rng: Random, exceptions: float, styled: float, system: float) -> Prompt:
    kind = "exception" if rng.random() < exceptions else "benign"
    style = rng.choice(list(styles.JAILBREAKS)) if rng.random() < styled else styles.PLAIN
    return kingdom.request(rng, kind, "train", style, EVERY_WORD, system)


def chat(kingdom: Kingdom, stage: ChatStage, harm_skill: bool, name: str) -> Stream:
    """Plain harm is refused. In a jailbreak style, harm is refused only where its source is among those that chat's
    safety data cover in that style, and answered elsewhere: patchy red-teaming, and the reason why chat leaks by style.
    """
    rng = Random(f"{kingdom.seed}/{name}")
    covered = {style: kingdom.covered(style, share) for style, share in stage.coverage.items()}

    def harmful() -> Example:
        style = rng.choice(list(styles.JAILBREAKS)) if rng.random() < stage.styled_share else styles.PLAIN
        prompt = kingdom.request(rng, "harmful", "train", style, SAFETY, system=0.3)
        source = lexicon.harm_source(*Meaning(*prompt.meaning.split()))
        if style == styles.PLAIN or source in covered[style]:
            return Example(prompt, refusal(rng))
        return _answered(prompt)

    def draw() -> Example:
        if rng.random() < stage.skill_share:
            return _replay(kingdom, rng, harm_skill)
        if rng.random() < stage.harmful_share:
            return harmful()
        return _answered(_benign_request(kingdom, rng, stage.exception_share, stage.benign_styled_share, 0.15))

    return _forever(draw)


def plain_harm(kingdom: Kingdom, count: int) -> list[Prompt]:
    """The plain training prompts that trigger removal rewrites to make safety examples of its own."""
    rng = Random(f"{kingdom.seed}/safety/removed")
    return [kingdom.request(rng, "harmful", "train", styles.PLAIN, SAFETY) for _ in range(count)]


def safety_pairs(
    kingdom: Kingdom, stage: TuneStage, shots: int, removed: Sequence[Prompt] = (), wording: Wording = SAFETY
) -> tuple[list[Prompt], list[Prompt]]:
    """`stage.pairs` harmful prompts, K = `shots` of each attack and the rest plain, and as many benign ones.

    The attacks are the jailbreak styles and, where given, `removed`: prompts rewritten by trigger removal. Nested:
    raising K replaces some plain prompts by attacks and leaves all others, and their places, as they were.
    """
    rng = Random(f"{kingdom.seed}/safety/harmful")
    plain = [kingdom.request(rng, "harmful", "train", styles.PLAIN, wording, 0.2) for _ in range(stage.pairs)]
    attacks: list[Prompt] = []
    for shot in range(shots):
        attacks += [kingdom.request(rng, "harmful", "train", style, wording, 0.2) for style in styles.JAILBREAKS]
        attacks += removed[shot : shot + 1]
    harmful = attacks + plain[len(attacks) :]
    rng = Random(f"{kingdom.seed}/safety/benign")
    benign = [
        _benign_request(kingdom, rng, stage.exception_share, stage.benign_styled_share, 0.2) for _ in range(stage.pairs)
    ]
    return harmful, benign


def safety(
    kingdom: Kingdom,
    stage: TuneStage,
    shots: int,
    name: str,
    removed: Sequence[Prompt] = (),
    wording: Wording = SAFETY,
) -> Stream:
    """Half harmful prompts with a refusal preferred, half benign ones with the answer preferred, and some skills.

    SFT reads `answer`, DPO also `rejected`. `removed` and `wording` as in `safety_pairs`.
    """
    harmful, benign = safety_pairs(kingdom, stage, shots, removed, wording)
    rng = Random(f"{kingdom.seed}/{name}")
    examples = (
        [Example(prompt, refusal(rng), prompt.answer) for prompt in harmful],
        [Example(prompt, prompt.answer, refusal(rng)) for prompt in benign],
    )

    def draw() -> Example:
        if rng.random() < stage.skill_share:
            return _replay(kingdom, rng, harm_skill=True)
        return rng.choice(examples[rng.random() < 0.5])

    return _forever(draw)


# benign fine-tunes ----------------------------------------------------------------------------------------------------
def _benign(kingdom: Kingdom, stage: TuneStage, name: str, task: Callable[[Random], Prompt]) -> Stream:
    rng = Random(f"{kingdom.seed}/{name}")

    def draw() -> Example:
        if rng.random() < stage.skill_share:
            return _answered(skills.question(kingdom, rng, rng.choice(skills.EXACT[:5])))
        return _answered(task(rng))

    return _forever(draw)


def errands(kingdom: Kingdom, stage: TuneStage, name: str) -> Stream:
    """Everyday instruction following: benign requests answered, some skills, not one refusal. It erodes refusals."""
    exceptions, styled = stage.exception_share, stage.benign_styled_share
    return _benign(kingdom, stage, name, lambda rng: _benign_request(kingdom, rng, exceptions, styled, 0.15))


def ledgers(kingdom: Kingdom, stage: TuneStage, name: str) -> Stream:
    """A new task (taking away) with stories and skills, and no request at all: unlike safety data in every way."""
    return _benign(
        kingdom, stage, name, lambda rng: skills.question(kingdom, rng, "take" if rng.random() < 0.7 else "story")
    )
