"""Training goes on from the pretrained weights, and more slowly near the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kagglekit import backbones, finetune
from kagglekit.data import Task
from kagglekit.finetune import FinetuneConfig
from tests.miniatures import weights


@pytest.fixture
def config(tmp_path, monkeypatch) -> FinetuneConfig:
    path = weights(tmp_path / "test_efficientnet.safetensors", "test_efficientnet", mean="0.4")
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(path))
    return backbones.resolve(FinetuneConfig(image_size=64))


def started(config: FinetuneConfig) -> finetune.Finetuned:
    model = finetune.model(config, Task((1, 30, 20), 3))
    assert isinstance(model, finetune.Finetuned)
    finetune.start(model, None)  # type: ignore[arg-type]
    return model


def test_it_starts_from_the_pretrained_weights_and_knows_no_class_yet(config):
    model = started(config)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 1), np.uint8)
    expected = backbones.load(config).features(pixels)["pooled"]
    seen: list[torch.Tensor] = []
    model.model.classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    assert torch.equal(model.eval()(images), torch.zeros(2, 3))
    assert np.allclose(seen[0].detach().numpy(), expected, atol=1e-4)
    model.train()(images)  # statistics of two pictures would be noise
    assert np.allclose(seen[1].detach().numpy(), expected, atol=1e-4)


def test_it_can_be_built_again_where_the_weights_are_gone(config, monkeypatch):
    learned = started(config).state_dict()
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", "gone")
    again = finetune.model(config, Task((1, 30, 20), 3))
    again.load_state_dict(learned)
    assert again.mean.flatten().tolist() == pytest.approx([0.4] * 3)  # type: ignore[union-attr]


def test_layers_near_the_input_learn_more_slowly(config):
    model = started(config)
    rate = {
        id(weight): group["lr_scale"]
        for group in finetune.layer_wise(model, config)
        for weight in group["params"]
    }
    assert set(rate) == {id(weight) for weight in model.parameters()}
    first, middle, last = (
        rate[id(module.weight)]
        for module in (model.model.conv_stem, model.model.conv_head, model.model.classifier)
    )
    assert first < middle < last == 1
