"""What training scripts say of a network beside its tensors: its name, and mmdetection's style.

They say it at the top of a file, in the options that they were started with, or in the text of a
config. Nothing of it is believed over tensors; where those do not tell, it may be all there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trunkline.weights.reading.records import Blob, Inert

NAMES = ("arch", "architecture", "model_name", "variant", "backbone", "encoder_name", "encoder")
_BESIDE = ("meta", "args", "hyper_parameters", "hparams", "config", "cfg", "opt", "model_args")
_TEXTS = ("config", "cfg")
_LONGEST = 200
_CONFIG_BYTES = 1 << 20  # of a config's text, ten times the longest that is known
_STYLE = re.compile(r"""['"]?\bstyle['"]?\s*[=:]\s*['"](\w{1,20})['"]""")


def words_beside(root: object) -> dict[str, str]:
    """Return what a file calls its network, outside the dictionary at its top.

    Args:
        root: What was saved.

    Returns:
        Any of ``NAMES``, and ``"style"`` where all that a config says of it agrees.
    """
    found: dict[str, str] = {}
    for beside in _dictionaries(root):
        for name in NAMES:
            value = beside.get(name)
            if type(value) is str and 0 < len(value) <= _LONGEST:
                found.setdefault(name, value)
    styles = {style for text in _configs(root) for style in _STYLE.findall(text)}
    if len(styles) == 1:
        found["style"] = styles.pop()
    return found


def _dictionaries(root: object) -> Iterator[dict[object, object]]:
    if type(root) is dict:
        for key in _BESIDE:
            value = root.get(key)
            value = value.contents() if type(value) is Inert else value  # argparse.Namespace
            if type(value) is dict:
                yield value


def _configs(root: object) -> Iterator[str]:
    for beside in (root, *_dictionaries(root)):
        for key in _TEXTS:
            value = beside.get(key) if type(beside) is dict else None
            if type(value) is str:
                yield value[:_CONFIG_BYTES]
            elif type(value) is Blob and value.encoding:
                yield bytes(value.memory[:_CONFIG_BYTES]).decode(value.encoding, "replace")
