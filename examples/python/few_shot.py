#!/usr/bin/env python3
"""Few-shot evaluation: 8 shots, and many questions after them.

usage: python examples/python/few_shot.py [--questions 64] [--shots 8] [--shot-tokens 64] ...
"""

from __future__ import annotations

from common import load, of_generated, parser, random_prompt, report, timed, without_pando

import pando_attn


def main(argv: list[str] | None = None) -> None:
    options = parser("Answers to many questions after the same shots, with and without Pando.")
    options.add_argument("--questions", type=int, default=64)
    options.add_argument("--shots", type=int, default=8)
    options.add_argument("--shot-tokens", type=int, default=64)
    options.add_argument("--question-tokens", type=int, default=24)
    options.add_argument("--answer-tokens", type=int, default=8)
    args = options.parse_args(argv)
    model = load(args)
    shots = random_prompt(model, args.shots * args.shot_tokens, args.seed)
    prompts = [
        shots + random_prompt(model, args.question_tokens - i % 3, 1 + args.seed + i)
        for i in range(args.questions)
    ]

    sdpa = without_pando(model, prompts, 1, args.answer_tokens, 0.0, args.seed)
    result, seconds = timed(
        model,
        lambda: pando_attn.generate(
            model,
            prompts,
            max_new_tokens=args.answer_tokens,
            stop_tokens=(),
            return_logprobs=True,
        ),
    )
    title = f"{args.questions} questions after {args.shots} shots of {args.shot_tokens} tokens"
    report(title, model, args, prompts, sdpa, of_generated(result, seconds))
    print(
        f"  {result.computed_prompt_tokens} of {result.prompt_tokens} tokens of prompts were "
        f"computed; the others begin as one before them\n"
    )


if __name__ == "__main__":
    main()
