"""Shapes are checked while the tests run: what `shapes.py` promises."""

import pytest
import shapes
import torch
from jaxtyping import TypeCheckError

from circuitlab.patching.runs.baseline import at_answer
from circuitlab.stats import holm


class TestShapes:
    def test_a_wrong_shape_is_refused(self):
        with pytest.raises(TypeCheckError, match="at_answer"):
            at_answer(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64))

    def test_a_wrong_type_is_refused(self):
        with pytest.raises(TypeCheckError, match="holm"):
            holm("no numbers")

    def test_for_so_many_calls_in_a_file_and_again_in_the_next(self):
        # The data is right and only the annotation's [row] is not: what runs unchecked takes both.
        right, wrong = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
        for _ in range(shapes.CALLS):
            at_answer(torch.zeros(2, 3, 4), right)
        assert at_answer(torch.zeros(2, 3, 4), wrong).shape == (2, 2, 4)
        shapes.begin_anew()
        with pytest.raises(TypeCheckError, match="at_answer"):
            at_answer(torch.zeros(2, 3, 4), wrong)
