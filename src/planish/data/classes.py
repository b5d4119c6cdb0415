"""Class names of a data set and of a model: matched by name, or as the user says that they go together."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from planish.core.errors import BadInput, nearest
from planish.core.words import few
from planish.storage.reading import content_of, lines_of, toml_of

if TYPE_CHECKING:
    from planish.data.images import Images
    from planish.data.listing import Listing

Labelled = TypeVar("Labelled", bound="Images | Listing")
Classes = str | Path | Sequence[str] | Mapping[str, int]
"""How a model numbers its classes: their names in its order; or {name in the data: number}; or a file of either."""
NUMBERED = ("{}", "LABEL_{}")
LARGEST = 100_000
"""Classes at most."""
FORMS = 'one class name a line in the model\'s order, or {"name in the data": number} as .json or .toml'


def named_places(names: Sequence[str], known: Sequence[str], data: str = "the data") -> list[int | None]:
    """Return each name's place among the known ones, None = not there.

    Case, spaces, hyphens and underscores make no difference unless two of the known names differ by nothing else.
    Names may be double where both lists are the same. Raises BadInput where all are known and one is ambiguous.

    data: what messages call that which has the names.
    """
    folded: dict[str, list[int]] = {}
    for place, name in enumerate(known):
        folded.setdefault(_folded(name), []).append(place)
    fitting = [_fitting(name, known, folded.get(_folded(name), [])) for name in names]
    if len(names) == len(known) and all(place in places for place, places in enumerate(fitting)):
        return list(range(len(known)))
    if all(fitting):
        _refuse_ambiguous(names, fitting, data)
    return [places[0] if places else None for places in fitting]


def _fitting(name: str, known: Sequence[str], alike: list[int]) -> list[int]:
    """Return which of the places of known names like this one are its own: several only where these are the same."""
    return alike if len(alike) < 2 else [place for place in alike if known[place] == name]


def _refuse_ambiguous(names: Sequence[str], fitting: Sequence[Sequence[int]], data: str) -> None:
    """Raise BadInput for two names that fit one place, and for a name that fits several."""
    first: dict[int, str] = {}
    for name, places in zip(names, fitting, strict=True):
        if places[0] in first:
            both = " and ".join(f"'{one}'" for one in dict.fromkeys((first[places[0]], name)))
            raise BadInput(f"two classes of {data} are called {both}: give each a name of its own")
        first[places[0]] = name
    for name, places in zip(names, fitting, strict=True):
        if len(places) > 1:
            numbers = " and ".join(map(str, places))
            raise BadInput(
                f"{data} has a class '{name}', and classes {numbers} are called so: "
                f"say which it is by --classes FILE, or give each class a name of its own"
            )


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def has_names(classes: Sequence[str]) -> bool:
    """Say whether the classes have names, and not just their numbers: 0, 1, ... or LABEL_0, LABEL_1, ..."""
    return all([name.format(number) for number in range(len(classes))] != list(classes) for name in NUMBERED)


def matched(images: Labelled, classes: Sequence[str]) -> tuple[Labelled, list[str]]:
    """Return the images labelled as a model labels that knows these classes, and what a reader must know of that.

    Classes are matched by name: they may come in another order, or be fewer. Where one side has numbers alone, or
    where no name of as many is known to both, labels stay as they are. Raises BadInput where some names are
    the model's and others are not, where none is and the numbers of classes differ, and for an ambiguous name.
    """
    own, theirs = images.classes, tuple(classes)
    places = named_places(own, theirs, images.name)
    if places == list(range(len(own))) or not has_names(own):
        return images, []
    if None not in places:
        share = f"{len(own)} of the model's {len(theirs)} classes" if len(own) < len(theirs) else "the model's classes"
        said = f"{images.name} has {share} in an order of its own: labels were matched by name"
        return _labelled(images, [place or 0 for place in places], theirs), [said]
    if not has_names(theirs):
        return images, []
    strange = [name for name, place in zip(own, places, strict=True) if place is None]
    if len(strange) == len(own) == len(theirs):
        said = f"none of the class names of {images.name} ({few(own)}) is the model's ({few(theirs)})"
        return images, [f"{said}: labels were matched by number, so both must have one order"]
    raise BadInput(
        f"{images.name} has the classes {few(strange)}, which the model does not know; its {len(theirs)} are "
        f"{few(theirs)}: give the data the model's names, or say which class is which by --classes FILE"
    )


def numbered_as(images: Labelled, classes: Classes) -> Labelled:
    """Return the images labelled as the user says that the model numbers its classes.

    A list names the classes of data that number theirs, unless it holds their numbers in another order. Raises BadInput
    unless each class of the data is among them.
    """
    known = classes_of(classes)
    if isinstance(known, Mapping):
        numbers = [*known.values()]
        places = [None if at is None else numbers[at] for at in named_places(images.classes, [*known], images.name)]
        names = [str(number) for number in range(max(known.values()) + 1)]
        for name, number in known.items():
            names[number] = name
    else:
        places, names = named_places(images.classes, known, images.name), [*known]
        if not has_names(images.classes) and all(at in (None, own) for own, at in enumerate(places)):
            places = [at if at < len(known) else None for at in range(len(images.classes))]
    strange = [name for name, place in zip(images.classes, places, strict=True) if place is None]
    if strange:
        raise BadInput(
            f"{images.name} has the classes {few(strange)}, which the {len(known)} that were given lack."
            f"{nearest(strange[0], known)} Give {FORMS}"
        )
    return _labelled(images, [place or 0 for place in places], tuple(names))


def classes_of(classes: Classes) -> Sequence[str] | Mapping[str, int]:
    """Return names in the model's order, or {name in the data: number}, read from a file where one is named.

    Raises BadInput.
    """
    found: Any = _read(Path(classes)) if isinstance(classes, str | Path) else classes
    if isinstance(found, Mapping):
        wrong = next((name for name, at in found.items() if type(at) is not int or not 0 <= at < LARGEST), None)
        if found and wrong is None:
            return {str(name): number for name, number in found.items()}
        what = "no class" if wrong is None else f"'{wrong}' = {found[wrong]!r}"
    elif isinstance(found, Sequence) and found and all(isinstance(name, str) for name in found):
        twice = next((name for at, name in enumerate(found) if name in found[:at]), None)
        if twice is None:
            return tuple(found)
        what = f"'{twice}' twice"
    else:
        what = "no names" if found else "no class"
    place = f"'{classes}' has" if isinstance(classes, str | Path) else "there is"
    raise BadInput(f"classes: {place} {what}; give {FORMS}")


def _read(path: Path) -> Any:
    try:
        text = content_of(path).decode("utf-8-sig")
        if path.suffix == ".json":
            return json.loads(text)
        return toml_of(text) if path.suffix == ".toml" else lines_of(text, path)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"no file of classes at '{path}' ({error.strerror or error}); give {FORMS}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' cannot be read ({error}); give {FORMS}") from None


def _labelled(images: Labelled, places: Sequence[int], names: tuple[str, ...]) -> Labelled:
    """Return the images with each label replaced by its class's place."""
    table = torch.tensor(places, device=images.labels.device)
    return replace(images, labels=table[images.labels], classes=names)
