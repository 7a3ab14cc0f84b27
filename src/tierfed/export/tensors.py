"""Models as safetensors: parameters and buffers, with a card in the metadata."""

import copy
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from tierfed.errors import InputError
from tierfed.export.card import ModelCard, from_json
from tierfed.models import MODELS, build_model

_COUNTER = "num_batches_tracked"  # of a batch norm; nothing reads it in evaluation mode


def to_bytes(module: nn.Module, card: ModelCard) -> bytes:
    """The file of a module: all entries of its state dict, and the card as the metadata entry "tierfed"."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    return save_tensors(state, {"format": "pt", "tierfed": card.to_json()})


def load_model(file: Path | str, module: nn.Module | None = None) -> tuple[nn.Module, ModelCard]:
    """A model that was exported as safetensors, in evaluation mode, and what the file says about it.

        model, card = tierfed.load_model("ann.safetensors")
        logits = model(card.prepare(raw))

    :param file: written by `tierfed.export(..., format="safetensors")`
    :param module: an instance of the user's own class, which is copied; the networks of tierfed are built by name.
        Nothing that a file names is ever imported
    :raises InputError: no such file, not of this kind, or not of this module
    """
    try:
        content = Path(file).read_bytes()
    except OSError as err:
        raise InputError(f"cannot read the model {file}: {err}; give a file that `tierfed export` wrote") from None
    return from_bytes(content, module, file)


def from_bytes(content: bytes, module: nn.Module | None, where: object) -> tuple[nn.Module, ModelCard]:
    """The inverse of `to_bytes`; see `load_model`."""
    try:
        state = load_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError) as err:
        raise InputError(f"{where} is no safetensors file ({err}); give one that `tierfed export` wrote") from None
    text = header.get("__metadata__", {}).get("tierfed")
    if text is None:
        raise InputError(f"{where} has no metadata of tierfed; give a file that `tierfed export` wrote")
    card = from_json(text, where)
    module = _built(card, where) if module is None else copy.deepcopy(module)
    own = {k: v.shape for k, v in module.state_dict().items() if not k.endswith(_COUNTER)}
    for key in sorted(own.keys() | state.keys()):
        if key not in own or key not in state or own[key] != state[key].shape:
            got, wanted = (list(t[key].shape) if key in t else "nothing" for t in (state, module.state_dict()))
            raise InputError(
                f"{where} does not fit the module {type(module).__name__}: for {key!r} the file has {got}, the module "
                f"wants {wanted}; give a module like the one that was trained ({card.model})"
            )
    first = next(iter(state.values()), None)
    if first is not None and first.is_floating_point():
        module = module.to(first.dtype)
    module.load_state_dict(state, strict=False)
    return module.eval(), card


def _built(card: ModelCard, where: object) -> nn.Module:
    if card.model not in MODELS:
        raise InputError(
            f"{where} holds the model {card.model!r}, which is not one of tierfed's; give an instance of it: "
            f"tierfed.load_model({str(where)!r}, module=…)"
        )
    return build_model(card.model, card.shape, card.outputs, card.options, seed=0)
