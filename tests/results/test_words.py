"""Issue 20, item 6: a count of one is singular, and a radius is shown as it was given."""

import numpy as np
import pytest

from planish.core.words import few, number_of, radius_text
from planish.records.evaluation import Evaluation


def test_issue_20_one_image_is_no_images():
    assert [number_of(n) for n in (0, 1, 2, 1000)] == ["0 images", "1 image", "2 images", "1,000 images"]
    assert number_of(1, "class", "classes") == "1 class" and number_of(2, "class", "classes") == "2 classes"
    assert few(["a", "b"]) == "a, b" and few([*"abcdefg"]) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("text", ["4/255", "8/255", "0.5/255", "0.25/255", "1.75/255", "0.1", "0.2", "0.5", "128/255"])
def test_issue_20_a_radius_is_shown_as_it_was_given(text: str):
    top, _, bottom = text.partition("/")
    assert radius_text(float(top) / float(bottom or 1)) == text


def test_another_radius_is_shown_with_four_digits():
    assert radius_text(0.031372) == "0.03137" and radius_text(0.0) == "0"


def test_issue_20_a_record_words_its_radius_as_it_was_given():
    one = np.ones(1, np.float32)
    meta = {"schema_version": 2, "threat": {"norm": "Linf", "radius": 4 / 255}}
    record = Evaluation(np.zeros(1, np.int64), np.zeros(1, np.int64), -one, np.zeros(1, np.int64), (), meta)
    assert "radius 4/255" in record.headline()
