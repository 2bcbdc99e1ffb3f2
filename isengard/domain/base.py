"""The one base of all domain models, and plain words for its refusals."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isengard.errors import InvalidSpec


class Frozen(BaseModel):
    """An immutable value; an unknown key is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


#: Characters that a prompt or a caption may have.
MAX_TEXT = 4000
#: That an id or a name may have, of what is looked up by it.
MAX_NAME = 200

Name = Annotated[str, Field(max_length=MAX_NAME)]
Model = TypeVar("Model", bound=Frozen)


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """Make a ``model`` from untrusted values.

    Raises:
        InvalidSpec: names each wrong field, the value it got and what is allowed, one sentence each.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refusal(error, known=model.model_fields) from None


def refusal(error: ValidationError, *, known: Iterable[str]) -> InvalidSpec:
    """The same in plain words; ``known``: names there are, for a misspelt one."""
    return InvalidSpec("; ".join(_sentence(dict(detail), list(known)) for detail in error.errors()))


def _sentence(detail: dict[str, Any], known: list[str]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        close = get_close_matches(where, known, n=1)
        return f"unknown setting {where!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
    if detail["type"] == "missing":
        return f"{where} is missing"
    said = str(detail["msg"]).removeprefix("Value error, ")
    said = said.replace("Input should be", "must be", 1)
    if not where:
        return said
    got = repr(detail["input"])
    return f"{where}: {said}, got {got if len(got) < 80 else got[:77] + '...'}"
