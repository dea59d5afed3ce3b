"""What tests of extraction share: a folder of tiny photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trunkline.extraction.sources import Source, list_items

PHOTOS = ("a/1.jpg", "a/2.JPEG", "b.jpg", "c/d/3.jpg", "e.jpg")


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the key that signs runners out of the user's own home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five JPEGs of 8 to 12 by 8 pixels, in folders, beside what is no image."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for number, name in enumerate(PHOTOS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = random.integers(0, 256, (8, 8 + number, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, "JPEG", quality=90)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(b"left by another program")
    return folder


@pytest.fixture
def assert_continues_anywhere() -> Callable[[Source], None]:
    """Behind each of its images a listing goes on as the first one did."""

    def check(source: Source) -> None:
        whole = list(list_items(source))
        assert len(whole) > 1
        for count, item in enumerate(whole, 1):
            assert list(list_items(source, item, count)) == whole[count:]

    return check
