"""``python -m pando_attn.distributed``: context parallelism of a shape on paper."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ._paper import Heads, Link, Tree, step_costs

_RANKS = "1,2,4,8,16,32,64,128,256,512,1024"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pando_attn.distributed",
        description="KV bytes of each rank and predicted time of one attend, for numbers of ranks.",
    )
    add = parser.add_argument
    add("--tree", default="1,64:524288,128", help="nodes and tokens by level (%(default)s)")
    add("--ranks", default=_RANKS, help="numbers of ranks (%(default)s)")
    add("--link-gbps", type=float, required=True, help="gigabits a second that a rank receives")
    add("--latency-us", type=float, default=20, help="of one collective; assumed to be %(default)s")
    add("--q-heads", type=int, default=32, help="%(default)s")
    add("--kv-heads", type=int, default=8, help="%(default)s")
    add("--head-dim", type=int, default=128, help="%(default)s")
    add("--dtype", default="bf16", help="fp32, bf16 or fp16 (%(default)s)")
    add("--q-len", type=int, default=1, help="query rows of each sequence (%(default)s)")
    add("--page-tokens", type=int, default=64, help="tokens of a page (%(default)s)")
    add("--profile", default="h100", help="plan for: h100, cuda, cuda:N or cpu (%(default)s)")
    add("--json", action="store_true", help="one line of JSON for each number of ranks")
    return parser


def _ranks(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise ValueError(f"ranks: got {text!r}, want numbers such as {_RANKS}") from None


def _time(us: float) -> str:
    return f"{us / 1e3:.2f} ms" if us >= 1e4 else f"{us:.1f} us"


def _table(costs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "          KV of a rank in MB                    predicted",
        " ranks      min     mean      max       attend   collective          merge"
        "         step  speed-up",
    ]
    for c in costs:
        kv = [f"{c[f'kv_bytes_{which}'] / 1e6:9.2f}" for which in ("min", "mean", "max")]
        lines.append(
            f"{c['ranks']:6d}{''.join(kv)} {_time(c['attend_us']):>12} "
            f"{c['collective']:>10} {_time(c['collective_us']):>9} {_time(c['merge_us']):>9} "
            f"{_time(c['step_us']):>12} {c['speed_up']:8.2f}x"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 2 when the arguments are wrong."""
    options = _arguments().parse_args(arguments)
    try:
        if not (options.link_gbps > 0 and options.latency_us >= 0):
            raise ValueError(
                f"link-gbps: got {options.link_gbps}, and latency-us {options.latency_us}; want "
                "more than 0, and 0 or more"
            )
        ranks = _ranks(options.ranks)
        heads = Heads(
            options.q_heads, options.kv_heads, options.head_dim, options.dtype, options.profile
        )
        tables = Tree.of(options.tree).tables(options.page_tokens, options.q_len)
        link = Link(options.link_gbps, options.latency_us)
        costs = step_costs(tables, options.page_tokens, ranks, heads, link)
    except (ValueError, TypeError, NotImplementedError) as error:
        print(f"pando_attn.distributed: {error}", file=sys.stderr)
        return 2
    if options.json:
        for cost in costs:
            print(json.dumps({"tree": options.tree, **cost}))
        return 0
    print(
        f"{options.tree}: heads {options.q_heads}/{options.kv_heads}, {options.head_dim} x "
        f"{options.dtype}, {int(tables[0][-1])} query rows; profile {options.profile}, links of "
        f"{options.link_gbps:g} Gbit/s, {options.latency_us:g} us a collective\n"
    )
    print("\n".join(_table(costs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
