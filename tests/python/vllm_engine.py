"""Greedy tokens of an engine of vLLM, as a process of its own: `python vllm_engine.py JOB`.

JOB is a file of JSON: model, prompts, tokens, options of `vllm.LLM`, and out, where the answer
goes: tokens, which backend the layers have, and the largest number of sequences that a shared
segment of a plan had. The last two only where the engine is in this process.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any


def main() -> None:
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    from vllm import LLM, SamplingParams

    llm = LLM(job["model"], skip_tokenizer_init=True, enable_prefix_caching=True, **job["options"])
    answer: dict[str, Any] = {"shared_by": 0}
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        worker: Any = llm.llm_engine.model_executor.driver_worker.worker
        groups = [group for groups in worker.model_runner.attn_groups for group in groups]
        answer["backends"] = sorted({group.backend.__name__ for group in groups})
        watch_plans(answer)
    sampling = SamplingParams(
        temperature=0, max_tokens=job["tokens"], ignore_eos=True, detokenize=False
    )
    prompts: Any = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    answer["tokens"] = []
    for _ in range(2):  # the second time what was computed is in the prefix cache
        done = llm.generate(prompts, sampling, use_tqdm=False)
        answer["tokens"].append([list(of.outputs[0].token_ids) for of in done])
    pathlib.Path(job["out"]).write_text(json.dumps(answer))


def watch_plans(answer: dict[str, Any]) -> None:
    from pando_attn._step_plans import StepPlans

    run = StepPlans.plan

    def spy(self: Any, shape: Any, tables: Any) -> Any:
        plan = run(self, shape, tables)
        by = max((s.sequences for s in plan.segments() if s.sequences > 1), default=0)
        answer["shared_by"] = max(answer["shared_by"], by)
        return plan

    StepPlans.plan = spy  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
