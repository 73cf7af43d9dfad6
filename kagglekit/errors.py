"""The errors a user can do something about, each with the exit code it ends a command with."""

from __future__ import annotations

from collections.abc import Mapping


class KagglekitError(Exception):
    """A sentence for the user: what is wrong, where, and what to do. No traceback is shown."""

    exit_code = 1


class UserError(KagglekitError):
    """The input is at fault: a file, row, column, key or name, which the message names."""

    exit_code = 2


class DivergedError(UserError):
    """The loss or the weights of a member are no longer finite; other members may go on.

    `members` tells of each that stopped, by name, where the recipe went on with the others.
    """

    def __init__(self, sentence: str, members: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.members = dict(members or {})


class NetworkError(KagglekitError):
    """A download or a service failed; the input may be right, and trying again may help."""

    exit_code = 4


class UnclearError(KagglekitError):
    """Whether Kaggle took what was sent, or how it scored it, is not known yet."""

    exit_code = 3
