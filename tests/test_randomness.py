"""Streams of random numbers depend on what they are for, and on nothing that ran before."""

from __future__ import annotations

import os
import random
import threading

import numpy as np
import pytest
import torch

from kagglekit.randomness import derive, generator, isolated, seed_all


def draws() -> tuple[float, float, float]:
    """One number of each global generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_purpose_has_a_seed_of_its_own() -> None:
    purposes = [(seed, what, epoch) for seed in range(9) for what in "ab" for epoch in range(9)]
    seeds = {derive(*purpose) for purpose in purposes}
    assert len(seeds) == len(purposes)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_every_process_and_on_every_machine() -> None:
    assert derive(0, "order", 3) == 228291028133782092


def test_seeding_sets_all_three_generators() -> None:
    seed_all(2**62 + 5)
    first = draws()
    draws()
    seed_all(2**62 + 5)
    assert draws() == first
    seed_all(2**62 + 6)
    assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_an_isolated_stretch_leaves_no_trace_even_when_it_fails() -> None:
    seed_all(1)
    expected = draws()
    seed_all(1)
    inside = []
    for _ in range(2):
        try:
            with isolated(7):
                inside.append(draws())
                raise ValueError
        except ValueError:
            pass
    assert inside[0] == inside[1] != expected
    assert draws() == expected


def test_a_generator_of_one_s_own_is_not_moved_by_the_global_one() -> None:
    first = torch.rand(3, generator=generator(torch.device("cpu"), 5))
    torch.rand(9)
    assert torch.equal(torch.rand(3, generator=generator(torch.device("cpu"), 5)), first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_process_forked_amid_another_thread_s_moment_can_have_its_own() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with isolated(1):
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(30)
    threading.Timer(0.2, leave.set).start()  # the fork waits for the moment to end
    child = os.fork()
    if not child:
        with isolated(2):
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    holder.join()
