"""A model from its name and options, initialized by a seed alone, and the check that it fits the data."""

import importlib
import inspect
import operator
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, cast

import torch
from pydantic import ValidationError, validate_call
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tierfed.errors import InputError, nearest
from tierfed.lookup import near_module
from tierfed.models.networks import MODELS, Shape, fitting

_DATA = ("shape", "outputs")


def build_model(name: str, shape: Shape, outputs: int, options: Mapping[str, Any], seed: int) -> nn.Module:
    """The model `name`, with parameters that depend on the arguments alone; the global random state stays as it was.

    :param name: a name of `MODELS`, or "package.module:Class" for the user's own class (or function that returns a
        module). It is called with the options; `shape` and `outputs` are passed by name if its signature has them
    :param shape: shape of one sample, without the batch axis
    :param outputs: number of logits
    :param options: keyword arguments of the model
    :param seed: of the initial parameters
    :raises InputError: unknown name, failing import, not a module, wrong options, samples that do not fit
    """
    own = ":" in name
    if not own and name not in MODELS:
        raise InputError(
            f"unknown model {name!r}; {nearest(name, MODELS)}; your own is given as 'package.module:Class'"
        )
    if outputs < 1 or min(shape, default=1) < 1:
        raise InputError(
            f"model {name!r}: got samples of shape {list(shape)} and {outputs} outputs, wanted positive sizes"
        )
    make = _load(name) if own else MODELS[name].build
    arguments = _arguments(name, make, shape, outputs, options)
    # PyTorch initializes layers from its global generator only. The fork puts that generator back afterwards, so this
    # seeding is invisible outside; nothing else in the project may seed globally.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = _call(name, make if own else validate_call(make), arguments)
    lazy = [key for key, value in chain(module.named_parameters(), module.named_buffers()) if is_lazy(value)]
    if lazy:
        raise InputError(
            f"model {name!r}: {lazy[0]} has no size before the first batch (a lazy layer), so a seed cannot fix it; "
            "use layers with given sizes, the signature may take 'shape' and 'outputs' for that"
        )
    return module


def default_model(shape: Shape) -> str:
    """A network by the shape of a sample: [channels, length] a CNN, RGB images a LeNet with batch norm, else an MLP."""
    if len(shape) == 2:
        return "cnn1d"
    return "lenet16_bn" if shape == (3, 32, 32) else "mlp" if len(shape) == 1 else "epflu_mlp"


def check_fit(
    module: nn.Module, shape: Shape, outputs: int, *, name: str = "", dtype: torch.dtype | None = None
) -> None:
    """Checks that the module maps [2, *shape] to [2, outputs]: one pass over zeros in evaluation mode, no gradient.

    :param name: what to call the model in the message (default: its class)
    :param dtype: of the samples (default: that of the first floating-point parameter); integer for token models
    :raises InputError: the pass fails, or the output has another shape
    """
    tensors = list(chain(module.parameters(), module.buffers()))
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    x = torch.zeros(2, *shape, dtype=dtype or like.dtype, device=like.device)
    modes = [(m, m.training) for m in module.modules()]
    try:
        with torch.no_grad():
            out = module.eval()(x)
        got, cause = f"an output of {_describe(out)}", None
    except Exception as err:
        out, got, cause = None, _reason(err), err
    finally:
        for m, training in modes:
            m.training = training
    if isinstance(out, Tensor) and list(out.shape) == [2, outputs]:
        return
    raise InputError(
        f"model {name or type(module).__name__!r} does not fit the data: for 2 samples of shape {list(shape)} "
        f"got {got}, wanted an output of shape {[2, outputs]}; "
        f"change the model, or take one that fits: {', '.join(fitting(shape))}"
    ) from cause


def _describe(out: object) -> str:
    return f"shape {list(out.shape)}" if isinstance(out, Tensor) else f"type {type(out).__name__}"


def _reason(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'no message'}"


def _load(name: str) -> Callable[..., object]:
    path, _, attribute = name.partition(":")
    if not path or not attribute or path.startswith("."):
        raise InputError(f"model {name!r} is not of the form 'package.module:Class'")
    try:
        module = importlib.import_module(path)
    except Exception as err:
        hint = near_module(path) if isinstance(err, ModuleNotFoundError) and err.name == path else ""
        raise InputError(
            f"model {name!r}: importing {path!r} failed with {_reason(err)}"
            f"{hint or '; install its package, put its folder on PYTHONPATH, or mend the module'}"
        ) from err
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError:
        public = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)]
        raise InputError(f"model {name!r}: {path!r} has no {attribute!r}; {nearest(attribute, public)}") from None
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"model {name!r}: {attribute!r} is an object of {type(found).__name__}, wanted an nn.Module class"
        )
    if inspect.isclass(found) and not issubclass(found, nn.Module):
        raise InputError(f"model {name!r}: class {attribute!r} is not an nn.Module; derive it from torch.nn.Module")
    return cast(Callable[..., object], found)


def _arguments(
    name: str, make: Callable[..., object], shape: Shape, outputs: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What to call the model with, checked against its signature."""
    parameters = inspect.signature(make).parameters
    data = {key: value for key, value in zip(_DATA, (shape, outputs), strict=True) if key in parameters}
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named if p.name not in data]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key in data:
            raise InputError(f"model {name!r}: {key!r} comes from the data; remove it from the options")
        if key not in known and not open_ended:
            raise InputError(f"model {name!r} has no option {key!r}; {nearest(key, known)}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in data and p.name not in options]
    if missing:
        raise InputError(f"model {name!r} needs the option {missing[0]!r}, which was not given; add it to its options")
    return {**data, **options}


def _call(name: str, make: Callable[..., object], arguments: dict[str, Any]) -> nn.Module:
    try:
        module = make(**arguments)
    except InputError:
        raise
    except ValidationError as err:
        raise InputError(f"model {name!r}: " + "; ".join(_wrong(e) for e in err.errors())) from None
    except Exception as err:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(f"model {name!r}: building it with {shown} failed with {_reason(err)}") from err
    if not isinstance(module, nn.Module):
        raise InputError(f"model {name!r} gave an object of {type(module).__name__}, wanted an nn.Module")
    return module


def _wrong(error: Any) -> str:
    path = ".".join(map(str, error["loc"]))
    return f"{path} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
