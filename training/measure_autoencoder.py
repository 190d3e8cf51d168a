"""How good the bundled autoencoder is: ``python -m training.measure_autoencoder`` prints what docs/features.md says.

Quality is measured on documents that neither the model nor the autoencoder was trained on; how much of each task's
metric survives, and how far attributions order features as the exact sweep does, on pairs of the tasks.
"""

import json

from circuitlab import load_autoencoder, load_model, load_task
from circuitlab.features import Autoencoder, quality, rank_features, splice, sweep_features
from circuitlab.models.protocol import Model
from training.corpus import documents

# Training took documents of seed 0.
_SEED, _DOCUMENTS, _PAIRS = 1, 300, 40
_STEPS, _SWEPT = 10, 60
TASKS = (
    ("name-throw", {}),
    ("gendered-pronouns", {"contrast": "gender"}),
    ("gendered-pronouns", {"contrast": "capital"}),
    ("html-tag-closing", {}),
)


def of_text(model: Model, autoencoder: Autoencoder) -> dict[str, float | int]:
    """Quality on held-out documents."""
    found = quality(model, autoencoder, [each.text for each in documents(_SEED, _DOCUMENTS)])
    return {
        "tokens": found.n_tokens,
        "explained_variance": round(found.explained_variance, 4),
        "l0": round(found.l0, 2),
        "alive": found.n_alive,
        "loss": round(found.loss, 4),
        "loss_spliced": round(found.loss_spliced, 4),
        "loss_zero": round(found.loss_zero, 3),
        "loss_recovered": round(found.loss_recovered, 4),
    }


def of_task(model: Model, autoencoder: Autoencoder, name: str, options: dict[str, str]) -> dict[str, float | str]:
    """What survives of a task's metric, and Spearman correlations of attributions with the exact sweep."""
    pairs = load_task(name, **options).pairs(model, n=_PAIRS, seed=0).discovery
    told: dict[str, float | str] = {"task": " ".join([name, *options.values()])}
    told["metric_kept"] = round(splice(model, autoencoder, pairs).recovered, 3)
    for steps in (_STEPS, 1):
        ranking = rank_features(model, autoencoder, pairs, steps=steps)
        exact = sweep_features(model, autoencoder, pairs, axis="all", features=ranking.features[:_SWEPT])
        told[f"spearman_{steps}"] = round(ranking.agreement(exact), 3)
    return told


def main() -> None:
    """The command."""
    model = load_model("bundled")
    autoencoder = load_autoencoder("bundled", model=model)
    print(json.dumps(of_text(model, autoencoder)))
    for name, options in TASKS:
        print(json.dumps(of_task(model, autoencoder, name, options)))


if __name__ == "__main__":
    main()
