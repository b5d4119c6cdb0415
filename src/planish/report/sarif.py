"""Cases as SARIF 2.1.0, the format in which analyses hand over what they found (OASIS standard, 2020)."""

from typing import Any

from planish.report.cases import Case, Cases

LEVELS = {"fail": ("fail", "error"), "warn": ("fail", "warning"), "open": ("open", "none"), "pass": ("pass", "none")}
"""A verdict as SARIF's kind and level (3.27.9, 3.27.10): a level other than "none" goes with "fail" alone."""
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(found: Cases, place: tuple[str, int] | None = None) -> dict[str, Any]:
    """Return the log as one JSON-able document.

    place: the file that the model comes from, relative to the working folder, and the line; None where no file does.
    """
    rules = [{"id": case.name, "shortDescription": {"text": case.asks}} for case in found.cases]
    driver = {"name": "planish", "rules": rules}
    if found.facts["version"]:
        driver["version"] = found.facts["version"]
    results = [_result(case, index, found, place) for index, case in enumerate(found.cases)]
    facts = {key: value for key, value in found.facts.items() if value not in (None, "")}
    run = {"tool": {"driver": driver}, "results": results, "invocations": [{"executionSuccessful": True}]}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run | {"properties": {"model": found.model, **facts}}]}


def _result(case: Case, index: int, found: Cases, place: tuple[str, int] | None) -> dict[str, Any]:
    kind, level = LEVELS[case.verdict]
    location: dict[str, Any] = {"logicalLocations": [{"name": found.model, "kind": "module"}]}
    if place is not None:
        region = {"artifactLocation": {"uri": place[0]}, "region": {"startLine": place[1]}}
        location["physicalLocation"] = region
    message = " ".join(filter(None, (case.told, case.advice)))
    told = {"ruleId": case.name, "ruleIndex": index, "kind": kind, "level": level, "message": {"text": message}}
    return told | {"locations": [location], "partialFingerprints": {"planish/v1": f"{found.model}/{case.name}"}}
