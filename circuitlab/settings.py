"""The settings of a run, each declared once.

From these declarations come the keywords of `discover` and their documentation, the options of the commands, and the
record in a manifest with its command line. Nothing here needs torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, get_type_hints

from circuitlab import names
from circuitlab.declarations import Setting, declared

LARGEST_SEED = 2**32 - 1


class Settings(TypedDict, total=False):
    """The keywords of `discover`, in the order of its signature and of the help.

    What is `Any` here may be an object of a type of a higher layer: see `given`.
    """

    # fmt: off
    model: Annotated[Any, Setting(
        what="The model, in any form that `load_model` accepts.",
        help="bundled, a name that TransformerLens loads, or a folder.", flag="--model",
        metavar="NAME", kind=str, given="Any", default="bundled", of_model=True,
    )]
    device: Annotated[str | None, Setting(
        what="Device that the model goes to; by default the CPU.", help="cpu, cuda or cuda:0.", flag="--device",
        metavar="NAME", usual="cpu", of_model=True,
    )]
    dtype: Annotated[str | None, Setting(
        what="Dtype of its weights; by default float32.", help="float32, bfloat16, ...", flag="--dtype", metavar="NAME",
        usual="float32", of_model=True,
    )]
    revision: Annotated[str | None, Setting(
        what="Branch, tag or commit of a model on the hub; by default its default branch.",
        help="Branch, tag or commit of a model on the hub.", flag="--revision", metavar="NAME", of_model=True,
    )]
    checkpoint_index: Annotated[int | None, Setting(
        what="Number of a training checkpoint of a model on the hub (see `load_model`).",
        help="Number of a training checkpoint, for models that have several.", flag="--checkpoint-index",
        metavar="N", of_model=True,
    )]
    bos: Annotated[str | None, Setting(
        what="Whether a beginning-of-sequence token is prepended to every text (see `load_model`).",
        help="Prepend a beginning-of-sequence token: auto (if the tokenizer does), always, never or transformer-lens "
        "(as TransformerLens does).", flag="--bos",
        metavar="NAME", allowed=names.BOS, usual="auto", before="transformer-lens", of_model=True,
    )]
    fold_ln: Annotated[bool, Setting(
        what="Fold its norms into the weights that read them (see `load_model`).",
        help="Fold the norms into the next weights.", flag="--fold-ln", default=False, of_model=True,
    )]
    center_weights: Annotated[bool, Setting(
        what="Center the weights that write to the stream, and the unembedding (see `load_model`).",
        help="Center the writing weights and the unembedding.", flag="--center-weights", default=False, of_model=True,
    )]
    method: Annotated[Any, Setting(
        what="How edges are scored, as in `score_edges`: a name of `METHODS`, or an object.", kind=str,
        help=f"Scoring method: {', '.join(names.METHODS)}. See: circuitlab methods.", flag="--method", metavar="NAME",
        default="eap-ig", known=names.METHODS, group="methods", given="MethodLike",
    )]
    steps: Annotated[int, Setting(
        what="Gradients along the path, for methods that integrate.", help="Steps of integrated gradients.",
        flag="--steps", default=5, least=1, most=10_000,
    )]
    method_options: Annotated[Mapping[str, Any] | None, Setting(
        what="Options of the method, by name.", help="Method option; may be repeated.", flag="--method-option",
        metavar="KEY=VALUE", kind=dict[str, Any], given="Mapping[str, Any] | None", usual={},
    )]
    metric: Annotated[Any, Setting(
        what="What is measured; the task's own by default.",
        help=f"Metric: {', '.join(names.METRICS)}. See: circuitlab metrics.", flag="--metric", metavar="NAME", kind=str,
        given="MetricLike | None", usual="logit_diff", known=names.METRICS, group="metrics",
        shown="the task's own",
    )]
    ablation: Annotated[Any, Setting(
        what=(
            "What takes the place of everything outside the circuit, a name of `REPLACEMENTS` or a function (see "
            "`Replacement`): scores, selection and test are under it. Methods that compare with the corrupted run "
            "refuse others. Means and deviations "
            "are of `n` reference pairs, which are never scored. The sweeps patch one prompt into the other in any "
            "case."
        ),
        help=f"Ablation of everything outside the circuit: {', '.join(names.ABLATIONS)}.", flag="--ablation",
        metavar="NAME", default="corrupt", allowed=names.ABLATIONS, kind=str, given="str | AblationFunction",
    )]
    n: Annotated[int, Setting(
        what="Pairs per split; where it is left out, as many as a table has, if that is fewer.",
        help="Pairs of prompts per split; of a table at most half of its rows.", flag="-n", default=100, least=1,
        most=100_000,
    )]
    seed: Annotated[int, Setting(
        what="Seed of prompts, intervals and random circuits; the same seed gives the same bytes.",
        help="Random seed of prompts and numbers.", flag="--seed", default=0, least=0, most=LARGEST_SEED,
    )]
    target: Annotated[float | None, Setting(
        what=(
            "Faithfulness to reach on the discovery pairs; 0.9 where the selection has no other rule. A method that "
            "chooses its circuit itself (`acdc`, `edge-pruning`) aims at no faithfulness unless a target is given."
        ),
        help="Faithfulness that the circuit must reach; methods that choose their circuit themselves (acdc, "
        "edge-pruning) aim at none unless it is given.", flag="--target", shown="0.9",
    )]
    selection: Annotated[Any, Setting(
        what=(
            "How the circuit is selected from the scored edges, where a target is not enough: a number of edges or "
            "a threshold instead of it, by signed scores, greedily."
        ),
        kind=Any, given="SelectionRule | Mapping[str, Any] | None", usual={},
    )]
    min_accuracy: Annotated[float, Setting(
        what=(
            "Share of pairs that the model must get right: with the metric on the better side of 0 where it has a "
            "natural zero, else with an answer as the most likely token (`circuitlab.discovery.behaviour`)."
        ),
        help="Minimum share of pairs that the model answers correctly; 0 skips the check.", flag="--min-accuracy",
        default=0.6, least=0, most=1, rule="it is a share of pairs, 0 to 1",
    )]
    allow_weak_gap: Annotated[bool, Setting(
        what=(
            "Go on where these pairs do not tell the clean run from the corrupted one, or from the empty circuit: "
            "shares of a gap that may be nothing."
        ),
        help="Accept pairs without a significant clean-corrupted difference.", flag="--allow-weak-gap", default=False,
        before=True,
    )]
    stability: Annotated[int, Setting(
        what=(
            "Number of bootstrap resamples of the discovery pairs on which discovery is repeated, to see which "
            "edges stay; 0 for none."
        ),
        help="Repeat discovery on N bootstrap resamples of the pairs.", flag="--stability", default=0, least=0,
        most=10_000, refused=1, rule="it counts resamples: 0 for none, or 2 to 10,000",
    )]
    stability_seeds: Annotated[int, Setting(
        what="The same on new prompts of the seeds `seed` + 1, + 2, ...: the number of seeds; 0 for none.",
        help="Repeat discovery on new prompts with N other seeds.", flag="--stability-seeds", default=0, least=0,
        most=10_000, refused=1, rule="it counts seeds: 0 for none, or 2 to 10,000",
    )]
    minimality: Annotated[bool, Setting(
        what="Measure the effect of removing each edge of the circuit from it: one run of the circuit per edge.",
        help="Measure the effect of removing each edge.", flag="--minimality/--no-minimality", default=True,
    )]
    sites: Annotated[Any, Setting(
        what=(
            "What is swept, names of `SITES` or `Site` objects; by default `SWEPT_SITES`, as far as the model has "
            "them. An empty tuple skips the sweeps; then only the nodes of the circuit are patched, each alone, for "
            "its drawing."
        ),
        help="Sites to sweep, separated by commas; may be repeated.", flag="--sites", metavar="NAME",
        kind=tuple[str, ...], given="str | Sequence[str | Site] | None", known=names.SITES,
        group="sites",
        rule="it must be a list of names, such as ['head_z'], or empty",
    )]
    task_options: Annotated[Mapping[str, str] | None, Setting(
        what='Options of the task, such as `{"contrast": "gender"}`.', help="Task option; may be repeated.",
        flag="--option", metavar="KEY=VALUE", kind=dict[str, str], given="Mapping[str, str] | None", usual={},
        record="options",
    )]
    columns: Annotated[Mapping[str, str] | None, Setting(
        what=(
            "For a task that is a table of pairs: our field -> its column, such as `{\"clean\": \"sentence\"}`, for "
            "columns that are not recognised (`Task.from_frame`)."
        ),
        help="Columns of a table of pairs, such as clean=THEIRS,corrupt=THEIRS.", flag="--columns",
        metavar="FIELD=COLUMN", kind=dict[str, str], given="Mapping[str, str] | None", usual={},
    )]
    max_bad_rows: Annotated[int, Setting(
        what="So many rows of a table that hold no pair are left out; more are an error that names them.",
        help="Rows of a table that may be bad; they are left out and counted.", flag="--max-bad-rows", default=0,
        least=0, most=1_000_000,
    )]
    data_split: Annotated[str | None, Setting(
        what="The one split of a data set to read; by default all: train for discovery, test held out.",
        help="Split of a data set to read.", flag="--data-split", metavar="NAME",
    )]
    data_config: Annotated[str | None, Setting(
        what="The configuration of a data set.", help="Configuration of a data set.", flag="--data-config",
        metavar="NAME",
    )]
    data_revision: Annotated[str | None, Setting(
        what="The revision of a data set on the hub: a branch, tag or commit.",
        help="Revision of a data set on the hub.", flag="--data-revision", metavar="NAME",
    )]
    split: Annotated[str | None, Setting(
        what=(
            "How held-out prompts differ from discovery prompts: `words` keeps words and templates of the task for "
            "them (`Task.held_out`), and the splits of a table; `random` only lets no text be in both. The task's own "
            "by default."
        ),
        help=f"How held-out prompts differ: {', '.join(names.SPLITS)}.", flag="--split", metavar="NAME",
        allowed=names.SPLITS, usual="words", before="random", shown="words if the task holds words out, else random",
    )]
    chat: Annotated[bool | None, Setting(
        what=(
            "Whether a prompt is the user's message of a chat, in the chat template of the model's tokenizer, and the "
            "answer is the beginning of the reply."
        ),
        help="Prompts are messages of a chat, in the model's chat template.", flag="--chat", usual=False,
    )]
    shots: Annotated[int | None, Setting(
        what=(
            "Number of solved examples before every prompt, the same for all, drawn with the seed from the words or "
            "rows of discovery; in a chat they are earlier turns."
        ),
        help="Solved examples before every prompt.", flag="--shots", metavar="N", usual=0, least=0, most=1000,
    )]
    reply_to: Annotated[str | None, Setting(
        what=(
            "The user's message of a chat, to which every prompt begins the assistant's reply; with `chat`. By default "
            "prompts are the user's messages themselves."
        ),
        help="With --chat: prompts begin the reply to this message.", flag="--reply-to", metavar="TEXT",
    )]
    out: Annotated[Any, Setting(
        what="Folder to write; nothing is written without it.", help="Run folder.", flag="--out", metavar="PATH",
        given="str | Path | None", shown="runs/TASK-MODEL-METHOD-SEED", kind=str, recorded=False,
    )]
    force: Annotated[bool, Setting(
        what="Replace that folder if it is there.", help="Overwrite existing output.", flag="--force", default=False,
        recorded=False,
    )]
    progress: Annotated[Any, Setting(
        what=(
            "None draws a bar in a terminal or a notebook, True always, False never; or a function that is called "
            "with (step, done, total)."
        ),
        given="Progress | bool | None", recorded=False,
    )]
    # fmt: on


# The settings that say what stands around a task's prompts.
AROUND_PROMPTS = ("chat", "shots", "reply_to")
# The settings that say how a table of pairs is read.
OF_TABLE = ("columns", "max_bad_rows", "data_split", "data_config", "data_revision")
TASK = Setting(name="task", what="The task.", kind=str, given="str | Path | Task")
# Every setting by its keyword. None of these keywords reaches a task: its options are in `task_options`.
SETTINGS = {"task": TASK} | declared(get_type_hints(Settings, include_extras=True))
# The arguments of `load_model` among them.
MODEL_SETTINGS = tuple(name for name, setting in SETTINGS.items() if setting.of_model)
