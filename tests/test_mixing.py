"""A mix is fitted on OOF answers, honestly chosen, and loses to no part by more than noise."""

from __future__ import annotations

import numpy as np
import pytest

from kagglekit import metrics, mixing
from kagglekit.data import Dependence
from kagglekit.decisions import most_probable
from kagglekit.errors import UserError
from kagglekit.mixing import Judge, Task, weights

RNG = np.random.default_rng


def noisy(target: np.ndarray, *deviations: float) -> np.ndarray:
    rng = RNG(1)
    return np.stack([target + s * rng.standard_normal(target.shape) for s in deviations])


def test_weights_are_shares() -> None:
    target = RNG(0).standard_normal((200, 3))
    found = weights(noisy(target, 1.0, 2.0, 0.5), target)
    assert found.shape == (3, 3)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(0), 1)


def test_a_blend_is_no_worse_than_its_best_part() -> None:
    target = RNG(0).standard_normal((200, 2))
    answers = noisy(target, 1.0, 0.7, 3.0)
    blended = np.einsum("rno,ro->no", answers, weights(answers, target))
    best = ((answers - target) ** 2).mean(1).min(0)
    assert (((blended - target) ** 2).mean(0) <= best + 1e-9).all()


def test_independent_errors_weigh_by_inverse_variance() -> None:
    target = RNG(0).standard_normal((20000, 1))
    found = weights(noisy(target, 1.0, 2.0), target)
    np.testing.assert_allclose(found[:, 0], [0.8, 0.2], atol=0.02)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_weights_do_not_depend_on_units(scale: float) -> None:
    target = RNG(0).standard_normal((100, 1))
    answers = noisy(target, 1.0, 1.5)
    np.testing.assert_allclose(weights(answers * scale, target * scale), weights(answers, target))


def test_a_perfect_part_takes_it_all() -> None:
    target = RNG(0).standard_normal((50, 1))
    np.testing.assert_array_equal(weights(noisy(target, 0.0, 1.0), target)[:, 0], [1, 0])


def softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


def classified(seed: int, rows: int = 250, parts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(parts, rows, classes) probabilities of models of unlike skill, and the classes."""
    rng = RNG(seed)
    target = rng.integers(0, 3, rows)
    skill = rng.uniform(0.3, 2.0, parts)
    signal = skill[:, None, None] * np.eye(3)[target]
    noise = rng.standard_normal((rows, 3)) + rng.standard_normal((parts, rows, 3))
    return softmax(signal + noise * rng.uniform(0.3, 1.2)), target


def fitted(seed: int, rows: int = 250, parts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(parts, rows, 1) numbers with common and own errors, some biased, and the target."""
    rng = RNG(seed)
    target = rng.standard_normal((rows, 1))
    common = 0.3 * rng.standard_normal((rows, 1))
    own = rng.uniform(0.1, 1.5, parts)[:, None, None] * rng.standard_normal((parts, rows, 1))
    return target + common + own + rng.choice([0, 0, 0.4], parts)[:, None, None], target


def cross_fitted(task: Task, folds: int = 3) -> np.ndarray:
    """Each fold's rows, mixed as the others say."""
    fold = np.arange(len(task.target)) % folds
    mixed = np.zeros(task.answers.shape[1:])
    for number in range(folds):
        state = mixing.fit(task.of(np.flatnonzero(fold != number)))
        mixed[fold == number] = mixing.apply(state, task.answers[:, fold == number])
    return mixed


def lost(one: np.ndarray, other: np.ndarray) -> float:
    """How many standard errors the mean loss of one is above the other's."""
    apart = one - other
    error = apart.std(ddof=1) / np.sqrt(len(apart))
    return float(apart.mean() / error) if error else 0.0


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_in_twenty_tasks_a_cross_fitted_blend_never_loses_by_more_than_noise(kind: str) -> None:
    losses = []
    for seed in range(20):
        if kind == "classes":
            answers, target = classified(seed, rows=400)
            task = Task(answers, target, Judge(metrics.log_loss), bags=2, rounds=5)
            by_row = -np.log(np.take_along_axis(answers, target[None, :, None], 2)[..., 0])
            mixed = -np.log(cross_fitted(task)[np.arange(len(target)), target])
        else:
            answers, target = fitted(seed)
            task = Task(answers, target, Judge(metrics.rmse), bags=2, rounds=5)
            by_row = ((answers - target) ** 2)[..., 0]
            mixed = ((cross_fitted(task) - target) ** 2)[:, 0]
        losses.append(lost(mixed, by_row[by_row.mean(1).argmin()]))
    assert sum(one > 2 for one in losses) <= 1
    assert np.median(losses) < 0  # and it is not for nothing: mostly it wins


def test_greedy_selection_finds_the_parts_that_complement_each_other() -> None:
    target = RNG(0).standard_normal((2000, 1))
    error = RNG(1).standard_normal((2000, 1))
    opposed = np.stack([target + error, target - error, target + 1.5 * error])
    state = mixing.fit(Task(opposed, target, Judge(metrics.rmse)), "greedy")
    np.testing.assert_allclose(state["weights"][:, 0], [0.5, 0.5, 0], atol=0.05)


def test_greedy_selection_is_by_the_metric_of_the_competition() -> None:
    answers, target = classified(3)
    sharp = answers.copy()
    sharp[1] = np.eye(3)[target]  # all right, but one answer costs log loss everything
    sharp[1][0] = np.eye(3)[(target[0] + 1) % 3]
    by_accuracy = mixing.fit(Task(sharp, target, Judge(metrics.accuracy, most_probable)), "greedy")
    assert by_accuracy["weights"][:, 0].argmax() == 1


def test_without_any_score_greedy_selection_takes_all_parts_alike() -> None:
    target = np.zeros(20, np.int64)  # one class alone, as in a bag without the scarce one
    parts = RNG(0).random((3, 20, 1))
    learned = mixing.fit(Task(parts, target, Judge(metrics.roc_auc)), "greedy")["weights"]
    np.testing.assert_allclose(learned, 1 / 3)


def test_a_decision_that_is_fitted_does_not_choose_the_mix() -> None:
    def lucky(target: np.ndarray, answers: np.ndarray) -> mixing.Decision:
        raise AssertionError("a decision fitted to the rows it is judged on")

    answers, target = classified(0, 60)
    mixing.fit(Task(answers, target, Judge(metrics.macro_f1, lucky), bags=2, rounds=3))


def test_ranks_do_not_ask_how_answers_are_spread() -> None:
    answers, target = classified(1)
    task = Task(answers[:, :, :1], (target == 0).astype(int), Judge(metrics.roc_auc))
    bent = Task(answers[:, :, :1] ** 5, task.target, task.judge)
    mixed = [mixing.apply(mixing.fit(one, "ranks"), one.answers) for one in (task, bent)]
    np.testing.assert_allclose(*mixed, atol=2e-3)
    assert (mixed[0] >= 0).all()
    assert (mixed[0] <= 1).all()


@pytest.mark.parametrize("method", ["single", "mean", "geometric", "greedy", "stack"])
def test_mixed_probabilities_are_probabilities(method: str) -> None:
    answers, target = classified(2)
    mixed = mixing.apply(mixing.fit(Task(answers, target), method), answers)
    np.testing.assert_allclose(mixed.sum(1), 1)
    assert (mixed >= 0).all()


def test_a_stack_mends_a_bias_that_no_mean_can() -> None:
    target = RNG(0).standard_normal((500, 1))
    answers = np.stack([2 * target + 1, 2 * target + 1.1])
    state = mixing.fit(Task(answers, target))
    assert str(state["method"]) == "stack"
    np.testing.assert_allclose(mixing.apply(state, answers), target, atol=0.01)


def test_masks_are_mixed_too() -> None:
    masks = RNG(0).random((2, 12, 4, 4))
    target = masks[0] > 0.5
    state = mixing.fit(Task(masks, target.astype(float), bags=1, rounds=2))
    assert mixing.apply(state, masks).shape == (12, 4, 4)
    with pytest.raises(UserError, match="method=stack cannot mix"):
        mixing.fit(Task(masks, target.astype(float)), "stack")


def test_what_was_learned_is_known_by_its_shape() -> None:
    answers, target = classified(0, 90)
    for method in ("mean", "ranks", "stack"):
        state = mixing.fit(Task(answers, target), method)
        assert mixing.fits(state, 3, (3,))
        assert not mixing.fits(state, 4, (3,))
        assert not mixing.fits(state, 3, (2,))
    assert not mixing.fits({}, 3, (3,))


def test_rows_of_a_group_are_never_apart_where_the_method_is_chosen() -> None:
    answers, target = fitted(0, rows=60)
    groups = RNG(1).integers(0, 12, 60)
    task = Task(answers, target, Judge(metrics.rmse), Dependence(groups=groups))
    folds = mixing._choosing_folds(task)
    for own, held in folds:
        assert not set(groups[own]) & set(groups[held])
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(60))
    alone = Task(answers, target, Judge(metrics.rmse), Dependence(groups=np.zeros(60, int)))
    assert mixing.choose(alone) in mixing.METHODS


def test_a_method_is_chosen_by_mixes_of_what_came_before() -> None:
    answers, target = fitted(0, rows=60)
    moments = RNG(1).permutation(60) // 2
    task = Task(answers, target, Judge(metrics.rmse), Dependence(moments=moments))
    for own, held in mixing._choosing_folds(task):
        assert moments[own].max() < moments[held].min()
    assert sum(len(held) for _, held in mixing._choosing_folds(task)) > 40
    once = Task(answers, target, Judge(metrics.rmse), Dependence(moments=np.zeros(60, int)))
    assert mixing.choose(once) in mixing.METHODS


def moody(seed: int, folds: int, rows: int = 600) -> tuple[Task, np.ndarray]:
    """Two runs' answers: each fold's model leans to classes of its own; and each row's fold."""
    rng = RNG(seed)
    target, fold = rng.integers(0, 3, rows), rng.integers(0, folds, rows)
    lean = 2 * rng.standard_normal((2, folds, 3))[:, fold]
    logits = 1.5 * np.eye(3)[target] + lean + rng.standard_normal((2, rows, 3))
    judge = Judge(metrics.accuracy, most_probable)
    return Task(softmax(logits), target, judge, Dependence(folds=fold), bags=2, rounds=5), fold


@pytest.mark.parametrize("folds", [2, 5])
def test_no_mix_is_chosen_that_suits_one_model_and_not_the_next(folds: int) -> None:
    for seed in range(2, 6):
        task, fold = moody(seed, folds)
        right = []
        for number in range(folds):
            own, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            seen = task.answers[:, held]
            mixed = (mixing.apply(mixing.fit(task.of(own)), seen), seen.mean(0))
            right += [[part.argmax(1) == task.target[held] for part in mixed]]
        chosen, mean = np.concatenate(right, axis=1)
        assert lost(mean, chosen.astype(float)) < 2


def test_the_models_that_answer_are_apart_where_the_method_is_chosen() -> None:
    task, fold = moody(0, 3)
    for own, held in mixing._choosing_folds(task):
        assert not set(fold[own]) & set(fold[held])
    moments = Dependence(moments=np.arange(600), folds=np.arange(600) // 200)
    forward = mixing._choosing_folds(Task(task.answers, task.target, dependence=moments))
    assert [(own.max(), held.min()) for own, held in forward] == [(199, 200), (399, 400)]


def test_a_method_that_beats_the_mean_by_noise_alone_is_not_taken() -> None:
    methods = []
    for seed in range(20):
        target = RNG(seed).standard_normal((80, 1))
        alike = target + 0.1 * RNG(seed + 100).standard_normal((3, 80, 1))
        task = Task(alike, target, Judge(metrics.rmse), bags=2, rounds=5)
        methods.append(str(mixing.fit(task)["method"]))
    assert methods.count("mean") >= 18


def test_ranks_are_tried_where_the_order_of_answers_is_all_that_counts() -> None:
    answers, target = classified(0)
    by_order = Task(answers[:, :, 1:2], (target == 1).astype(int), Judge(metrics.roc_auc))
    assert "ranks" in mixing._candidates(by_order)
    for judge in (Judge(metrics.accuracy, most_probable), Judge(metrics.log_loss), Judge()):
        assert "ranks" not in mixing._candidates(Task(answers, target, judge))
