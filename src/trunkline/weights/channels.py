"""A stem's input channels → those of a network that takes another number, or chosen ones.

One rule for every pair of numbers: the file's channels are taken in turn, from the first, until the
network has enough, and scaled by the quotient of the numbers, so that images whose channels are all
alike give what they gave before. One channel gets the sum of all. Who knows what the bands mean
says ``channel_map`` instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trunkline.errors import ConfigError
from trunkline.preprocessing import Preprocessing

ChannelMap = Sequence[int | None]

_TURNED = [2, 1, 0]  # BGR to RGB and back
_COUNTED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def fit_channels(
    weight: Tensor, channels: int, *, bgr: bool, channel_map: ChannelMap | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Fit the weight of a stem to a number of input channels.

    Args:
        weight: ``(C, n, K, K)``, the file's.
        channels: Input channels of the network.
        bgr: Its three channels are blue, green, red; they are turned first.
        channel_map: For each of the network's channels the file's channel, after that turn, or None
            for zeros; None for the rule.

    Returns:
        The weight ``(C, channels, K, K)``, and what was done to it, in sentences.

    Raises:
        ConfigError: The map has another length, or names what the file does not have.
    """
    said: list[str] = []
    held = weight.shape[1]
    if bgr and held == 3:
        weight = turned(weight)
        said.append("The stem's input channels were turned from BGR to RGB.")
    if channel_map is not None:
        check_channel_map(channel_map, channels, held)
        said.append(_mapping(channel_map, held))
        return _mapped(weight, channel_map), tuple(said)
    if channels == held:
        return weight, tuple(said)
    # Sums and multiples of half precision are rounded once only, by whoever casts them.
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        weight = weight.sum(1, keepdim=True)
        said.append(f"The stem's {_count(held)} input channels were added up for one.")
        return weight, tuple(said)
    order = [index % held for index in range(channels)]
    weight = weight[:, order] * (held / channels)
    if channels > held:
        what = "repeated" if held > 1 else "copied"
        said.append(
            f"The stem's {_count(held)} input channel{'s were' if held > 1 else ' was'} {what} for "
            f"{channels} and scaled by {held}/{channels}."
        )
    else:
        said.append(
            f"Of the stem's {_count(held)} input channels the first {_count(channels)} were taken "
            f"and scaled by {held}/{channels}; channel_map=… chooses others."
        )
    return weight, tuple(said)


def turned(weight: Tensor) -> Tensor:
    """Return the weight of a stem whose first and third of three channels have changed places."""
    return weight[:, _TURNED]


def check_channel_map(channel_map: object, channels: int, held: int) -> None:
    """Refuse a map that does not say for every channel what feeds it.

    Args:
        channel_map: What a caller gave.
        channels: Input channels of the network.
        held: Those of the file's stem.

    Raises:
        ConfigError: It is no sequence, of another length, or names a channel that is not there.
    """
    allowed = (
        f"give {channels} entries, one for each input channel of this network: the file's channel "
        f"that feeds it (0 to {held - 1}), or None for none."
    )
    if not isinstance(channel_map, Sequence) or isinstance(channel_map, str | bytes):
        raise ConfigError(f"channel_map={channel_map!r} is no sequence; {allowed}")
    shown = f"channel_map={tuple(channel_map)[:20]!r}"
    if len(channel_map) != channels:
        raise ConfigError(f"{shown} has {len(channel_map)} entries; {allowed}")
    for entry in channel_map:
        if entry is not None and (type(entry) is not int or not 0 <= entry < held):
            raise ConfigError(f"{shown} holds {entry!r}; {allowed}")
    if all(entry is None for entry in channel_map):
        raise ConfigError(f"{shown} feeds no channel, so the image would not matter; {allowed}")


def mapped_preprocessing(
    preprocessing: Preprocessing | None, channel_map: ChannelMap | None
) -> Preprocessing | None:
    """Return what images of the mapped channels want, where a preprocessing can say it.

    ``(2, 1, 0)`` turns the order of the colours, and mean and spread with it. Of any other map
    nothing can be said to a photo, which has no more than its colours.
    """
    if preprocessing is None or channel_map is None or list(channel_map) != _TURNED:
        return preprocessing
    return replace(
        preprocessing,
        mean=preprocessing.mean[::-1],
        std=preprocessing.std[::-1],
        channel_order="BGR" if preprocessing.channel_order == "RGB" else "RGB",
    )


def _mapped(weight: Tensor, channel_map: ChannelMap) -> Tensor:
    """Give each channel its source; one that feeds several is shared among them evenly."""
    shares = Counter(entry for entry in channel_map if entry is not None)
    fitted = weight.new_zeros((weight.shape[0], len(channel_map), *weight.shape[2:]))
    for ours, theirs in enumerate(channel_map):
        if theirs is not None:
            fitted[:, ours] = weight[:, theirs] / shares[theirs]
    return fitted


def _mapping(channel_map: ChannelMap, held: int) -> str:
    shares = Counter(entry for entry in channel_map if entry is not None)
    shown = ", ".join("none" if entry is None else str(entry) for entry in channel_map)
    parts = [f"The stem's input channels are, by channel_map, the file's {shown}."]
    if shared := sorted(entry for entry, times in shares.items() if times > 1):
        parts.append(
            "Those that feed several are shared among them: "
            f"{', '.join(f'{entry} by {shares[entry]}' for entry in shared)}."
        )
    if unused := sorted(set(range(held)) - shares.keys()):
        parts.append(f"Unused of the file: {', '.join(map(str, unused))}.")
    return " ".join(parts)


def _count(number: int) -> str:
    return _COUNTED[number] if number < len(_COUNTED) else str(number)
