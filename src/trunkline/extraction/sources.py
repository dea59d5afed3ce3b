"""Where images come from, and their listing: streamed, in one order, to be continued anywhere.

A ``Source`` says what was meant, in plain values; ``list_items`` yields its images one by one and
never holds all of them. The orders:

- *folder*, *glob*: by relative path, name by name, so that ``a/z.jpg`` comes before ``b.jpg``.
  Hidden files and folders are left out. A listing continues behind a path, so that files that
  come or go before it change nothing.
- *list*: the lines' order. *parquet*: the rows' order, file by file. *tar*: the members' order,
  file by file. Files are in the order of a brace range, and of a folder or glob by name.

Keys are relative paths, the lines of a list, ``<tar>/<member>``, or of a Parquet row the value of
the key column, the path, or ``<file>/<row>``. They are taken as they are: whoever writes a line
twice gives two images one key, which the plan refuses where it sees both.

Nothing here imports PyTorch; pyarrow and fsspec are imported where a source needs them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, get_args

from trunkline.errors import ConfigError, SourceError
from trunkline.extraction.archives import find_column, list_table, list_tar
from trunkline.extraction.list_files import ENDINGS, TABLES, named_images
from trunkline.extraction.locations import (
    anchored,
    ending_of,
    filesystem_of,
    is_hidden,
    is_image_name,
    is_pattern,
    joined,
    local_path,
    name_of,
    open_location,
    relative_name,
    resolved,
    split_glob,
    split_name,
    written_key,
    written_path,
)
from trunkline.extraction.records import Item, first_key
from trunkline.extraction.walking import EVERYTHING, Names, Pattern, walk

Kind = Literal["folder", "glob", "list", "parquet", "tar"]

_COMPRESSED = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    *(".tar.zst", ".tzst", ".tar.lz4"),
)
_ALLOWED = (
    "Give a folder of images, a glob, a .txt, .csv or .jsonl file that names paths or URLs, "
    "a .parquet file or a .tar file (a folder, a glob or a range {00..12} of them too)."
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was asked for, as plain values; ``source_of`` makes it.

    Attributes:
        kind: What it is.
        location: Absolute local path or URL, of one file or folder, or a glob or a brace range.
        column: Of Parquet: where the images are, as bytes, paths or URLs. Of CSV and JSON lines:
            where their paths or URLs are, None finds it. None otherwise.
        key_column: Of Parquet: where the keys are; None takes the paths, or file and row.
    """

    kind: Kind
    location: str
    column: str | None = None
    key_column: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Source:
        """Undo ``to_dict``.

        Raises:
            SourceError: The values are not those of a source.
        """
        try:
            source = cls(**values)
        except TypeError as error:
            raise SourceError(f"{values!r} does not describe a source: {error}.") from error
        texts = (source.location, source.column or "", source.key_column or "")
        if not all(isinstance(text, str) for text in texts):
            raise SourceError(f"{values!r} does not describe a source: its fields are texts.")
        if source.kind not in get_args(Kind):
            raise SourceError(
                f"no source is of kind {source.kind!r}; there are {', '.join(get_args(Kind))}."
            )
        return source


def source_of(
    src: str | os.PathLike[str], *, column: str | None = None, key_column: str | None = None
) -> Source:
    """Decide what kind of source a path, a glob or a URL is.

    A folder with images or folders in it is a folder of images; otherwise tars are looked for in
    it, then Parquet files. What exists under exactly this name is never taken for a glob.

    Args:
        src: Local path, glob, brace range or URL. Relative paths are those of now.
        column: Of Parquet, where the images are. None finds it by its name and type.
        key_column: Of Parquet, where the keys are.

    Returns:
        The source, its location absolute; of Parquet with its column.

    Raises:
        SourceError: Nothing is there, or nothing that images can be taken from.
        ConfigError: Columns of something that is no Parquet file.
        NotInstalledError: pyarrow or fsspec would be needed.

    Example:
        >>> source_of("examples").kind
        'folder'
    """
    location = _absolute(src)
    kind = _kind_of(location, table=column is not None or key_column is not None)
    if kind == "parquet":
        chosen = find_column(location, column, key_column)
        return Source(kind=kind, location=location, column=chosen, key_column=key_column)
    if kind == "list" and key_column is None and name_of(location).lower().endswith(TABLES):
        return Source(kind=kind, location=location, column=column)
    if column is not None or key_column is not None:
        raise ConfigError(
            f"{location} is a {kind}, and only Parquet files have columns (CSV and JSON lines: "
            "column alone); leave out column and key_column."
        )
    return Source(kind=kind, location=location)


def list_items(
    source: Source,
    after: Item | None = None,
    count: int = 0,
    passed: Counter[str] | None = None,
) -> Iterator[Item]:
    """Yield the images of a source, in order, without ever holding all of them.

    Args:
        source: From ``source_of``.
        after: The last image that an earlier listing gave; the listing continues behind it.
        count: How many images those were, ``after`` included.
        passed: Counts the files of folders and tars that are no images, by their endings.

    Yields:
        The images. All texts in them are valid UTF-8. None is opened: one that cannot be read is
        listed all the same.

    Raises:
        SourceError: A folder, list, tar or Parquet file cannot be read or is damaged, or lists and
            Parquet files are not those that ``after`` came from.
    """
    first = max(count - 1, 0)
    if source.kind == "folder":
        yield from _list_folder(source.location, EVERYTHING, after, passed)
    elif source.kind == "glob":
        root, names = split_glob(source.location)
        yield from _list_folder(root, Pattern(names), after, passed)
    elif source.kind == "tar":
        yield from list_tar(source.location, after, passed)
    elif source.kind == "list":
        listed = _list_lines(source.location, first, source.column)
        yield from _behind(listed, after, source.location)
    else:
        listed = list_table(source.location, str(source.column), source.key_column, first)
        yield from _behind(listed, after, source.location)


def _absolute(src: str | os.PathLike[str]) -> str:
    given = os.fspath(src) if isinstance(src, str | os.PathLike) else None
    if not isinstance(given, str):
        raise SourceError(
            f"a source is one path or URL, got {type(src).__name__}; "
            "write several paths into a .txt file, one per line."
        )
    if not given:
        raise SourceError(f"a source is one path or URL, got an empty text. {_ALLOWED}")
    try:
        os.fsencode(given)
    except ValueError as error:  # surrogates that stand for no byte
        raise SourceError(f"{given} is no path: {error}. {_ALLOWED}") from error
    return anchored(given)


def _kind_of(location: str, *, table: bool) -> Kind:
    """Decide by what is there, then by how the name ends."""
    here = local_path(location) is not None
    name = name_of(location).lower()
    if here and os.path.isdir(location):
        return "parquet" if table else _kind_of_folder(location)
    literal = here and os.path.lexists(location)
    if name.endswith(_COMPRESSED):
        raise SourceError(
            f"{location} is compressed, and members of a compressed tar cannot be read one by one; "
            "unpack it into a .tar (images hardly shrink) or into a folder."
        )
    if name.endswith((".tar", ".parquet")):
        if literal or not is_pattern(location):
            _check_file(location)
        return "tar" if name.endswith(".tar") else "parquet"
    if not literal and split_glob(location)[1]:
        return "glob"
    if name.endswith(ENDINGS):
        _check_file(location)
        return "list"
    return _kind_of_other(location, here=here, table=table)


def _kind_of_other(location: str, *, here: bool, table: bool) -> Kind:
    if not here:
        filesystem, inside = filesystem_of(location)
        try:
            found = filesystem.isdir(inside)
        except Exception as error:  # drivers raise their own
            raise SourceError(f"{location} cannot be reached: {error}.") from error
        if found:
            return "parquet" if table else _kind_of_folder(location)
        raise SourceError(f"{location} is neither a folder nor of a known kind. {_ALLOWED}")
    if not os.path.lexists(location):
        raise SourceError(f"{location} does not exist; check the path. {_ALLOWED}")
    if is_image_name(location):
        raise SourceError(
            f"{location} is one image; give its folder, or for one image use trunkline features."
        )
    raise SourceError(f"{location} is of no known kind. {_ALLOWED}")


def _check_file(location: str) -> None:
    path = local_path(location)
    if path is not None and not os.path.isfile(path):
        what = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise SourceError(f"{location} {what}; check the path.")


def _kind_of_folder(location: str) -> Kind:
    """Look at what is directly in a folder, up to the first image or folder."""
    endings = set()
    for name, is_folder in _names_in(location):
        if is_hidden(name):
            continue
        if is_folder or is_image_name(name):
            return "folder"
        endings.add(os.path.splitext(name)[1].lower())
    if ".tar" in endings:
        return "tar"
    return "parquet" if ".parquet" in endings else "folder"


def _names_in(location: str) -> Iterator[tuple[str, bool]]:
    try:
        if local_path(location) is None:
            filesystem, inside = filesystem_of(location)
            for found in filesystem.ls(inside, detail=True):
                name = found["name"].rstrip("/")
                if name.strip("/") != inside.strip("/"):
                    yield name.rpartition("/")[2], found["type"] == "directory"
            return
        with os.scandir(location) as entries:
            for entry in entries:
                yield entry.name, entry.is_dir()
    except SourceError:
        raise
    except Exception as error:  # of the disk, or of a driver
        raise SourceError(
            f"{location} cannot be listed: {getattr(error, 'strerror', None) or error}. "
            "Check that it is a folder that you may read."
        ) from error


def _list_folder(
    root: str, pattern: Pattern, after: Item | None, passed: Counter[str] | None
) -> Iterator[Item]:
    here = local_path(root)
    behind: Names = ()
    if after is not None:
        reached = after.path if here is None else local_path(after.path)
        relative = relative_name(root, reached or "")
        if relative is None:
            raise SourceError(f"{after.path} is not below {root}; the plan is of another source.")
        behind = tuple(relative.split("/"))
    for names in walk(root, pattern, behind):
        if is_image_name(names[-1]):
            relative = "/".join(names)
            path = joined(root, relative)
            yield Item(written_key(relative), path if here is None else written_path(path))
        elif passed is not None:
            passed[ending_of(names[-1])] += 1


def _list_lines(location: str, first: int, column: str | None) -> Iterator[Item]:
    """Yield what a text names, from the given image on."""
    folder, _ = split_name(location)
    try:
        with open_location(location) as file:
            for named in islice(named_images(file, location, column), first, None):
                yield Item(written_key(named), written_path(resolved(folder, named)))
    except SourceError:
        raise
    except Exception as error:  # of the disk, or of a driver
        raise SourceError(
            f"{location} cannot be read: {getattr(error, 'strerror', None) or error}. "
            "It must be a text file with one path or URL per line."
        ) from error


def _behind(items: Iterator[Item], after: Item | None, location: str) -> Iterator[Item]:
    """Leave out the first, which must be the last of an earlier listing."""
    if after is not None:
        found = next(items, None)
        if found is None or found.key != first_key(after.key):
            now = "nothing" if found is None else repr(found.key)
            raise SourceError(
                f"{location} has changed since its listing began: where {after.key!r} was, there "
                f"is {now}. Put back what was there, or extract into a new place."
            )
    yield from items
