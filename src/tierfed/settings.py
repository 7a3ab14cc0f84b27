"""Settings: frozen dataclasses of plain values, checked when they are made from a table of a config file."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUserError

from tierfed.errors import InputError, closest, nearest

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]

T = TypeVar("T")


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from a plain table (TOML, JSON; lists become tuples).

    :param where: the name of the table in the config, for messages ("data.split")
    :raises InputError: an unknown key (with the nearest valid name), a wrong type or an impossible value
    """
    with_config(ConfigDict(extra="forbid", strict=False, allow_inf_nan=False))(cls)
    try:
        return TypeAdapter(cls).validate_python(dict(table))
    except ValidationError as err:
        raise InputError(_explain(cls, err.errors(), table, where)) from None
    except PydanticUserError as err:
        reason = str(err).splitlines()[0]
        raise InputError(
            f"the settings of {cls.__name__} cannot be checked: {reason}; let its fields be numbers, texts and tuples"
        ) from None


def _explain(cls: type, errors: list[Any], got: Mapping[str, Any], where: str) -> str:
    """One sentence per wrong setting; pydantic has one error for each type that a setting may have."""
    found: dict[tuple[str, ...], list[str]] = {}
    for error in errors:
        path, owner = _place(cls, error["loc"])
        if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            table = ".".join(filter(None, (where, *path[:-1]))) or "the config"
            hint = nearest(path[-1], [f.name for f in dataclasses.fields(owner)])
            found[path] = [f"{table} has no setting {path[-1]!r}; {hint}"]
            continue
        if path not in found:
            found[path] = [_value(got, path, where)]
        reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
        reason = reason[:1].lower() + reason[1:] + _meant(error)
        again = len(found[path]) > 1 and reason.startswith("input should be ")
        found[path].append(reason.removeprefix("input should be ") if again else reason)
    return "; ".join(first + ", or ".join(dict.fromkeys(rest)) for first, *rest in found.values())


def _meant(error: Any) -> str:
    """The nearest of the words that a setting may be."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    close = closest(error["input"], re.findall(r"'([^']+)'", error["ctx"]["expected"]))
    return "" if close is None else f"; did you mean {close!r}?"


def _place(cls: Any, loc: tuple[Any, ...]) -> tuple[tuple[str, ...], Any]:
    """The setting that an error is about, and the dataclass it belongs to; what follows are types and items."""
    path: list[str] = []
    named = False
    for name in map(str, loc):
        path.append(name)
        if named or name.isdigit():  # a table by its name, or by its place in a list of tables
            named = False
            continue
        hint = typing.get_type_hints(cls).get(name)
        inner = next(filter(dataclasses.is_dataclass, _types(hint)), None)
        named = typing.get_origin(hint) is dict
        if inner is None:
            break
        cls = inner
    return tuple(path), cls


def _types(hint: Any) -> Iterator[Any]:
    """A type and all types that it is made of."""
    yield hint
    for part_ in typing.get_args(hint):
        yield from _types(part_)


def _value(got: Any, path: tuple[str, ...], where: str) -> str:
    """The beginning of a message: the setting and its value, as far as there is one."""
    name = ".".join(filter(None, (where, *path))) or "the config"
    for key in path:
        if isinstance(got, (list, tuple)) and key.isdigit() and int(key) < len(got):
            got = got[int(key)]
            continue
        if not isinstance(got, Mapping) or key not in got:
            return f"{name}: "
        got = got[key]
    return f"{name} = {got!r}: " if path else f"{name}: "


def part(cls: type[T], of: Any) -> T:
    """A dataclass from the fields of the same names of a larger one."""
    return cls(**{f.name: getattr(of, f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by keys with dots: ("data.split.test", 0.3)."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(settings: Any) -> dict[str, Any]:
    """The inverse of `build`: a plain table, without what is None (TOML has no null)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return dict(plain(dataclasses.asdict(settings)))
