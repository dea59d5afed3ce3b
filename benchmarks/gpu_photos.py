"""From JPEGs to pooled features on a card, against timm behind a DataLoader.

Four ways, all with the four levels of one network averaged and the vectors brought back:

- timm as its users run it: Pillow in the workers of a DataLoader, pinned memory, autocast;
- the same loader with trunkline's exact decoding and the fastest network by hand;
- that network behind ``torchvision.io.decode_jpeg`` and an antialiased resize on the card, which
  a thread keeps one batch ahead;
- and each half of the last one alone.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_device import Device, compare, own_stream
from gpu_networks import pooled_network, timm_network
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from trunkline import Backbone
from trunkline.images import decode_image, pixels
from trunkline.preprocessing import IMAGENET

NOISE = 6.0  # standard deviation in levels of 255: that of a phone in a lit room, about
QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is decoded.

    Attributes:
        width: Of the JPEGs, in pixels.
        height: As ``width``.
        distinct: Different JPEGs; they are taken again and again.
        batch: Images that the card takes at once.
        batches: In every way that decodes on the card; the first tenth is not counted.
        loader_batches: Counted behind a DataLoader, after what its workers had prefetched.
        workers: Of a DataLoader.
    """

    width: int = 500
    height: int = 375
    distinct: int = 512
    batch: int = 128
    batches: int = 150
    loader_batches: int = 60
    workers: int = 16


def jpegs(load: Load) -> list[bytes]:
    """Make photos of gradients and noise, from a seed."""
    generator = np.random.default_rng(0)
    across = np.linspace(0, 1, load.width, dtype=np.float32)[None, :, None]
    down = np.linspace(0, 1, load.height, dtype=np.float32)[:, None, None]
    made = []
    for _ in range(load.distinct):
        low, right, bottom = generator.uniform(0, 255, (3, 3)).astype(np.float32)
        values = low + (right - low) * across + (bottom - low) * down * across
        values = values + NOISE * generator.standard_normal(values.shape, dtype=np.float32)
        picture = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
        made.append(file.getvalue())
    return made


class Files(Dataset[Any]):
    """The JPEGs again and again, each as a function makes it a tensor."""

    def __init__(self, contents: Sequence[bytes], length: int, make: Callable[[bytes], Any]):
        self.contents, self.length, self.make = contents, length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Any:
        return self.make(self.contents[number % len(self.contents)])


class TimmTransform:
    """What timm's own script does to a file."""

    def __init__(self, network: nn.Module) -> None:
        import timm

        config = timm.data.resolve_model_data_config(network)
        self.transform = timm.data.create_transform(**config, is_training=False)

    def __call__(self, content: bytes) -> Any:
        """Map a file to a normalised tensor."""
        with Image.open(io.BytesIO(content)) as image:
            return self.transform(image.convert("RGB"))


def exact_pixels(content: bytes) -> Tensor:
    """Decode and resize as trunkline does: ``(224, 224, 3)`` uint8."""
    return torch.from_numpy(pixels(decode_image(content), IMAGENET))


class Resized(nn.Module):
    """Pixels on the card as the network takes them: resized like Pillow, cropped, normalised."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(IMAGENET.mean, device=device.where).view(shape)
        self.std = torch.tensor(IMAGENET.std, device=device.where).view(shape)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` uint8 to ``(N, 3, 224, 224)`` float32."""
        size = IMAGENET.resized_size(*images.shape[2:])
        values = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        height, width = IMAGENET.output_size(*images.shape[2:])
        top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
        cropped = values[:, :, top : top + height, left : left + width]
        return self.normalised(cropped.round().clamp(0, 255))

    def normalised(self, values: Tensor) -> Tensor:
        """Map levels of 255 to what the weights want."""
        return (values / 255 - self.mean) / self.std

    def packed(self, values: Tensor) -> Tensor:
        """Return what the half network takes."""
        return values.to(self.device.half).contiguous(memory_format=torch.channels_last)


def decoded(device: Device, contents: list[Tensor]) -> Tensor:
    """Decode a batch of JPEGs of one size on the device; ``(N, 3, H, W)`` uint8."""
    from torchvision.io import ImageReadMode, decode_jpeg

    made = decode_jpeg(contents, mode=ImageReadMode.RGB, device=str(device.where))
    return torch.stack(made)


def ahead(device: Device, make: Callable[[int], Tensor], batches: int) -> Iterator[Tensor]:
    """Yield batches that a thread makes on a stream of its own, at most two ahead.

    The thread waits for its stream before it hands a batch over: torchvision's decoder writes on
    another stream, into memory that an earlier batch may still be read from.
    """
    made: queue.Queue[Tensor | BaseException] = queue.Queue(2)

    def work() -> None:
        try:
            with torch.inference_mode(), _own_stream(device):
                for number in range(batches):
                    batch = make(number)
                    if device.is_card:
                        torch.cuda.current_stream().synchronize()
                    made.put(batch)
        except BaseException as error:
            made.put(error)

    threading.Thread(target=work, daemon=True).start()
    for _ in range(batches):
        one = made.get()
        if isinstance(one, BaseException):
            raise one
        if device.is_card:
            one.record_stream(torch.cuda.current_stream())
        yield one


def _own_stream(device: Device) -> contextlib.AbstractContextManager[Any]:
    if not device.is_card:
        return contextlib.nullcontext()
    return torch.cuda.stream(own_stream(device.where))


class Pipeline:
    """The ways from JPEGs to vectors, over the same files."""

    def __init__(self, device: Device, backbone: Backbone, load: Load) -> None:
        self.device, self.load, self.backbone = device, load, backbone
        self.contents = jpegs(load)
        self.resize = Resized(device)
        tensors = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in self.contents]
        again = itertools.cycle(tensors)
        self.batches = [list(itertools.islice(again, load.batch)) for _ in range(load.batches)]
        pooled = pooled_network(device, backbone)
        self.example = torch.zeros(load.batch, 3, *(IMAGENET.crop or ()), device=device.where)
        self.example = self.resize.packed(self.example)

        def run(images: Tensor) -> list[Tensor]:
            with torch.no_grad():
                return [pooled(images)]

        with torch.no_grad():
            run(self.example)  # compiled before any clock
        self.graph = device.captured(run, self.example)

    def on_card(self, number: int) -> Tensor:
        """Decode, resize and normalise one batch on the card."""
        images = decoded(self.device, self.batches[number])
        return self.resize.packed(self.resize(images))

    def decoder_alone(self) -> float:
        """Images per second of decoding and resizing, nothing else."""
        return self._speed(ahead(self.device, self.on_card, self.load.batches), lambda one: one)

    def network_alone(self) -> float:
        """Images per second of the network over one batch that is there already."""
        same = itertools.repeat(self.example, self.load.batches)
        return self._speed(same, lambda one: self.graph(one)[0])

    def both(self) -> float:
        """Images per second from JPEGs to vectors, decoded on the card."""
        made = ahead(self.device, self.on_card, self.load.batches)
        return self._speed(made, lambda one: self.graph(one)[0].cpu())

    def _speed(self, batches: Any, use: Callable[[Tensor], Tensor]) -> float:
        """Return images per second after the first tenth of the batches."""
        skipped = max(1, self.load.batches // 10)
        began = 0.0
        for number, batch in enumerate(batches):
            if number == skipped:
                self.device.wait()
                began = time.perf_counter()
            use(batch)
        self.device.wait()
        return (self.load.batches - skipped) * self.load.batch / (time.perf_counter() - began)

    def loader_speed(
        self, make: Callable[[bytes], Any], use: Callable[[Tensor], object]
    ) -> tuple[float, float]:
        """Return images per second after what was prefetched, and seconds to the first batch."""
        load = self.load
        prefetched = 2 * load.workers + 1
        length = (prefetched + load.loader_batches) * load.batch
        loader: DataLoader[Any] = DataLoader(
            Files(self.contents, length, make),
            batch_size=load.batch,
            num_workers=load.workers,
            pin_memory=self.device.is_card,
        )
        began = time.perf_counter()
        first = started = 0.0
        with torch.inference_mode():
            for number, batch in enumerate(loader):
                use(batch.to(self.device.where, non_blocking=True))
                if number == 0:
                    first = time.perf_counter() - began
                if number == prefetched - 1:
                    started = time.perf_counter()
        return load.loader_batches * load.batch / (time.perf_counter() - started), first

    def timm(self) -> tuple[float, float]:
        """Measure the usual script."""
        network = timm_network(self.backbone).eval()
        mixed = torch.autocast(self.device.where.type, self.device.half)

        def use(images: Tensor) -> None:
            with mixed:
                maps = network(images)
            for one in maps:
                one.float().mean((2, 3)).cpu().numpy()

        return self.loader_speed(TimmTransform(network), use)

    def exact(self) -> tuple[float, float]:
        """Measure exact decoding in front of the fastest network by hand."""

        def use(levels: Tensor) -> None:
            values = self.resize.normalised(levels.permute(0, 3, 1, 2).float())
            self.graph(self.resize.packed(values))[0].cpu().numpy()

        return self.loader_speed(exact_pixels, use)

    def agreement(self) -> dict[str, Any]:
        """Compare pooled features with the exact path: Pillow's pixels through fp32."""
        files = itertools.islice(itertools.cycle(self.contents), self.load.batch)
        wanted = torch.stack([exact_pixels(one) for one in files])
        wanted = wanted.to(self.device.where).permute(0, 3, 1, 2).float()
        exact = self.resize.normalised(wanted)
        self.device.wait()  # nothing else is in flight while the decoder's stream writes
        with torch.inference_mode():
            near = self.resize(decoded(self.device, self.batches[0]))
            reference, fp32 = self.backbone(exact), self.backbone(near)
            pooled_fast = self.graph(self.resize.packed(near))[0]
        fast = pooled_fast.split_with_sizes([maps.shape[1] for maps in reference], 1)
        levels = self.backbone.returned_levels
        pooled = [maps.mean((2, 3)) for maps in reference]
        apart = (near - exact).abs() * 255 * self.resize.std
        return {
            "images": self.load.batch,
            "most_of_255": float(apart.max()),
            "mean_of_255": float(apart.mean()),
            "decoding": [
                one.to_dict() for one in compare(levels, pooled, [m.mean((2, 3)) for m in fp32])
            ],
            "decoding_and_half": [one.to_dict() for one in compare(levels, pooled, fast)],
        }
