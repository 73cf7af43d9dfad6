"""Weights are found, fit exactly or are refused, and features are the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from kagglekit import backbones
from kagglekit.backbones import BackboneConfig
from kagglekit.errors import UserError
from tests.miniatures import weights

TINY = "test_resnet"
GIVEN = Path(__file__).parents[2] / "shared" / "weights" / "mobilenetv2_100_imagenet.safetensors"


def given(path: Path, monkeypatch: pytest.MonkeyPatch, **knobs: Any) -> backbones.Pretrained:
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(path))
    return backbones.find(BackboneConfig(**knobs))


def pictures(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, channels), np.uint8)


def test_a_file_says_what_it_is_of_in_its_metadata_its_name_or_its_folder(tmp_path, monkeypatch):
    said = weights(tmp_path / "a" / "x.safetensors", architecture=TINY, mean="0.5", std="0.25")
    found = given(said, monkeypatch)
    assert (found.model, found.transform.mean, found.transform.std) == (
        TINY,
        (0.5,) * 3,
        (0.25,) * 3,
    )
    assert given(weights(tmp_path / f"{TINY}_mine.pth"), monkeypatch).model == TINY
    in_folder = weights(tmp_path / f"{TINY}.r160_in1k" / "model.safetensors")
    assert given(in_folder, monkeypatch).model == f"{TINY}.r160_in1k"
    published = {"architecture": TINY, "pretrained_cfg": {"tag": "r160_in1k", "std": [0.3] * 3}}
    beside = weights(tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(published))
    found = given(beside, monkeypatch)
    assert (found.model, found.transform.std) == (f"{TINY}.r160_in1k", (0.3,) * 3)
    with pytest.raises(UserError, match=r"does not say which model.*model=NAME"):
        given(weights(tmp_path / "b" / "mine.safetensors"), monkeypatch)
    with pytest.raises(UserError, match="weights of test_resnet, not of test_vit"):
        given(said, monkeypatch, model="test_vit")


@pytest.mark.parametrize(
    "said", [{"input_size": "3, 90000, 90000"}, {"std": "0"}, {"mean": "?"}, {"std": "9" * 400}]
)
def test_what_no_picture_can_have_is_refused(tmp_path, monkeypatch, said):
    path = weights(tmp_path / "x.safetensors", architecture=TINY, **said)
    with pytest.raises(UserError, match="fits no colour picture"):
        given(path, monkeypatch)


def test_a_folder_gives_the_file_of_the_model_that_is_asked_for(tmp_path, monkeypatch):
    wanted = weights(tmp_path / "set" / f"{TINY}.r160_in1k.safetensors")
    weights(tmp_path / "set" / "other" / "test_vit.pth", "test_vit")
    assert given(tmp_path / "set", monkeypatch, model=TINY).path == wanted
    with pytest.raises(UserError, match="2 files of weights that fit"):
        given(tmp_path / "set", monkeypatch)
    weights(tmp_path / "set" / f"{TINY}_other.safetensors", TINY, made="otherwise")
    digest = given(wanted, monkeypatch).digest
    assert given(tmp_path / "set", monkeypatch, model=TINY, weights_digest=digest).path == wanted
    with pytest.raises(UserError, match=r"no weights of test_convnext; there are those of: test_r"):
        given(tmp_path / "set", monkeypatch, model="test_convnext")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_the_model_s_all_and_exactly(tmp_path, monkeypatch, suffix):
    path = weights(tmp_path / f"{TINY}{suffix}")
    model = given(path, monkeypatch).load()
    reference = timm.create_model(TINY, pretrained=False)
    original = load_file(weights(tmp_path / "again" / f"{TINY}.safetensors"))
    reference.load_state_dict(original)
    reference.reset_classifier(0)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(image), reference.eval()(image))


def test_weights_that_torch_wrote_before_1_6_are_the_same(tmp_path, monkeypatch):
    state = load_file(weights(tmp_path / f"{TINY}.safetensors"))
    old = tmp_path / f"{TINY}_old.pth"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    loaded = given(old, monkeypatch).load().state_dict()
    assert all(torch.equal(part, state[name]) for name, part in loaded.items())


def test_a_mean_may_be_negative_and_a_number_begin_with_a_point(tmp_path, monkeypatch):
    said = {"mean": "(-0.1, 0.2, -3e-1)", "std": ".5"}
    path = weights(tmp_path / "x.safetensors", architecture=TINY, **said)
    found = given(path, monkeypatch).transform
    assert (found.mean, found.std) == ((-0.1, 0.2, -0.3), (0.5,) * 3)


def test_tensors_without_numbers_are_one_sentence(tmp_path, monkeypatch):
    torch.save({"conv1.weight": torch.empty(2, device="meta")}, tmp_path / f"{TINY}.pth")
    with pytest.raises(UserError, match="without its numbers"):
        given(tmp_path / f"{TINY}.pth", monkeypatch).load()


def test_what_does_not_fit_is_named(tmp_path, monkeypatch):
    state = load_file(weights(tmp_path / f"{TINY}.safetensors"))
    del state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"]
    save_file({**state, "surplus.weight": torch.zeros(2)}, tmp_path / f"{TINY}_bad.safetensors")
    message = r"1 weights are missing \(conv1.*1 weights are unexpected \(surplus\.weight\)"
    with pytest.raises(UserError, match=message):
        given(tmp_path / f"{TINY}_bad.safetensors", monkeypatch).load()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_one_sentence(tmp_path, monkeypatch, suffix):
    path = weights(tmp_path / f"{TINY}{suffix}")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="holds no readable weights"):
        given(path, monkeypatch).load()


def test_a_pickle_that_would_run_code_is_not_run(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"conv1.weight": Evil()}}, tmp_path / f"{TINY}.pth")
    with pytest.raises(UserError, match="holds no readable weights"):
        given(tmp_path / f"{TINY}.pth", monkeypatch).load()
    assert not (tmp_path / "ran").exists()


def test_without_weights_or_network_one_sentence_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not backbones.available(BackboneConfig(model=TINY))
    with pytest.raises(UserError, match=r"give a file of weights .* with --weights PATH") as caught:
        backbones.find(BackboneConfig(model=f"{TINY}.r160_in1k"))
    assert "\n" not in str(caught.value)


def test_the_hub_s_cache_needs_no_network(tmp_path, monkeypatch):
    path = weights(tmp_path / "cached.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(path))
    config = BackboneConfig(model=TINY)
    assert backbones.available(config)
    assert backbones.find(config).path == path


@pytest.mark.parametrize("name", ["no_such_model", f"{TINY}.no_such_tag"])
def test_a_name_that_timm_does_not_have_is_refused(name):
    with pytest.raises(UserError, match=r"timm has no (model|weights)"):
        backbones.find(BackboneConfig(model=name))


def test_a_run_is_named_by_what_weights_hold_not_by_where_they_lie(tmp_path, monkeypatch):
    here = weights(tmp_path / f"{TINY}.safetensors")
    there = tmp_path / "there" / f"{TINY}_x.safetensors"
    there.parent.mkdir()
    there.write_bytes(here.read_bytes())
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(here))
    config = backbones.resolve(BackboneConfig())
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(there))
    assert backbones.resolve(BackboneConfig()) == config
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(weights(tmp_path / "test_vit.pth", "test_vit")))
    assert backbones.resolve(BackboneConfig()).weights_digest != config.weights_digest
    with pytest.raises(UserError, match="other weights than this run began with"):
        backbones.find(BackboneConfig(weights_digest=config.weights_digest))


@pytest.mark.parametrize("name", [TINY, "test_vit", "test_efficientnet", "test_convnext"])
def test_an_image_has_the_same_features_in_any_company(tmp_path, monkeypatch, name):
    path = weights(tmp_path / f"{name}.safetensors", name)
    backbone = backbones.Backbone(given(path, monkeypatch, image_size=64))
    images = pictures(19)
    first, last = backbone.blocks[0], backbone.blocks[-1]
    layers = ("pooled", last, f"{last}:max", f"{first}:2x1")
    found = backbone.features(images, layers)
    alone = backbone.features(images[17:18], layers)
    for layer in layers:
        assert found[layer].dtype == np.float32
        assert found[layer].shape[0] == 19
        assert np.array_equal(found[layer][17:18], alone[layer])
    halves = found[f"{first}:2x1"].reshape(19, -1, 2)  # the first map has an even side
    assert np.allclose(halves.mean(2), backbone.features(images, [first])[first], atol=1e-4)


def test_features_are_computed_once_for_a_content(tmp_path, monkeypatch):
    path = weights(tmp_path / f"{TINY}.safetensors")
    first = backbones.Backbone(given(path, monkeypatch, image_size=32))
    images = pictures(3, channels=1)
    computed = first.cached_features(images, ["pooled", "block1"])
    assert np.array_equal(computed["pooled"], first.features(np.repeat(images, 3, 3))["pooled"])
    again = backbones.Backbone(given(path, monkeypatch, image_size=32))
    monkeypatch.setattr(again.pretrained.__class__, "load", None)  # would fail if it were asked
    warm = again.cached_features(images.copy(), ["pooled", "block1"])
    assert all(np.array_equal(computed[layer], warm[layer]) for layer in computed)
    assert np.array_equal(again.cached_features(images, ["block1"])["block1"], computed["block1"])
    larger = backbones.Backbone(given(path, monkeypatch, image_size=64))
    assert larger.fingerprint != again.fingerprint


def test_a_layer_that_is_not_there_is_named(tmp_path, monkeypatch):
    backbone = backbones.Backbone(given(weights(tmp_path / f"{TINY}.pth"), monkeypatch))
    for layer, message in (("block99", "has no layer"), ("block1:x", "mean, max, or a grid")):
        with pytest.raises(UserError, match=message):
            backbone.features(pictures(1), [layer])


@pytest.mark.skipif(not GIVEN.exists(), reason="the real weights are not here")
def test_the_given_weights_say_all_that_they_need(monkeypatch):
    found = given(GIVEN, monkeypatch)
    assert (found.model, found.options) == ("mobilenetv2_100", {"pad_type": "same"})
    assert found.transform == backbones.Transform((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert backbones.Backbone(found).features(pictures(2))["pooled"].shape == (2, 1280)
