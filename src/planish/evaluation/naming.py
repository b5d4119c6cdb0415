"""Attacks and suites by name, for a data set of so many classes, and the names of attacks that are given as objects."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from torch import nn

from planish.attacks import Attack, DistanceAttack, Within
from planish.attacks.suites import Staged, Suite
from planish.attacks.transfer import Surrogate, same_classes
from planish.core.arguments import check_logits, model_of, shown
from planish.core.batch import Batch
from planish.core.errors import BadInput, nearest
from planish.core.modes import Counted
from planish.models import is_black_box
from planish.registry import components, is_known, make, refuse_former, resolve

Attacks = str | Attack | DistanceAttack | Suite | Sequence[Any] | Mapping[str, Any]
"""A name such as "pgd-50-10", several with commas, an object, several of these, or a dict from names to these."""

Surrogates = Mapping[str, nn.Module] | Sequence[nn.Module | Surrogate]
"""Other models, by name or one after the other."""


WITHOUT_GRADIENTS = ("noise", "square", "transfer", "boundary")
"""Attacks that ask a model for its answers alone."""


def refuse_gradients(model: nn.Module, attacks: object, about: Mapping[str, Any]) -> None:
    """Raise BadInput for attacks by name that ask a black box for gradients: they would find nothing.

    about: facts, which may have the model's name.
    """
    for name in _given(attacks).values() if is_black_box(model) else ():
        if isinstance(name, str) and ":" not in name and not name.startswith(WITHOUT_GRADIENTS):
            own = about.get("model", {}).get("name", "the model")
            raise BadInput(f"{own} is a black box and {name} asks for gradients; use {', '.join(WITHOUT_GRADIENTS)}")


def surrogates_of(models: Surrogates, images: Batch) -> tuple[Surrogate, ...]:
    """Return other models as surrogates, each tried on one of the images with clean logits. Raises BadInput."""
    if isinstance(models, nn.Module) or models is None:
        raise BadInput(f'surrogates are models by name, {{"other": model}}, not {shown(models)}')
    numbered = ((f"{type(one).__name__}-{number}", one) for number, one in enumerate(models, 1))
    named: Iterable[tuple[str, object]] = models.items() if isinstance(models, Mapping) else numbered
    found = [one if isinstance(one, Surrogate) else Surrogate.of(name, model_of(one)) for name, one in named]
    for other in found:
        try:
            lent = check_logits(Counted(other.model), images.select(slice(0, 1)))
        except BadInput as error:
            raise BadInput(f"surrogate '{other.name}': {error}") from error
        same_classes(other.name, lent, images.clean_logits)
    return tuple(found)


def attacks_of(
    attacks: object, classes: int, *, norm: str = "Linf", surrogates: Sequence[Surrogate] = ()
) -> dict[str, Attack | Suite]:
    """Return the attacks and suites of all forms of `Attacks` by name, for a data set of so many classes.

    norm: "Linf", "L2", "L1" or "L0", for what differs by it; surrogates: for `transfer`. A distance attack is one in
    the ball: it succeeds within the radius. "suite/stage" names one attack of a suite that has fixed stages. One of the
    user's own is "file.py:NAME" or "package.module:NAME". Raises BadInput.
    """
    known = {"classes": classes, "norm": norm, "surrogates": tuple(surrogates)}
    given = _given(attacks).items()
    made = {name: _made_or_stage(part, known) if isinstance(part, str) else part for name, part in given}
    return {name: _in_ball(_in_norm(part, norm)) for name, part in made.items()}


def distance_attacks(attacks: object, classes: int, *, norm: str = "Linf") -> dict[str, DistanceAttack]:
    """Return the distance attacks of all forms of `Attacks` by name, as `attacks_of` does. Raises BadInput.

    A suite of distance attacks stands for its stages, each as "suite/stage".
    """
    known = {"classes": classes, "norm": norm}
    found: dict[str, DistanceAttack] = {}
    for name, part in _given(attacks).items():
        own = _measuring(part, known)
        if not own:
            every = known | {"norm": "L2"}
            others = (
                name for package in ("attacks", "suites") for name in components(package) if _measuring(name, every)
            )
            raise BadInput(
                f"'{name}' searches a ball of fixed radius; for distances use one of {', '.join(sorted(others))}"
            )
        found |= own if isinstance(part, str) and list(own) != [spoken(part)] else {name: next(iter(own.values()))}
    return found


def _in_norm(attack: Any, norm: str) -> Any:
    """Return a suite whose stages differ by the norm as it is in this one."""
    own: Any = attack
    return replace(own, norm=norm) if isinstance(attack, Suite) and hasattr(attack, "norm") else own


def _in_ball(attack: Attack | DistanceAttack | Suite) -> Attack | Suite:
    return Within(attack) if isinstance(attack, DistanceAttack) else attack


def spoken(name: str) -> str:
    """Return what records call the attack of that name: one of the user's own goes without the place of its code."""
    return name.rpartition(":")[2]


def wanted(name: str) -> Mapping[str, Any]:
    """Return what the component of that name wants to know; of "suite/stage", the suite."""
    name = name if ":" in name else name.partition("/")[0]
    return inspect.signature(resolve(package_of(name), name)[0]).parameters


def package_of(name: str) -> Literal["attacks", "suites"]:
    """Return where the component of that name is registered. Raises BadInput that names the nearest of both."""
    if ":" in name:
        return "attacks"
    packages: tuple[Literal["suites"], Literal["attacks"]] = ("suites", "attacks")
    for package in packages:
        if is_known(package, name):
            return package
    refuse_former("suites", name)
    known = sorted({*components("attacks"), *components("suites")})
    meant = nearest(re.sub(r"(-\d+)+$", "", name), known)
    raise BadInput(f"unknown attack '{name}'.{meant} Known: {', '.join(known)}")


def name_of(attack: Attack | DistanceAttack | Suite) -> str:
    """Return the name by which the attack would be asked for, such as "pgd-50-10"; options without a number follow it.

    An attack that is not registered has its class's name.
    """
    known = {kind: name for package in ("attacks", "suites") for name, kind in components(package).items()}
    own = known.get(type(attack), type(attack).__name__)
    parts: list[Any] = [part for part in fields(attack) if part.repr] if is_dataclass(attack) else []
    values = [getattr(attack, part.name) for part in parts]
    leading = list(
        takewhile(lambda pair: type(pair[1]) is int and not pair[0].kw_only, zip(parts, values, strict=True))
    )
    rest = [
        f"{part.name}={value}"
        for part, value in zip(parts[len(leading) :], values[len(leading) :], strict=True)
        if part.default is MISSING or value != part.default
    ]
    return " ".join(["-".join([own, *(str(value) for _, value in leading)]), *rest]).replace("/", "|")


def _given(attacks: object) -> dict[str, Any]:
    """Return names to what was given for each: a name or an object. Raises BadInput."""
    if isinstance(attacks, str):
        attacks = [name.strip() for name in attacks.split(",") if name.strip()]
    if isinstance(attacks, Attack | DistanceAttack | Suite):
        attacks = [attacks]
    if isinstance(attacks, Sequence):
        pairs = [(spoken(part) if isinstance(part, str) else _named(part), part) for part in attacks]
        found = dict(pairs)
        if len(found) < len(pairs):
            raise BadInput(f"an attack is given twice: {', '.join(name for name, _ in pairs)}; a dict can name them")
    elif isinstance(attacks, Mapping):
        found = dict(attacks)
    else:
        raise BadInput(
            'attacks are a name such as "autoattack" or "pgd-50-10", an attack such as planish.attacks.PGD(50, 10), '
            f"a list or a dict of them, not {shown(attacks)}"
        )
    for name, part in found.items():
        if not isinstance(name, str) or not isinstance(part, str | Attack | DistanceAttack | Suite):
            verify = "; planish.verify judges images that other code has attacked" * callable(part)
            raise BadInput(f"attack {shown(name)} must be a name or an attack object, not {shown(part)}{verify}")
    return found


def _named(part: object) -> str:
    if isinstance(part, Attack | DistanceAttack | Suite):
        return name_of(part)
    hint = f"; call the class: {part.__name__}()" if inspect.isclass(part) else ""
    raise BadInput(f"an attack is a name or an attack object, not {shown(part)}{hint}")


def _measuring(name: Any, known: Mapping[str, Any]) -> dict[str, DistanceAttack]:
    """Return the distance attacks that a name stands for, or an object is; none if it is anything else."""
    if not isinstance(name, str):
        return {"": name} if isinstance(name, DistanceAttack) else {}
    package = package_of(name)
    component, _ = resolve(package, name)
    if package == "attacks":
        return {spoken(name): _made(name, known)} if hasattr(component, "distances") else {}
    suite = _made(name, known)
    stages = suite.stages if isinstance(suite, Staged) else ()
    found = {f"{name}/{stage.name}": stage.attack.attack for stage in stages if isinstance(stage.attack, Within)}
    return found if len(found) == len(stages) else {}


def _made_or_stage(name: str, known: Mapping[str, Any]) -> Any:
    """Return what `_made` does, or of "suite/stage" that stage's attack. Raises BadInput."""
    suite, slash, own = ("", "", "") if ":" in name else name.partition("/")
    if not slash:
        return _made(name, known)
    made = _made(suite, known)
    stages = {stage.name: stage.attack for stage in made.stages} if isinstance(made, Staged) else {}
    if own not in stages:
        raise BadInput(f"'{suite}' has no stage '{own}'.{nearest(own, stages)} Known: {', '.join(stages) or 'none'}")
    return stages[own]


def _made(name: str, known: Mapping[str, Any]) -> Any:
    """Return the component of that name with its numbers, told what it wants to know."""
    asked = wanted(name)
    made = make(package_of(name), name, {key: value for key, value in known.items() if key in asked})
    if not isinstance(made, Attack | DistanceAttack | Suite):
        raise BadInput(f"'{name}' is no attack: it must be a planish.attacks.Attack, DistanceAttack or Suite")
    return made
