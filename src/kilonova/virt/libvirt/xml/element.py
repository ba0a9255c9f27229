"""Building XML out of elements, never out of strings."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

# What XML 1.0 cannot carry, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(
    tag: str,
    attributes: Mapping[str, str | int | None] | None = None,
    *children: ET.Element | None,
    text: str | int | None = None,
) -> ET.Element:
    """An element; attributes and children that are None are left out."""
    made = ET.Element(tag, {k: clean(str(v)) for k, v in (attributes or {}).items() if v is not None})
    if text is not None:
        made.text = clean(str(text))
    made.extend(child for child in children if child is not None)
    return made


def clean(text: str) -> str:
    """The text with a question mark for each character that XML does not have."""
    return _NOT_XML.sub("?", text)


def yes(flag: bool) -> str:
    return "yes" if flag else "no"


def on(flag: bool) -> str:
    return "on" if flag else "off"
