"""A test set against attacks: every adversarial image that counts is judged again by a fresh float32 forward."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from planish.attacks import Attack
from planish.attacks.suites import Stage, Suite
from planish.core.arguments import Images, Labels, model_of, seed_of
from planish.core.batch import Batch, ImageSet
from planish.core.errors import Unlike, one_of, spelled
from planish.core.modes import Counted, Precision, Spending, left_in_training
from planish.core.threat import Linf
from planish.core.words import another
from planish.evaluation.at_work import AtWork, OnBlock, OnChunk, Search, Unfinished
from planish.evaluation.blocks import Judged
from planish.evaluation.guards import Again, Averaged, Told, Verdict, copied, draws_of
from planish.evaluation.naming import Attacks, Surrogates, refuse_gradients, surrogates_of
from planish.evaluation.stages import ImageShare, facing, following, left
from planish.evaluation.unions import Threats, ThreatUnion, threats_of
from planish.records.evaluation import SCHEMA_VERSION, Column, Evaluation
from planish.records.origin import origin, same_attack, same_fact

OTHER_CLASSES = (
    "the data name {} classes, the model has {}: labels were matched by number, and attacks aim at all of the model's; "
    "--classes FILE says which class is which"
)
IN_TRAINING = "the model was left in training mode; it is judged in evaluation mode: call .eval() where you use it"


class EvaluationStep(NamedTuple):
    """An evaluation as far as it has come, and the images (N, ...) as the attacks of this run left them.

    An image stays as it was when it broke. Of images that are read when they are wanted there are none, (0, ...): who
    wants them is told of each block.
    """

    evaluation: Evaluation
    x_adv: Tensor


@spelled(threat=Linf, x=Batch)
def evaluate(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    threat: Threats | None = None,
    attacks: Attacks = "planish-suite",
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
    threat: such as planish.Linf("8/255"), the text "Linf:8/255", or a pair ("Linf", radii): a tensor (N,) of one
        for each image, or one that broadcasts with the images, of each pixel. A list of threats is their union: an
        image is robust if it is in each, and only what stands in one goes on to the next.
    attacks: names with commas, attack objects, a list or a dict of them; each is run on what still stands.
    surrogates: for `transfer`, other models of the same classes, best by name: {"standard": model}.
    seed: of everything random. precision: of the search; verdicts are float32, or float64 of a model in float64 and
        of margins that float32 rounds.
    eot: of a random model, so many draws are averaged in each step and judge each image, 4 at least: it is broken
        unless the 95 % interval of its share of wrong draws lies below one half.
    about: JSON-able facts for the record's meta, such as {"model": {"name": "mine"}}.
    Raises BadInput.
    """
    *_, last = evaluate_steps(
        model, x, labels, threat, attacks, surrogates=surrogates, seed=seed, precision=precision, eot=eot, about=about
    )
    return replace(last.evaluation, x_adv=last.x_adv.float().cpu().numpy())


@spelled(threat=Linf, x=Batch)
def evaluate_steps(
    model: nn.Module,
    x: Images | ImageSet,
    labels: Labels = None,
    threat: Threats | None = None,
    attacks: Attacks = "planish-suite",
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
    on_block: OnBlock | None = None,
) -> Iterator[EvaluationStep]:
    """Judge as `evaluate` does, and yield the record after the clean pass and after each attack.

    attacks: by name, in order; each is run on the images that none before it has broken, but one that counts reached
    targets on all correct images. A suite is run stage by stage, a column "suite/stage" each, and may choose the next
    by what the ones before found. The model's modes, parameters and statistics stay as they are.
    earlier: a record of the same model, data, threat and seed, whose attacks are not run again; x_adv: (N, ...) the
    images that they left, where these were kept. unfinished: where the attack at work keeps its progress. share: of
    which test set the images are a part: what a suite decides by all of it is left, and the record says so. on_block:
    told of the images that an attack leaves, a block at a time, which are all where they are in memory.
    Raises BadInput at once for arguments, images, labels, outputs or an earlier record that do not fit.
    """
    counted, threats, seed = Counted(model_of(model)), threats_of(threat), seed_of(seed)
    one_of(get_args(Precision), precision=precision)
    refuse_gradients(counted.model, attacks, about or {})
    search = Search(chunk, precision, draws_of(eot), on_chunk, unfinished, share, on_block)
    copy, began = copied(counted.model), time.perf_counter()
    images = Judged.begun(counted if eot == 1 else Averaged(counted, eot), x, labels, threats, chunk)
    threats = threats.among(images.indices)
    again = Again.begun(copy, images)
    others = surrogates_of(surrogates, images.select(slice(0, 1)))
    wanted = threats.attacks(attacks, images.clean_logits.shape[1], others)
    judged = _clean(counted, images, threats, {**(about or {}), "seed": seed}, time.perf_counter() - began, search)
    if earlier is not None:
        judged = _continued(judged, earlier, judged.x_adv if x_adv is None else x_adv.to(judged.x_adv), wanted)
    return _steps(counted, images, threats, wanted, judged, search, again)


def _steps(
    counted: Counted,
    images: Judged,
    threats: ThreatUnion,
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
        judged = _attacked(counted, images, threats, stage, judged, search)
        stage = following(attacks, judged.evaluation, search.share)
        if stage is None and same:
            seed = judged.evaluation.meta["seed"]
            judged = _entered(judged, again.told_after(counted, images, threats.first, seed))
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
    counted: Counted, images: Judged, threats: ThreatUnion, about: dict[str, Any], seconds: float, search: Search
) -> EvaluationStep:
    logits = images.clean_logits
    verdict = Verdict.from_logits(logits[None], images.labels)
    if search.draws > 1:
        batches = map(images.select, images.blocks())
        drawn = [Verdict.of(counted, batch.x, batch.labels, search.chunk, search.draws) for batch in batches]
        verdict = Verdict(*map(torch.cat, zip(*drawn, strict=True)))
    warnings, names = [], len(about.get("data", {}).get("classes", ()))
    if left_in_training(counted.model):
        warnings.append(IN_TRAINING)
    if names > logits.shape[1] or (0 < names < logits.shape[1] and "numbered" not in about["data"]):
        warnings.append(OTHER_CLASSES.format(names, logits.shape[1]))
    meta = origin(
        counted.given,
        logits,
        images.facts,
        about,
        schema_version=SCHEMA_VERSION,
        threat=threats.facts,
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
    return EvaluationStep(evaluation, images.in_memory().clone())


def _continued(
    fresh: EvaluationStep, earlier: Evaluation, x_adv: Tensor, attacks: Mapping[str, Attack | Suite]
) -> EvaluationStep:
    for key in ("model", "data", "threat", "seed", "eot"):
        if not same_fact(key, earlier.meta, fresh.evaluation.meta):
            raise Unlike(f"the earlier evaluation is of {another(key)}; choose another folder")
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
    counted: Counted, images: Judged, threats: ThreatUnion, stage: Stage, judged: EvaluationStep, search: Search
) -> EvaluationStep:
    """Run one attack on the images it should face, block by block, and enter its column."""
    evaluation, x_adv = judged.evaluation, judged.x_adv.clone()
    rows = facing(evaluation, stage, search.share).to(images.labels.device)
    work = AtWork(counted, images, threats.at(stage.name), stage, evaluation, search, Spending(counted))
    faced = work.finished()
    for some in images.blocks(rows[0 if faced is None else len(faced.margin) :]):
        part, left = work.block(some, faced, len(rows))
        faced = part if faced is None else faced.followed_by(part)
        if len(x_adv):
            x_adv[left.rows] = left.x_adv
        if search.on_block is not None:
            search.on_block(left)
        del left  # its images, before the next block is read
        if len(faced.margin) < len(rows):
            work.finish(faced)
    assert faced is not None
    facts, spent = work.facts(rows, faced), work.spending.so_far()
    enter = partial(_filled, len(evaluation.labels), rows)
    column = Column(
        name=stage.name,
        margin=enter(faced.margin, float("nan")).numpy(),
        distance=enter(faced.distance, float("nan")).numpy(),
        predicted=enter(faced.predicted, -1).numpy(),
        target=enter(faced.target, -1).numpy(),
        component=enter(faced.component, -1).numpy(),
        step=enter(faced.step, -1).numpy(),
        passes=enter(faced.passes * search.draws, -1).numpy(),
        **spent._asdict(),
        meta={**facts, **threats.facts_at(stage.name)},
    )
    return EvaluationStep(replace(evaluation, columns=(*evaluation.columns, column)), x_adv)


def _filled(count: int, rows: Tensor, values: Tensor, empty: float) -> Tensor:
    whole = torch.full((count,), empty, dtype=values.dtype, device="cpu")
    whole[rows.cpu()] = values.cpu()
    return whole
