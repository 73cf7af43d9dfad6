"""Pretrained networks of timm: where their weights are, and the features that they give."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import devices, files, folders
from .config import Config, knob
from .errors import UserError

POOLED = "pooled"  # the layer that the classifier of the pretraining read
DEFAULT = "mobilenetv2_100"  # where neither a model nor weights are named

_FORMAT = "1"  # raise it when features change
_BATCH = 16  # images at once; a last batch is filled up, so that none depends on its neighbours
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name
_SHOWN = 3  # names that an error tells
_LARGEST = 4096  # pixels a side that a model may ask for
_PATIENCE = 5  # seconds that a first knock at the hub may take
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SAID = ("architecture", "pad_type", "mean", "std", "input_size", "interpolation")

PadType = Literal["", "same"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Config):
    """Which pretrained model looks at images, and how large they are when it does."""

    model: str = knob("", "the backbone's name in timm; empty = the one the weights are of")
    pad_type: PadType = knob("", "padding of convolutions; `same` for weights from TensorFlow; "
                             "empty = as the file of weights says")  # fmt: skip
    image_size: int = knob(
        0, "pixels a side that the backbone sees; 0 = its own", least=0, most=_LARGEST
    )
    weights_digest: str = knob(
        "", "content of the weights: noted by the run, and no others will do; empty = any"
    )


C = TypeVar("C", bound=BackboneConfig)


@dataclass(frozen=True)
class Transform:
    """What becomes of a picture before the model sees it, as in the model's own data config."""

    size: tuple[int, int]  # (height, width); the whole picture is resized, nothing is cut off
    mean: tuple[float, ...]  # of each channel, for values in 0…1
    std: tuple[float, ...]
    interpolation: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images (batch, 1 or 3, height, width) in 0…1 as the model reads them."""
        images = resized(images.expand(-1, len(self.mean), -1, -1), self.size, self.interpolation)
        mean, std = (images.new_tensor(part).view(-1, 1, 1) for part in (self.mean, self.std))
        return (images - mean) / std


def resized(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Images (n, channels, height, width) in 0…1 at another size, free of aliasing."""
    if images.shape[-2:] == size:
        return images
    mode = "bilinear" if interpolation == "bilinear" else "bicubic"
    larger = functional.interpolate(images.float(), size, mode=mode, antialias=True)
    return larger.clamp(0, 1).to(images.dtype)


@dataclass(frozen=True)
class Architecture:
    """How a model is built and what it sees, where no weights need be at hand."""

    transform: Transform
    options: Mapping[str, Any]  # of timm.create_model


def architecture(config: BackboneConfig) -> Architecture:
    """The architecture of resolved knobs; mean and std are timm's usual ones."""
    name = _known(config.model)
    transform = _transform(name, {}, config.image_size, Path(name))
    return Architecture(transform, _options(name, config.pad_type, transform.size))


@dataclass(frozen=True)
class Pretrained:
    """A file of weights, and the model that they are of."""

    model: str  # with timm's tag where it is known
    path: Path
    digest: str  # of the file's content
    transform: Transform
    options: Mapping[str, Any] = field(default_factory=dict)  # of timm.create_model

    @property
    def fingerprint(self) -> str:
        """Digest of all that features depend on but the images: weights, architecture, transform.

        Of the architecture's code it names the versions of timm and torch, and of the machine the
        device and the number of threads, which a last bit may depend on.
        """
        import timm

        device = devices.device()
        parts = {
            "format": _FORMAT,
            "weights": self.digest,
            "model": self.model.partition(".")[0],
            "options": dict(self.options),
            "transform": asdict(self.transform),
            "libraries": [timm.__version__, str(torch.__version__)],
            "machine": [device.type, devices.kernels(device), torch.get_num_threads()],
        }
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def load(self) -> nn.Module:
        """The model without its classifier, with these weights, in float32, ready to answer.

        Raises UserError where the file is damaged or its weights are not exactly the model's; it
        names what is missing and what is too much.
        """
        model = build(self.model, 0, self.options)
        fill(model, self)
        return model.eval()


# --- where weights are --------------------------------------------------------------------------


def find(config: BackboneConfig) -> Pretrained:
    """The weights that the knobs ask for.

    | `$KAGGLEKIT_WEIGHTS` (`--weights`) is | weights are |
    |---|---|
    | a file | that file's |
    | a folder | the file in it, or in its folders, that is of `config.model` |
    | not set | the Hugging Face hub's, from its cache or else fetched |

    What a file is of, how its convolutions pad and its mean and std are read in its own metadata
    (safetensors), in timm's `config.json` beside it, in its name or in its folder's name. Raises
    UserError where there are no such weights, or they are others than `config.weights_digest`.
    """
    place = folders.weights()
    if place is None:
        name = _known(config.model or DEFAULT)
        path = _from_hub(name)
    else:
        path = _in_folder(place, config) if place.is_dir() else place
        name = _name_of(path, config.model)
    told = _told(path)
    digest = _content(path)
    if config.weights_digest not in ("", digest):
        raise UserError(
            f"{path} holds other weights than this run began with (their digest is {digest}, not"
            f" {config.weights_digest}): name the same ones with --weights"
        )
    transform = _transform(name, told, config.image_size, path)
    options = _options(name, config.pad_type or told.get("pad_type"), transform.size)
    return Pretrained(name, path, digest, transform, options)


def _content(path: Path) -> str:
    state = path.stat()
    return _digest(path.resolve(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)  # every fold asks, and a large model's takes a second
def _digest(path: Path, changed: int, size: int) -> str:
    return files.file_digest(path)


def resolve(config: C) -> C:
    """`config` with the model, its padding and size, and the content of its weights filled in.

    So the name of a run depends on what weights hold, and not on where they lie.
    """
    found = find(config)
    padding: Any = found.options.get("pad_type", "")
    height, width = found.transform.size
    return replace(
        config,
        model=found.model,
        pad_type=padding,
        image_size=height if height == width else config.image_size,
        weights_digest=found.digest,
    )


def available(config: BackboneConfig) -> bool:
    """Whether there are such weights on this machine; no network is asked."""
    if folders.weights() is not None:
        return True
    return _cached(_known(config.model or DEFAULT)) is not None


def _known(name: str) -> str:
    """A name, with or without a tag, that timm has; else UserError with the nearest one."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(f"timm has no model {name!r}{hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"timm has no weights {tag!r} of {architecture}; there are: {', '.join(tags) or 'none'}"
        )
    return name


def _from_hub(name: str) -> Path:
    """The hub's weights of timm's model `name`, fetched where they are not in the cache."""
    found = _cached(name)
    if found is not None:
        return found
    settings = _settings(name)
    if not settings.hf_hub_id:
        raise UserError(f"timm knows no weights of {name} on the hub: {_HOW}")
    from huggingface_hub import constants, hf_hub_download

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        _knock(constants.ENDPOINT)  # the hub's own client tries again for half a minute
        return Path(hf_hub_download(settings.hf_hub_id, _hub_file(settings)))
    except Exception as error:  # of the network, the hub, or the disk: what helps is the same
        raise UserError(
            f"the weights of {name} are not on this machine and cannot be fetched from the hub: "
            f"{_HOW}"
        ) from error


_HOW = (
    "give a file of weights (safetensors or .pth), or a folder of them as attached to a Kaggle "
    "notebook, with --weights PATH, or run once with a network; a `scratch` recipe needs none"
)


def _knock(endpoint: str) -> None:
    import requests

    requests.head(endpoint, timeout=_PATIENCE)


def _cached(name: str) -> Path | None:
    """The hub's weights of `name` in its cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    settings = _settings(name)
    if not settings.hf_hub_id:
        return None
    found = try_to_load_from_cache(settings.hf_hub_id, _hub_file(settings))
    return Path(found) if isinstance(found, str) else None


def _hub_file(settings: Any) -> str:
    return settings.hf_hub_filename or "model.safetensors"


def _settings(name: str) -> Any:
    """timm's data config and addresses of a model: of the tag's weights, else of its default."""
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(name)


def _in_folder(folder: Path, config: BackboneConfig) -> Path:
    """The file of weights in a folder that is of the model, or the only one where none is named."""
    model = config.model
    found = [path for path in files.visible_files(folder).values() if path.suffix in _SUFFIXES]
    if not found:
        raise UserError(f"{folder} holds no weights: it should hold .safetensors or .pth files")
    if model:
        _known(model)
        names = {path: _guessed(path) or "" for path in found}
        found = [path for path in found if _same(names[path], model)]
        if len(found) > 1 and config.weights_digest:
            found = [path for path in found if _content(path) == config.weights_digest] or found
        found = [path for path in found if names[path] == model] or found
        if not found:
            there = ", ".join(sorted({name for name in names.values() if name})) or "none known"
            raise UserError(f"{folder} holds no weights of {model}; there are those of: {there}")
    if len(found) > 1:
        some = ", ".join(path.name for path in found[:_SHOWN])
        raise UserError(
            f"{folder} holds {len(found)} files of weights that fit ({some}): name one of them "
            "with --weights, or its model with model=NAME"
        )
    return found[0]


def _name_of(path: Path, wanted: str) -> str:
    """The model of a file of weights: as wanted, and no other than the file itself says."""
    if not path.is_file():
        raise UserError(f"--weights {path} does not exist: give a file of weights, or its folder")
    guessed = _guessed(path)
    if not wanted and guessed is None:
        raise UserError(f"{path} does not say which model its weights are of: add model=NAME")
    if not wanted or (guessed and "." not in wanted and _same(guessed, _known(wanted))):
        assert guessed is not None
        return guessed
    said = str(_told(path).get("architecture", ""))
    if said and not _same(said, _known(wanted)):
        raise UserError(f"{path} says that it holds weights of {said}, not of {wanted}")
    return wanted


def _same(one: str, other: str) -> bool:
    """Whether two names are of one architecture, and their tags, where both have one, agree."""
    (left, _, tag), (right, _, its) = one.partition("."), other.partition(".")
    return left == right and (not tag or not its or tag == its)


def _guessed(path: Path) -> str | None:
    """The model that a file of weights names: inside, in its name, or in its folder's."""
    said = str(_told(path).get("architecture", ""))
    if said:
        return _known(said)
    for text in (path.stem, path.parent.name):
        name = _beginning(re.sub(r"^timm[-_./]", "", text))
        if name:
            return name
    return None


def _beginning(text: str) -> str | None:
    """The longest name of a model, with its tag if that follows, that a text begins with."""
    import timm

    ends = [found.start() for found in re.finditer(r"(?![a-zA-Z0-9])", text)]
    names = [text[:end] for end in ends if timm.is_model(text[:end].partition(".")[0])]
    if not names:
        return None
    architecture = max((name.partition(".")[0] for name in names), key=len)
    tagged = set(timm.list_pretrained(f"{architecture}.*")) & set(names)
    return max(tagged, key=len) if tagged else architecture


def _told(path: Path) -> dict[str, Any]:
    """What is said of weights: in `config.json` beside them, and in their own metadata."""
    beside = path.with_name("config.json")
    told: dict[str, Any] = {}
    if beside.is_file():
        saved = files.read_json(beside)  # as timm's own `save_for_hf` writes it
        saved = saved if isinstance(saved, dict) else {}
        settings = saved.get("pretrained_cfg")
        told = {**(settings if isinstance(settings, dict) else {}), **saved}
        tag = told.get("tag")
        if tag and "." not in str(told.get("architecture", ".")):
            told["architecture"] = f"{told['architecture']}.{tag}"
    told |= _metadata(path)
    return {name: told[name] for name in _SAID if told.get(name)}


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with _readable(path), safe_open(path, "pt") as opened:
        return dict(opened.metadata() or {})


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file of weights into one sentence."""
    try:
        with files.explained():
            yield
    except UserError:
        raise
    except Exception as error:  # of safetensors, zipfile, pickle and torch, in a dozen ways
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} holds no readable weights ({type(error).__name__}: {reason[:160]}): give a "
            "whole .safetensors, or a .pth of tensors and nothing else"
        ) from error


def _transform(name: str, told: Mapping[str, Any], side: int, path: Path) -> Transform:
    """The data config: the file's own where it has one, else timm's of the model."""
    usual = _settings(name)
    size = (side, side) if side else tuple(_numbers(told.get("input_size", usual.input_size))[-2:])
    mean, std = (_numbers(told.get(key, getattr(usual, key))) for key in ("mean", "std"))
    mean, std = (part * 3 if len(part) == 1 else part for part in (mean, std))
    finite = all(map(math.isfinite, [*mean, *std]))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not finite or not _sound(size):
        raise UserError(f"what {path} says of mean, std or input_size fits no colour picture")
    height, width = (int(length) for length in size)
    interpolation = str(told.get("interpolation", usual.interpolation))
    return Transform((height, width), tuple(mean), tuple(std), interpolation)


def _sound(size: Sequence[float]) -> bool:
    """Whether pictures can have that size: a file may claim any, and memory would pay."""
    return len(size) == 2 and min(size) >= 1 and max(size) <= _LARGEST


def _numbers(value: Any) -> list[float]:
    """The numbers of a list, or of its text."""
    return [float(text) for text in re.findall(_NUMBER, str(value))]


def _options(name: str, padding: Any, size: tuple[int, int]) -> dict[str, Any]:
    options = {"pad_type": str(padding)} if padding else {}
    usual = _settings(name)
    if usual.fixed_input_size and tuple(usual.input_size[-2:]) != size:
        return {**options, "img_size": list(size)}
    return options


# --- models -------------------------------------------------------------------------------------


def build(name: str, outputs: int, options: Mapping[str, Any]) -> nn.Module:
    """timm's model from a random start: (n, 3, h, w) to (n, outputs); 0 outputs = no classifier.

    Raises UserError where the architecture takes no such options.
    """
    import timm

    try:
        model: nn.Module = timm.create_model(
            _known(name), pretrained=False, num_classes=outputs, **options
        )
    except TypeError as error:
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UserError(f"timm's {name} cannot be built with {told} ({error})") from error
    return model


def fill(model: nn.Module, pretrained: Pretrained) -> None:
    """Put weights into a model that `build` made, all but those of its classifier.

    Raises UserError that names missing and unexpected weights, and those of other shapes.
    """
    settings = getattr(model, "pretrained_cfg", {})
    heads = settings.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)

    def body(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: w for n, w in weights.items() if not n.startswith(tuple(f"{h}." for h in heads))}

    expected, given = body(model.state_dict()), body(_weights(pretrained.path))
    fault = _misfit(expected, given)
    if fault:  # timm renames and resizes what was published in another layout
        given = body(_converted(given, model))
        if _misfit(expected, given):
            raise UserError(
                f"{pretrained.path} does not fit {pretrained.model}: {fault}; name the model that "
                "its weights are of with model=NAME, or give another file with --weights"
            )
    model.load_state_dict(given, strict=False)  # nothing but the classifier is left out


def _misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What is wrong with the given weights, in words; nothing where they fit."""
    # a counter of batches, which converted files lack, is no weight
    missing = [n for n in expected if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        name for name in given if name in expected and expected[name].shape != given[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = [
        f"{len(names)} weights are {fault} ({', '.join(names[:_SHOWN])}"
        f"{', …' if len(names) > _SHOWN else ''})"
        for fault, names in faults.items()
        if names
    ]
    return ", ".join(told)


def _converted(weights: dict[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Weights renamed by the rule that timm has for the model's family, where it has one."""
    home = sys.modules[type(model).__module__]
    rule = getattr(home, "checkpoint_filter_fn", None)
    if rule is None:
        return weights
    try:
        converted: Mapping[str, Tensor] = rule(weights, model)
        return converted
    except Exception:  # weights of something else altogether
        return weights


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, floats as float32; no code in it is run."""
    with _readable(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = _tensors(path)
        content = next((content[key] for key in _NESTED if key in content), content)
        weights = {_unwrapped(str(name)): _plain(part) for name, part in content.items()}
    broken = [n for n, w in weights.items() if w.is_floating_point() and not w.isfinite().all()]
    if broken:
        raise UserError(f"{path}: weight {broken[0]} is not finite: give a file that is whole")
    return weights


def _tensors(path: Path) -> Any:
    """What torch saved in a file, in its layout of today (a zip) or in that before 1.6."""
    with path.open("rb") as opened:
        zipped = opened.read(4) == b"PK\3\4"
    if zipped:
        return torch.load(path, map_location="cpu", weights_only=True)
    with _Bounded(io.FileIO(path), path.stat().st_size) as whole:
        return torch.load(whole, map_location="cpu", weights_only=True)


class _Bounded(io.BufferedReader):
    """A file that asks for no more memory than it has bytes, whatever length it claims inside."""

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self.size = size

    def read(self, length: int | None = -1, /) -> bytes:
        return super().read(-1 if length is None else min(length, self.size))


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _plain(part: Any) -> Tensor:
    if not isinstance(part, Tensor):
        raise TypeError(f"it holds a {type(part).__name__} among the tensors")
    if part.is_meta or part.layout is not torch.strided:
        raise TypeError("it holds a tensor without its numbers, or a sparse one")
    return part.float() if part.is_floating_point() else part


# --- features -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen model that turns images into features.

    | layer | features of an image |
    |---|---|
    | `pooled` | what the classifier of the pretraining read |
    | `block0`, `block1`, … | mean over positions of what a block gives; the last ones are deepest |
    | `block2:max` | the largest over positions |
    | `block2:4x3` | means over the cells of a grid of 4 rows by 3 columns, channel by channel |

    The same images give the same bytes, in whatever company: see `_BATCH`.
    """

    pretrained: Pretrained

    @property
    def fingerprint(self) -> str:
        """Digest of all that features depend on but the images."""
        return self.pretrained.fingerprint

    @cached_property
    def module(self) -> nn.Module:
        """The model itself, built and filled when first needed."""
        model = self.pretrained.load().to(devices.device())
        return model.to(memory_format=torch.channels_last)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The names of the middle layers, first to deepest; none where timm cannot tell them."""
        counted = getattr(self.module, "feature_info", ())
        if not hasattr(self.module, "forward_intermediates"):
            return ()
        return tuple(f"block{number}" for number in range(len(counted)))

    def features(
        self, images: np.ndarray, layers: Sequence[str] = (POOLED,)
    ) -> dict[str, np.ndarray]:
        """The layers of uint8 images (n, height, width, 1 or 3): layer -> float32 (n, features).

        Raises UserError for a layer that the model does not have.
        """
        pools = {layer: self._pool(layer) for layer in layers}
        found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
        blocks = [pools[layer][0] for layer in layers if layer != POOLED]
        with torch.inference_mode(), devices.reproducible():
            for first in range(0, max(len(images), 1), _BATCH):
                part = images[first : first + _BATCH]
                maps, pooled = self._forward(part, blocks, POOLED in layers)
                for layer, (block, pool) in pools.items():
                    answer = pooled if layer == POOLED else pool(maps[block])
                    found[layer].append(answer[: len(part)].float().cpu().numpy())
        return {layer: np.concatenate(parts) for layer, parts in found.items()}

    def cached_features(
        self, images: np.ndarray, layers: Sequence[str] = (POOLED,)
    ) -> dict[str, np.ndarray]:
        """As `features`, each layer computed once for a content of images, weights and transform.

        They are kept in the cache; of several processes one computes and the others wait.
        """
        content = blake2b(f"{images.shape}{self.fingerprint}".encode(), digest_size=16)
        content.update(np.ascontiguousarray(images).data)
        computed: dict[str, np.ndarray] = {}

        def build(layer: str) -> dict[str, np.ndarray]:
            if not computed:  # one pass gives all layers
                computed.update(self.features(images, layers))
            return {"features": computed[layer]}

        def cached(layer: str) -> np.ndarray:
            digest = content.copy()
            digest.update(layer.encode())
            key = f"features-{digest.hexdigest()}"
            return files.cached_arrays(folders.cache(), key, lambda: build(layer))["features"]

        return {layer: cached(layer) for layer in layers}

    def _forward(
        self, part: np.ndarray, blocks: Sequence[int], deepest: bool
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Maps (batch, channels, h, w) of blocks, and what the classifier would read if asked."""
        device = devices.device()
        images = np.zeros((_BATCH, *part.shape[1:]), np.uint8)
        images[: len(part)] = part
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        pixels = self.pretrained.transform(pixels).contiguous(memory_format=torch.channels_last)
        model: Any = self.module
        wanted = sorted(set(blocks))
        if not deepest:  # what comes after the last wanted block is not computed
            maps = model.forward_intermediates(
                pixels, indices=wanted, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
            return dict(zip(wanted, maps, strict=True)), pixels
        maps = ()
        if wanted:
            final, maps = model.forward_intermediates(pixels, indices=wanted, output_fmt="NCHW")
        else:
            final = model.forward_features(pixels)
        return dict(zip(wanted, maps, strict=True)), model.forward_head(final, pre_logits=True)

    def _pool(self, layer: str) -> tuple[int, Callable[[Tensor], Tensor]]:
        """The number of a layer's block, and how its map (n, c, h, w) becomes (n, features)."""
        if layer == POOLED:
            return -1, torch.flatten
        block, _, how = layer.partition(":")
        if block not in self.blocks:
            raise UserError(
                f"{self.pretrained.model} has no layer {layer!r}; there are: "
                f"{', '.join((POOLED, *self.blocks))}, and as in block1:max and block1:4x3"
            )
        return self.blocks.index(block), _pooling(layer, how)


def _pooling(layer: str, how: str) -> Callable[[Tensor], Tensor]:
    if how in ("", "mean"):
        return lambda maps: maps.mean((2, 3))
    if how == "max":
        return lambda maps: maps.amax((2, 3))
    cells = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", how)
    if cells is None:
        raise UserError(f"layer {layer!r}: after the colon stands mean, max, or a grid as in 4x3")
    rows, columns = int(cells[1]), int(cells[2])
    return lambda maps: functional.adaptive_avg_pool2d(maps, (rows, columns)).flatten(1)


def load(config: BackboneConfig) -> Backbone:
    """The backbone that the knobs ask for; UserError where there are no weights of it."""
    return Backbone(find(config))
