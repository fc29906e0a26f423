"""``python -m pando_attn.distributed``: a shape on many ranks, on paper."""

import json

import pytest

from pando_attn.distributed.__main__ import main

TREE = ["--tree", "1,8:4096,128", "--page-tokens", "64", "--link-gbps", "3600"]


def costs(capsys, *arguments):
    assert main([*TREE, *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_ranks_hold_equal_parts_and_each_cost_is_there(capsys):
    one, two, eight = costs(capsys, "--ranks", "1,2,8")
    kv_bytes = (4096 + 8 * 128) * 8 * 128 * 2 * 2
    for cost in (one, two, eight):
        assert cost["kv_bytes_mean"] * cost["ranks"] == kv_bytes
        assert cost["kv_bytes_min"] <= cost["kv_bytes_mean"] <= cost["kv_bytes_max"]
        assert cost["kv_bytes_max"] <= 1.05 * cost["kv_bytes_mean"] + 64 * 8 * 128 * 4
        step_us = cost["attend_us"] + cost["collective_us"] + cost["merge_us"]
        assert cost["step_us"] == pytest.approx(step_us)
        assert cost["speed_up"] == pytest.approx(cost["one_rank_us"] / step_us)
    assert one["speed_up"] == pytest.approx(1) and one["collective"] == "none"
    assert two["attend_us"] < one["attend_us"]


def test_the_collective_is_priced_by_the_link(capsys):
    (cost,) = costs(capsys, "--ranks", "2", "--latency-us", "5")
    partial_bytes = 8 * 32 * (128 * 2 + 4)
    assert cost["collective"] == "all_gather"
    assert cost["collective_us"] == pytest.approx(5 + partial_bytes / (3600 * 125))


def test_many_ranks_take_the_collective_that_moves_less(capsys):
    few, many = costs(capsys, "--ranks", "2,64", "--latency-us", "5", "--q-len", "32")
    assert (few["collective"], many["collective"]) == ("all_gather", "all_to_all")


def test_the_table_has_a_line_for_each_number_of_ranks(capsys):
    assert main([*TREE, "--ranks", "1,2,1024"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "1024"]
    assert all(line.endswith("x") for line in lines[-3:])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ranks", "0"], "ranks: got 0, want 1 or more"),
        (["--ranks", "two"], "ranks: got 'two', want numbers such as 1,2,4"),
        (["--page-tokens", "0"], "page_tokens: got 0, want a power of two"),
        (["--q-len", "0"], "q_len: got 0, want 1 or more"),
        (["--q-len", "400000000"], "q_len: got 400000000, want 1 or more, and fewer than 2^31"),
        (["--tree", "1:3000000000"], "3000000000 tokens of a sequence, want fewer than 2^31"),
        (["--link-gbps", "0"], "link-gbps: got 0.0"),
        (["--tree", "2,3:1,1"], "tree: got '2,3:1,1', want nodes and tokens"),
        (
            ["--tree", "1,2:100,1"],
            "tree: got 100 shared tokens, want a multiple of page_",
        ),
        (["--dtype", "int8"], "dtype: got 'int8'"),
        (["--profile", "tpu"], "device: got 'tpu'"),
    ],
)
def test_bad_arguments_are_refused(capsys, arguments, text):
    assert main([*TREE, *arguments]) == 2
    assert text in capsys.readouterr().err
