"""Threat models from texts, as the command line and configurations write them."""

from planish.core.errors import BadInput, nearest
from planish.core.threat import L0, L1, L2, Linf, ThreatModel, parse_radius

THREATS: dict[str, type[ThreatModel]] = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}


def parse_threat(norm: str, radius: str | float | None = None) -> ThreatModel:
    """Return the threat model of a norm ("Linf", "L2", "L1" or "L0", any case) and a radius, or of "Linf:8/255" alone.

    Raises BadInput.
    """
    name, _, text = norm.partition(":") if radius is None else (norm, "", "")
    by_name = {known.lower(): kind for known, kind in THREATS.items()}
    if radius is None and not text:
        known = " or ".join("L0:10" if name == "L0" else f"{name}:8/255" for name in THREATS)
        raise BadInput(f"threat '{norm}' has no radius; write a norm and a radius in pixels of [0, 1]: {known}")
    if name.lower() not in by_name:
        raise BadInput(f"unknown norm '{name}'.{nearest(name, THREATS)} Known: {', '.join(THREATS)}")
    return by_name[name.lower()](parse_radius(text if radius is None else radius))
