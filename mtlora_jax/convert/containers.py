"""Finds the weights of a Swin Transformer in a training checkpoint: their container and key prefix."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtlora_jax.convert import hf, mmseg, mtlora, swin, torchvision
from mtlora_jax.convert.torchfile import MAX_DEPTH
from mtlora_jax.errors import UserError

# Keys that every Swin of a format has once. What precedes an anchor is a prefix.
ANCHORS = (swin.ANCHOR, hf.ANCHOR, mmseg.ANCHOR, torchvision.ANCHOR)

# Names of the containers and prefixes to prefer if there are several; the first wins.
PREFERRED = (
    *("model", "state_dict", "model_state_dict", "net", "network", "module", "_orig_mod"),
    *("student", "backbone", "encoder", "swin"),
)
# Names of weights averaged during training.
AVERAGED = re.compile(r"(.*_)?ema(_.*)?|teacher|momentum_.*|(.*_)?averaged?(_.*)?|swa_.*", re.IGNORECASE)


class Found(NamedTuple):
    """Weights in a checkpoint."""

    place: tuple[str, ...]  # names of the containers, from the outermost
    prefix: str  # of the keys, with its final dot
    entries: Mapping[Any, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return *self.place, *self.prefix.split(".")[:-1]

    @property
    def averaged(self) -> bool:
        return any(AVERAGED.fullmatch(name) for name in self.names)

    @property
    def rank(self) -> list[int]:
        return [PREFERRED.index(name) if name in PREFERRED else len(PREFERRED) for name in self.names]

    def __str__(self) -> str:
        return ".".join(self.names) or "the whole file"


def find_weights(content: Mapping[Any, Any]) -> list[Found]:
    """Finds every place with the anchor of a format, outer ones first."""
    found, waiting, seen = [], [((), content)], set()
    for place, entries in waiting:  # grows
        if id(entries) in seen or len(place) > MAX_DEPTH:
            continue
        seen.add(id(entries))
        keys = [key for key in entries if isinstance(key, str)]
        prefixes = dict.fromkeys(find_prefix(key) for key in keys)
        found += [Found(place, prefix, entries) for prefix in prefixes if prefix is not None]
        waiting += [((*place, key), entries[key]) for key in keys if isinstance(entries[key], Mapping)]
    return found


def find_prefix(key: str) -> str | None:
    """Returns the prefix of an anchor key, "" at the root, or None for other keys."""
    return next((key.removesuffix(anchor) for anchor in ANCHORS if f".{key}".endswith(f".{anchor}")), None)


def choose_weights(source: str, content: Mapping[Any, Any], ema: bool) -> tuple[Found, list[str]]:
    """Chooses the weights to take; returns them and report lines.

    Raises UserError if several sets could be meant, or if `ema` is set and there are no EMA weights.
    """
    everything = find_weights(content)
    averaged = [found for found in everything if found.averaged]
    others = [found for found in everything if not found.averaged]
    if ema and not averaged:
        raise UserError(
            f"--ema: {source} holds no EMA weights; it has {', '.join(map(str, others)) or 'none of a Swin at all'}"
        )
    if not everything:
        return find_by_name(content), []
    candidates = sorted(averaged if ema else others or averaged, key=lambda found: found.rank)
    taken = candidates[0]
    if len(candidates) > 1 and taken.rank == candidates[1].rank:
        raise UserError(
            f"{source}: holds several sets of weights: {', '.join(map(str, candidates))}; save the one you mean alone: "
            'torch.save(torch.load("FILE")["NAME"], "weights.pth")'
        )
    report = []
    if taken.names:
        report.append(f"taken      {taken}{' (EMA weights)' if taken.averaged else ''}")
    if averaged and not taken.averaged:
        report.append(f"note       also holds EMA weights ({', '.join(map(str, averaged))}): --ema takes them")
    return taken, report


def find_by_name(content: Mapping[Any, Any]) -> Found:
    """Finds the innermost container with a usual name, without wrapper prefixes, for messages about other networks."""
    place: tuple[str, ...] = ()
    while len(place) < MAX_DEPTH and (
        inner := next((name for name in PREFERRED if isinstance(get(content, name), Mapping)), None)
    ):
        place, content = (*place, inner), content[inner]
    wrapped = re.match(r"((module|_orig_mod)\.)*", str(next(iter(content), "")))
    prefix = wrapped[0] if wrapped and all(str(key).startswith(wrapped[0]) for key in content) else ""
    return Found(place, prefix, content)


def get(entries: Mapping[Any, Any], name: str) -> Any:
    """Returns an entry or None, without `dict.get`, since a pickle can set attributes of a dictionary."""
    return entries[name] if name in entries else None  # noqa: SIM401


def keep_backbone_prefix(found: Found, format: str) -> Found:
    """Keeps `backbone.` in the keys of the reference's multi-task models, whose other parts belong to the format."""
    outer = found.prefix.removesuffix("backbone.")
    if outer == found.prefix or not (
        format == "mtlora" or mtlora.is_multitask(str(key).removeprefix(outer) for key in found.entries)
    ):
        return found
    return found._replace(prefix=outer)


def strip_common_prefix(key: str, prefix: str) -> str:
    """Removes from a key the leading names that it shares with the prefix."""
    parts, outer = key.split("."), prefix.split(".")
    while len(parts) > 1 and outer and parts[0] == outer[0]:
        parts, outer = parts[1:], outer[1:]
    return ".".join(parts)
