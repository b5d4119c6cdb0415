"""What other libraries and papers call the things that planish names."""

from collections.abc import Iterable

SYNONYMS = {
    "accumulate": "accumulation_steps accumulate_grad_batches grad_accum gradient_accumulation",
    "activation": "act act_fn act_layer nonlinearity",
    "attacks": "attack adversary",
    "batch_size": "batch batchsize bs minibatch train_batch_size",
    "beta": "lambda lam lambda_ tradeoff trade_off",
    "clip": "clip_grad clip_norm grad_clip gradient_clip gradient_clip_val max_grad_norm",
    "consistency_weight": "lambda lam lambda_",
    "crop": "pad padding random_crop",
    "data": "dataset",
    "depth": "layers n_layers num_layers",
    "device": "cuda gpu",
    "drop_factor": "gamma lr_decay lr_gamma",
    "drops": "lr_drops lr_milestones milestones",
    "ema": "average averaging ema_decay swa",
    "epochs": "max_epochs n_epochs num_epochs",
    "flip": "hflip horizontal_flip mirror",
    "label_smoothing": "smoothing",
    "labels": "label target targets y",
    "learning_rate": "base_lr initial_lr lr lr_max max_lr peak_lr rate",
    "limit": "max_images n_ex n_examples n_images num_images subset",
    "linearity_weight": "lambda lam lambda_",
    "model": "net network",
    "name": "arch architecture backbone model net network",
    "noise_in_radii": "noise",
    "norm": "lp ord p",
    "optimizer": "opt optim optimiser",
    "out": "dir folder output output_dir save_dir",
    "precision": "amp bf16 dtype fp16 half mixed_precision",
    "queries": "max_queries n_queries num_queries",
    "radius": "eps epsilon",
    "restarts": "n_restarts num_restarts random_restarts",
    "schedule": "lr_schedule lr_scheduler scheduler",
    "seed": "random_seed random_state",
    "size": "image_size img_size input_size resize resolution",
    "source": "dataset path root",
    "step": "alpha eps_iter eps_step step_size stepsize",
    "step_in_radii": "alpha eps_iter eps_step step_size stepsize",
    "step_size": "alpha eps_iter eps_step stepsize",
    "steps": "iterations iters max_iter n_iter n_steps nb_iter num_steps",
    "validation": "holdout val val_size valid",
    "weight": "lambda lam lambda_",
    "weight_decay": "wd",
    "weight_perturbation": "awp awp_gamma",
    "weights": "checkpoint ckpt pretrained",
    "width": "base_width widen_factor width_factor",
    "workers": "n_workers num_workers",
    "x": "images inputs x_test",
}
"""By name, what else it is called."""


def synonym(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is the name, or the first that is called so elsewhere; None = none is.

    known: also with the tables that they are in, such as "settings.epochs".
    """
    other = name.lower().replace("-", "_")
    owns = {full: full.rpartition(".")[2] for full in known}
    same = [full for full, own in owns.items() if own == other]
    return next(iter([*same, *(full for full, own in owns.items() if other in SYNONYMS.get(own, "").split())]), None)
