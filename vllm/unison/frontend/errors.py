# SPDX-License-Identifier: Apache-2.0
"""Refusals of a request, in a form that the engine passes to the client and not to its operator."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

from vllm.exceptions import VLLMError, VLLMValidationError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_FIELD = re.compile(r"[a-z]\w*(?:\[\d*\]|\.[a-z]\w*)*(?=[\s:']|$)")


class InvalidRequestError(VLLMValidationError, ValueError):
    """A request that is refused; its message names the field and what is accepted.

    Upstream's servers answer a VLLMValidationError with status 400, and anything else that is
    raised while a request is admitted with 500.

    Attributes:
        parameter: the field as the request spells it, such as `messages[0].content`, if the
            message begins with one.
    """

    def __init__(self, message: str) -> None:
        found = _FIELD.match(message)
        super().__init__(message, parameter=found[0] if found else None)

    def __str__(self) -> str:
        return str(self.args[0])

    def renamed(self, names: Mapping[str, str]) -> InvalidRequestError:
        """The same with another name of the field, where `names` has one for it."""
        name = names.get(self.parameter or "")
        if name is None or self.parameter is None:
            return self
        return InvalidRequestError(name + str(self)[len(self.parameter) :])


def reports_invalid_request(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function's ValueErrors, which name the request's fields, be InvalidRequestError."""

    @functools.wraps(function)
    def wrapper(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        except VLLMError:
            raise
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error

    return wrapper


@contextlib.contextmanager
def blames(field: str) -> Iterator[None]:
    """Let what is wrong with audio be said of the field that the audio comes from."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequestError(str(error)).renamed({"audio": field}) from error
