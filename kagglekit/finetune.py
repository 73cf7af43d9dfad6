"""Training on from pretrained weights: the whole backbone, its first layers more slowly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import backbones
from .backbones import BackboneConfig, Pretrained
from .config import NetworkConfig, knob
from .data import Split, Task


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(BackboneConfig, NetworkConfig):
    """The knobs of a network that starts from a backbone."""

    layer_decay: float = knob(
        0.8, "learning rate of each layer as a share of that after it; 1 = the same for all",
        least=0.01, most=1,
    )  # fmt: skip
    freeze_norms: bool = knob(
        True, "keep BatchNorm's statistics of the pretraining: a small batch's own are noise"
    )
    drop_path: float = knob(0.0, "stochastic depth, where the model has any", least=0, most=0.99)


class Finetuned(nn.Module):
    """A backbone with a new classifier: images (n, 1 or 3, h, w) in 0…1 to logits (n, outputs)."""

    def __init__(self, config: FinetuneConfig, outputs: int) -> None:
        super().__init__()
        self.config = config if config.model else backbones.resolve(config)
        usual = backbones.architecture(self.config)
        options = {**usual.options, "drop_rate": config.dropout}
        if config.drop_path:
            options["drop_path_rate"] = config.drop_path
        self.model = backbones.build(self.config.model, outputs, options)
        self.size, self.interpolation = usual.transform.size, usual.transform.interpolation
        self.register_buffer("mean", _levels(usual.transform.mean))
        self.register_buffer("std", _levels(usual.transform.std))
        self.mean: Tensor
        self.std: Tensor

    def start(self) -> None:
        """Take the pretrained weights, and the mean and std that go with them."""
        pretrained: Pretrained = backbones.find(self.config)
        backbones.fill(self.model, pretrained)
        for module in _classifiers(self.model):
            nn.init.zeros_(module.weight)  # or what it says by chance would be learned from first
            nn.init.zeros_(module.bias)
        self.mean.copy_(_levels(pretrained.transform.mean))
        self.std.copy_(_levels(pretrained.transform.std))

    def train(self, mode: bool = True) -> Finetuned:
        """Training mode, in which BatchNorm's statistics stay as they are where that is asked.

        Weights whose BatchNorm was folded into convolutions, as TensorFlow Lite's are, have no
        statistics but these: normalised by a batch's own, their features would vanish.
        """
        super().train(mode)
        if self.config.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        resized = backbones.resized(images, self.size, self.interpolation)
        logits: Tensor = self.model((resized.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return logits


def _classifiers(model: nn.Module) -> list[nn.Linear]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    named = [model.get_submodule(n) for n in ((names,) if isinstance(names, str) else names)]
    return [module for module in named if isinstance(module, nn.Linear)]


def _levels(values: Iterable[float]) -> Tensor:
    import torch

    return torch.tensor(list(values)).view(1, -1, 1, 1)


def model(config: FinetuneConfig, task: Task) -> nn.Module:
    """The model of a `Network`, from a random start."""
    return Finetuned(config, task.outputs)


def start(model: nn.Module, train: Split) -> None:
    """`prepare` of a `Network`: give its model the pretrained weights."""
    assert isinstance(model, Finetuned)
    model.start()


def layer_wise(model: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """`groups` of a `Network`: layers near the input learn more slowly (arXiv:1801.06146).

    The rate of a layer is `layer_decay` to the power of the number of layers after it, by timm's
    account of which weights are one layer. Vectors are not decayed.
    """
    from timm import optim

    assert isinstance(model, Finetuned)
    groups = optim.param_groups_layer_decay(  # type: ignore[attr-defined]
        model.model, config.weight_decay, layer_decay=config.layer_decay
    )
    wanted = ("params", "weight_decay", "lr_scale")
    return [{name: group[name] for name in wanted} for group in groups]
