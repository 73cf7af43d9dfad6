"""The knobs of a run, and how the command line turns them."""

from __future__ import annotations

import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]


def knob(
    default: Any,
    help: str,
    least: float | None = None,
    most: float | None = None,
    hashed: bool = True,
) -> Any:
    """A dataclass field with a sentence of help and, for numbers, its legal range.

    `hashed=False` marks a knob that leaves every answer unchanged: two runs that differ only in
    it are the same run.
    """
    return field(
        default=default, metadata={"help": help, "least": least, "most": most, "hashed": hashed}
    )


def _spare_cores() -> int:
    """Cores that may read for the one that trains: 2 at least, and no more than a GPU wants."""
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own else os.cpu_count() or 1
    return int(min(max(cores - 1, 2), 12))


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every recipe can vary. Subclass it to add knobs; each is set by `key=value`."""

    folds: int = knob(5, "folds of the cross-validation", least=2)
    folds_file: str = knob("", "CSV of `id,fold` that replaces the competition's own folds")
    seed: int = knob(
        0, "seed of folds, initial weights, row order and augmentation", least=0, most=2**31 - 1
    )
    final: Literal["members", "refit"] = knob(
        "members", "test answers: mean over the folds' models, or one more fit on all rows"
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config):
    """The knobs of a recipe that trains a torch model by gradient descent."""

    epochs: int = knob(10, "passes over the training rows", least=1)
    min_steps: int = knob(0, "raise `epochs` until there are at least so many steps", least=0)
    batch_size: int = knob(256, "rows a step", least=1)
    min_batches: int = knob(
        1,
        "smaller batches (16 rows at least) where an epoch would have fewer than so many",
        least=1,
    )
    sampling: Literal["shuffled", "balanced"] = knob(
        "shuffled", "rows of an epoch: each once, or of every class equally many"
    )
    accumulate: int = knob(1, "batches whose gradients are averaged before a step", least=1)
    optimizer: Literal["adamw", "sgd", "muon"] = knob("adamw", "AdamW, Nesterov SGD or Muon")
    lr: float = knob(1e-3, "peak learning rate", least=0)
    adamw_lr: float = knob(
        1e-3, "Muon only: AdamW's peak rate, for vectors and the first and last layer", least=0
    )
    weight_decay: float = knob(1e-2, "decoupled weight decay (SGD: L2 penalty)", least=0)
    momentum: float = knob(0.9, "momentum of SGD and Muon", least=0, most=1)
    schedule: Literal["cosine", "onecycle", "constant"] = knob(
        "cosine", "learning rate after warm-up: cosine to zero, one cycle, or constant"
    )
    warmup: float = knob(0.05, "share of all steps over which the rate rises", least=0, most=1)
    clip_norm: float = knob(0.0, "largest gradient norm; 0 = no clipping", least=0)
    ema: float = knob(0.0, "decay of the averaged weights that answer; 0 = none", least=0, most=1)
    label_smoothing: float = knob(0.0, "share spread evenly over all classes", least=0, most=1)
    mixup: float = knob(0.0, "alpha of mixup's Beta distribution; 0 = none", least=0)
    dropout: float = knob(0.0, "dropout, where the model has any", least=0, most=1)
    precision: Precision = knob("auto", "bf16, fp16 or fp32; auto = the fastest that is safe")
    channels_last: bool = knob(True, "keep images channels-last in memory")
    compile: Literal["auto", "on", "off"] = knob("auto", "torch.compile; auto = when it pays")
    engine: Literal["auto", "stacked", "streams", "solo"] = knob(
        "auto",
        "train members in lock step (stacked), side by side (streams) or one by one (solo); auto = "
        "as a short trial says",
        hashed=False,
    )
    data: Literal["auto", "resident", "streamed"] = knob(
        "auto", "keep all rows on the device, or stream them from worker processes"
    )
    workers: int = knob(
        _spare_cores(),
        "worker processes of streamed data, if nothing is said one for each core but one, 2…12",
        least=0, hashed=False,
    )  # fmt: skip
    patience: int = knob(
        0, "stop after so many epochs without gain on rows held out of training; 0 = never", least=0
    )
    holdout: float = knob(
        0.1, "share of the training rows that `patience` and `polish` watch", least=0.001, most=0.9
    )
    polish: int = knob(0, "steps of the second-order phase after the last epoch; 0 = none", least=0)
    polish_method: Literal["lbfgs", "gauss_newton"] = knob(
        "lbfgs", "method of `polish`: L-BFGS, or Gauss-Newton for squared errors"
    )
    tta: bool = knob(True, "average the recipe's views when predicting")
    views: Literal["all", "auto"] = knob(
        "all", "views that are averaged: all, or (auto) those that help OOF answers"
    )
    tta_mean: Literal["probabilities", "geometric", "logits"] = knob(
        "probabilities", "how the views' answers are averaged"
    )
    score_every: int = knob(
        1, "epochs between two scores of the live table; 0 = none", least=0, hashed=False
    )
    checkpoint_seconds: int = knob(
        30, "seconds between two checkpoints of a member", least=0, hashed=False
    )


C = TypeVar("C", bound=Config)

_LARGEST = 2**53  # whole numbers up to here are the same as int, float and JSON

_WORDS = {
    True: {"true", "yes", "on", "1"},
    False: {"false", "no", "off", "0"},
}


def override(config: C, assignments: Iterable[str]) -> C:
    """`config` with each "key=value" applied, typed as the field it replaces.

    Raises UserError for an unknown key (with the nearest known one), a value of the wrong type or
    out of range, an assignment without "=", or a key given twice.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"{assignment!r} is no assignment: write key=value, as in epochs=20")
        if key in changes:
            raise UserError(f"{key!r} is given twice: keep one of them")
        changes[key] = _parse(config, key, text)
    return replace(config, **changes)


def load(kind: type[C], saved: Mapping[str, Any]) -> C:
    """A config of `kind` from the JSON that `asdict` gave.

    Unknown keys, values of another type than the knob's and values out of range raise UserError.
    """
    if not isinstance(saved, Mapping):
        raise UserError(f'knobs are a JSON object, as in {{"epochs": 20}}, and no {_kind(saved)}')
    config = kind()
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in saved.items():
        item = _field(config, key)
        values[key] = _in_range(item, _from_json(hints[key], key, value), f"{key}={value}")
    return replace(config, **values)


def hashed(config: Config) -> dict[str, Any]:
    """The knobs on which answers depend."""
    names = {item.name for item in fields(config) if item.metadata.get("hashed", True)}
    return {name: value for name, value in asdict(config).items() if name in names}


def describe(config: Config) -> list[tuple[str, Any, str]]:
    """(name, value, help) of every knob."""
    return [
        (item.name, getattr(config, item.name), item.metadata.get("help", ""))
        for item in fields(config)
    ]


def typed(value: Any) -> str:
    """A knob's value as one types it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _field(config: Config, key: str) -> Any:
    known = {item.name: item for item in fields(config)}
    if key not in known:
        near = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
        raise UserError(f"unknown key {key!r}{hint}")
    return known[key]


def _parse(config: Config, key: str, text: str) -> Any:
    item = _field(config, key)
    kind = get_type_hints(type(config))[key]
    return _in_range(item, _typed(kind, key, text.strip()), f"{key}={text}")


def _in_range(item: Any, value: Any, shown: str) -> Any:
    """`value`, whose numbers are in the range of the knob; `shown` is how an error calls it."""
    least, most = item.metadata.get("least"), item.metadata.get("most")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, str) or number is None:
            continue
        if least is not None and not number >= least:
            raise UserError(f"{shown} is too small: the least is {least:g}")
        if most is not None and not number <= most:
            raise UserError(f"{shown} is too large: the most is {most:.15g}")
    return value


def _from_json(kind: Any, key: str, value: Any) -> Any:
    """The JSON `value` of a knob annotated `kind`, held to the rules of what is typed."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (part for part in arguments if part is not type(None))
        return _from_json(kind, key, value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_from_json(arguments[0], key, part) for part in value)
    wanted = str if origin is Literal else kind
    whole = wanted is float and type(value) is int  # JSON writes 1.0 as it likes
    if type(value) is not wanted and not whole:
        name = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise UserError(f"{key} wants {name.get(wanted, 'a list')}, and is {_kind(value)}")
    return value if wanted is str and origin is not Literal else _typed(kind, key, str(value))


def _kind(value: Any) -> str:
    """How an error calls the type of a JSON value."""
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")


def _typed(kind: Any, key: str, text: str) -> Any:
    """`text` as a value of the annotation `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        (kind,) = (part for part in arguments if part is not type(None))
        return _typed(kind, key, text)
    if origin is Literal:
        if text in arguments:
            return text
        near = get_close_matches(text, arguments, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{key}={text} is none of {', '.join(map(str, arguments))}{hint}")
    if origin is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(_typed(arguments[0], key, part) for part in parts)
    return _scalar(kind, key, text)


def _scalar(kind: type, key: str, text: str) -> Any:
    if kind is bool:
        for value, words in _WORDS.items():
            if text.lower() in words:
                return value
        raise UserError(f"{key}={text} wants true or false")
    try:
        value = kind(text)
    except ValueError:
        example = {int: "a whole number, as in 3", float: "a number, as in 3e-4"}
        raise UserError(f"{key}={text} wants {example.get(kind, kind.__name__)}") from None
    if kind is float and not abs(value) < float("inf"):
        raise UserError(f"{key}={text} wants a finite number")
    if kind is int and abs(value) > _LARGEST:
        raise UserError(f"{key}={text} is too large: no knob takes more than {_LARGEST}")
    return value
