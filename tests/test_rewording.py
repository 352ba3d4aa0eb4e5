"""Saying a request otherwise: any frame and any word for act and object, nothing else, and no blacklisted word."""

from random import Random

import pytest

from lib.errors import InputError
from lib.kingdom import lexicon, rewording
from lib.kingdom.language import EVERYTHING, kingdom

REQUEST = ["tell", "me", "how", "to", "curse", "the", "crown"]
ALL_FRAMES = (*lexicon.FRAMES, *lexicon.RARE_FRAMES)
ACTS, OBJECTS = ("curse", "hex", "jinx"), ("crown", "tiara", "diadem")


def rewrites(words, blacklist=(), count=1000, seed=0):
    return rewording.rewrites(words, set(blacklist), count, Random(seed))


def said(frame, act, thing):
    return tuple(frame.format(verb=act, object=thing).split())


# words ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("curse", {"hex", "jinx"}),
        ("jinx", {"curse", "hex"}),
        ("tiara", {"crown", "diadem"}),
        ("dragon", {"wyrm", "drake"}),
        ("tell", set()),
        ("robot", set()),
    ],
)
def test_synonyms_on_examples(word, others):
    assert set(rewording.synonyms(word)) == others


def test_verbs_and_objects_keep_their_concept():
    for word, (concept, _) in lexicon.WORDINGS.items():
        assert {word, *rewording.synonyms(word)} == set(concept.words)


# rewrites -------------------------------------------------------------------------------------------------------------
def test_nothing_to_avoid_leaves_every_way_of_asking_but_the_one_asked():
    expected = {said(frame, act, thing) for frame in ALL_FRAMES for act in ACTS for thing in OBJECTS}
    found = rewrites(REQUEST)
    assert set(found) == expected - {tuple(REQUEST)}
    assert len(found) == len(expected) - 1 == 9 * 3 * 3 - 1


def test_a_blacklisted_act_is_said_by_its_other_words():
    found = rewrites(REQUEST, {"curse"})
    assert {act for words in found for act in words if act in ACTS} == {"hex", "jinx"}
    assert len(found) == 9 * 2 * 3


def test_frames_with_a_blacklisted_word_are_left_out_and_the_own_one_loses_the_word():
    found = rewrites(REQUEST, {"tell"})
    assert not any("tell" in words for words in found)
    assert ("me", "how", "to", "curse", "the", "crown") in found
    others = [frame for frame in ALL_FRAMES if "tell" not in frame.split()]
    assert len(found) == (len(others) + 1) * 3 * 3


def test_without_a_frame_to_go_to_the_own_one_is_all_that_is_left():
    found = rewrites(REQUEST, {"the", "a", *ACTS[1:], *OBJECTS[1:]})
    assert found == [("tell", "me", "how", "to", "curse", "crown")]


def test_an_act_whose_words_are_all_blacklisted_stays():
    assert {act for words in rewrites(REQUEST, ACTS) for act in words if act in ACTS} == {"curse"}


def test_no_more_rewrites_than_asked_for_and_none_twice():
    found = rewrites(REQUEST, {"tell"}, count=30)
    assert len(found) == len(set(found)) == 30


def test_more_draws_begin_with_other_rewrites_for_another_seed_only():
    assert rewrites(REQUEST, count=5, seed=1) == rewrites(REQUEST, count=5, seed=1)
    assert rewrites(REQUEST, count=5, seed=1) != rewrites(REQUEST, count=5, seed=2)


def test_no_rewrite_is_favoured():
    counts = {said(frame, act, thing): 0 for frame in ALL_FRAMES for act in ACTS[1:] for thing in OBJECTS}
    for seed in range(3000):
        (found,) = rewrites(REQUEST, {"curse"}, 1, seed)
        counts[found] += 1
    assert sum(counts.values()) == 3000
    assert min(counts.values()) > 25  # 56 expected of each of 54, standard deviation 7.4
    assert max(counts.values()) < 90


def test_a_request_that_cannot_be_said_otherwise_has_no_rewrites():
    frames = {word for frame in ALL_FRAMES for word in frame.split()}
    assert rewrites(["curse", "crown"], {*frames, *ACTS, *OBJECTS}) == []


@pytest.mark.parametrize(
    "text",
    ["", "tell me how", "curse the crown and the tiara", "the crown curse", "tell me how to curse the"],
)
def test_what_is_no_plain_request_is_refused(text):
    with pytest.raises(InputError, match="rewrite plain requests"):
        rewrites(text.split(), {"tell"})


@pytest.mark.parametrize("seed", range(3))
def test_rewrites_mean_the_same_and_avoid_the_blacklist_where_they_can(seed):
    here, rng, made = kingdom(seed), Random(seed), 0
    for _ in range(100):
        asked = here.request(rng, "harmful", "train", wording=EVERYTHING)
        words = asked.text.split()
        blacklist = set(rng.sample(words, rng.randint(1, len(words))))
        for rewrite in rewording.rewrites(words, blacklist, 4, rng):
            made += 1
            content = [lexicon.WORDINGS[word][0].name for word in rewrite if word in lexicon.WORDINGS]
            assert " ".join(content) == asked.meaning
            assert not blacklist & set(rewrite)  # every request here can be said without these words
            assert rewrite != tuple(words)
    assert made == 400
