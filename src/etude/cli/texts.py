"""What the command line says of itself: one line and examples for each command."""

from __future__ import annotations

ABOUT = {
    "list": "the 100 papers: what is implemented, and the last verdicts",
    "show": "one paper: what it is, its claims and verdicts, how to use it",
    "compare": "let methods compete on your model and data; one is recommended",
    "apply": "run one method, or what a contest recommended, and save the result",
    "play": "check a paper's own claims against a fair baseline",
    "report": "a static page of all recorded verdicts with plots",
    "verify": "recompute verdicts and recommendations from the recorded runs",
    "cache": "what lies on this disk, and how to free it",
    "doctor": "devices, embedded models, extras, and the fix for each thing missing",
}
EXAMPLES = {
    "list": ("etude list --family compress",),
    "show": ("etude show laser", "etude show 2203.15556"),
    "compare": (
        "etude compare laser --model smollm2-rotated --data english --out out",
        "etude compare --family compress --model MODEL_DIR --data my.txt --budget 0.5 --prefer speed",
        "etude compare laser:rho=0.2 gptq --model MODEL_DIR --data my.jsonl --column text=body --max-loss 5%",
        "etude compare laser --with my_file.py:MyMethod --metric my_file.py:score",
        "etude compare --family study --data runs.csv",
    ),
    "apply": (
        "etude apply laser --model MODEL_DIR --data my.txt --rho 0.2 --out small",
        "etude apply --from out/results.json --out best",
        "etude apply laser --help",
    ),
    "play": ("etude play laser chinchilla --scale desk",),
    "report": ("etude report --out scoreboard",),
    "verify": ("etude verify", "etude verify out/results.json"),
    "cache": ("etude cache --clear memo",),
    "doctor": ("etude doctor --json",),
}


def overview() -> str:
    """What `etude --help` prints."""
    width = max(map(len, ABOUT))
    lines = ["usage: etude COMMAND [...]", "", "Published machine-learning methods compete on your model and data, and one is recommended.", ""]
    lines += [f"  {name:<{width}}  {about}" for name, about in ABOUT.items()]
    first = EXAMPLES["compare"][0]
    return "\n".join([*lines, "", f"first:  {first}", "more:   etude COMMAND --help", ""])
