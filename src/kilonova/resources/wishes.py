"""What a flavor and an image say of one thing: the flavor's ``hw:NAME`` and the image's ``hw_NAME``."""

from __future__ import annotations

from collections.abc import Mapping

from kilonova.errors import Invalid
from kilonova.model.flavor import Flavor

_YES = frozenset({"1", "t", "true", "on", "y", "yes"})
_NO = frozenset({"0", "f", "false", "off", "n", "no", ""})


class Wishes:
    """The words of a flavor and of an image, by names without a prefix."""

    def __init__(self, flavor: Flavor, properties: Mapping[str, str]) -> None:
        self.flavor = flavor
        self.specs = flavor.extra_specs
        self.properties = properties

    def of_flavor(self, name: str) -> str | None:
        return self.specs.get(f"hw:{name}") or None

    def of_image(self, name: str) -> str | None:
        return self.properties.get(f"hw_{name}") or None

    def one_of(self, name: str, words: tuple[str, ...]) -> tuple[str | None, str | None]:
        """What the flavor and the image say, each None or one of ``words``.  Raises Invalid."""
        for source, value in ((f"hw:{name}", self.of_flavor(name)), (f"hw_{name}", self.of_image(name))):
            if value is not None and value not in words:
                raise Invalid(f"{source} is '{value}': it must be one of {', '.join(words)}.")
        return self.of_flavor(name), self.of_image(name)

    def flag(self, name: str, *, image: bool = True) -> bool:
        """A yes or no; both must say the same where both speak.  Raises Invalid."""
        values = [self.of_flavor(name), self.of_image(name) if image else None]
        said = {yes_or_no(name, value) for value in values if value is not None}
        if len(said) > 1:
            raise Invalid(f"hw:{name} of the flavor and hw_{name} of the image contradict each other.")
        return True in said

    def forbid_image(self, name: str) -> None:
        """Raises Invalid when the image speaks of what the flavor has decided."""
        raise Invalid(
            f"The image's hw_{name} '{self.of_image(name)}' is not allowed: the flavor has decided it by "
            f"hw:{name}."
        )


def yes_or_no(name: str, text: str) -> bool:
    """Raises Invalid for what is neither."""
    word = text.strip().lower()
    if word not in _YES and word not in _NO:
        raise Invalid(f"hw:{name} is '{text}': it must be true or false.")
    return word in _YES
