"""How late is the first token of a checkpoint that is loaded, how long takes another adapter, how fast do tokens come?

The whole platform trains a small llama (hidden size 256, 4 layers) for a few steps and keeps two checkpoints. Questions
of some 400 tokens, each another, are asked over HTTP with the SDK. The peer is the same adapter on the same base with
transformers and PEFT in this process, which times nothing but the model: reading the prompt for the first token, and
`generate` for the rest. Both compute in float32 with all cores and take turns.

python -m benchmarks.generation
"""

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, spread, verdict
from benchmarks.workload import TrainingWorkload
from tests.support.platform import Platform
from tunesmith.client import Client
from tunesmith.client.generation import generation_request

ROUNDS = 10
SOONEST, SWITCH, SLOWEST = 0.050, 0.200, 1.0
TOKENS = 128
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


def question(number: int) -> str:
    """A text of about 400 tokens that no other begins with."""
    return f"{number}: " + " ".join(f"Multiply {number + factor} and {factor}." for factor in range(40))


class Peer:
    """The final adapter with transformers and PEFT."""

    def __init__(self, base: Path, adapter: Path) -> None:
        import torch
        from peft import PeftModel

        from modelkit.loading import load_config, load_model, load_tokenizer

        self._torch = torch
        self._tokenizer: Any = load_tokenizer(adapter, load_config(base))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model: Any = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), str(adapter)).eval()

    def _tokens(self, number: int) -> Any:
        messages = [{"role": "user", "content": question(number)}]
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )

    def first_token(self, number: int) -> float:
        """Seconds that the model takes to read a prompt."""
        tokens = self._tokens(number)
        started = time.perf_counter()
        with self._torch.inference_mode():
            self._model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits.argmax()
        return time.perf_counter() - started

    def rate(self, number: int) -> float:
        """Tokens a second of `generate`, the first one left out."""
        tokens = self._tokens(number)
        first = self.first_token(number)
        started = time.perf_counter()
        self._model.generate(
            input_ids=tokens,
            attention_mask=self._torch.ones_like(tokens),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
        return (TOKENS - 1) / (time.perf_counter() - started - first)


def first_token(client: Client, task_id: str, number: int, step: int) -> float:
    """Seconds from the question to the first piece of its answer."""
    request = generation_request(task_id, question(number), {**SAMPLING, "max_tokens": 8}, checkpoint_step=step)
    started = time.perf_counter()
    for response in client.generate(request):
        if response.text or response.finish_reason:
            return time.perf_counter() - started
    raise RuntimeError("the answer ended without a word")


def rate(client: Client, task_id: str, number: int) -> float:
    """Tokens a second of an answer, the first one left out."""
    request = generation_request(task_id, question(number), {**SAMPLING, "max_tokens": TOKENS, "seed": number})
    *_, last = client.generate(request)
    usage = last.usage
    return (usage.completion_tokens - 1) / (usage.seconds - usage.first_token_seconds)


def trained(client: Client, workload: TrainingWorkload) -> Any:
    """A completed task with two checkpoints."""
    request = workload.request("generation", steps=2)
    request.spec.finetune.training.save_steps = 1
    return client.tasks.wait(client.tasks.create(request).id)


def main() -> None:
    figures: dict[str, list[float]] = {name: [] for name in ("ours", "model", "switched", "rate", "peer rate")}
    with tempfile.TemporaryDirectory() as directory, Platform(Path(directory) / "data") as platform:
        workload = TrainingWorkload.create(platform.data_dir / "datasets" / "bench")
        with platform.client() as client:
            task = trained(client, workload)
            peer = Peer(workload.model, Path(task.output_dir))
            for step in (1, 2):
                first_token(client, task.id, 0, step)
            peer.first_token(0)
            for number in range(1, ROUNDS + 1):
                figures["model"].append(peer.first_token(number))
                figures["ours"].append(first_token(client, task.id, number, 2))
                figures["switched"].append(first_token(client, task.id, 1000 + number, 1))
                first_token(client, task.id, 2000 + number, 2)
                figures["rate"].append(rate(client, task.id, 3000 + number))
                figures["peer rate"].append(peer.rate(number))
    show(figures)


def show(figures: dict[str, list[float]]) -> None:
    """Prints the table."""
    median = {name: statistics.median(values) for name, values in figures.items()}
    later, switch = median["ours"] - median["model"], median["switched"] - median["ours"]
    ratio = median["rate"] / median["peer rate"]
    print_table(
        f"Answers of a loaded checkpoint, {ROUNDS} of each",
        ["", "median (least to greatest)", "figure"],
        [
            ["First token over HTTP (s)", spread(figures["ours"]), ""],
            ["The model alone reads the prompt (s)", spread(figures["model"]), ""],
            ["First token above the model's own time (s)", f"{later:.3f}", verdict(later, SOONEST, at_most=True)],
            ["First token right after another adapter's answer (s)", spread(figures["switched"]), ""],
            ["What the other adapter costs (s)", f"{switch:.3f}", verdict(switch, SWITCH, at_most=True)],
            ["Tokens a second", spread(figures["rate"]), ""],
            ["Tokens a second of transformers' generate", spread(figures["peer rate"]), ""],
            ["Ratio", f"{ratio:.2f}", verdict(ratio, SLOWEST, at_most=False)],
        ],
    )


if __name__ == "__main__":
    main()
