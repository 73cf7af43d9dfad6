"""The command line: what a user types, and what comes back."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from . import __version__, signals
from .errors import KagglekitError, UserError
from .secrecy import hide

Json = dict[str, Any]


@dataclass(frozen=True)
class _Outcome:
    """What a verb found out: the JSON of it, and how people see it."""

    result: Json
    kind: str  # how `display` shows it
    shown: Any = None  # what `display` shows, where that is not the JSON
    code: int = 0


_DESCRIPTION = """\
From a Kaggle download to a checked submission: cross-validation, test-time augmentation,
submission CSV, leaderboard. Positionals say what, key=value says with what.
"""
_EPILOG = """\
examples:
  kagglekit list                                    what there is
  kagglekit train fit_1d                            the default recipe
  kagglekit train mics_mnist cnn epochs=20 lr=3e-3  another one, with other knobs
  kagglekit leaderboard mics_mnist                  what came out
  kagglekit compare mics_mnist RUN_A RUN_B          which is better, and how surely
  kagglekit report mics_mnist                       the best run as a page: errors, pictures, cost
  kagglekit submit mics_mnist                       sends the best run to Kaggle, once
  kagglekit runs                                    what is unfinished, and how to go on
  kagglekit certify fit_1d                          kills a short run again and again: same bytes?

exit codes: 0 done; 1 a bug of ours; 2 the input is at fault; 3 outcome unknown;
4 network or Kaggle; 130, 143 interrupted, the same command goes on
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    _share_cores()
    try:
        with signals.handled():
            return _run(typed)
    except KagglekitError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        what = "terminated" if number == signal.SIGTERM else "interrupted"
        return _complain(f"{what}{_how_to_go_on(typed)}", 128 + number)
    except BrokenPipeError:  # the reader has seen enough, as in `kagglekit list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from .files import explain

        sentence = explain(error)
        return _show_bug(error) if sentence is None else _complain(sentence, 2)
    except Exception as error:
        return _show_bug(error)


def _share_cores() -> None:
    """Let threads that wait for each other sleep soon, before torch is loaded and reads this.

    By default they spin for milliseconds. Where other programs want the cores too, that keeps the
    very thread that is waited for from running: `benchmarks/busy_cores.py`.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _run(typed: list[str]) -> int:
    if not typed:
        _parser().print_help()
        return 0
    options = _parse(typed)
    options.command = hide(shlex.join(["kagglekit", *typed]))
    if options.competitions:
        os.environ["KAGGLEKIT_COMPETITIONS"] = options.competitions
    if getattr(options, "weights", None):
        os.environ["KAGGLEKIT_WEIGHTS"] = os.path.abspath(options.weights.expanduser())
    # a competition's own prints must not come before the JSON document
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        outcome: _Outcome = options.run(options)
    _print(outcome, options.json)
    return outcome.code


def _print(outcome: _Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.result, indent=2, allow_nan=False), flush=True)
        return
    from . import display

    display.show(outcome.kind, outcome.result if outcome.shown is None else outcome.shown)


def _how_to_go_on(typed: Sequence[str]) -> str:
    if typed[:1] not in (["train"], ["submit"], ["download"]):
        return ""
    again = shlex.join(["kagglekit", *(text for text in typed if text != "--fresh")])
    return f": `{again}` goes on where this stopped"


def _complain(sentence: str, code: int) -> int:
    # a file's own words may be in it, and no control character of theirs may reach the terminal
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in hide(sentence))
    print(f"kagglekit: {shown}", file=sys.stderr)
    return code


def _show_bug(error: Exception) -> int:
    """A traceback that starts at the competition's own code, where that is to blame."""
    from .folders import competitions

    home = str(competitions().resolve()) + os.sep
    if isinstance(error, SyntaxError) and str(error.filename).startswith(home):
        return _show(traceback.format_exception(error.with_traceback(None), chain=False))
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(home):
        trace = trace.tb_next
    return _show(traceback.format_exception(type(error), error, trace or error.__traceback__))


def _show(trace: list[str]) -> int:
    print(hide("".join(trace)), end="", file=sys.stderr)
    return 1


# --- what can be typed --------------------------------------------------------------------------


def _parse(typed: list[str]) -> argparse.Namespace:
    """The options; recipe, key=value and runs may stand anywhere, also after options."""
    options, rest = _parser().parse_known_args(typed)
    strangers = [text for text in rest if text.startswith("-")]
    many = next((name for name in ("assignments", "runs") if hasattr(options, name)), None)
    if strangers or (rest and many is None):
        raise UserError(
            f"{_name((strangers or rest)[0])!r} is not known to `kagglekit {options.verb}`; "
            "see --help"
        )
    if many is not None:
        setattr(options, many, [*getattr(options, many), *rest])
    return options


def _name(typed: str) -> str:
    """What stands before the =, because what stands after it may be a secret."""
    return typed.partition("=")[0]


class _Parser(argparse.ArgumentParser):
    """argparse that complains in one sentence."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            near = get_close_matches(str(value), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise UserError(f"there is no verb {value!r}; {hint}")


class _Verbs:
    """The verbs of the command, in the order in which the help lists them."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        self._shared = _Parser(add_help=False)
        self._shared.add_argument(
            "--json", action="store_true", help="one JSON document on stdout, no more"
        )
        self._shared.add_argument(
            "--competitions", metavar="DIR",
            help="folder of competitions (default: $KAGGLEKIT_COMPETITIONS, else ./competitions)",
        )  # fmt: skip

    def add(self, name: str, run: Callable[[Any], _Outcome], help: str) -> argparse.ArgumentParser:
        """A verb with the options that all have, and what it does."""
        made = self._verbs.add_parser(name, help=help, description=help, parents=[self._shared])
        made.set_defaults(run=run)
        return made

    def of(self, name: str, run: Callable[[Any], _Outcome], help: str) -> argparse.ArgumentParser:
        """The same of a verb whose first argument is a competition."""
        made = self.add(name, run, help)
        made.add_argument("name", help="the competition")
        return made


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "kagglekit", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"kagglekit {__version__}")
    verbs = _Verbs(parser)
    listed = verbs.add(
        "list", _list, "competitions, their recipes, whether data is here, best score"
    )
    listed.add_argument("name", nargs="?", help="show this competition's recipes with their knobs")
    _add_train(
        verbs.add("train", _train, "train a recipe: cross-validation, submission, leaderboard")
    )
    _add_kaggle(verbs)
    _add_certify(
        verbs.add("certify", _certify, "prove that a run killed anywhere ends with its bytes")
    )
    _add_predict(verbs.of("predict", _predict, "let a finished run answer another test set"))
    leaks = verbs.of("leaks", _leaks, "copies, groups and shortcuts that make a CV score too good")
    _add_data(leaks)
    _add_weights(leaks)
    _add_notebook(
        verbs.of("notebook", _notebook, "a run as an offline Kaggle notebook with its dataset")
    )
    _add_deciding(verbs)
    _add_upkeep(verbs)
    verbs.add("doctor", _doctor, "what is here, what is missing, and what to do about it")
    return parser


def _add_kaggle(verbs: _Verbs) -> None:
    """The verbs that talk to Kaggle."""
    fetched = verbs.of(
        "download", _download, "bring Kaggle's files here: resumed, checked, unpacked"
    )
    fetched.add_argument("--slug", metavar="S", help="its name on Kaggle this year")
    _add_submit(verbs.of("submit", _submit, "send a run's answers to Kaggle, at most once"))
    sent = verbs.of("submissions", _submissions, "what was sent: scores, status, quota left today")
    sent.add_argument("--slug", metavar="S", help="its name on Kaggle this year")


def _add_deciding(verbs: _Verbs) -> None:
    """The verbs that look at finished runs."""
    _add_leaderboard(verbs.add("leaderboard", _leaderboard, "runs with their scores, best first"))
    compared = verbs.of("compare", _compare, "which of several runs is better, and how surely")
    compared.add_argument(
        "runs", nargs="*", default=[], metavar="RUN", help="two runs or more, to compare"
    )
    _add_data(compared)
    mixed = verbs.of("blend", _blend, "mix finished runs into one of its own, scored honestly")
    mixed.add_argument(
        "assignments", nargs="*", default=[], metavar="RUN key=value",
        help="the runs (default: all that compare with the best), and knobs, as in method=greedy",
    )  # fmt: skip
    _add_data(mixed)
    reported = verbs.of("report", _report, "one HTML page of a run: scores, errors, pictures, cost")
    reported.add_argument("which", nargs="?", metavar="RUN", help="a run (default: the best by CV)")
    verbs.add("board", _board, "one HTML page of all runs, which links their reports")


def _add_upkeep(verbs: _Verbs) -> None:
    """The verbs that look after runs and practice data."""
    unfinished = verbs.add(
        "runs", _runs, "unfinished runs: how far, who is at it, what goes on with it"
    )
    unfinished.add_argument("name", nargs="?", help="one competition only")
    unfinished.add_argument("--all", action="store_true", help="finished and set-aside ones too")
    _add_clean(verbs.add("clean", _clean, "free disk space: shows what can go, and asks"))
    practice = verbs.of("practice", _practice, "write offline stand-in data")
    practice.add_argument("kind", nargs="?", help="which practice data, where there are several")
    served = verbs.of("practice-server", _practice_server, "Kaggle in a box, for practice data")
    served.add_argument("--port", type=_port, default=8765, metavar="N", help="where it listens")
    served.add_argument("--limit", type=_positive, default=5, metavar="N", help="submissions a day")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of Kaggle's download")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", metavar="RUN", help="the run, or the beginning of its name")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the test set")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV to write")
    _add_weights(parser)


def _add_notebook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", nargs="?", metavar="RUN", help="the run (default: the best)")
    parser.add_argument(
        "--user", metavar="NAME", help="yours on Kaggle (default: of the credentials)"
    )


def _add_wanted(parser: argparse.ArgumentParser) -> None:
    """What is trained, by `train` and `certify` alike."""
    parser.add_argument("name", help="the competition")
    parser.add_argument(
        "assignments", nargs="*", default=[], metavar="RECIPE key=value",
        help="the recipe (default: the competition's first), and knobs to change",
    )  # fmt: skip
    _add_data(parser)
    parser.add_argument("--seeds", type=_positive, default=1, metavar="N", help="seeds a fold")
    parser.add_argument("--folds", type=_numbers, metavar="0,1", help="train these folds only")
    parser.add_argument("--rows", type=_positive, metavar="N", help="a subset, for a quick look")
    _add_weights(parser)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", type=Path, metavar="PATH",
        help="pretrained weights: a file, or a folder of them (default: $KAGGLEKIT_WEIGHTS)",
    )  # fmt: skip


def _add_certify(parser: argparse.ArgumentParser) -> None:
    _add_wanted(parser)
    parser.add_argument(
        "--kills", type=_positive, default=20, metavar="N",
        help="kills; from 20 on at least 4 in every stage",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the moments (default: 0)"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_wanted(parser)
    parser.add_argument("--fresh", action="store_true", help="ignore caches and earlier runs")
    parser.add_argument(
        "--force-resume", action="store_true",
        help="go on with an unfinished run although source or library versions differ; noted",
    )  # fmt: skip
    parser.add_argument("--slug", metavar="S", help="the competition's name on Kaggle this year")


def _add_leaderboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one competition only")
    parser.add_argument("--rebuild", action="store_true", help="read all run folders again")
    parser.add_argument("--sort", metavar="COLUMN", help="by cv, seconds, recipe, public_lb, …")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="COLUMN=VALUE",
        help="these runs only: recipe=cnn*, cv>0.99, practice=no; may be repeated",
    )  # fmt: skip
    parser.add_argument("--csv", action="store_true", help="CSV on stdout, every column")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "which", nargs="?", metavar="RUN|FILE",
        help="a run, the beginning of its name, or a CSV (default: the best run by CV)",
    )  # fmt: skip
    _add_data(parser)
    parser.add_argument("--slug", metavar="S", help="the competition's name on Kaggle this year")
    parser.add_argument("--again", action="store_true", help="also what Kaggle has already")
    parser.add_argument("--yes", action="store_true", help="send without asking")
    parser.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, default=None,
        help="wait for the score (default: on a terminal)",
    )  # fmt: skip


def _add_clean(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one competition only, and none of the caches")
    parser.add_argument(
        "runs", nargs="*", default=[], metavar="RUN", help="these runs, also finished ones"
    )
    parser.add_argument("--unfinished", action="store_true", help="unfinished runs too")
    parser.add_argument(
        "--older-than",
        type=_days,
        default=0.0,
        metavar="DAYS",
        help="what is unchanged for so long",
    )
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return value


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return value


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: it goes from 1 to 65535")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of fold numbers, as in 0,1")
    return tuple(sorted({int(part) for part in parts}))


# --- what is done -------------------------------------------------------------------------------


def _recipe_and_knobs(options: argparse.Namespace) -> tuple[str | None, tuple[str, ...]]:
    if "=" in options.name:
        raise UserError(
            f"{options.name!r} stands where the competition's name should: "
            f"kagglekit {options.verb} NAME [RECIPE] key=value"
        )
    recipes = [text for text in options.assignments if "=" not in text]
    if len(recipes) > 1:
        raise UserError(f"{recipes[1]!r} is neither a recipe nor key=value; one recipe at a time")
    knobs = tuple(text for text in options.assignments if "=" in text)
    return (recipes[0] if recipes else None), knobs


def _train(options: argparse.Namespace) -> _Outcome:
    recipe, knobs = _recipe_and_knobs(options)
    from . import pipeline

    request = pipeline.Request(
        name=options.name,
        recipe=recipe,
        assignments=knobs,
        data=options.data,
        seeds=options.seeds,
        folds=options.folds,
        rows=options.rows,
        fresh=options.fresh,
        force_resume=options.force_resume,
        slug=options.slug,
        weights=options.weights,
        command=options.command,
    )
    return _Outcome(pipeline.train(request, _progress()), "summary")


def _certify(options: argparse.Namespace) -> _Outcome:
    recipe, knobs = _recipe_and_knobs(options)
    from . import certify, display

    request = certify.Request(
        name=options.name,
        recipe=recipe,
        assignments=knobs,
        data=options.data,
        seeds=options.seeds,
        folds=options.folds,
        rows=options.rows,
        kills=options.kills,
        seed=options.seed,
        weights=options.weights,
    )
    with display.ticker() as tell:
        certificate = certify.certify(request, tell)
    return _Outcome(certificate, "certificate", code=0 if certificate["equal"] else 1)


def _predict(options: argparse.Namespace) -> _Outcome:
    from . import pipeline

    question = pipeline.Question(
        options.name, options.which, options.data, options.out, options.weights
    )
    with pipeline.visiting(options.command), _progress() as progress:
        return _Outcome(pipeline.predict(question, progress), "prediction")


def _leaks(options: argparse.Namespace) -> _Outcome:
    from . import leaks, pipeline

    request = leaks.Request(options.name, options.data, options.weights)
    with pipeline.visiting(options.command), _progress() as progress:
        return _Outcome(leaks.examine(request, progress), "leaks")


def _notebook(options: argparse.Namespace) -> _Outcome:
    from . import notebook

    return _Outcome(notebook.write(options.name, options.which, options.user), "notebook")


def _download(options: argparse.Namespace) -> _Outcome:
    from . import display, downloading

    with display.ticker() as tell:
        result = downloading.download(options.name, options.slug, options.command, tell)
    return _Outcome(result, "downloaded")


def _submit(options: argparse.Namespace) -> _Outcome:
    from . import display, submitting

    request = submitting.Request(
        name=options.name,
        which=options.which,
        data=options.data,
        slug=options.slug,
        again=options.again,
        wait=_on_terminal() if options.wait is None else options.wait,
        command=options.command,
    )
    with display.ticker() as tell:

        def agreed(plan: submitting.Plan) -> bool:
            with tell.hidden():
                return _agreed_to_send(plan, options)

        return _Outcome(submitting.submit(request, agreed, tell), "submitted")


def _agreed_to_send(plan: Any, options: argparse.Namespace) -> bool:
    """Whether a submission may be spent; a script says so with --yes."""
    from . import display

    if options.json or options.yes:
        display.warn(plan.notes)
    else:
        display.show("spending", plan)
    if options.yes:
        return True
    if options.json or not _on_terminal():
        raise UserError(f"nothing was sent; `{options.command} --yes` sends it without asking")
    return _agreed("Send it?")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _submissions(options: argparse.Namespace) -> _Outcome:
    from . import display, submitting

    with display.ticker() as tell:
        return _Outcome(submitting.submissions(options.name, options.slug, tell), "submissions")


def _list(options: argparse.Namespace) -> _Outcome:
    from . import overview

    if options.name:
        return _Outcome(overview.recipes(options.name), "recipes")
    return _Outcome(overview.competitions(), "competitions")


def _leaderboard(options: argparse.Namespace) -> _Outcome:
    from . import overview

    if options.csv and options.json:
        raise UserError("--csv and --json are two formats: ask for one of them")
    result = overview.leaderboard(options.name, options.rebuild, options.sort, options.filter)
    return _Outcome(result, "csv" if options.csv else "leaderboard")


def _report(options: argparse.Namespace) -> _Outcome:
    from . import pipeline, report

    with pipeline.visiting(options.command):
        return _Outcome(report.write(options.name, options.which), "report")


def _board(options: argparse.Namespace) -> _Outcome:
    from . import board, folders

    return _Outcome(board.write(folders.runs(), folders.submissions()), "board")


def _compare(options: argparse.Namespace) -> _Outcome:
    from . import comparing

    return _Outcome(comparing.compare(options.name, options.runs, options.data), "comparison")


def _blend(options: argparse.Namespace) -> _Outcome:
    from . import blending

    request = blending.Request(
        name=options.name,
        wanted=tuple(text for text in options.assignments if "=" not in text),
        assignments=tuple(text for text in options.assignments if "=" in text),
        data=options.data,
        command=options.command,
    )
    return _Outcome(blending.blend(request, _progress()), "blended")


def _runs(options: argparse.Namespace) -> _Outcome:
    from . import inventory

    return _Outcome(inventory.report(options.name, options.all), "runs")


def _clean(options: argparse.Namespace) -> _Outcome:
    from . import cleaning, display

    typed = (options.name, tuple(options.runs), options.unfinished, options.older_than)
    plan = cleaning.plan(cleaning.Request(*typed))
    as_json = {**plan.as_json(), "removed": False}
    if not plan.things:
        return _Outcome(as_json, "plan", plan)
    asking = _on_terminal() and not options.json
    if not (options.yes or asking):
        print(f"kagglekit: nothing was removed; {_with_yes(options.command)}", file=sys.stderr)
        return _Outcome(as_json, "plan", plan, code=2)
    if not options.json:
        display.show("plan", plan)
    if not options.yes and not _agreed(display.question(plan)):
        return _Outcome(as_json, "cleaned", (plan, cleaning.Plan((), plan.skipped)))
    gone = cleaning.remove(plan)
    return _Outcome({**gone.as_json(), "removed": True}, "cleaned", (plan, gone))


def _with_yes(command: str) -> str:
    return f"`{command} --yes` removes it without asking"


def _agreed(question: str) -> bool:
    """Whether a person at the terminal says yes; no answer is a no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _practice(options: argparse.Namespace) -> _Outcome:
    from . import problem

    folder, answers = problem.practise(options.name, problem.find(options.name), options.kind)
    return _Outcome({"data": str(folder), "answers": str(answers)}, "practice")


def _practice_server(options: argparse.Namespace) -> _Outcome:
    from . import practice_server

    server = practice_server.of_practice(options.name, port=options.port, limit=options.limit)
    with server, suppress(KeyboardInterrupt):  # that is how it ends
        set_up = " ".join(f"{n}={v}" for n, v in practice_server.environment(server.port).items())
        print(f"export {set_up}", file=sys.stderr if options.json else sys.stdout, flush=True)
        print(
            f"kagglekit: {options.name} is served at port {server.port}; in another terminal, type "
            f"the line above, then `kagglekit submit {options.name}`; Ctrl-C ends it",
            file=sys.stderr,
        )
        server.thread.join()
    return _Outcome({"port": server.port, "submissions": server.submissions}, "served")


def _doctor(options: argparse.Namespace) -> _Outcome:
    from . import doctor

    findings = doctor.examine()
    troubled = any(finding.status == "problem" for finding in findings)
    result = {"findings": doctor.as_json(findings)}
    return _Outcome(result, "doctor", findings, code=2 if troubled else 0)


def _progress() -> Any:
    from .progress import progress

    return progress(sys.stderr)
