"""One photo gives the same numbers in eager mode, in an exported graph and by way of pixels."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trunkline.images import IMAGENET, Preprocessing, decode_image, decode_photo, pixels, preprocess
from trunkline.runtimes.graphs import FromPixels
from trunkline.runtimes.onnx_writer import onnx_model

if TYPE_CHECKING:
    from tests.conftest import Family

CAFFE = dataclasses.replace(
    IMAGENET,
    mean=(103.53, 116.28, 123.675),
    std=(57.375, 57.12, 58.395),
    value_range="0..255",
    channel_order="BGR",
)
MODES = {
    "shorter side and crop": dataclasses.replace(IMAGENET, resize=48, crop=(40, 36)),
    "warp": IMAGENET.with_size((36, 50)),
    "keep and pad": dataclasses.replace(IMAGENET.with_size(None), pad_to_multiple=32),
    "BGR in 0..255, crop and pad": dataclasses.replace(
        CAFFE, resize=48, crop=(40, 36), interpolation="bicubic", pad_to_multiple=32
    ),
}


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng([width, height])
    coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(noise(64, 47), "JPEG", exif=exif)


def palette_with_alpha() -> bytes:
    return saved(noise(61, 40).quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))


def sixteen_bits() -> bytes:
    values = np.random.default_rng(0).integers(0, 2**16, (41, 53))
    return saved(Image.fromarray(values.astype(np.uint16)), "PNG")


def animation() -> bytes:
    return saved(noise(45, 39), "GIF", save_all=True, append_images=[noise(45, 38)])


PHOTOS: dict[str, Callable[[], bytes]] = {
    "turned JPEG": turned_jpeg,
    "grey JPEG": lambda: saved(noise(70, 51).convert("L"), "JPEG"),
    "CMYK JPEG": lambda: saved(noise(70, 51).convert("CMYK"), "JPEG"),
    "palette PNG with alpha": palette_with_alpha,
    "16-bit PNG": sixteen_bits,
    "animated GIF": animation,
    "transparent WebP": lambda: saved(noise(33, 57).convert("RGBA"), "WEBP", lossless=True),
    "one pixel": lambda: saved(noise(1, 1), "PNG"),
    "large JPEG": lambda: saved(noise(811, 623), "JPEG"),
}


@dataclasses.dataclass
class Network:
    """One tiny network in its three forms."""

    eager: nn.Module
    from_pixels: FromPixels
    session: Any  # of ONNX Runtime


@pytest.fixture(scope="module")
def networks(families: dict[str, Family]) -> Iterator[Callable[[Preprocessing], Network]]:
    """Return the network that normalises in a given way; two ways make two graphs."""
    ort = pytest.importorskip("onnxruntime")
    made: dict[str, Network] = {}

    def network(how: Preprocessing) -> Network:
        if how.channel_order not in made:
            backbone = families["resnet-pooled"].build().eval()
            backbone.preprocessing = how
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            model = onnx_model(backbone, preprocess=True).SerializeToString()
            made[how.channel_order] = Network(
                backbone,
                FromPixels(backbone, how),
                ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]),
            )
        return made[how.channel_order]

    yield network
    made.clear()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PHOTOS)
def test_eager_graph_and_pixels_give_the_same(
    kind: str, mode: str, networks: Callable[[Preprocessing], Network]
) -> None:
    content, how = PHOTOS[kind](), MODES[mode]
    network = networks(how)
    photo = decode_photo(content, how)
    size = how.output_size(photo.height, photo.width)
    picture = pixels(photo, how)
    assert picture.shape == (*size, 3)

    tensor = preprocess(decode_image(content), how)
    normalised = FromPixels(nn.Identity(), how)(torch.from_numpy(picture)[None])
    assert torch.equal(normalised[0], tensor)  # bit for bit: the same three operations

    with torch.inference_mode():
        eager = network.eager(tensor[None])
        by_pixels = network.from_pixels(torch.from_numpy(picture)[None])
    graph = network.session.run(None, {"image": picture[None]})
    assert len(eager) == len(by_pixels) == len(graph) == 4
    for stride, one, other, exported in zip((4, 8, 16, 32), eager, by_pixels, graph, strict=True):
        assert one.shape[2:] == tuple(-(-side // stride) for side in size)
        largest = float(one.abs().max())
        assert largest > 0
        assert float((one - other).abs().max()) <= 1e-5 * largest
        assert float((one - torch.from_numpy(exported)).abs().max()) <= 1e-5 * largest


@pytest.mark.parametrize("mode", MODES)
def test_the_way_a_photo_is_handed_in_does_not_matter(mode: str, tmp_path: Any) -> None:
    path, how = tmp_path / "photo.jpg", MODES[mode]
    path.write_bytes(turned_jpeg())
    expected = pixels(decode_photo(path), how)
    with Image.open(path) as opened:
        sources = (str(path), path.read_bytes(), opened)
        for source in sources:
            assert (pixels(decode_photo(source), how) == expected).all()
            assert (pixels(decode_image(source), how) == expected).all()
        assert (pixels(opened, how) == expected).all()
        assert torch.equal(preprocess(opened, how), preprocess(decode_photo(path), how))


def test_fast_gives_the_same_where_nothing_can_be_reduced() -> None:
    content, how = turned_jpeg(), MODES["shorter side and crop"]
    fast = decode_photo(content, how, decode="fast")
    assert (pixels(fast, how) == pixels(decode_photo(content), how)).all()
