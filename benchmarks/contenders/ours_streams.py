"""kagglekit with `engine=streams`."""

from __future__ import annotations

from functools import partial

from benchmarks.contenders import ours

run = partial(ours.run, engine="streams")
