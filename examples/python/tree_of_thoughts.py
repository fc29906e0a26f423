#!/usr/bin/env python3
"""A tree of thoughts: at each level the best thoughts go on, each in several ways.

usage: python examples/python/tree_of_thoughts.py [--depth 4] [--keep 4] [--branch 8] ...

A `KvCache` that outlives the levels has the KV of the question and of all thoughts before: a level
computes only what is new.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Run, load, of_generated, parser, random_prompt, report, timed, without_pando

import pando_attn
from pando_attn.transformers import KvCache

#: From the prompts of a level, and its number, to their samples.
Expand = Callable[[list[list[int]], int], Run]


def search(
    question: list[int], depth: int, keep: int, expand: Expand
) -> tuple[list[list[int]], Run]:
    """All prompts of the search, and all samples as one run; a path's score adds up the
    log-probabilities of its thoughts, each divided by its tokens."""
    paths = [(0.0, question)]
    prompts: list[list[int]] = []
    total = Run([], 0.0, 0, [])
    for level in range(depth):
        run = expand([path for _, path in paths], level)
        grown = [
            (score + logprob / len(tokens), path + tokens)
            for (score, path), samples, logprobs in zip(paths, run.tokens, run.logprobs)
            for tokens, logprob in zip(samples, logprobs)
        ]
        prompts += [path for _, path in paths]
        total.tokens += run.tokens
        total.logprobs += run.logprobs
        total.seconds += run.seconds
        total.kv_bytes = max(total.kv_bytes, run.kv_bytes)
        paths = sorted(grown, key=lambda scored: -scored[0])[:keep]
    return prompts, total


def main(argv: list[str] | None = None) -> None:
    options = parser("A search over a tree of thoughts, with and without Pando.")
    options.add_argument("--depth", type=int, default=4)
    options.add_argument("--keep", type=int, default=4)
    options.add_argument("--branch", type=int, default=8)
    options.add_argument("--question-tokens", type=int, default=512)
    options.add_argument("--thought-tokens", type=int, default=32)
    options.add_argument("--temperature", type=float, default=0.8)
    args = options.parse_args(argv)
    model = load(args)
    question = random_prompt(model, args.question_tokens, args.seed)
    samples, new_tokens = args.branch, args.thought_tokens
    longest = args.depth * new_tokens
    room = args.question_tokens + longest * args.keep * args.branch
    cache = KvCache(model, 2 * room)

    def by_transformers(prompts: list[list[int]], level: int) -> Run:
        seed = args.seed + level
        return without_pando(model, prompts, samples, new_tokens, args.temperature, seed)

    def by_pando(prompts: list[list[int]], level: int) -> Run:
        torch.manual_seed(args.seed + level)  # on the CPU both draw the same numbers
        result, seconds = timed(
            model,
            lambda: pando_attn.generate(
                model,
                prompts,
                num_samples=samples,
                max_new_tokens=new_tokens,
                temperature=args.temperature,
                stop_tokens=(),
                return_logprobs=True,
                cache=cache,
            ),
        )
        return of_generated(result, seconds)

    _, sdpa = search(question, args.depth, args.keep, by_transformers)
    prompts, pando = search(question, args.depth, args.keep, by_pando)
    title = (
        f"{args.depth} levels of thoughts of {new_tokens} tokens, {args.keep} kept, {samples} from "
        f"each, a question of {len(question)}"
    )
    report(title, model, args, prompts, sdpa, pando)


if __name__ == "__main__":
    main()
