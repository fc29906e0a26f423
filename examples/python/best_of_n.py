#!/usr/bin/env python3
"""The best of 64 samples of one prompt, by the model's own log-probabilities.

usage: python examples/python/best_of_n.py [--samples 64] [--prompt-tokens 512] ...
"""

from __future__ import annotations

import torch
from common import load, of_generated, parser, random_prompt, report, timed, without_pando

import pando_attn


def main(argv: list[str] | None = None) -> None:
    options = parser("The best of many samples of one prompt, with and without Pando.")
    options.add_argument("--samples", type=int, default=64)
    options.add_argument("--prompt-tokens", type=int, default=512)
    options.add_argument("--new-tokens", type=int, default=32)
    options.add_argument("--temperature", type=float, default=0.8)
    args = options.parse_args(argv)
    model = load(args)
    prompt = random_prompt(model, args.prompt_tokens, args.seed)

    sdpa = without_pando(
        model, [prompt], args.samples, args.new_tokens, args.temperature, args.seed
    )
    torch.manual_seed(args.seed)  # on the CPU both draw the same numbers
    result, seconds = timed(
        model,
        lambda: pando_attn.generate(
            model,
            prompt,
            num_samples=args.samples,
            max_new_tokens=args.new_tokens,
            temperature=args.temperature,
            stop_tokens=(),
            return_logprobs=True,
        ),
    )
    pando = of_generated(result, seconds)
    title = f"{args.samples} samples of {args.new_tokens} tokens, a prompt of {len(prompt)}"
    report(title, model, args, [prompt], sdpa, pando)
    scores = pando.logprobs[0]
    best = max(range(len(scores)), key=scores.__getitem__)
    print(
        f"  the best is sample {best}: {scores[best] / args.new_tokens:.2f} a token, "
        f"{sum(scores) / len(scores) / args.new_tokens:.2f} on average\n"
    )


if __name__ == "__main__":
    main()
