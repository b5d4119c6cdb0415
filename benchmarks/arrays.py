"""What the benchmarks of single images share: models under their names, and arrays that are measured once."""

import json
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import RESULTS

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.records.origin import data_digest, model_digest, provenance
from planish.runs.judge import EvaluationConfig, LoadedModel, images_to_judge, load_model
from planish.storage.files import write_arrays
from planish.storage.reading import read_arrays

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Judged:
    """A model under the name that tables and files have for it, and the images that it meets."""

    name: str
    subject: LoadedModel
    batch: Batch
    data: str
    device: str

    def once(self, path: Path, setting: Mapping[str, Any], measure: Callable[[], Arrays]) -> tuple[Arrays, Any]:
        """Return the arrays of a file and what is known of them; they are measured if it is not there.

        Raises BadInput if it holds another model, other images or another setting.
        """
        key = {"model": model_digest(self.subject.model), "data": data_digest(self.batch), **setting}
        if not path.exists():
            began = time.process_time()
            found = measure()
            about = {"key": key, "seconds": time.process_time() - began, **provenance(self.device)}
            ids = {"indices": self.batch.indices.cpu().numpy(), "labels": self.batch.labels.cpu().numpy()}
            write_arrays(path, about=np.array(json.dumps(about)), **ids, **found)
        arrays = read_arrays(path)
        about = json.loads(str(arrays.pop("about")))
        other = [what for what in key if about["key"].get(what) != key[what]]
        if other:
            raise BadInput(f"{path} is of another {other[0]}; choose another folder")
        return arrays, about


def options(about: str, name: str) -> ArgumentParser:
    """Return a command line of models, images and where to write."""
    parser = ArgumentParser(description=about.split("\n", 1)[0])
    parser.add_argument("models", nargs="+", metavar="[NAME=]RUN", help="run folders; a name other than the folder's")
    parser.add_argument("--data", required=True, help="the test set")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / name)
    parser.add_argument("--figure", type=Path, help="a PNG")
    parser.add_argument("--page", type=Path, help=f"a page with a place for the table, <!-- {name} -->")
    return parser


def judged(spec: str, data: str, images: int, device: str) -> Judged:
    """Return the model of [NAME=]RUN with the first images of the test set."""
    name, _, path = spec.rpartition("=")
    model = load_model(path, device)
    batch, about, _ = images_to_judge(EvaluationConfig(data, Linf(0.0), (), images), model.about)
    moved = Batch(*(part.to(device) for part in batch[:3]))
    return Judged(name or Path(path).name, model, moved, about["name"], device)
