"""One engine of cpu_peers.py in a process of its own, which answers a request a line.

    python benchmarks/cpu_peer.py ENGINE '{"model": .., "threads": ..}'

It runs in an environment that has the engine, and imports nothing else. A request is JSON such as
``{"do": "generate", "prompt": [ids], "text": "..", "tokens": 96}``; so is the answer.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

PAST = 64  # tokens before the rows that are timed
Json = dict[str, Any]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class Engine:
    """What is asked of an engine; it may lack some of it."""

    def generate(self, prompt: list[int], text: str, tokens: int) -> Json:
        """Continue a prompt greedily, by so many tokens whatever they are.

        The same is done for a single token, so that reading the prompt can be subtracted.
        """
        first, _ = timed(lambda: self.run(prompt, text, 1))
        seconds, answer = timed(lambda: self.run(prompt, text, tokens))
        return {"first": first, "seconds": seconds, **answer}

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        """Generate; the answer has `tokens`, how many there were."""
        raise NotImplementedError

    def rows(self, count: int) -> float | None:
        """Milliseconds of a forward of so many tokens after 64 others."""
        return None

    def memory(self) -> Json:
        """Bytes of this process that no file holds."""
        with open("/proc/self/smaps_rollup") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("Anonymous"))
        return {"anonymous": 1024 * kilobytes}


class Pard(Engine):
    """pard-rt; with `onnxruntime`, its decoding by ONNX Runtime's own operators."""

    def __init__(self, model: str, threads: int, draft: str | None = None, k: int = 4) -> None:
        import pard_rt

        self._pard_rt = pard_rt
        drafting: Json = {"draft": draft, "num_speculative_tokens": k} if draft else {}
        self._generator = pard_rt.Generator(model, threads=threads, **drafting)
        self._folder, self._threads = model, threads
        self._model: Any = None

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        output = self._generator.generate(prompt, max_new_tokens=tokens, eos_token_ids=[])
        return {"tokens": len(output.token_ids), "ids": output.token_ids}

    def open(self) -> Any:
        return self._pard_rt.OnnxModel(self._folder, threads=self._threads)

    def rows(self, count: int) -> float | None:
        self._model = self._model or self.open()
        tokens = [(7919 * i + 13) % 30000 for i in range(PAST + count)]

        def forward(past: int, end: int) -> None:
            item = self._pard_rt.ForwardItem(
                sequence=0, past_length=past, tokens=tokens[past:end], num_rows=end - past
            )
            self._model.forward([item])

        forward(0, PAST)
        return 1e3 * timed(lambda: forward(PAST, PAST + count))[0]


class OnnxRuntime(Pard):
    """The same folder by ONNX Runtime's operators."""

    def __init__(self, model: str, threads: int) -> None:
        import pard_rt

        self._pard_rt = pard_rt
        self._folder, self._threads, self._model = model, threads, None

    def open(self) -> Any:
        return self._pard_rt.OnnxModel(
            self._folder, threads=self._threads, own_matmul=False, own_attention=False, exact=False
        )

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        raise NotImplementedError


class LlamaCpp(Engine):
    """llama.cpp through xllamacpp."""

    def __init__(self, model: str, threads: int, draft: str | None = None, k: int = 4) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = 2048
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_parallel = 1
        if draft:
            kind = xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
            params.speculative.types = [kind]
            params.speculative.draft.mparams.path = draft
            params.speculative.draft.n_max = k
            params.speculative.draft.p_min = 0
        self._server = xllamacpp.Server(params)

    def _complete(self, prompt: Any, tokens: int, **options: Any) -> Json:
        asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        answer = self._server.handle_completions({**asked, "cache_prompt": False, **options})
        return json.loads(answer) if isinstance(answer, str) else answer

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        answer = self._complete(prompt, tokens)
        timings = answer["timings"]
        return {
            "tokens": timings["predicted_n"],
            "ids": answer["choices"][0]["text"],
            "accepted": timings.get("draft_n_accepted"),
        }

    def rows(self, count: int) -> float | None:
        past = [(7919 * i + 13) % 30000 for i in range(PAST)]
        self._complete(past, 1, cache_prompt=True)
        new = random.sample(range(1000, 30000), count)
        timings = self._complete([*past, *new], 1, cache_prompt=True)["timings"]
        return timings["prompt_ms"] if timings["prompt_n"] == count else None


class OpenVino(Engine):
    """OpenVINO GenAI."""

    def __init__(self, model: str, threads: int) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        result = self._pipeline.generate([text], config)
        return {"tokens": result.perf_metrics.get_num_generated_tokens()}


class Genai(Engine):
    """onnxruntime-genai, over a folder of its model builder."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        config = onnxruntime_genai.Config(model)
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(overlay))
        self._model = onnxruntime_genai.Model(config)

    def _generator(self, prompt: list[int], length: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=1
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(prompt)
        return generator

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        generator = self._generator(prompt, len(prompt) + tokens)
        for _ in range(tokens):
            generator.generate_next_token()
        return {"tokens": len(generator.get_sequence(0)) - len(prompt)}

    def rows(self, count: int) -> float | None:
        tokens = [(7919 * i + 13) % 30000 for i in range(PAST + count)]
        generator = self._generator(tokens[:PAST], PAST + count + 1)
        return 1e3 * timed(lambda: generator.append_tokens(tokens[PAST:]))[0]


class Transformers(Engine):
    """transformers, in bfloat16."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        torch.set_num_threads(threads)
        self._torch, self._cache = torch, DynamicCache
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        ids = self._torch.tensor([prompt])
        out = self._model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        return {"tokens": out.shape[1] - len(prompt)}

    def rows(self, count: int) -> float | None:
        ids = self._torch.tensor([[(7919 * i + 13) % 30000 for i in range(PAST + count)]])
        cache = self._cache()
        with self._torch.inference_mode():
            self._model(ids[:, :PAST], past_key_values=cache)
            return 1e3 * timed(lambda: self._model(ids[:, PAST:], past_key_values=cache))[0]


class Pace(Engine):
    """AMD PACE, in bfloat16."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from pace.llm import KVCacheType, LLMModel, SamplingConfig
        from transformers import BatchEncoding

        torch.set_num_threads(threads)
        self._torch, self._config, self._inputs = torch, SamplingConfig, BatchEncoding
        self._model = LLMModel(model, dtype=torch.bfloat16, kv_cache_type=KVCacheType.SLAB_POOL)

    def run(self, prompt: list[int], text: str, tokens: int) -> Json:
        ids = self._torch.tensor([prompt])
        inputs = self._inputs({"input_ids": ids, "attention_mask": self._torch.ones_like(ids)})
        config = self._config(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        self._model.generate(inputs, config)
        return {"tokens": tokens}


class Memory(Engine):
    """What memory delivers: several threads that read arrays of their own from end to end."""

    def __init__(self, threads: int) -> None:
        import numpy as np

        self._threads = threads
        self._arrays = [np.ones(1 << 26, np.int64) for _ in range(threads)]

    def generate(self, prompt: list[int], text: str, tokens: int) -> Json:
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        with ThreadPoolExecutor(self._threads) as pool:
            seconds, _ = timed(lambda: list(pool.map(np.bitwise_or.reduce, self._arrays)))
        return {"bytes_per_second": sum(each.nbytes for each in self._arrays) / seconds}


ENGINES: dict[str, Callable[..., Engine]] = {
    "pard-rt": Pard,
    "onnxruntime": OnnxRuntime,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
    "genai": Genai,
    "transformers": Transformers,
    "pace": Pace,
    "memory": Memory,
}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print what they like
    engine = ENGINES[sys.argv[1]](**json.loads(sys.argv[2]))
    if not isinstance(engine, OnnxRuntime):
        engine.generate([1, 2, 3], "hello", 2)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(engine, request.pop("do"))(**request)
        except NotImplementedError:
            result = None
        print(json.dumps({"result": result}), file=answers, flush=True)


if __name__ == "__main__":
    main()
