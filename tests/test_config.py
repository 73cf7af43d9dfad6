"""Knobs are typed, known, in range, and round-trip."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest

from kagglekit import UserError, config
from kagglekit.config import Config, NetworkConfig, knob, override


@dataclass(frozen=True, kw_only=True)
class Mine(NetworkConfig):
    widths: tuple[int, ...] = knob((32, 64), "channels of each stage")
    share: float | None = knob(None, "a share, or none", least=0, most=1)


def test_values_are_typed_as_the_field_they_replace():
    changed = override(
        Mine(), ["lr=1", "epochs=3", "tta=no", "optimizer=sgd", "widths=8,16,32", "share=0.5"]
    )
    assert (changed.lr, type(changed.lr)) == (1.0, float)
    assert (changed.epochs, changed.tta, changed.optimizer) == (3, False, "sgd")
    assert (changed.widths, changed.share) == ((8, 16, 32), 0.5)
    assert override(changed, ["share=none"]).share is None


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(UserError, match=r"unknown key 'epoch', did you mean 'epochs'\?"):
        override(Mine(), ["epoch=3"])


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("epochs=2.5", "epochs=2.5 wants a whole number"),
        ("epochs=0", "epochs=0 is too small: the least is 1"),
        ("ema=1.5", "ema=1.5 is too large: the most is 1"),
        ("lr=fast", "lr=fast wants a number"),
        ("lr=nan", "wants a finite number"),
        ("lr=inf", "wants a finite number"),
        ("tta=perhaps", "tta=perhaps wants true or false"),
        ("optimizer=adam", "optimizer=adam is none of adamw, sgd, muon; did you mean 'adamw'"),
        ("widths=8,x", "widths=x wants a whole number"),
        ("epochs", "'epochs' is no assignment"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_it(assignment, sentence):
    with pytest.raises(UserError) as caught:
        override(Mine(), [assignment])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_an_error():
    with pytest.raises(UserError, match="'lr' is given twice"):
        override(Mine(), ["lr=1", "lr=2"])


def test_a_saved_config_is_read_back_equal():
    mine = override(Mine(), ["widths=4,5", "lr=0.125"])
    assert config.load(Mine, asdict(mine)) == mine


def test_knobs_that_leave_answers_unchanged_are_not_part_of_a_run_s_identity():
    assert config.hashed(override(Mine(), ["workers=7"])) == config.hashed(Mine())
    assert config.hashed(override(Mine(), ["lr=7"])) != config.hashed(Mine())


def test_every_knob_has_a_sentence_of_help():
    for kind in (Config, NetworkConfig):
        assert all(text for _, _, text in config.describe(kind()))


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        ({"epochs": "20"}, "epochs wants a whole number, and is text"),
        ({"epochs": True}, "epochs wants a whole number, and is truth value"),
        ({"epochs": 2.5}, "epochs wants a whole number, and is number"),
        ({"epochs": 0}, "epochs=0 is too small"),
        ({"ema": 1.5}, "ema=1.5 is too large"),
        ({"tta": 1}, "tta wants true or false"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"optimizer": None}, "optimizer wants a text, and is null"),
        ({"widths": 8}, "widths wants a list"),
        ({"widths": [8, "x"]}, "widths wants a whole number"),
        ({"share": 2}, "share=2 is too large"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"seed": 2**60}, "seed"),
        ([], "no list"),
    ],
)
def test_a_saved_config_is_held_to_the_rules_of_what_is_typed(saved, sentence):
    with pytest.raises(UserError) as caught:
        config.load(Mine, saved)
    assert sentence in str(caught.value)


def test_a_saved_config_may_write_a_number_without_its_point():
    read = config.load(Mine, {"lr": 1, "share": None, "widths": [4]})
    assert (read.lr, type(read.lr), read.share, read.widths) == (1.0, float, None, (4,))


@pytest.mark.parametrize("assignment", ["seed=4294967296", "epochs=99999999999999999999"])
def test_a_whole_number_that_no_library_takes_is_too_large(assignment):
    with pytest.raises(UserError, match="too large"):
        override(Mine(), [assignment])
