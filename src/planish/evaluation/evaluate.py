"""A test set against attacks: every adversarial image that counts is judged again by a fresh float32 forward."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from planish.attacks import Attack, Progress, run
from planish.attacks.suites import Stage, Suite
from planish.core.arguments import Images, Labels, images_at_a_time, judged_batch, model_of, seed_of
from planish.core.batch import Batch
from planish.core.errors import Unlike, spelled
from planish.core.modes import Counted, Precision, left_in_training
from planish.core.randomness import seeded
from planish.core.threat import Linf, ThreatModel
from planish.core.words import number_of, radius_text
from planish.evaluation.guards import Again, Averaged, Told, Verdict, copied, draws_of, stuck_facts
from planish.evaluation.naming import Attacks, Surrogates, surrogates_of
from planish.evaluation.stages import ImageShare, facing, following, left
from planish.evaluation.unions import Threats, ThreatUnion, threats_of
from planish.records.evaluation import SCHEMA_VERSION, Column, Evaluation
from planish.records.origin import describe_attack, origin, same_attack, unnamed
from planish.registry import called_once
from planish.search.ascent import Adversarials


class Update(NamedTuple):
    """How an evaluation stands after a chunk: the attack's name; of how many images how many were wrong from the start
    and how many are broken so far; how many the running part of the attack has still to visit; and single-image passes
    spent so far."""

    attack: str
    images: int
    wrong: int
    broken: int
    left: int
    passes: int


OnChunk = Callable[[Update], None]
OTHER_CLASSES = (
    "the data name {} classes, the model has {}: labels were matched by number, and attacks aim at all of the model's; "
    "--classes FILE says which class is which"
)
IN_TRAINING = "the model was left in training mode; it is judged in evaluation mode: call .eval() where you use it"


class Unfinished(Protocol):
    """Keeps the progress of a column that is at work, so that a killed evaluation goes on from its last chunk."""

    def load(self, key: str, device: torch.device) -> Progress | None:
        """Return what was kept last under this key, if that is what was kept last."""
        ...

    def keep(self, key: str, progress: Progress) -> None:
        """Keep the progress, in place of any other."""
        ...


class EvaluationStep(NamedTuple):
    """An evaluation as far as it has come, and the images (N, ...) as the attacks of this run left them.

    An image stays as it was when it broke.
    """

    evaluation: Evaluation
    x_adv: Tensor


@dataclass(frozen=True)
class Search:
    """How attacks are run: images at a time, arithmetic of the search, draws; who is told of progress, who keeps it.

    share: which part of a test set the images are, where they are not all of it.
    """

    chunk: int | None = None
    precision: Precision = "float32"
    draws: int = 1
    on_chunk: OnChunk | None = None
    unfinished: Unfinished | None = None
    share: ImageShare | None = None


@spelled(threat=Linf)
def evaluate(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    threat: Threats | None = None,
    attacks: Attacks = "autoattack",
    *,
    surrogates: Surrogates = (),
    seed: int = 0,
    precision: Precision = "float32",
    eot: int = 1,
    about: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge a model under attacks, and return the record with its adversarial images.

    model: maps images in [0, 1] to logits; it is judged in evaluation mode and stays as it is.
    x: (N, C, H, W) in [0, 1], a tensor or a NumPy array; or, with labels None, what holds both: a Batch, a pair
        (x, labels), a Dataset or a DataLoader of pairs, which is read whole.
    labels: (N,) whole numbers from 0 to K - 1, a tensor, an array or a list.
    threat: such as planish.Linf("8/255"), or the text "Linf:8/255"; or a list of them, their union: an image is robust
        if it is in each, and only what stands in one goes on to the next.
    attacks: names with commas, attack objects, a list or a dict of them; each is run on what still stands.
    surrogates: for `transfer`, other models of the same classes, best by name: {"standard": model}.
    seed: of everything random. precision: of the search; verdicts are float32, or float64 of a model in float64.
    eot: of a random model, so many draws are averaged in each step and judge each image, 4 at least: it is broken
        unless the 95 % interval of its share of wrong draws lies below one half.
    about: JSON-able facts for the record's meta, such as {"model": {"name": "mine"}}.
    Raises BadInput.
    """
    *_, last = evaluate_steps(
        model, x, labels, threat, attacks, surrogates=surrogates, seed=seed, precision=precision, eot=eot, about=about
    )
    return replace(last.evaluation, x_adv=last.x_adv.float().cpu().numpy())


@spelled(threat=Linf)
def evaluate_steps(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    threat: Threats | None = None,
    attacks: Attacks = "autoattack",
    *,
    surrogates: Surrogates = (),
    seed: int = 0,
    chunk: int | None = None,
    precision: Precision = "float32",
    eot: int = 1,
    about: Mapping[str, Any] | None = None,
    earlier: Evaluation | None = None,
    x_adv: Tensor | None = None,
    on_chunk: OnChunk | None = None,
    unfinished: Unfinished | None = None,
    share: ImageShare | None = None,
) -> Iterator[EvaluationStep]:
    """Judge as `evaluate` does, and yield the record after the clean pass and after each attack.

    attacks: by name, in order; each is run on the images that none before it has broken, but one that counts reached
    targets on all correct images. A suite is run stage by stage, a column "suite/stage" each, and may choose the next
    by what the ones before found. The model's modes, parameters and statistics stay as they are.
    earlier: a record of the same model, data, threat and seed, whose attacks are not run again; x_adv: (N, ...) the
    images that they left, where these were kept. unfinished: where the attack at work keeps its progress. share: of
    which test set the images are a part: what a suite decides by all of it is left, and the record says so.
    Raises BadInput at once for arguments, images, labels, outputs or an earlier record that do not fit.
    """
    counted, threats, seed = Counted(model_of(model)), threats_of(threat), seed_of(seed)
    search = Search(chunk, precision, draws_of(eot), on_chunk, unfinished, share)
    copy, began = copied(counted.model), time.perf_counter()
    images = judged_batch(counted if eot == 1 else Averaged(counted, eot), x, labels, threats.first, chunk)
    again = Again.begun(copy, images)
    others = surrogates_of(surrogates, images)
    wanted = threats.attacks(attacks, images.clean_logits.shape[1], others)
    judged = _clean(counted, images, threats, {**(about or {}), "seed": seed}, time.perf_counter() - began, search)
    if earlier is not None:
        judged = _continued(judged, earlier, images.x.clone() if x_adv is None else x_adv.to(images.x), wanted)
    return _steps(counted, images, threats, wanted, judged, search, again)


def _steps(
    counted: Counted,
    images: Batch,
    threat: ThreatUnion,
    attacks: Mapping[str, Attack | Suite],
    judged: EvaluationStep,
    search: Search,
    again: Again,
) -> Iterator[EvaluationStep]:
    stage, same = following(attacks, judged.evaluation, search.share), search.draws == 1
    yield judged if stage else _ended(judged, attacks, search.share)
    if stage is not None and same:
        told = again.told_before(counted, images)
        judged, same = _entered(judged, told), not told.warnings
    while stage is not None:
        judged = _attacked(counted, images, threat, stage, judged, search)
        stage = following(attacks, judged.evaluation, search.share)
        if stage is None and same:
            seed = judged.evaluation.meta["seed"]
            judged = _entered(judged, again.told_after(counted, images, threat.first, seed))
        yield judged if stage else _ended(judged, attacks, search.share)


def _ended(judged: EvaluationStep, attacks: Mapping[str, Attack | Suite], share: ImageShare | None) -> EvaluationStep:
    """Return the last step; a shard's record says which attacks are left to the whole test set."""
    record = judged.evaluation
    if share is None:
        return judged
    shard = {**record.meta.get("shard", {}), "left": left(attacks, record, share)}
    return judged._replace(evaluation=replace(record, meta={**record.meta, "shard": shard}))


def _entered(judged: EvaluationStep, told: Told) -> EvaluationStep:
    """Return the step with what guards have told in its record."""
    record = judged.evaluation
    return judged._replace(evaluation=replace(record, meta=told.entered(record.meta)))


def _clean(
    counted: Counted, images: Batch, threat: ThreatUnion, about: dict[str, Any], seconds: float, search: Search
) -> EvaluationStep:
    logits = images.clean_logits
    verdict = Verdict.from_logits(logits[None], images.labels)
    if search.draws > 1:
        verdict = Verdict.of(counted, images.x, images.labels, search.chunk, search.draws)
    warnings, names = [], len(about.get("data", {}).get("classes", ()))
    if left_in_training(counted.model):
        warnings.append(IN_TRAINING)
    if names > logits.shape[1] or (0 < names < logits.shape[1] and "numbered" not in about["data"]):
        warnings.append(OTHER_CLASSES.format(names, logits.shape[1]))
    meta = origin(
        counted.model,
        images._replace(x=images.x.float()),
        about,
        schema_version=SCHEMA_VERSION,
        threat=threat.facts,
        clean={"forwards": counted.forwards, "seconds": seconds},
        warnings=warnings,
        **({"eot": search.draws} if search.draws > 1 else {}),
    )
    evaluation = Evaluation(
        indices=images.indices.cpu().numpy(),
        labels=images.labels.cpu().numpy(),
        clean_margin=verdict.margin.cpu().numpy(),
        clean_predicted=verdict.predicted.cpu().numpy(),
        columns=(),
        meta=meta,
    )
    return EvaluationStep(evaluation, images.x.clone())


def _continued(
    fresh: EvaluationStep, earlier: Evaluation, x_adv: Tensor, attacks: Mapping[str, Attack | Suite]
) -> EvaluationStep:
    for key in ("model", "data", "threat", "seed", "eot"):
        if unnamed(earlier.meta.get(key)) != unnamed(fresh.evaluation.meta.get(key)):
            raise Unlike(f"the earlier evaluation is of another {key}; choose another folder")
    classes = int(fresh.evaluation.meta["model"]["classes"])
    for column in earlier.columns:
        wanted = attacks.get(column.name)
        known = column.meta.get("attack")
        if wanted is None or isinstance(wanted, Suite):
            continue
        if not same_attack(known, wanted.assembled(classes), column.name):
            raise Unlike(f"the earlier evaluation ran another attack named '{column.name}'; choose another folder")
    known = {key: value for key, value in earlier.meta.items() if key != "left"}
    meta = {**known, **fresh.evaluation.meta, "warnings": earlier.meta.get("warnings", [])}
    return _entered(EvaluationStep(replace(earlier, meta=meta), x_adv), Told(fresh.evaluation.meta["warnings"], 0))


@torch.inference_mode(False)
def _attacked(
    counted: Counted, images: Batch, threats: ThreatUnion, stage: Stage, judged: EvaluationStep, search: Search
) -> EvaluationStep:
    """Run one attack on the images it should face and enter its column."""
    evaluation, threat = judged.evaluation, threats.at(stage.name)
    rows = facing(evaluation, stage, search.share).to(images.x.device)
    forwards, backwards, began = counted.forwards, counted.backwards, time.perf_counter()
    batch = images.select(rows)
    found = run(
        stage.attack,
        counted if search.draws == 1 else Averaged(counted, search.draws),
        batch,
        threat,
        generator=_generator(evaluation, stage.name),
        chunk=search.chunk,
        precision=search.precision,
        report=search.on_chunk and partial(_update, search.on_chunk, counted, evaluation, stage.name),
        **_kept(evaluation, stage, search, images.x.device),
    )
    verdict = verified(counted, batch, found, threat, stage.name, search.chunk, search.draws)
    spent = {"forwards": counted.forwards - forwards, "backwards": counted.backwards - backwards}
    spent_seconds = time.perf_counter() - began
    enter = partial(_filled, len(evaluation.labels), rows)
    column = Column(
        name=stage.name,
        margin=enter(verdict.margin, float("nan")).numpy(),
        distance=enter(threat.norm(found.x_adv - batch.x).to(torch.float32), float("nan")).numpy(),
        predicted=enter(verdict.predicted, -1).numpy(),
        target=enter(found.target, -1).numpy(),
        component=enter(found.component, -1).numpy(),
        step=enter(found.step, -1).numpy(),
        passes=enter(found.passes * search.draws, -1).numpy(),
        **spent,
        seconds=spent_seconds,
        meta={**_facts(counted, batch, stage, found, verdict, search), **threats.facts_at(stage.name)},
    )
    standing = torch.from_numpy(evaluation.survivors()).to(rows.device)[rows]
    x_adv = judged.x_adv.clone()
    x_adv[rows[standing]] = found.x_adv[standing]
    return EvaluationStep(replace(evaluation, columns=(*evaluation.columns, column)), x_adv)


def _facts(
    counted: Counted, batch: Batch, stage: Stage, found: Adversarials, verdict: Verdict, search: Search
) -> dict[str, Any]:
    """Return the meta of a column: the attack, how it was run, and the images on which it came to nothing."""
    facts: dict[str, Any] = {"attack": describe_attack(stage.attack), "precision": search.precision}
    if stage.sample is not None or stage.focus is not None:
        facts["sampled"] = True
    if stage.because:
        facts["because"] = list(stage.because)
    if search.draws > 1:
        facts["eot"] = {"draws": search.draws, "indices": batch.indices.tolist(), "wrong": verdict.wrong.tolist()}
    return facts | stuck_facts(stage.attack, counted, batch, (verdict.margin < 0) & (found.step <= 0))


def _update(on_chunk: OnChunk, counted: Counted, evaluation: Evaluation, name: str, broken: int, left: int) -> None:
    """Tell how the whole evaluation stands."""
    correct, standing = int(evaluation.correct().sum()), int(evaluation.survivors().sum())
    images, passes = len(evaluation.labels), counted.forwards + counted.backwards
    on_chunk(Update(name, images, images - correct, correct - standing + broken, left, passes))


def _kept(evaluation: Evaluation, stage: Stage, search: Search, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `run` that keep its progress and take it up again; the key says what is at work."""
    if search.unfinished is None:
        return {}
    facts = [evaluation.meta[key] for key in ("model", "data", "threat", "seed")]
    text = repr([facts, stage.name, describe_attack(stage.attack), evaluation.names, search.precision])
    key = hashlib.sha256(text.encode()).hexdigest()
    return {"earlier": search.unfinished.load(key, device), "keep": partial(search.unfinished.keep, key)}


def _generator(evaluation: Evaluation, name: str) -> Generator:
    """Return a generator that depends on the seed and the attack's first name, not on the attacks before it."""
    first = called_once("suites", name)
    return seeded(evaluation.meta["seed"], int.from_bytes(hashlib.sha256(first.encode()).digest()[:6]))


def _filled(count: int, rows: Tensor, values: Tensor, empty: float) -> Tensor:
    whole = torch.full((count,), empty, dtype=values.dtype, device="cpu")
    whole[rows.cpu()] = values.cpu()
    return whole


def verified(
    model: nn.Module, batch: Batch, found: Adversarials, threat: ThreatModel, name: str, chunk: int | None, draws: int
) -> Verdict:
    """Judge what an attack returned by fresh forwards, in batches cut otherwise than the attack's.

    Raises RuntimeError if an image lies outside the ball or the box: an attack that cheats is an error, never clipped.
    """
    feasible = threat.feasible(found.x_adv, batch.x)
    if not bool(feasible.all()):
        worst = float(threat.norm(found.x_adv - batch.x).max())
        raise RuntimeError(
            f"{name} left the {threat.name} ball of radius {radius_text(threat.radius)} or the box on "
            f"{number_of(int((~feasible).sum()))} (largest distance {worst:g})"
        )
    return Verdict.of(model, found.x_adv, batch.labels, max(1, images_at_a_time(chunk) - 1), draws)
