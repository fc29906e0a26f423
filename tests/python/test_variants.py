"""Soft caps, attention sinks and trees of draft tokens, on NumPy arrays against the oracle."""

from pathlib import Path

import numpy as np
import pytest
from batch import Batch

import pando_attn

TREE = [0b00001, 0b00011, 0b00101, 0b01011, 0b10101]  # two branches of one root
SINKS = np.array([0.5, -np.inf, 3.0, -2.0], np.float32)
CASES = {
    "soft_cap": Batch([133, 140], [1, 2], prefix=8, options={"soft_cap": 2.0}),
    "soft_cap_and_window": Batch([133, 140], [1, 2], 8, options={"soft_cap": 5.0, "window": 20}),
    "sinks": Batch([133, 140], [1, 2], prefix=8, sinks=SINKS),
    "sinks_and_rows_that_see_nothing": Batch([1, 0], [34, 2], sinks=SINKS),
    "tree": Batch([133, 140], [5, 1], prefix=8, options={"tree_mask": [*TREE, 1]}),
    "tree_and_the_rest": Batch(
        [133, 90], [5, 5], 4, options={"tree_mask": TREE * 2, "soft_cap": 3.0}, sinks=SINKS
    ),
    "tree_of_64": Batch([70], [64], options={"tree_mask": [2**64 - 1, *range(1, 64)]}),
}


@pytest.mark.parametrize("share", ["auto", "none", "all"])
@pytest.mark.parametrize("name", CASES)
def test_variants_are_right(name, share):
    batch = CASES[name]
    plan = batch.plan(share=share)
    out, lse = pando_attn.attend(plan, batch.q, *batch.caches(), return_lse=True, sinks=batch.sinks)
    batch.answer().check(out, lse)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_variants_are_right_in_16_bits(dtype):
    options = {"tree_mask": TREE, "soft_cap": 30.0}
    batch = Batch([133], [5], dtype=dtype, options=options, sinks=SINKS)
    out, lse = pando_attn.attend(
        batch.plan(), batch.q, *batch.caches(), return_lse=True, sinks=batch.sinks
    )
    batch.answer().check(out, lse, dtype)


def test_update_takes_another_tree():
    batch = Batch([133], [5], options={"tree_mask": TREE})
    plan = batch.plan()
    causal = np.array([1, 3, 7, 15, 31], np.int64)  # signed bits are bits
    plan.update(batch.q_indptr, batch.kv_lens, batch.page_indptr, batch.page_ids, tree_mask=causal)
    batch.options = {}
    batch.answer().check(pando_attn.attend(plan, batch.q, *batch.caches()))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"soft_cap": -1}, ValueError, "soft_cap: got -1, want 0"),
        ({"soft_cap": float("nan")}, ValueError, "soft_cap: got nan"),
        ({"soft_cap": float("inf")}, ValueError, "soft_cap: got inf"),
        ({"soft_cap": 1e-50}, ValueError, "soft_cap: got 1e-50, want 0 or a number that fp32"),
        ({"soft_cap": "high"}, TypeError, "soft_cap: got str"),
        ({"tree_mask": TREE[:4]}, ValueError, "tree_mask: got 4 masks, want one for each of the 5"),
        ({"tree_mask": [[1]]}, ValueError, "tree_mask: got 2 dimensions"),
        ({"tree_mask": [0.5] * 5}, TypeError, "tree_mask: got float"),
        ({"tree_mask": [-1] * 5}, ValueError, "tree_mask: got -1"),
        ({"tree_mask": [2**64] * 5}, ValueError, "tree_mask: got 18446744073709551616"),
        ({"tree_mask": [32] * 5}, ValueError, r"tree_mask\[0\]: got bit 5, want bits below 5"),
        ({"tree_mask": TREE, "window": 3}, ValueError, "window: got 3 beside tree_mask"),
        ({"tree_mask": TREE, "visible": [[0, 9]] * 5}, ValueError, "visible: got ranges beside"),
    ],
)
def test_wrong_variants_are_refused_by_name(change, error, text):
    with pytest.raises(error, match=text):
        Batch([133], [5]).plan(**change)


@pytest.mark.parametrize(
    ("sinks", "error", "text"),
    [
        (np.zeros(3, np.float32), ValueError, r"sinks: got shape \(3,\), want \(4,\)"),
        (np.zeros((1, 4), np.float32), ValueError, "sinks: got shape"),
        (np.zeros(4, np.float64), TypeError, "sinks: got dtype float64"),
        (np.zeros(8, np.float32)[::2], ValueError, "sinks: got strided memory"),
        (np.array([0, np.nan, 0, 0], np.float32), ValueError, r"sinks\[1\]: got nan"),
        ([0.0] * 4, TypeError, "sinks: got list"),
    ],
)
def test_wrong_sinks_are_refused_by_name(sinks, error, text):
    batch = Batch([133], [5])
    with pytest.raises(error, match=text):
        pando_attn.attend(batch.plan(), batch.q, *batch.caches(), sinks=sinks)


def test_variants_are_those_of_the_docs():
    page = Path(__file__).parents[2] / "docs" / "variants.md"
    rows = [line.split("|")[1:4] for line in page.read_text().splitlines() if "| `" in line]
    for column, device in ((1, "cpu"), (2, "h100")):
        said = tuple(row[0].strip(" `") for row in rows if row[column].strip() == "yes")
        assert pando_attn.variants(device) == said
