"""Runs lm_eval 0.4.13 on local files: the harness's own prompts and metrics, with JSON lines
instead of data sets from the hub.

    python3 -m venv .deps/lm-eval && .deps/lm-eval/bin/pip install torch==2.11.0 'lm_eval[hf]==0.4.13'

DATA is a folder of DATASET/SPLIT.jsonl, for MMLU of mmlu/SPLIT/SUBJECT.jsonl, each with the columns
of the data set on the hub. Tasks have the harness's names; MMLU is 5-shot, all others follow their
task definitions.
"""

import importlib.util
import os
import shutil
import time
from pathlib import Path

# The harness's definition of each task, and its data set and split.
TASKS = {
    "wsc273": ("wsc273/default.yaml", "wsc273", "test"),
    "wsc": ("super_glue/wsc/default.yaml", "wsc", "validation"),
    "piqa": ("piqa/piqa.yaml", "piqa", "validation"),
    "boolq": ("super_glue/boolq/default.yaml", "boolq", "validation"),
    "winogrande": ("winogrande/default.yaml", "winogrande", "validation"),
    "logiqa": ("logiqa/logiqa.yaml", "logiqa", "test"),
    "wnli": ("glue/wnli/default.yaml", "wnli", "validation"),
    "qnli": ("glue/qnli/default.yaml", "qnli", "validation"),
    "mnli": ("glue/mnli/default.yaml", "mnli", "validation_matched"),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "truthfulqa_mc", "validation"),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "truthfulqa_mc", "validation"),
    "wikitext": ("wikitext/wikitext.yaml", "wikitext", "test"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "lambada_openai", "test"),
    "lambada_standard": ("lambada/lambada_standard.yaml", "lambada_standard", "test"),
    "arc_easy": ("arc/arc_easy.yaml", "arc_easy", "test"),
    "sciq": ("sciq/sciq.yaml", "sciq", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag", "validation"),
}
SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
MMLU_SHOTS = 5


def process_seconds():
    """Returns the seconds since this process started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def prepare(cache, threads):
    """Sets what lm_eval needs before its import: nothing is fetched, and data sets are converted
    into `cache`."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(cache), "OMP_NUM_THREADS": str(threads)}
    if threads == 1:
        os.environ |= {"DISABLE_MULTIPROC": "1", "TOKENIZERS_PARALLELISM": "false"}


def write_tasks(data, folder):
    """Writes the definitions of all tasks whose data exist; returns the tasks' names."""
    definitions = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    data, folder = Path(data).resolve(), Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = []
    for name, (definition, dataset, split) in TASKS.items():
        file = data / dataset / f"{split}.jsonl"
        if file.exists():
            # Missing splits that no task's score needs.
            unused = [key for key, value in SPLITS.items() if not split.startswith(value)]
            write_task(folder, name, definitions / definition, {split: file}, unused)
            names.append(name)
    subjects = sorted(file.stem for file in (data / "mmlu" / "test").glob("*.jsonl"))
    for subject in subjects:
        files = {split: data / "mmlu" / split / f"{subject}.jsonl" for split in ("dev", "test")}
        definition = definitions / "mmlu" / "default" / f"mmlu_{subject}.yaml"
        # The harness looks for a group's members only within each file.
        tag = next(line for line in definition.read_text().splitlines() if line.startswith('"tag"'))
        write_task(folder, f"mmlu_{subject}", definition, files, [], tag)
    if subjects:
        for group in (definitions / "mmlu" / "default").glob("_mmlu*.yaml"):
            shutil.copy(group, folder)
        names.append("mmlu")
    return names


def write_task(folder, name, definition, files, unused, *more):
    lines = [f"include: {definition}", f"task: {name}", "dataset_path: json", "dataset_name: null", "dataset_kwargs:", "  data_files:"]
    lines += [f"    {split}: {file}" for split, file in files.items()]
    lines += [*(f"{key}: null" for key in unused), *more]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def evaluate(lm, tasks, folder, index=False, limit=None, mmlu_limit=None, limits={}, **options):
    """Returns the harness's report on `tasks`, which write_tasks has defined in `folder`; MMLU and
    the others are separate runs.

    `limits` sets the number of first documents per task, `limit` and `mmlu_limit` for all of them.
    With `index` the harness first indexes its own tasks, as on its command line.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=index)
    report = {}
    mmlu = [task for task in tasks if task.startswith("mmlu")]
    others = [task for task in tasks if task not in mmlu]
    subjects = [file.stem for file in Path(folder).glob("mmlu_*.yaml")]
    for names, shots, first in ((others, None, limit), (mmlu, MMLU_SHOTS, mmlu_limit or limit)):
        if names:
            leaves = {name: subjects if name == "mmlu" else [name] for name in names}
            own = {leaf: list(range(limits[name])) for name in names if name in limits for leaf in leaves[name]}
            found = simple_evaluate(
                model=lm, tasks=names, num_fewshot=shots, limit=first, samples=own or None, task_manager=manager, **options
            )
            for key in ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "samples"):
                report.setdefault(key, {}).update(found.get(key) or {})
    return report
