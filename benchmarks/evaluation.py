"""How long does it take to evaluate eight adapters on one set, and to compute perplexity, against public tools?

A llama of 60 million parameters in bfloat16 with random weights, eight adapters of rank 16 on all of its linear layers,
and 20 conversations. Both sides compute the perplexity of the replies and generate answers of 64 tokens with the same
settings; the model may not end an answer early, so both write as many. The peer is the script that one writes with
transformers and PEFT: for each adapter it loads the base model and the adapter, and takes one sample after the other.
"anew" is this evaluation too, but once for each adapter, so that only loading differs.

Perplexity is then computed of 200 replies, by the evaluation's own code and by lm-evaluation-harness with the same
tokens and batches of 16, of 4, and of 1, which is its default; the best of them counts. It computes log-probabilities
in float32, as Tunesmith does.

Each side is a process of its own and they take turns; imports are not counted.

python -m benchmarks.evaluation
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, spread, verdict

ROUNDS = 5
FASTER, FASTER_PERPLEXITY, ALIKE = 6.0, 2.0, 1e-4
BATCHES = (16, 4, 1)
ADAPTERS, SAMPLES, TOKENS, TEXTS, LENGTH = 8, 20, 64, 200, 512

Result = dict[str, Any]


def prepare(folder: Path) -> None:
    """Writes the model, adapters whose weights do something, and conversations of many lengths."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    from modelkit import scratch
    from modelkit.loading import load_config, load_model

    facts = [[f"{n} times {m} is {n * m}." for m in range(2, 24)] for n in range(TEXTS)]
    texts = [
        {"prompt": f"Go on: {' '.join(row[: 1 + n % 9])}", "response": " ".join(row[1 + n % 9 : 2 + n % 9 + n % 13])}
        for n, row in enumerate(facts)
    ]
    for name, count in (("samples", SAMPLES), ("texts", TEXTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts[:count]))
    corpus = folder / "texts.jsonl"
    scratch.build(folder / "base", family="llama", corpus=corpus, hidden_size=512, layers=8, vocab_size=32000)
    settings = folder / "base" / "generation_config.json"
    if settings.exists():
        settings.unlink()
    config: Any = load_config(folder / "base")
    load_model(folder / "base", dtype=torch.bfloat16, config=config).save_pretrained(folder / "base")
    for number in range(ADAPTERS):
        target = folder / f"adapter-{number}"
        model = load_model(folder / "base", dtype=torch.bfloat16, config=config)
        adapted: Any = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        adapted.save_pretrained(target)
        torch.manual_seed(number)
        weights = {
            name: torch.randn_like(tensor) * 0.02
            for name, tensor in load_file(target / "adapter_model.safetensors").items()
        }
        save_file(weights, target / "adapter_model.safetensors", {"format": "pt"})


def job_of(folder: Path, name: str, adapters: list[int]) -> Any:
    """An evaluation of some of the adapters."""
    from eval_service.recipes.job import Answering, Candidate, Choice, Job, Learnt

    work = folder / name
    work.mkdir()
    return Job(
        model_dir=folder / "base",
        train_file=folder / "samples.jsonl",
        work_dir=work,
        output_dir=work / "output",
        candidates=tuple(Candidate(number + 1, folder / f"adapter-{number}") for number in adapters),
        own_dataset=True,
        scores=("perplexity", "token_f1"),
        learnt=Learnt(max_seq_length=LENGTH),
        choice=Choice(ratio=1.0, least=SAMPLES, most=SAMPLES),
        answering=Answering(max_tokens=TOKENS),
    )


def without_ends() -> None:
    """Answers go on to the last token, so that each side writes as many."""
    from eval_service.recipes import scorer

    module: Any = scorer  # does not export it
    module.end_tokens = lambda *_: frozenset()


def evaluated(folder: Path, name: str, groups: list[list[int]]) -> Result:
    """Seconds of evaluations of groups of adapters, and the perplexities that they found."""
    from eval_service.recipes.evaluation import evaluate
    from workerkit.child.events import EventWriter
    from workerkit.child.stopping import StopRequest

    without_ends()
    jobs = [job_of(folder, f"{name}-{number}", group) for number, group in enumerate(groups)]
    began = time.monotonic()
    for job in jobs:
        evaluate(job, EventWriter(None), StopRequest())
    seconds = time.monotonic() - began
    reports = [json.loads((job.output_dir / "report.json").read_text()) for job in jobs]
    found = [item["values"][0]["value"] for report in reports for item in report["checkpoints"]]
    return {"seconds": seconds, "perplexities": found}


def ours(folder: Path, name: str) -> Result:
    """One evaluation of all adapters."""
    return evaluated(folder, name, [list(range(ADAPTERS))])


def anew(folder: Path, name: str) -> Result:
    """An evaluation for each adapter."""
    return evaluated(folder, name, [[number] for number in range(ADAPTERS)])


def theirs(folder: Path, _: str) -> Result:
    """The script that one writes: everything is loaded for each adapter, each sample goes through the model alone."""
    import torch
    from peft import PeftModel
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    rows = encoded(folder, "samples")
    began = time.monotonic()
    found = []
    for number in range(ADAPTERS):
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        folder_of_adapter = folder / f"adapter-{number}"
        model: Any = PeftModel.from_pretrained(base, folder_of_adapter, autocast_adapter_dtype=False).eval()
        total, count = 0.0, 0
        for ids, first in rows:
            tokens = torch.tensor([ids])
            with torch.no_grad():
                logits = model(input_ids=tokens).logits[0, first - 1 : -1].float()
                total += float(functional.cross_entropy(logits, tokens[0, first:], reduction="sum"))
                count += len(ids) - first
                torch.manual_seed(42)
                model.generate(
                    input_ids=tokens[:, :first],
                    attention_mask=torch.ones(1, first, dtype=torch.long),
                    do_sample=True,
                    temperature=0.3,
                    top_k=20,
                    top_p=0.9,
                    repetition_penalty=1.1,
                    min_new_tokens=TOKENS,
                    max_new_tokens=TOKENS,
                    pad_token_id=0,
                )
        found.append(math.exp(total / count))
    return {"seconds": time.monotonic() - began, "perplexities": found}


def encoded(folder: Path, name: str) -> list[tuple[list[int], int]]:
    """Token ids of each conversation, and where its reply begins."""
    return [(row.input_ids.tolist(), int((row.labels >= 0).argmax())) for row in encode(folder, name)]


def encode(folder: Path, name: str) -> list[Any]:
    """Conversations as trainings and evaluations read them."""
    from modelkit.datasets import JsonlDataset, scan
    from modelkit.encoders import encoder_for
    from modelkit.loading import load_config, load_tokenizer

    config = load_config(folder / "base")
    report = scan(folder / f"{name}.jsonl")
    encoder = encoder_for(report, load_tokenizer(folder / "base", config), config, max_length=LENGTH)
    return encoder.encode(JsonlDataset(report)[:])


def loaded(folder: Path) -> Any:
    """The base model."""
    import torch

    from modelkit.loading import load_model

    model: Any = load_model(folder / "base", dtype=torch.bfloat16)
    return model.eval()


def our_perplexity(folder: Path, _: str) -> Result:
    """Packed batches; logits of the replies' tokens alone. The model is loaded as evaluations load it."""
    from eval_service.recipes.model import load
    from eval_service.scoring.perplexity import Forwarding

    rows, model = encode(folder, "texts"), load(folder / "base", None, classifies=False).model
    began = time.monotonic()
    losses = Forwarding(rows, list(range(len(rows))), model, pad_id=0).losses(model)
    return {
        "seconds": time.monotonic() - began,
        "perplexities": [math.exp(losses.sums.sum() / losses.tokens.sum())],
    }


def harness_perplexity(folder: Path, _: str, *, batch: int) -> Result:
    """lm-evaluation-harness with the same tokens."""
    from lm_eval.models.huggingface import HFLM

    from modelkit.loading import load_config, load_tokenizer

    tokenizer = load_tokenizer(folder / "base", load_config(folder / "base"))
    harness: Any = HFLM(
        pretrained=loaded(folder), tokenizer=tokenizer, batch_size=batch, max_length=LENGTH, softmax_dtype="float32"
    )
    rows = encoded(folder, "texts")
    requests = [((str(place), ""), ids[:first], ids[first:]) for place, (ids, first) in enumerate(rows)]
    began = time.monotonic()
    answers = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    total, count = sum(answer[0] for answer in answers), sum(len(ids) - first for ids, first in rows)
    return {"seconds": time.monotonic() - began, "perplexities": [math.exp(-total / count)]}


SIDES: dict[str, Callable[[Path, str], Result]] = {
    "tunesmith": ours,
    "tunesmith, anew": anew,
    "transformers + peft": theirs,
    "perplexity: tunesmith": our_perplexity,
    **{
        f"perplexity: lm-evaluation-harness, {batch} at once": partial(harness_perplexity, batch=batch)
        for batch in BATCHES
    },
}


def measure(side: str, folder: Path, name: str) -> Result:
    """One run in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.evaluation", side, str(folder), name]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def distance(ours: list[float], others: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(left / right - 1) for left, right in zip(ours, others, strict=True))


def main(rounds: int) -> None:
    found: dict[str, list[Result]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        prepare(folder)
        for number in range(rounds):
            for place, side in enumerate(SIDES):
                found[side].append(measure(side, folder, f"run-{number}-{place}"))
    rows = [[f"{side}: seconds", spread([run["seconds"] for run in runs]), ""] for side, runs in found.items()]
    seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in found.items()}
    perplexities = {side: runs[0]["perplexities"] for side, runs in found.items()}
    mine, anew_side, peer, my_perplexity, *harness = SIDES
    best = min(harness, key=seconds.__getitem__)
    for title, slow, fast, limit in (
        ("transformers + peft / tunesmith", peer, mine, FASTER),
        ("lm-evaluation-harness at its best / tunesmith", best, my_perplexity, FASTER_PERPLEXITY),
    ):
        ratio = seconds[slow] / seconds[fast]
        rows.append([title, f"{ratio:.2f}", verdict(ratio, limit, at_most=False)])
    rows.append(["anew / tunesmith", f"{seconds[anew_side] / seconds[mine]:.2f}", ""])
    apart = distance(perplexities[mine], perplexities[peer])
    rows.append(["eight adapters: farthest perplexity", f"{apart:.1e}", "rounding of bfloat16"])
    apart = max(distance(perplexities[my_perplexity], perplexities[side]) for side in harness)
    rows.append(["texts: distance of perplexities", f"{apart:.1e}", verdict(apart, ALIKE, at_most=True)])
    print_table("Evaluation of eight adapters, and perplexity", ["", "median (least to greatest)", "figure"], rows)


def run_side(side: str, folder: str, name: str) -> None:
    """Prints what one side took."""
    print(json.dumps(SIDES[side](Path(folder), name)))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        run_side(*sys.argv[1:4])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)
